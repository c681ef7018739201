//! The training of one slice of one segmentation: from rows to a model.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Fit, Settings};
use tercile_store::Store;

use super::dataset::{Moved, Prefix, Rows, Sample};
use super::entities::find_previous;
use super::refusal::Refusal;
use super::{LIMITS, Options, Progress, SEED, Stream};
use crate::fit::Sampled;
use crate::model::cluster_ids::{newcomers, numbers, renumbered};
use crate::model::describe::{Before, Shortage, describe, short_of_words, words_changed};
use crate::model::parts::Shapes;
use crate::model::scaling;
use crate::model::{
    Baseline, METHOD, Model, ModelRegistry, Predecessor, Predictor, Receipt, Tiny, Trained, clusters, imputed,
};
use crate::slices::{Slicing as _, Thirds};
use crate::sql::Segmentation;
use crate::suggest;

/// The training of one slice of one segmentation.
pub(super) struct Job<'a> {
    pub segmentation: &'a Segmentation,
    pub slice: u8,
    pub stream: &'a Stream,
    pub store: &'a Store,
    pub options: &'a Options,
    /// The model whose cluster numbers are kept.
    pub predecessor: Option<&'a Model>,
    /// The model that serves this slice, if its features or k differ.
    pub replaced: Option<Predecessor>,
    /// The previous slice's model of these records; if that slice was refused, its serving model.
    pub before: Option<&'a Model>,
    /// The model that serves this slice.
    pub earlier: Option<&'a Model>,
    /// A newer model of this slice that does not serve: after a rollback, or after an interrupted training.
    pub newest: Option<&'a Model>,
    /// The previous slice's model trained on these same records; it seeds one additional restart.
    pub warm: Option<&'a Model>,
}

/// The result of a job.
pub(super) enum JobOutcome {
    New(Box<Trained>),
    Known(Box<Model>),
}

impl Job<'_> {
    /// Trains a model, unless one with the same receipt exists.
    pub fn run(&self, all: &dyn Rows) -> Result<JobOutcome, Refusal> {
        let rows = all.up_to(self.slice)?;
        let rows = rows.as_ref();
        let receipt = self.receipt(rows);
        let known = [self.earlier, self.newest].into_iter().flatten();
        if let Some(known) = known.into_iter().find(|model| model.receipt.same_but_predecessor(&receipt)) {
            return Ok(JobOutcome::Known(Box::new(known.clone())));
        }
        Ok(JobOutcome::New(Box::new(self.fit(all, rows, receipt)?)))
    }

    /// The inputs that determine a model of these rows.
    pub fn receipt(&self, rows: &dyn Prefix) -> Receipt {
        Receipt {
            topic: self.stream.topic.clone(),
            next_offsets: self.stream.next_offsets.clone(),
            n: self.stream.n,
            cut: self.stream.cuts[usize::from(self.slice) - 1].clone(),
            rows_hash: rows.hash(),
            sql_hash: self.segmentation.sql_hash.clone(),
            starts: kmeans::starts_for(rows.rows()) as u64,
            predecessor: self.predecessor.map(Predecessor::of),
            replaced: self.replaced.clone(),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
            method: METHOD,
            solver: self.options.solver,
        }
    }

    /// Trains the model.
    pub fn fit(&self, all: &dyn Rows, rows: &dyn Prefix, receipt: Receipt) -> Result<Trained, Refusal> {
        let Segmentation { features, k, labels, .. } = self.segmentation;
        let scale = rows.scale(self.segmentation).map_err(|refusal| refusal.in_header(self.segmentation))?;
        let warm = self.warm.map(Model::centroids);
        let tell = |step| {
            (self.options.tell)(Progress::Pass { segmentation: &self.segmentation.name, slice: self.slice, step });
        };
        kmeans::check_rows(rows.rows())?;
        let solver = self.options.solver;
        self.options.check_solver(rows.rows(), features.len())?;
        let fit = rows.fit(&scale, (&settings(*k, receipt.starts as usize), solver), warm.as_ref(), &tell)?;
        let number = numbers(&scale, &fit.centroids, self.predecessor);
        let fit = renumbered(fit, &number);
        let new = newcomers(&scale, &fit.centroids, self.predecessor);
        let profile = rows.profile(&scale, &fit.centroids)?;
        let before = self.predecessor.map(|model| Before::new(model, &new));
        let linear = scale.linear_centroids(&fit.centroids);
        let shapes = Shapes { centroids: linear.view(), spread: profile.linear_spread.view(), sizes: &fit.sizes };
        let described = describe(&shapes, features, labels, before.as_ref());
        for Shortage { feature, parts, words } in short_of_words(&described, features, labels) {
            tracing::warn!(
                "{}: slice {} has {parts} levels of {feature} and {words} words for them, so its descriptions count them, as \
                 in \"{feature} 1 of {parts}\"; give it {k} words in the header, or choose a smaller k",
                self.segmentation.file,
                self.slice
            );
        }
        // After a model with another k or other features there is nothing to compare.
        let before = before.filter(|_| self.replaced.is_none());
        let changed = before.map(|before| words_changed(&described, features, &before)).unwrap_or_default();
        // A cluster may continue one of the previous slice but none of the model that served this slice.
        let new: Vec<bool> = new.into_iter().map(|new| new || self.replaced.is_some()).collect();
        let clusters = clusters(features, &fit, &profile, described, &new);
        let moved = self.moved(all, (&scale, &fit))?;
        let (sample, silhouette, tiny) = sample(rows, features, (&scale, &fit))?;
        let baseline = Baseline::of(features, &rows.evenly(), &Predictor::new(scale.clone(), &fit.centroids));
        let members = rows.members(self.segmentation, (&scale, &fit.centroids))?;
        let members = members.map(|members| self.with_previous(members)).transpose()?;
        let model = Model {
            segmentation: self.segmentation.name.clone(),
            slice: self.slice,
            version: 0,
            rows: rows.rows() as u64,
            rows_left_out: rows
                .without_key()
                .unwrap_or_else(|| Thirds.end(self.stream.n, self.slice).saturating_sub(rows.rows() as u64)),
            imputed: Some(features.iter().cloned().zip(rows.missing()).collect()),
            entity: self.segmentation.entity.clone(),
            features: features.clone(),
            scaling: scaling::of(&scale),
            mean: scale.mean,
            std: scale.std,
            k: *k as u32,
            seed: SEED,
            inertia: fit.inertia,
            silhouette,
            iterations: fit.iterations as u64,
            tiny,
            trained_at: tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            moved: moved.as_ref().map(|moved| moved.all.clone()),
            moved_by: moved.and_then(|moved| moved.by),
            clusters,
            words_changed: changed,
            baseline: Some(baseline),
            receipt,
        };
        Ok(Trained { model, sample, members })
    }

    /// The members with the cluster that each had in the predecessor: NULL for a new entity, without a predecessor, and if the
    /// predecessor's members cannot be read.
    fn with_previous(&self, members: RecordBatch) -> Result<RecordBatch, Refusal> {
        let mut previous: Vec<Option<u32>> = vec![None; members.num_rows()];
        if let Some(model) = self.predecessor {
            let registry = ModelRegistry::new(self.store, &self.segmentation.name);
            let keys = &members.columns()[..self.segmentation.entity.len()];
            let why = match find_previous(&registry, model, keys, &mut previous) {
                Ok(true) => None,
                Ok(false) => Some("they are deleted".to_owned()),
                Err(Refusal::Store(error)) => Some(error.to_string()),
                Err(other) => return Err(other),
            };
            if let Some(why) = why {
                previous.fill(None);
                let (name, slice, version) = (&self.segmentation.name, self.slice, model.version);
                tracing::warn!(
                    "{name}: `previous` is unknown in slice {slice}, because the members of version {version} cannot be read: {why}"
                );
            }
        }
        let mut fields: Vec<Arc<Field>> = members.schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("previous", DataType::UInt32, true)));
        let mut columns = members.columns().to_vec();
        columns.push(Arc::new(UInt32Array::from(previous)));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// The previous slice's rows, by their cluster in its model and in this model.
    fn moved(&self, all: &dyn Rows, (scale, fit): (&Scale, &Fit)) -> Result<Option<Moved>, Refusal> {
        let Some(before) = self.before.filter(|model| model.is_about(self.segmentation)) else {
            return Ok(None);
        };
        all.moved(self.slice, (&before.scale(), &before.centroids()), (scale, &fit.centroids))
    }
}

pub(super) fn settings(k: usize, starts: usize) -> Settings {
    Settings { k, seed: SEED, starts, limits: LIMITS, threads: processors() }
}

/// Greatest number of clusters, and restarts for each, that are tried without the rows of tiny clusters.
const TRIED: (usize, usize) = (8, 20);

/// A sample of the rows with their clusters, its silhouette, and tiny clusters.
fn sample(
    rows: &dyn Prefix,
    features: &[String],
    (scale, fit): (&Scale, &Fit),
) -> Result<(RecordBatch, Option<f64>, Option<Tiny>), Refusal> {
    let Sample { places, features: columns, chosen } = rows.sample(scale, fit)?;
    let (mut fields, mut all): (Vec<Field>, Vec<ArrayRef>) = Default::default();
    if let Some((partitions, offsets)) = places {
        fields.extend([Field::new("_partition", DataType::Int32, true), Field::new("_offset", DataType::Int64, true)]);
        all.extend([Arc::new(partitions) as ArrayRef, Arc::new(offsets)]);
    }
    for ((name, column), mean) in features.iter().zip(&columns).zip(&scale.mean) {
        fields.push(Field::new(name, DataType::Float64, false));
        let imputed: Float64Array = column.iter().map(|v| v.or(Some(*mean))).collect();
        all.push(Arc::new(imputed));
    }
    fields.push(Field::new("cluster", DataType::UInt32, false));
    all.push(Arc::new(chosen.labels.iter().map(|&label| Some(u32::from(label))).collect::<UInt32Array>()));
    fields.push(Field::new(imputed::COLUMN, DataType::UInt32, false));
    all.push(Arc::new(imputed::masks(&columns)));
    let sampled = Sampled { columns, chosen };
    let silhouette = sampled.silhouette(scale, fit.sizes.len(), processors());
    let of_sample = suggest::Rows { scale, columns: &sampled.columns, weights: Some(&sampled.chosen.weights) };
    let tiny = suggest::tiny(of_sample, fit, 2..=TRIED.0, &settings(2, TRIED.1));
    let tiny = tiny.map_err(|error| Refusal::View(error.to_string()))?;
    Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), all)?, silhouette, tiny))
}
