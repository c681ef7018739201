//! The segments of batches of messages, with all suitable segmentations.
//!
//! Input: messages, and the models in service. Output: per segmentation the clusters, and the text of each answer. A batch is decoded
//! once for all segmentations; then it passes through the plan of each ([`RecordScorer`]) and its model.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, UInt32Array, new_null_array};
use datafusion::arrow::datatypes::{Field as Column, SchemaRef};
use tercile_store::batch::{Batch, Record};
use tercile_store::json_text::push_json_string;
use tercile_store::record::{Fields, decode, decode_only};

use crate::bulk::{Found, Scorer};
use crate::missing::Missing;
use crate::model_cache::Models;
use crate::scoring::RecordScorer;
use crate::slices::SLICES;

/// Batches with this many records are scored with one thread per segmentation.
const PARALLEL: usize = 2000;
/// Stack size of such a thread: expressions are evaluated recursively.
const STACK: usize = 16 << 20;

/// A message to score.
pub struct Input<'a> {
    pub partition: i32,
    pub record: Record<'a>,
    /// Names and values of its headers; none if [`Scorers::reads_headers`] is false.
    pub headers: Vec<(Cow<'a, str>, Option<&'a [u8]>)>,
}

/// The segmentations that score, with their models as they were at one time.
pub struct Scorers {
    all: Vec<Segments>,
    decoder: Decoder,
}

/// The parts of a record that are decoded.
struct Decoder {
    /// The declared fields that the SQL of a segmentation reads.
    fields: Fields,
    extra: bool,
    headers: bool,
}

/// The readable records of a batch.
struct Decoded {
    /// In the columns of the store, without those that are read by no view.
    columns: RecordBatch,
    partitions: ArrayRef,
    /// Their places in the batch.
    rows: ArrayRef,
}

/// One segmentation.
struct Segments {
    name: String,
    records: Arc<RecordScorer>,
    /// Its model, or the reason why there is none.
    model: Result<Serving, String>,
}

struct Serving {
    scorer: Scorer,
    /// The value of the header `tercile-model`.
    header: String,
    /// By cluster: the answer up to the distance.
    heads: Vec<Vec<u8>>,
    /// The answer after the distance.
    tail: Vec<u8>,
}

/// The segments of a batch.
#[derive(Default)]
pub struct Answers {
    /// Per record the reason why it cannot be parsed.
    pub unreadable: Vec<Option<String>>,
    /// Per segmentation the clusters of all records; `None` without a model.
    found: Vec<Option<Found>>,
}

impl Scorers {
    /// The segmentations of `models` that single records determine, or those that are `wanted`. `told` has the messages that were
    /// logged before.
    ///
    /// # Errors
    /// If a wanted segmentation does not exist or needs more than single records, or if none is left.
    pub async fn new(
        models: &Models,
        wanted: &[String],
        lang: &str,
        told: &mut BTreeSet<String>,
    ) -> anyhow::Result<Self> {
        for name in wanted {
            if models.get(name).is_none() {
                let names: Vec<_> =
                    models.segmentations.iter().map(|served| served.segmentation.name.as_str()).collect();
                bail!(
                    "no SQL file is the segmentation {name}; there are {}; check --segmentations and --sql",
                    names.join(", ")
                );
            }
        }
        let languages = models.languages();
        if !languages.contains(lang) {
            let languages = languages.into_iter().collect::<Vec<_>>().join(", ");
            bail!("no SQL file has the language {lang}; there are {languages}; check --lang and --sql");
        }
        let mut all = Vec::new();
        for served in &models.segmentations {
            let name = &served.segmentation.name;
            let is_wanted = wanted.contains(name);
            if !wanted.is_empty() && !is_wanted {
                continue;
            }
            let records = match served.record_scorer().await {
                Ok(records) => records,
                Err(why) if is_wanted => {
                    return Err(anyhow::Error::new(why)
                        .context(format!("{name} cannot score records; leave it out of --segmentations")));
                }
                Err(why) => {
                    let line = format!("{name} is left out: {why}");
                    if told.insert(line.clone()) {
                        tracing::warn!("{line}");
                    }
                    continue;
                }
            };
            let slot = served.slots.iter().find(|slot| slot.slice == SLICES);
            let model = match slot.and_then(|slot| slot.serving.as_ref()) {
                Some(serving) => Ok(Serving::new(&serving.model, lang)),
                None => {
                    let why = slot.and_then(|slot| slot.fault.clone().or_else(|| slot.refused.clone()));
                    Err(why.unwrap_or_else(|| "it is not trained yet; run tercile train".to_owned()))
                }
            };
            all.push(Segments { name: name.clone(), records, model });
        }
        if all.is_empty() {
            bail!("no segmentation can score single records; check --sql");
        }
        let decoder = Decoder::new(&all);
        Ok(Self { all, decoder })
    }

    /// The segmentations without a model, each with the reason.
    pub fn missing(&self) -> Vec<String> {
        let reason = |segments: &Segments| segments.model.as_ref().err().map(|why| format!("{}: {why}", segments.name));
        self.all.iter().filter_map(reason).collect()
    }

    /// The models, as in the header `tercile-model`.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter_map(|segments| Some(segments.model.as_ref().ok()?.header.as_str()))
    }

    /// Whether a view reads the headers of records.
    pub fn reads_headers(&self) -> bool {
        self.decoder.headers
    }

    /// The segments of a batch.
    ///
    /// # Errors
    /// If Arrow cannot build the columns.
    pub fn score(&self, batch: &[Input<'_>]) -> anyhow::Result<Answers> {
        let mut unreadable = vec![None; batch.len()];
        let decoded = self.decoder.decoded(batch, &mut unreadable)?;
        let mut work = Vec::with_capacity(self.all.len());
        let mut latest: Option<RecordBatch> = None;
        for segments in &self.all {
            let schema = segments.records.schema();
            // All schemas are equal, except shortly after the declared fields have changed.
            if latest.as_ref().is_none_or(|latest| latest.schema() != *schema) {
                latest = decoded.as_ref().map(|decoded| decoded.with_schema(schema)).transpose()?;
            }
            work.push(segments.model.as_ref().ok().map(|serving| (segments, serving, latest.clone())));
        }
        let unread = &unreadable;
        let answer = |(segments, serving, columns): (&Segments, &Serving, Option<RecordBatch>)| {
            segments.records.answers(columns, &serving.scorer, unread.clone()).1
        };
        let found = if batch.len() < PARALLEL {
            work.into_iter().map(|work| work.map(answer)).collect()
        } else {
            in_parallel(work, &answer)?
        };
        Ok(Answers { unreadable, found })
    }

    /// Writes the segments of a record as JSON.
    pub fn write(&self, out: &mut Vec<u8>, answers: &Answers, row: usize) {
        out.push(b'{');
        for (i, (segments, found)) in self.all.iter().zip(&answers.found).enumerate() {
            name(out, &segments.name, i);
            match (&segments.model, found.as_ref().and_then(|found| found.of(row))) {
                (Ok(serving), Some((cluster, distance))) => {
                    out.extend_from_slice(serving.heads.get(cluster as usize).map_or(&[][..], Vec::as_slice));
                    // Writing to memory cannot fail.
                    let _ = serde_json::to_writer(&mut *out, &distance);
                    out.extend_from_slice(&serving.tail);
                }
                _ => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
    }

    /// Whether a record has no segment in one of the segmentations.
    pub fn lacks(&self, answers: &Answers, row: usize) -> bool {
        answers.found.iter().any(|found| found.as_ref().is_none_or(|found| found.of(row).is_none()))
    }

    /// Writes the reasons of the segments that are null as JSON.
    pub fn write_reasons(&self, out: &mut Vec<u8>, answers: &Answers, row: usize) {
        out.push(b'{');
        let mut written = 0;
        for (segments, found) in self.all.iter().zip(&answers.found) {
            let reason = match (&segments.model, found) {
                (Err(why), _) => why.as_str(),
                (Ok(_), Some(found)) if found.of(row).is_none() => {
                    let reasons = found.reasons.as_ref();
                    reasons.and_then(|reasons| reasons.get(row)?.as_deref()).unwrap_or("it has no segment")
                }
                _ => continue,
            };
            name(out, &segments.name, written);
            let mut json = String::new();
            push_json_string(&mut json, reason);
            out.extend_from_slice(json.as_bytes());
            written += 1;
        }
        out.push(b'}');
    }
}

/// One thread for each segmentation that has a model.
fn in_parallel<W: Send, F: Send>(
    work: Vec<Option<W>>,
    answer: &(impl Fn(W) -> F + Sync),
) -> anyhow::Result<Vec<Option<F>>> {
    thread::scope(|scope| {
        let start = |work: W| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || answer(work));
        let started = work.into_iter().map(|work| work.map(start).transpose());
        let started = started.collect::<Result<Vec<_>, _>>().context("cannot start a thread that scores")?;
        let join = |thread: thread::ScopedJoinHandle<'_, F>| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that scores has ended with a panic"))
        };
        started.into_iter().map(|thread| thread.map(join).transpose()).collect()
    })
}

/// Writes the name of the `i`th entry of an object.
fn name(out: &mut Vec<u8>, name: &str, i: usize) {
    if i > 0 {
        out.push(b',');
    }
    // The name of a view is that of its file: letters, digits and underscores.
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

impl Serving {
    fn new(model: &crate::model::Model, lang: &str) -> Self {
        let head = |(cluster, description): (usize, &&str)| {
            let mut head = format!("{{\"cluster\":{cluster},\"description\":");
            push_json_string(&mut head, description);
            (head + ",\"distance\":").into_bytes()
        };
        Self {
            scorer: Scorer::new(model, lang).with_missing(Missing::Skip),
            header: format!("{}@{}@{}", model.segmentation, model.slice, model.version),
            heads: model.descriptions(lang).iter().enumerate().map(head).collect(),
            tail: format!(",\"version\":{}}}", model.version).into_bytes(),
        }
    }
}

impl Decoder {
    fn new(all: &[Segments]) -> Self {
        let reads: BTreeSet<&str> = all.iter().flat_map(|segments| segments.records.reads()).collect();
        let extra = reads.contains("_extra");
        let mut names: Vec<String> = Vec::new();
        for column in all.iter().flat_map(|segments| segments.records.schema().fields()) {
            let name = column.name();
            // The columns of the store begin with an underscore, and declared fields do not.
            let wanted = !name.starts_with('_') && (extra || reads.contains(name.as_str()));
            if wanted && !names.contains(name) {
                names.push(name.clone());
            }
        }
        Self { extra, headers: reads.contains("_headers"), fields: Fields::new(names) }
    }

    /// The readable records. Those that cannot be read get a reason.
    fn decoded(&self, batch: &[Input<'_>], reasons: &mut [Option<String>]) -> anyhow::Result<Option<Decoded>> {
        let mut stored = Batch::new(0, &self.fields);
        let (mut rows, mut partitions) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let now = Instant::now();
        for (row, (input, reason)) in batch.iter().zip(reasons).enumerate() {
            let payload = input.record.payload;
            let decoded = match self.extra {
                true => decode(payload, &self.fields),
                false => decode_only(payload, &self.fields),
            };
            match decoded {
                Err(unreadable) => *reason = Some(unreadable.to_string()),
                decoded => {
                    let headers = input.headers.iter().map(|(name, value)| (Cow::Borrowed(name.as_ref()), *value));
                    // The bytes are not kept beside the fields.
                    stored.push(&Record { payload: None, ..input.record }, headers, &decoded, now);
                    rows.push(row as u32);
                    partitions.push(input.partition);
                }
            }
        }
        let Some(ready) = stored.take().context(CANNOT_BUILD)? else { return Ok(None) };
        let (partitions, rows) = (Arc::new(Int32Array::from(partitions)), Arc::new(UInt32Array::from(rows)));
        Ok(Some(Decoded { columns: ready.records, partitions, rows }))
    }
}

const CANNOT_BUILD: &str = "cannot build columns of records";

impl Decoded {
    fn with_schema(&self, schema: &SchemaRef) -> anyhow::Result<RecordBatch> {
        let (_, stored) = schema.fields().split_last().context("the records have no columns")?;
        let column = |field: &Arc<Column>| match self.columns.column_by_name(field.name()) {
            _ if field.name() == "_partition" => Arc::clone(&self.partitions),
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), self.rows.len()),
        };
        let mut columns: Vec<ArrayRef> = stored.iter().map(column).collect();
        columns.push(Arc::clone(&self.rows));
        RecordBatch::try_new(Arc::clone(schema), columns).context(CANNOT_BUILD)
    }
}
