//! The inner loops of KMeans alone: prints one line of digits per instruction set of the machine. Equal lines mean equal bits.
//! `.ci/full` builds it for this machine and for AArch64, which has NEON.

#![allow(dead_code)]

use fearless_simd::Level;

pub const MAX_FEATURES: usize = 32;
mod features {
    pub mod moments {
        pub const LANES: usize = 8;
    }
}
mod kmeans {
    #[path = "distances.rs"]
    pub mod distances;
    #[path = "hamerly_kernel.rs"]
    pub mod hamerly_kernel;
    #[path = "kernel.rs"]
    pub mod kernel;

    use fearless_simd::Level;
    use hamerly_kernel::Kept;
    use kernel::{Frame, GROUPS, Lanes, Nearest, Sums, Tile};

    /// Deterministic numbers.
    fn numbers(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n).map(|_| next()).collect()
    }

    /// All results of the loops, combined into one number.
    pub fn digest(level: Level) -> u64 {
        let mut digest = 0u64;
        let mut take = |values: &[f64]| {
            for value in values {
                digest = (digest ^ value.to_bits()).wrapping_mul(0x0100_0000_01B3).rotate_left(7);
            }
        };
        for (features, k) in [(1, 3), (2, 3), (2, 8), (3, 5), (4, 8), (5, 3), (8, 16), (9, 4), (32, 2), (3, 40)] {
            let columns: Vec<Vec<Lanes>> = (0..features)
                .map(|f| numbers(f as u64 + 1, GROUPS * 8).as_chunks().0.to_vec())
                .collect();
            let columns: Vec<&[Lanes]> = columns.iter().map(Vec::as_slice).collect();
            let weights: Vec<Lanes> = numbers(99, GROUPS * 8).as_chunks().0.to_vec();
            let (origin, inverse) = (numbers(5, features), numbers(6, features));
            let mut nearest = Nearest::new();
            for seed in [100, 200] {
                let (before, after) = (numbers(seed, k * features), numbers(seed + 1, k * features));
                let before = Frame { origin: &origin, inverse: &inverse, centroids: &before, k };
                let after = Frame { origin: &origin, inverse: &inverse, centroids: &after, k };
                for weights in [None, Some(&weights[..])] {
                    let tile = Tile { columns: &columns, weights };
                    let mut sums = Sums::new(level, k, features);
                    kernel::sweep(level, &tile, &before, &mut None, &mut sums);
                    let mut sums = sums.fold();
                    take(&sums);
                    let mut with_bounds = Sums::new(level, k, features);
                    let (mut labels, mut until) = (vec![[0; 8]; GROUPS], vec![f32::NEG_INFINITY; GROUPS]);
                    let mut kept = Kept { labels: &mut labels, until: &mut until, travelled: 0.0 };
                    hamerly_kernel::sweep_and_keep(level, &tile, &before, &mut kept, &mut nearest, &mut with_bounds);
                    assert_eq!(sums, with_bounds.fold(), "{features} features, {k} clusters");
                    // Only the groups whose bounds are reached, then all of them.
                    for travelled in [0.05, 1e6] {
                        kept.travelled = travelled;
                        let due = kept.due();
                        hamerly_kernel::look_again(
                            level, &tile, &after, &due, &mut kept, &mut nearest, &mut sums[..k * features + k],
                        );
                        take(&[due.len() as f64]);
                        take(&sums);
                    }
                    until.iter().for_each(|&until| take(&[f64::from(until)]));
                }
            }
            let closest = vec![[1.0; 8]; GROUPS];
            let mut out = closest.clone();
            take(&[distances::draw_nearer(level, &columns, &weights, &origin, &closest, &mut out)]);
            take(out.as_flattened());
            let plain: Vec<Vec<f64>> = columns.iter().map(|column| column.as_flattened().to_vec()).collect();
            let mut apart = vec![0.0; plain[0].len()];
            distances::distances(level, &plain, 3, &mut apart);
            take(&apart);
        }
        digest
    }
}

fn main() {
    let best = Level::new();
    #[allow(unused_mut)]
    let mut levels = vec![("best", best), ("baseline", Level::baseline())];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(best.as_sse4_2().map(|level| ("SSE4.2", Level::Sse4_2(level))));
        levels.extend(best.as_avx2().map(|level| ("AVX2", Level::Avx2(level))));
    }
    for (name, level) in levels {
        println!("{:016x} {} {name}: {level:?}", kmeans::digest(level), std::env::consts::ARCH);
    }
}
