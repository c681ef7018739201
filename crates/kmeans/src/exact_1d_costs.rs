//! Dynamic programming for optimal clusters in one dimension.
//!
//! Input: blocks of neighbouring values with their sums. Output: the optimal k clusters of whole blocks, and the blocks
//! that may contain a break of an optimal clustering of the values. Wang and Song, "Ckmeans.1d.dp: optimal k-means
//! clustering in one dimension by dynamic programming" (The R Journal 3, 2011). The start of the last cluster increases
//! monotonically with the number of blocks, so divide and conquer takes O(k n log n) (Grønlund et al., "Fast exact k-means,
//! k-medians and Bregman divergence clustering in 1D", arXiv:1701.07204, 2017).

use std::ops::Range;

/// Sums of neighbouring values.
#[derive(Debug, Clone, Default)]
pub(super) struct Block {
    pub weight: f64,
    pub sum: f64,
    pub square: f64,
    /// Position of the values on the line; empty if no break can be between them.
    pub on: Range<usize>,
}

impl Block {
    pub fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.sum += other.sum;
        self.square += other.square;
    }

    pub fn add_value(&mut self, value: f64, weight: f64) {
        self.add(&Self { weight, sum: value * weight, square: value * value * weight, on: 0..0 });
    }
}

/// Running sums over blocks, from which the cost of a cluster of neighbouring blocks follows in O(1).
pub(super) struct Costs {
    weight: Vec<f64>,
    sum: Vec<f64>,
    square: Vec<f64>,
    /// Whether a break may be within each block.
    loose: Vec<bool>,
}

impl Costs {
    pub fn new(blocks: &[Block], loose: impl Fn(&Block) -> bool) -> Self {
        let mut all = Block::default();
        let loose = blocks.iter().map(loose).collect();
        let mut costs = Self { weight: vec![0.0], sum: vec![0.0], square: vec![0.0], loose };
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

    /// One layer of the dynamic programme. For each number of leading blocks: the minimum cost with one more cluster at the
    /// end, and the start of that cluster. `before` are the costs with one cluster fewer, `least` is the smallest allowed
    /// start, and `gap` the minimum length of the cluster.
    fn layer(&self, before: &[f64], least: usize, gap: usize) -> (Vec<f64>, Vec<u32>) {
        let m = self.blocks();
        let (mut costs, mut starts) = (vec![f64::INFINITY; m + 1], vec![0; m + 1]);
        // Ranges of ends, and the starts that their clusters may have.
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

    /// The minimum cost of k clusters with breaks between blocks, and the first block of each.
    pub fn partition(&self, k: usize) -> (f64, Vec<usize>) {
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

    pub fn centroids(&self, k: usize) -> Vec<f64> {
        let (_, mut edges) = self.partition(k);
        edges.push(self.blocks());
        let mean = |edge: &[usize]| {
            let weight = self.weight[edge[1]] - self.weight[edge[0]];
            (self.sum[edge[1]] - self.sum[edge[0]]) / weight
        };
        edges.windows(2).map(mean).collect()
    }

    /// Lower bounds of the cost for each number of clusters and leading blocks, if breaks may be anywhere within loose
    /// blocks: each break omits the block before the next cluster, if that block is loose.
    fn bounds(&self, k: usize) -> Vec<Vec<f64>> {
        let mut all = vec![(0..=self.blocks()).map(|end| self.of(0, end)).collect::<Vec<f64>>()];
        for _ in 2..k {
            let last = &all[all.len() - 1];
            let left_out = |start: usize| start > 0 && self.loose[start - 1];
            let before: Vec<f64> = (0..last.len()).map(|start| last[start - usize::from(left_out(start))]).collect();
            let (mut next, _) = self.layer(&before, 0, 0);
            // A cluster within one block may be empty.
            next.iter_mut().zip(last).for_each(|(next, &fewer)| *next = next.min(fewer));
            all.push(next);
        }
        all
    }

    fn reversed(&self) -> Self {
        let turn = |running: &[f64]| running.iter().rev().map(|value| running[running.len() - 1] - value).collect();
        let loose = self.loose.iter().rev().copied().collect();
        Self { weight: turn(&self.weight), sum: turn(&self.sum), square: turn(&self.square), loose }
    }

    /// Whether each block may contain a break of the optimal k clusters, or have one at its edge.
    pub fn open(&self, k: usize) -> Vec<bool> {
        let m = self.blocks();
        let (known, _) = self.partition(k);
        // A margin for the rounding of running sums.
        let most = known + 1e-9 * self.square[m];
        let (forward, backward) = (self.bounds(k), self.reversed().bounds(k));
        let may = |block: usize| {
            (1..k).any(|clusters| forward[clusters - 1][block] + backward[k - clusters - 1][m - 1 - block] <= most)
        };
        (0..m).map(may).collect()
    }
}
