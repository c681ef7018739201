//! Compares one KMeans pass with memory bandwidth: `cargo bench --bench pass`.
//!
//! Prints the time to read the columns (minimum of many runs, all threads, only an exclusive or), and the time of one KMeans
//! pass over them: assignment, sums, counts and inertia.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark ends with a panic")]

use std::hint::black_box;
use std::time::Instant;

use datafusion::arrow::array::Float64Array;
use ndarray::Array2;
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::{by_chunk, processors};
use tercile_kmeans::{Points, measure};

const ROWS: usize = 10_000_000;
const TRIES: usize = 25;

/// Minimum duration of many runs in seconds.
fn least<T>(mut work: impl FnMut() -> T) -> f64 {
    let tries = (0..TRIES).map(|_| {
        let began = Instant::now();
        black_box(work());
        began.elapsed().as_secs_f64()
    });
    tries.fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut state = 42_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let columns: Vec<Float64Array> = (0..8).map(|_| (0..ROWS).map(|_| Some(next())).collect()).collect();
    println!("{ROWS} rows, {} threads, least of {TRIES}", processors());
    println!(
        "{:>8} {:>3} {:>9} {:>7} {:>9} {:>9} {:>6}",
        "features", "k", "read ms", "GB/s", "pass ms", "ns/row", "share"
    );
    for (features, k) in [(1, 3), (2, 3), (3, 3), (2, 8), (3, 8), (4, 3), (8, 16)] {
        let columns = &columns[..features];
        let read = least(|| {
            by_chunk(ROWS, processors(), |rows| {
                let bits = |column: &Float64Array| {
                    let mut lanes = [0_u64; 32];
                    for part in column.values()[rows.clone()].chunks_exact(32) {
                        lanes.iter_mut().zip(part).for_each(|(lane, value)| *lane ^= value.to_bits());
                    }
                    lanes.iter().fold(0, |all, lane| all ^ lane)
                };
                columns.iter().map(bits).fold(0, |all, bits| all ^ bits)
            })
        });
        let scale = Scale::new(vec![0.5; features], vec![0.3; features]);
        let points = Points::new(&scale, columns);
        let centroids = Array2::from_shape_fn((k, features), |(c, f)| ((c * 7 + f * 3) % 11) as f64 / 11.0);
        let pass = least(|| measure(&points, centroids.clone(), processors()));
        println!(
            "{features:>8} {k:>3} {:>9.2} {:>7.1} {:>9.2} {:>9.3} {:>6.2}",
            read * 1e3,
            (ROWS * features * 8) as f64 / read / 1e9,
            pass * 1e3,
            pass * 1e9 / ROWS as f64,
            read / pass
        );
    }
}
