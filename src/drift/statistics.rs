//! Comparison of two distributions in the same bins.
//!
//! Input: counts of the training and of later rows. Output: the population stability index, the p-value of the chi-square test, and
//! the direction of a change.

use statrs::function::gamma::gamma_ur;

/// Smallest share in the index: an empty bin would make it infinite.
const LEAST: f64 = 1e-4;

/// Population stability index: the sum over the bins of (q - p) ln(q / p), where p and q are the shares of a bin before and now, at
/// least 0.0001 (Siddiqi, "Credit Risk Scorecards", 2006). 0 if one side has no rows.
pub fn stability_index(before: &[u64], now: &[u64]) -> f64 {
    let (all_before, all_now) = (total(before), total(now));
    if all_before == 0.0 || all_now == 0.0 {
        return 0.0;
    }
    let share = |count: u64, all: f64| (count as f64 / all).max(LEAST);
    let term = |(&before, &now): (&u64, &u64)| {
        let (p, q) = (share(before, all_before), share(now, all_now));
        (q - p) * (q / p).ln()
    };
    before.iter().zip(now).map(term).sum()
}

/// The p-value of the chi-square test that both samples have one distribution: without a correction for continuity, over the bins
/// that are not empty in both. 1 if there is only one such bin or one side has no rows.
pub fn p_value(before: &[u64], now: &[u64]) -> f64 {
    let (all_before, all_now) = (total(before), total(now));
    let bins = before.iter().zip(now).filter(|(before, now)| **before + **now > 0).count();
    if bins < 2 || all_before == 0.0 || all_now == 0.0 {
        return 1.0;
    }
    let (scale_before, scale_now) = ((all_now / all_before).sqrt(), (all_before / all_now).sqrt());
    let term = |(&before, &now): (&u64, &u64)| {
        let difference = scale_before * before as f64 - scale_now * now as f64;
        if before + now == 0 { 0.0 } else { difference * difference / (before + now) as f64 }
    };
    let statistic: f64 = before.iter().zip(now).map(term).sum();
    if statistic <= 0.0 { 1.0 } else { gamma_ur((bins - 1) as f64 / 2.0, statistic / 2.0) }
}

/// The same for a share: `of` rows of `all`, before and now.
pub fn p_value_of_share(before: (u64, u64), now: (u64, u64)) -> f64 {
    let bins = |(of, all): (u64, u64)| [of, all.saturating_sub(of)];
    p_value(&bins(before), &bins(now))
}

fn total(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-12), "{found} is not {expected}");
    }

    #[test]
    fn the_index_is_that_of_numpy() {
        // p, q = numpy.maximum([[10, 20, 70], [30, 30, 40]] / 100, 1e-4); ((q - p) * numpy.log(q / p)).sum()
        near(stability_index(&[10, 20, 70], &[30, 30, 40]), 0.428_153_704_925_065_05);
        near(stability_index(&[100, 0], &[50, 50]), 0.5 * 2.0_f64.ln() + 0.4999 * 5000.0_f64.ln());
        assert_eq!((stability_index(&[5, 5], &[50, 50]), stability_index(&[0, 0], &[1, 2])), (0.0, 0.0));
    }

    #[test]
    fn the_test_is_that_of_scipy() {
        // scipy.stats.chi2_contingency([[10, 20, 70], [30, 30, 40]], correction=False).pvalue
        near(p_value(&[10, 20, 70], &[30, 30, 40]), 4.145_470_838_528_938_5e-5);
        near(p_value(&[10, 20, 0, 70], &[30, 30, 0, 40]), p_value(&[10, 20, 70], &[30, 30, 40]));
        // scipy.stats.chi2_contingency([[489, 0], [4000, 1000]], correction=False).pvalue
        near(p_value_of_share((489, 489), (4_000, 5_000)), 7.791_879_008_679_193e-28);
        assert_eq!((p_value(&[7, 0], &[9, 0]), p_value(&[0, 0], &[9, 1])), (1.0, 1.0));
        near(p_value(&[5, 5], &[50, 50]), 1.0);
        assert!(p_value(&[100_000, 0], &[0, 100_000]) < 1e-300);
    }
}
