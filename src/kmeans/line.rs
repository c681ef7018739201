//! One feature: the best clusters there are, exactly, whatever the number of rows.
//!
//! Input: points with one feature. Output: centroids whose inertia no others beat. On a line, clusters are intervals, so
//! dynamic programming over the sorted distinct values finds the optimum (Wang and Song, "Ckmeans.1d.dp", The R Journal 3,
//! 2011), in O(k n log n) because the best last break moves only one way (divide and conquer; Grønlund et al., "Fast exact
//! k-means, k-medians and Bregman divergence clustering in 1D", 2017).
//!
//! Few values are counted. Many are first summed up in bins between quantiles: a break inside of a bin costs at least what
//! the best clusters cost without that bin's rows, and where that is more than clusters that are known already, the bin can
//! hold no break and stays one block. Only the few other bins are taken apart, until every break stands between two values.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::points::Points;
use crate::features::chunks::by_chunk;

/// Blocks that one round of dynamic programming looks at, about.
const BLOCKS: usize = 4096;
/// Different values that a chunk counts before it gives up.
const FEW: usize = 4096;
/// Rows that are sorted as they are, without bins.
const SORTED: usize = 131_072;
/// Rows from which quantiles are taken.
const SAMPLE: usize = 32_768;

/// Different values, standardised and ascending, with their weights.
#[derive(Debug, PartialEq)]
struct Line {
    values: Vec<f64>,
    weights: Vec<f64>,
}

/// Neighbouring values, summed up.
#[derive(Debug, Clone, Default)]
struct Block {
    weight: f64,
    sum: f64,
    square: f64,
    /// Where they stand on the line; empty where no break can be among them.
    on: Range<usize>,
}

impl Block {
    fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.sum += other.sum;
        self.square += other.square;
    }

    fn add_value(&mut self, value: f64, weight: f64) {
        self.add(&Self { weight, sum: value * weight, square: value * value * weight, on: 0..0 });
    }
}

/// The best k centroids, in original units. There must be k different values or more.
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
        // One value can't be taken apart.
        Block { on: if on.len() > 1 { on } else { 0..0 }, ..block }
    }
}

/// A part of the line in about so many blocks.
fn pieces(line: &Line, on: Range<usize>, many: usize) -> Vec<Block> {
    let size = on.len().div_ceil(many.max(2)).max(1);
    on.clone().step_by(size).map(|start| line.block(start..on.end.min(start + size))).collect()
}

/// All values with their counts, where no chunk has more than a few.
fn counted(points: &Points<'_>, threads: usize) -> Option<Line> {
    let many = AtomicBool::new(false);
    let chunks = by_chunk(points.rows(), threads, |rows| {
        // A table with open addressing, at most half full; a weight of 0 marks a free place.
        let mut table = vec![(0.0_f64, 0.0_f64); 2 * FEW];
        let mut used = 0;
        points.each_value(rows, |first, values| {
            if many.load(Ordering::Relaxed) {
                return;
            }
            for (i, &value) in values.iter().enumerate() {
                // Adding 0 turns a negative zero into the other one.
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

/// The values that are wanted, standardised, with their weights.
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

/// The search with a first round on bins between quantiles, so that few values are ever sorted.
fn binned(points: &Points<'_>, k: usize, threads: usize) -> Vec<f64> {
    let row = |j: usize| (j as u128 * points.rows() as u128 / SAMPLE as u128) as usize;
    let mut sample: Vec<f64> = (0..SAMPLE).map(|j| points.standardise(0, points.value(0, row(j)))).collect();
    sample.sort_unstable_by(f64::total_cmp);
    let mut splitters: Vec<f64> = sample.into_iter().step_by(SAMPLE / BLOCKS).skip(1).collect();
    splitters.dedup();
    let bin = |value: f64| splitters.partition_point(|&splitter| splitter <= value);
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut bins = vec![Block::default(); splitters.len() + 1];
        points.each_value(rows, |first, values| {
            for (i, &value) in values.iter().enumerate() {
                let value = points.standardise(0, value);
                bins[bin(value)].add_value(value, points.weight(first + i));
            }
        });
        bins
    });
    let mut bins = vec![Block::default(); splitters.len() + 1];
    for chunk in chunks {
        bins.iter_mut().zip(chunk).for_each(|(bin, part)| bin.add(&part));
    }
    let open = if bins.len() >= k { Costs::new(&bins).open(k) } else { vec![true; bins.len()] };
    let line = Line::of(values(points, threads, |value| open[bin(value)]));
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

/// Adds a block that no break is in, to the one before it where that is another such.
fn close(blocks: &mut Vec<Block>, block: &Block, join: bool) {
    match blocks.last_mut() {
        Some(last) if join => last.add(block),
        _ => blocks.push(Block { on: 0..0, ..block.clone() }),
    }
}

/// Taking blocks apart until the best breaks are certain.
struct Search<'a> {
    line: &'a Line,
    k: usize,
}

impl Search<'_> {
    fn run(&self, mut blocks: Vec<Block>) -> Vec<f64> {
        loop {
            let costs = Costs::new(&blocks);
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

/// What it costs to make one cluster of neighbouring blocks, out of running sums.
struct Costs {
    weight: Vec<f64>,
    sum: Vec<f64>,
    square: Vec<f64>,
}

impl Costs {
    fn new(blocks: &[Block]) -> Self {
        let mut all = Block::default();
        let mut costs = Self { weight: vec![0.0], sum: vec![0.0], square: vec![0.0] };
        for block in blocks {
            all.add(block);
            costs.weight.push(all.weight);
            costs.sum.push(all.sum);
            costs.square.push(all.square);
        }
        costs
    }

    fn blocks(&self) -> usize {
        self.weight.len() - 1
    }

    /// The inertia of a cluster of the blocks from `start` to before `end`.
    fn of(&self, start: usize, end: usize) -> f64 {
        let weight = self.weight[end] - self.weight[start];
        let sum = self.sum[end] - self.sum[start];
        let square = self.square[end] - self.square[start];
        if weight > 0.0 { (square - sum * sum / weight).max(0.0) } else { 0.0 }
    }

    /// For each number of blocks from the first the least cost of one more cluster at their end, `before` being that of the
    /// others; and where that cluster starts. `least` is the first start that may be, `gap` how far it must be from the end.
    fn layer(&self, before: &[f64], least: usize, gap: usize) -> (Vec<f64>, Vec<u32>) {
        let m = self.blocks();
        let (mut costs, mut starts) = (vec![f64::INFINITY; m + 1], vec![0; m + 1]);
        // The ends in question, and where their clusters may start.
        let mut open = vec![(least + gap..m + 1, least..m + 1)];
        while let Some((ends, from)) = open.pop() {
            if ends.is_empty() {
                continue;
            }
            let end = ends.start + ends.len() / 2;
            let mut best = (f64::INFINITY, from.start);
            let last = from.end.min(end + 1 - gap);
            for (start, before) in (from.start..last).zip(&before[from.start..last]) {
                let cost = before + self.of(start, end);
                if cost < best.0 {
                    best = (cost, start);
                }
            }
            (costs[end], starts[end]) = (best.0, best.1 as u32);
            open.push((ends.start..end, from.start..best.1 + 1));
            open.push((end + 1..ends.end, best.1..from.end));
        }
        (costs, starts)
    }

    /// The cost of the best k clusters whose breaks stand between blocks, and where each of them starts.
    fn partition(&self, k: usize) -> (f64, Vec<usize>) {
        let m = self.blocks();
        let mut costs: Vec<f64> = (0..=m).map(|end| self.of(0, end)).collect();
        let mut layers = Vec::new();
        for clusters in 1..k {
            let (next, starts) = self.layer(&costs, clusters, 1);
            costs = next;
            layers.push(starts);
        }
        let (mut end, mut starts) = (m, vec![0; k]);
        for (clusters, layer) in layers.iter().enumerate().rev() {
            end = layer[end] as usize;
            starts[clusters + 1] = end;
        }
        (costs[m], starts)
    }

    fn centroids(&self, k: usize) -> Vec<f64> {
        let (_, mut edges) = self.partition(k);
        edges.push(self.blocks());
        let mean = |edge: &[usize]| {
            let weight = self.weight[edge[1]] - self.weight[edge[0]];
            (self.sum[edge[1]] - self.sum[edge[0]]) / weight
        };
        edges.windows(2).map(mean).collect()
    }

    /// For each number of clusters and blocks a bound from below, wherever within blocks the breaks are: each break leaves out
    /// the block before the next cluster.
    fn bounds(&self, k: usize) -> Vec<Vec<f64>> {
        let mut all = vec![(0..=self.blocks()).map(|end| self.of(0, end)).collect::<Vec<f64>>()];
        for _ in 2..k {
            let last = &all[all.len() - 1];
            let before: Vec<f64> = (0..last.len()).map(|start| last[start.saturating_sub(1)]).collect();
            let (mut next, _) = self.layer(&before, 0, 0);
            // A cluster within one block may be none at all.
            next.iter_mut().zip(last).for_each(|(next, &fewer)| *next = next.min(fewer));
            all.push(next);
        }
        all
    }

    fn reversed(&self) -> Self {
        let turn = |running: &[f64]| running.iter().rev().map(|value| running[running.len() - 1] - value).collect();
        Self { weight: turn(&self.weight), sum: turn(&self.sum), square: turn(&self.square) }
    }

    /// Which blocks a break of the best k clusters may be in, or at the edge of.
    fn open(&self, k: usize) -> Vec<bool> {
        let m = self.blocks();
        let (known, _) = self.partition(k);
        // Room for what rounding does to running sums.
        let most = known + 1e-9 * self.square[m];
        let (forward, backward) = (self.bounds(k), self.reversed().bounds(k));
        let may = |block: usize| {
            (1..k).any(|clusters| forward[clusters - 1][block] + backward[k - clusters - 1][m - 1 - block] <= most)
        };
        (0..m).map(may).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{as_it_is, random};
    use super::*;

    /// Every way to cut sorted values in k.
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
    fn no_other_cut_is_better() {
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
    fn bins_and_rounds_find_what_the_plain_programme_finds() {
        // Three hills and a long tail: ambiguous enough that several bins stay open.
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
            let plain = Costs::new(&all).partition(k).0;
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
