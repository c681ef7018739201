//! KMeans on rows of a table that executors read: the passes of [`tercile_kmeans::fit_elsewhere`] as queries.
//!
//! Input: a FROM clause, a scale, and centroids. Output: a fit, and results of one query each over its clusters. The rows have the
//! columns `feature_0`, `feature_1` … (doubles), and `_partition` and `_offset`, integers that identify a row.

use datafusion::arrow::array::{Array, AsArray, Float64Array, RecordBatch};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use ndarray::Array2;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{self as kmeans, Coreset, Elsewhere, Fit, Init, Points, Rates, Settings, Step, Totals, Worst};
use tokio::runtime::Handle;

use super::solver_sql::{self as sql, Over};

/// An error of a fit, or of one of its queries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rows have no such clusters.
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
    /// A query failed.
    #[error(transparent)]
    Query(#[from] DataFusionError),
}

/// Centroids in original units, and the scale that standardises rows for them.
pub type Placed<'a> = (&'a Scale, &'a Array2<f64>);

/// Rows on a cluster. The methods block, and must not be called from a task of the runtime.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The session whose queries run on the cluster.
    pub ctx: &'a SessionContext,
    /// The runtime that runs the queries.
    pub runtime: &'a Handle,
    /// The rows as the text after FROM, which may end with a WHERE clause.
    pub from: &'a str,
    /// Number of rows.
    pub rows: usize,
    /// Per feature: true if it is missing in some rows.
    pub missing: &'a [bool],
}

impl Rows<'_> {
    fn features(&self) -> usize {
        self.missing.len()
    }

    fn over<'s>(&'s self, scale: &'s Scale) -> Over<'s> {
        Over { rows: self.from, scale, missing: self.missing }
    }

    fn collect(&self, sql: &str) -> Result<RecordBatch, Error> {
        Ok(self.runtime.block_on(collect(self.ctx, sql))?)
    }

    /// The distinct values of the only feature, and the number of rows with each value.
    ///
    /// # Errors
    /// If the query fails; so do the other methods.
    pub fn counted(&self) -> Result<([Float64Array; 1], Vec<f64>), Error> {
        let counted = self.collect(&sql::counted(self.from))?;
        let weights = integers(&counted, 1)?.into_iter().map(|count| count as f64).collect();
        Ok(([counted.column(0).as_primitive::<Float64Type>().clone()], weights))
    }

    /// The population standard deviation of the rows nearest to each centroid, k by features, in original units.
    ///
    /// # Errors
    /// If the query fails.
    pub fn spread(&self, scale: &Scale, centroids: &Array2<f64>) -> Result<Array2<f64>, Error> {
        let place = |((_, feature), &value): ((usize, usize), &f64)| scale.standardise(feature, value);
        let at: Vec<f64> = centroids.indexed_iter().map(place).collect();
        let found = self.collect(&self.over(scale).spread(&at))?;
        let (clusters, rows) = (integers(&found, 0)?, integers(&found, 1)?);
        let mut spread = Array2::zeros(centroids.dim());
        for (row, (cluster, rows)) in clusters.into_iter().zip(rows).enumerate() {
            for feature in 0..self.features() {
                let column = |i: usize| found.column(2 + 4 * feature + i).as_primitive::<Float64Type>().value(row);
                let (off, squared, least, greatest) = (column(0), column(1), column(2), column(3));
                if least < greatest {
                    let squares = (squared - off * off / rows as f64).max(0.0);
                    spread[[cluster as usize, feature]] = (squares / rows as f64).sqrt() / scale.inverse[feature];
                }
            }
        }
        Ok(spread)
    }

    /// Number of rows in each pair of clusters of two models.
    ///
    /// # Errors
    /// If the query fails.
    pub fn cross(&self, (old, from): Placed<'_>, (new, to): Placed<'_>) -> Result<Vec<Vec<u64>>, Error> {
        let mut all = vec![vec![0; to.nrows()]; from.nrows()];
        let found = self.collect(&sql::cross(self.over(old), from, self.over(new), to))?;
        let (old, new, counts) = (integers(&found, 0)?, integers(&found, 1)?, integers(&found, 2)?);
        for ((old, new), count) in old.into_iter().zip(new).zip(counts) {
            all[old as usize][new as usize] = count as u64;
        }
        Ok(all)
    }
}

async fn collect(ctx: &SessionContext, sql: &str) -> Result<RecordBatch, DataFusionError> {
    let frame = ctx.sql(sql).await?;
    let schema = frame.schema().inner().clone();
    Ok(concat_batches(&schema, &frame.collect().await?)?)
}

/// The values of a column of integers of any type, without nulls.
///
/// # Errors
/// If the column has another type.
pub fn integers(batch: &RecordBatch, column: usize) -> Result<Vec<i64>, DataFusionError> {
    Ok(cast(batch.column(column), &DataType::Int64)?.as_primitive::<Int64Type>().iter().flatten().collect())
}

/// KMeans by queries over rows.
pub struct Queries<'a> {
    /// The rows.
    pub rows: &'a Rows<'a>,
    /// Scale of their columns.
    pub scale: &'a Scale,
    /// The rows of [`kmeans::start_rows`].
    pub sample: &'a Points<'a>,
}

impl kmeans::Solver for Queries<'_> {
    type Error = Error;

    fn fit(&self, settings: &Settings, init: Init<'_>, watch: &(dyn Fn(Step) + Sync)) -> Result<Fit, Error> {
        let Self { rows, scale, sample } = *self;
        kmeans::fit_elsewhere(&Passes { rows, scale }, sample, settings, init, watch)
    }
}

/// Passes over rows, one query each.
struct Passes<'a> {
    rows: &'a Rows<'a>,
    scale: &'a Scale,
}

impl Elsewhere for Passes<'_> {
    type Error = Error;

    fn distinct(&self, most: usize) -> Result<usize, Error> {
        Ok(self.rows.collect(&self.rows.over(self.scale).distinct(most))?.num_rows())
    }

    fn rows(&self) -> usize {
        self.rows.rows
    }

    fn draw(&self, centroids: &[f64], rates: &Rates, seed: u64) -> Result<Coreset, Error> {
        let features = self.rows.features();
        let found = self.rows.collect(&self.rows.over(self.scale).draw(centroids, rates, seed))?;
        let list = found.column(0).as_list::<i32>();
        let drawn = (list.len() == 1 && list.is_valid(0)).then(|| list.value(0));
        let column = |i: usize| match &drawn {
            Some(rows) => rows.as_struct().column(i).as_primitive::<Float64Type>().values().to_vec(),
            None => Vec::new(),
        };
        // The last column is the expected number of draws.
        let weights = column(features).into_iter().map(|draws| 1.0 / draws.min(1.0)).collect();
        Ok(Coreset { columns: (0..features).map(column).collect(), weights })
    }

    fn pass(&self, centroids: &[f64], others: &[Vec<f64>]) -> Result<(Totals, Vec<f64>), Error> {
        let features = self.rows.features();
        let k = centroids.len() / features;
        let found = self.rows.collect(&self.rows.over(self.scale).pass(centroids, others))?;
        let clusters = integers(&found, 0)?;
        let mut totals = Totals { sums: vec![0.0; k * features], weights: vec![0.0; k], inertia: 0.0 };
        let double = |column: usize, row: usize| found.column(column).as_primitive::<Float64Type>().value(row);
        let counts = integers(&found, 1)?;
        for (row, (cluster, count)) in clusters.into_iter().zip(counts).enumerate() {
            let cluster = cluster as usize;
            totals.weights[cluster] = count as f64;
            totals.inertia += double(2, row);
            for feature in 0..features {
                totals.sums[cluster * features + feature] = double(3 + feature, row);
            }
        }
        let worth = |other| (0..found.num_rows()).map(|row| double(3 + features + other, row)).sum();
        Ok((totals, (0..others.len()).map(worth).collect()))
    }

    fn near(&self, centroids: &[f64], margin: f64) -> Result<Vec<Vec<f64>>, Error> {
        let found = self.rows.collect(&self.rows.over(self.scale).near(centroids, margin))?;
        let list = found.column(0).as_list::<i32>();
        let near = (list.len() == 1 && list.is_valid(0)).then(|| list.value(0));
        let column = |f| match &near {
            Some(rows) => rows.as_struct().column(f).as_primitive::<Float64Type>().values().to_vec(),
            None => Vec::new(),
        };
        Ok((0..self.rows.features()).map(column).collect())
    }

    fn worst(&self, centroids: &[f64], many: usize) -> Result<Vec<Worst>, Error> {
        let features = self.rows.features();
        let found = self.rows.collect(&self.rows.over(self.scale).worst(centroids, many))?;
        let clusters = integers(&found, 0)?;
        let value = |row: usize, feature: usize| found.column(1 + feature).as_primitive::<Float64Type>().value(row);
        let worst = |(row, cluster): (usize, i64)| Worst {
            values: (0..features).map(|feature| value(row, feature)).collect(),
            cluster: cluster as usize,
        };
        Ok(clusters.into_iter().enumerate().map(worst).collect())
    }
}
