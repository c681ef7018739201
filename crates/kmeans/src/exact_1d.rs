//! Exact KMeans for one feature, for any number of rows.
//!
//! Input: points with one feature. Output: centroids with the minimum inertia. In one dimension clusters are intervals, so
//! dynamic programming over the sorted distinct values finds the optimum (exact_1d_costs.rs).
//!
//! Few distinct values are counted. Many values are first summed in bins between quantiles. A lower bound of the cost of a
//! break inside a bin is the optimal cost without that bin's rows. If it exceeds the cost of a known clustering, the bin
//! contains no break and stays one block. Only the few other bins are divided, until every break is between two values.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exact_1d_costs::{Block, Costs};
use super::points::Points;
use crate::parallel::by_chunk;

/// Approximate number of blocks of one round of dynamic programming.
const BLOCKS: usize = 4096;
/// Maximum number of distinct values that are counted in a chunk.
const FEW: usize = 4096;
/// Number of rows up to which values are sorted without bins.
const SORTED: usize = 131_072;
/// Cells of the grid that finds bins.
const GRID: usize = 16_384;
/// Number of rows from which quantiles are computed.
const SAMPLE: usize = 32_768;

/// Distinct values, standardised and ascending, with their weights.
#[derive(Debug, PartialEq)]
struct Line {
    values: Vec<f64>,
    weights: Vec<f64>,
}

/// The optimal k centroids, in original units. Requires at least k distinct values.
pub(super) fn best(points: &Points<'_>, k: usize, threads: usize) -> Vec<f64> {
    let standardised = match counted(points, threads) {
        Some(line) => Search { line: &line, k }.run(pieces(&line, 0..line.values.len(), BLOCKS)),
        None if points.rows() <= SORTED => {
            let line = Line::of(values(points, threads, |_| true));
            Search { line: &line, k }.run(pieces(&line, 0..line.values.len(), BLOCKS))
        }
        None => binned(points, k, threads),
    };
    standardised.into_iter().map(|value| points.restore(0, value)).collect()
}

impl Line {
    fn of(mut values: Vec<(f64, f64)>) -> Self {
        values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        values.dedup_by(|next, before| {
            next.0 == before.0 && {
                before.1 += next.1;
                true
            }
        });
        let (values, weights) = values.into_iter().unzip();
        Self { values, weights }
    }

    fn block(&self, on: Range<usize>) -> Block {
        let mut block = Block::default();
        self.values[on.clone()].iter().zip(&self.weights[on.clone()]).for_each(|(&v, &w)| block.add_value(v, w));
        // A single value cannot be divided.
        Block { on: if on.len() > 1 { on } else { 0..0 }, ..block }
    }
}

/// Divides a part of the line into about `many` blocks.
fn pieces(line: &Line, on: Range<usize>, many: usize) -> Vec<Block> {
    let size = on.len().div_ceil(many.max(2)).max(1);
    on.clone().step_by(size).map(|start| line.block(start..on.end.min(start + size))).collect()
}

/// All distinct values with their weights; `None` if a chunk has more than [`FEW`].
fn counted(points: &Points<'_>, threads: usize) -> Option<Line> {
    let many = AtomicBool::new(false);
    let chunks = by_chunk(points.rows(), threads, |rows| {
        // A hash table with open addressing, at most half full; a weight of 0 marks a free slot.
        let mut table = vec![(0.0_f64, 0.0_f64); 2 * FEW];
        let mut used = 0;
        points.each_value(rows, |first, values| {
            if many.load(Ordering::Relaxed) {
                return;
            }
            for (i, &value) in values.iter().enumerate() {
                // Adding 0 turns -0 into +0.
                let value = value + 0.0;
                let mut place = (value.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51) as usize;
                while table[place].1 > 0.0 && table[place].0 != value {
                    place = (place + 1) % table.len();
                }
                if table[place].1 == 0.0 {
                    used += 1;
                    if used > FEW {
                        return many.store(true, Ordering::Relaxed);
                    }
                }
                table[place] = (value, table[place].1 + points.weight(first + i));
            }
        });
        table.retain(|(_, weight)| *weight > 0.0);
        table
    });
    let standardised = |(value, weight): (f64, f64)| (points.standardise(0, value), weight);
    (!many.into_inner()).then(|| Line::of(chunks.into_iter().flatten().map(standardised).collect()))
}

/// The values for which `wanted` holds, standardised, with their weights.
fn values(points: &Points<'_>, threads: usize, wanted: impl Fn(f64) -> bool + Sync) -> Vec<(f64, f64)> {
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut found = Vec::new();
        points.each_value(rows, |first, values| {
            for (i, &value) in values.iter().enumerate() {
                let value = points.standardise(0, value);
                if wanted(value) {
                    found.push((value, points.weight(first + i)));
                }
            }
        });
        found
    });
    chunks.concat()
}

/// The search with a first round on bins between quantiles, so that few values are sorted.
fn binned(points: &Points<'_>, k: usize, threads: usize) -> Vec<f64> {
    let row = |j: usize| (j as u128 * points.rows() as u128 / SAMPLE as u128) as u32;
    let rows: Vec<u32> = (0..SAMPLE).map(row).collect();
    let mut sample: Vec<f64> = points.values(0, &rows).into_iter().map(|value| points.standardise(0, value)).collect();
    sample.sort_unstable_by(f64::total_cmp);
    let mut splitters: Vec<f64> = sample.into_iter().step_by(SAMPLE / BLOCKS).skip(1).collect();
    splitters.dedup();
    let bins_of = Bins::new(splitters);
    let bin = |value: f64| bins_of.of(value);
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut bins = vec![Block::default(); bins_of.count()];
        points.each_value(rows, |first, values| {
            for (i, &value) in values.iter().enumerate() {
                let value = points.standardise(0, value);
                bins[bin(value)].add_value(value, points.weight(first + i));
            }
        });
        bins
    });
    let mut bins = vec![Block::default(); bins_of.count()];
    for chunk in chunks {
        bins.iter_mut().zip(chunk).for_each(|(bin, part)| bin.add(&part));
    }
    let open = if bins.len() >= k { Costs::new(&bins, |_| true).open(k) } else { vec![true; bins.len()] };
    let spans = bins_of.spans(&open);
    let line = Line::of(values(points, threads, |value| spans.iter().any(|span| span.contains(&value))));
    let mut blocks: Vec<Block> = Vec::new();
    let mut start = 0;
    for (b, block) in bins.iter().enumerate() {
        if open[b] {
            let end = start + line.values[start..].partition_point(|&value| bin(value) <= b);
            blocks.push(line.block(start..end));
            start = end;
        } else {
            close(&mut blocks, block, b > 0 && !open[b - 1]);
        }
    }
    blocks.retain(|block| block.weight > 0.0);
    if blocks.len() < k {
        blocks = blocks
            .into_iter()
            .flat_map(|b| if b.on.is_empty() { vec![b] } else { pieces(&line, b.on, BLOCKS) })
            .collect();
    }
    Search { line: &line, k }.run(blocks)
}

/// Finds the bin of a value: a uniform grid narrows the range of bins, then the splitters decide.
struct Bins {
    splitters: Vec<f64>,
    /// The first bin of each cell of the grid; the last cell includes all values beyond it.
    first: Vec<u16>,
    low: f64,
    per_unit: f64,
}

impl Bins {
    fn new(splitters: Vec<f64>) -> Self {
        let (low, high) = (splitters[0], splitters[splitters.len() - 1]);
        let per_unit = if high > low { (GRID - 1) as f64 / (high - low) } else { 0.0 };
        let mut bins = Self { splitters, first: Vec::new(), low, per_unit };
        // The cell is monotonic in the value, rounding included.
        let cells: Vec<usize> = bins.splitters.iter().map(|&splitter| bins.cell(splitter)).collect();
        bins.first = (0..=GRID).map(|cell| cells.partition_point(|&other| other < cell) as u16).collect();
        bins
    }

    fn count(&self) -> usize {
        self.splitters.len() + 1
    }

    fn cell(&self, value: f64) -> usize {
        // The cast saturates: negative numbers become 0.
        (((value - self.low) * self.per_unit) as usize).min(GRID - 1)
    }

    /// Ranges of the open bins, with adjacent bins merged: few, because there are few breaks.
    fn spans(&self, open: &[bool]) -> Vec<Range<f64>> {
        let start = |bin: usize| if bin == 0 { f64::NEG_INFINITY } else { self.splitters[bin - 1] };
        let mut spans: Vec<Range<f64>> = Vec::new();
        for bin in (0..open.len()).filter(|&bin| open[bin]) {
            let end = self.splitters.get(bin).copied().unwrap_or(f64::INFINITY);
            match spans.last_mut() {
                Some(span) if span.end == start(bin) => span.end = end,
                _ => spans.push(start(bin)..end),
            }
        }
        spans
    }

    fn of(&self, value: f64) -> usize {
        let cell = self.cell(value);
        let (first, last) = (usize::from(self.first[cell]), usize::from(self.first[cell + 1]));
        first + self.splitters[first..last].partition_point(|&splitter| splitter <= value)
    }
}

/// Appends a block without breaks; with `join`, merges it with the block before it.
fn close(blocks: &mut Vec<Block>, block: &Block, join: bool) {
    match blocks.last_mut() {
        Some(last) if join => last.add(block),
        _ => blocks.push(Block { on: 0..0, ..block.clone() }),
    }
}

/// Divides blocks until the optimal breaks are between values.
struct Search<'a> {
    line: &'a Line,
    k: usize,
}

impl Search<'_> {
    fn run(&self, mut blocks: Vec<Block>) -> Vec<f64> {
        loop {
            let costs = Costs::new(&blocks, |block| !block.on.is_empty());
            let open = if blocks.iter().all(|block| block.on.is_empty()) { Vec::new() } else { costs.open(self.k) };
            let divisible = |b: &usize| open[*b] && !blocks[*b].on.is_empty();
            let many = (0..open.len()).filter(divisible).count();
            if many == 0 {
                return costs.centroids(self.k);
            }
            let mut finer = Vec::new();
            for (b, block) in blocks.iter().enumerate() {
                match (open[b], block.on.is_empty()) {
                    (true, false) => finer.extend(pieces(self.line, block.on.clone(), BLOCKS / many)),
                    (true, true) => finer.push(block.clone()),
                    (false, _) => close(&mut finer, block, b > 0 && !open[b - 1]),
                }
            }
            blocks = finer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{as_it_is, random};
    use super::*;

    /// Minimum cost over all ways to cut sorted values into k parts.
    fn least(values: &[f64], k: usize) -> f64 {
        let cost = |part: &[f64]| {
            let mean = part.iter().sum::<f64>() / part.len() as f64;
            part.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>()
        };
        if k == 1 {
            return cost(values);
        }
        (1..=values.len() - (k - 1))
            .map(|cut| cost(&values[..cut]) + least(&values[cut..], k - 1))
            .fold(f64::INFINITY, f64::min)
    }

    fn inertia(values: &[f64], centroids: &[f64]) -> f64 {
        values.iter().map(|v| centroids.iter().map(|c| (v - c) * (v - c)).fold(f64::INFINITY, f64::min)).sum()
    }

    #[test]
    fn the_result_is_optimal() {
        for n in 4..13 {
            for k in 1..=4 {
                let mut values: Vec<f64> =
                    random(n, 1).remove(0).iter().map(|v| (v * 9.0).round() + v * 1e-3).collect();
                let (scale, columns) = as_it_is(vec![values.clone()]);
                let found = best(&Points::new(&scale, &columns), k, 1);
                values.sort_by(f64::total_cmp);
                assert!((inertia(&values, &found) - least(&values, k)).abs() < 1e-9, "{n} {k}");
            }
        }
    }

    #[test]
    fn bins_and_rounds_equal_plain_dynamic_programming() {
        // Three modes and a long tail: ambiguous enough that several bins stay open.
        let draws = random(40_000, 2);
        let hill = |(i, (a, b)): (usize, (&f64, &f64))| match i % 10 {
            0..4 => a + b,
            4..7 => 1.5 + a * b,
            7..9 => 3.0 + a - b,
            _ => 2.0 / (1e-4 + a),
        };
        let values: Vec<f64> = draws[0].iter().zip(&draws[1]).enumerate().map(hill).collect();
        let (scale, columns) = as_it_is(vec![values.clone()]);
        let points = Points::new(&scale, &columns);
        for k in [2, 3, 7] {
            let line = Line::of(values.iter().map(|&v| (v, 1.0)).collect());
            let all: Vec<Block> = (0..line.values.len()).map(|i| line.block(i..i + 1)).collect();
            let plain = Costs::new(&all, |_| false).partition(k).0;
            let rounds = inertia(&values, &best(&points, k, 2));
            let bins = inertia(&values, &binned(&points, k, 2));
            assert!((rounds / plain - 1.0).abs() < 1e-12, "{k}: {rounds} {plain}");
            assert!((bins / plain - 1.0).abs() < 1e-12, "{k}: {bins} {plain}");
        }
    }

    #[test]
    fn few_values_are_counted() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(i % 7)).collect();
        let (scale, columns) = as_it_is(vec![values]);
        let line = counted(&Points::new(&scale, &columns), 2).unwrap();
        assert_eq!(line.values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(line.weights.iter().sum::<f64>(), 100_000.0);
        let (scale, columns) = as_it_is(random(10_000, 1));
        assert_eq!(counted(&Points::new(&scale, &columns), 2), None);
    }
}
