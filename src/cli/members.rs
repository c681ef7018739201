//! `tercile members`: which entity is in which cluster.

mod topic;

use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::sync::Arc;

use anyhow::{bail, ensure};
use clap::{Args, Subcommand};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, kernels::cmp::eq, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tercile_store::Store;

use super::output_file::{Output, OutputFile};
use super::sql::output::{self, Format};
use super::{Done, Stop, Terminal, Usage, blocking, completions, job, thousands};
use crate::config::{StoreArgs, language};
use crate::file_format;
use crate::model::members::{self, Found, GroupCache, Members as MembersFile, Order};
use crate::model::{Model, ModelRegistry, model_ref};
use crate::slices::SLICES;

/// Maximum number of unknown keys whose positions are named.
const UNKNOWN: usize = 10;
/// Bytes of a file of members that a look-up keeps in memory.
const CACHE: usize = 256 << 20;

/// List the members of a segmentation of entities, look keys up, compare two versions, or send members to a topic
///
/// Gives the key columns, the features, cluster, description, distance, and the cluster in the model before. Without keys: all
/// members, sorted by key. With --to they are sent to a topic of Kafka.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Members {
    #[command(subcommand)]
    action: Option<Action>,
    /// The segmentation: customers, ...
    #[arg(value_name = "NAME", add = completions::segmentation())]
    segmentation: Option<String>,
    /// Keys to look up; where the entity has several columns, each is a JSON array: '["shop 1", 42]'
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    /// Only the members of this cluster
    #[arg(long, env = "TERCILE_CLUSTER", value_name = "N", conflicts_with = "keys")]
    cluster: Option<u32>,
    /// The slice whose model is asked: 1, 2 or 3, the whole stream [default: 3, or that of --as-of]
    #[arg(long, env = "TERCILE_SLICE", value_name = "SLICE", value_parser = clap::value_parser!(u8).range(1..=i64::from(SLICES)))]
    slice: Option<u8>,
    /// A version, whatever serves now
    #[arg(long, env = "TERCILE_AS_OF", value_name = "VERSION")]
    as_of: Option<u64>,
    /// The language of the descriptions
    #[arg(long, env = "TERCILE_LANG", value_name = "LANGUAGE", default_value = "en", value_parser = language)]
    lang: String,
    #[command(flatten)]
    topic: topic::ToTopic,
    #[command(flatten)]
    out: Out,
}

#[derive(Subcommand)]
enum Action {
    Diff(DiffArgs),
}

/// List the entities that are in another cluster, came, or left, between two versions
#[derive(Args)]
struct DiffArgs {
    /// The segmentation: customers, ...
    #[arg(value_name = "NAME", add = completions::segmentation())]
    segmentation: String,
    /// The older version
    #[arg(value_name = "V1")]
    before: u64,
    /// The newer one
    #[arg(value_name = "V2")]
    after: u64,
    #[command(flatten)]
    out: Out,
}

#[derive(Args)]
struct Out {
    /// Output format [default: by the file extension of the output, else a table]
    #[arg(short, long, env = "TERCILE_FORMAT", value_name = "FORMAT")]
    format: Option<Format>,
    /// The file to write to, once all are written [default: stdout]
    #[arg(short, long, env = "TERCILE_OUTPUT", value_name = "FILE")]
    output: Option<OutputFile>,
    #[command(flatten)]
    store: StoreArgs,
}

impl Members {
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        if self.topic.to.is_none() {
            return job(blocking(move || self.print())).await;
        }
        let prepared = blocking(move || {
            let store = self.out.store.look()?;
            let model = self.model(&store, self.name()?)?;
            model.check_language(&self.lang)?;
            open(&store, &model)?;
            Ok((self.topic, (store, model, self.lang)))
        });
        let mut stop = Stop::listen();
        match stop.unless(prepared).await? {
            Some((topic, of)) => topic.run(of, terminal, stop).await,
            None => Ok(Done::With(stop.exit_code())),
        }
    }

    fn name(&self) -> anyhow::Result<&str> {
        let missing = || Usage("name a segmentation of entities; tercile models lists all segmentations".to_owned());
        Ok(self.segmentation.as_deref().ok_or_else(missing)?)
    }

    fn print(self) -> anyhow::Result<Done> {
        if let Some(Action::Diff(diff)) = self.action {
            return diff.run();
        }
        let name = self.name()?;
        let format = self.out.format()?;
        let out = Output::open(self.out.output.as_ref())?;
        let store = self.out.store.look()?;
        let model = self.model(&store, name)?;
        model.check_language(&self.lang)?;
        let members = open(&store, &model)?;
        if let Some(cluster) = self.cluster {
            let title = title(&model);
            ensure!(cluster < model.k, "{title} has no cluster {cluster}; its clusters are 0 to {}", model.k - 1);
        }
        let descriptions = model.descriptions(&self.lang);
        let schema = members::shown_schema(&members.schema());
        // Keys may be confidential, and errors end up in logs: they are named by their position.
        let mut unknown: Vec<String> = Vec::new();
        write(format, &schema, out, |rows| {
            if self.keys.is_empty() {
                for batch in members.read(0)? {
                    rows(&members::shown(&of_cluster(batch?, self.cluster)?, &descriptions)?)?;
                }
                return Ok(());
            }
            let keys = members.keys(&texts(&self.keys, model.entity.len())?)?;
            for (i, found) in members.find(&keys, &GroupCache::new(CACHE))?.into_iter().enumerate() {
                match found {
                    Some(Found { batch, row }) => rows(&members::shown(&batch.slice(row, 1), &descriptions)?)?,
                    None => unknown.push((i + 1).to_string()),
                }
            }
            Ok(())
        })?;
        if !unknown.is_empty() {
            let (title, keys, n) = (title(&model), self.keys.len(), unknown.len());
            let more = if n > UNKNOWN { ", …" } else { "" };
            let which = unknown.iter().take(UNKNOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            bail!("{n} of {keys} keys are no members of {title}: number {which}{more}; the others were written");
        }
        Ok(Done::Well)
    }

    fn model(&self, store: &Store, name: &str) -> anyhow::Result<Model> {
        let model = match self.as_of {
            None => model_ref::find(store, &format!("{name}@{}", self.slice.unwrap_or(SLICES))),
            Some(version) => {
                let parsed = model_ref::Name::parse(name).map_err(anyhow::Error::msg)?;
                model_ref::version_of(&parsed.registry(store), name, version)
            }
        };
        let model = model.map_err(anyhow::Error::msg)?;
        if let Some(slice) = self.slice.filter(|slice| *slice != model.slice) {
            bail!("version {} of {name} is of slice {}, not {slice}: leave --slice out", model.version, model.slice);
        }
        Ok(model)
    }
}

/// The rows of a batch that are in a cluster.
fn of_cluster(batch: RecordBatch, cluster: Option<u32>) -> anyhow::Result<RecordBatch> {
    let (Some(cluster), Some(clusters)) = (cluster, members::clusters(&batch)) else { return Ok(batch) };
    Ok(filter_record_batch(&batch, &eq(clusters, &UInt32Array::new_scalar(cluster))?)?)
}

fn title(model: &Model) -> String {
    format!("{}@{}@{}", model.segmentation, model.slice, model.version)
}

fn open(store: &Store, model: &Model) -> anyhow::Result<MembersFile> {
    let name = &model.segmentation;
    ensure!(
        !model.entity.is_empty(),
        "{name} is a segmentation of records, which has no members; one with a header line -- entity: has"
    );
    let Some(members) = ModelRegistry::new(store, name).members(model)? else {
        bail!(
            "the members of {} are deleted: they are kept for versions that serve and for the last ones (--keep-members); if this \
             version serves, tercile train makes a new one with its own",
            title(model)
        );
    };
    Ok(members)
}

/// The texts of keys by column.
fn texts(keys: &[String], columns: usize) -> anyhow::Result<Vec<Vec<String>>> {
    let of = |(i, key): (usize, &String)| {
        if columns == 1 {
            return Ok(vec![key.clone()]);
        }
        let values = serde_json::from_str::<Vec<serde_json::Value>>(key).ok().filter(|values| values.len() == columns);
        let values = values.and_then(|values| values.iter().map(members::key_text).collect::<Option<Vec<String>>>());
        let expected = || Usage(format!("key {}: expected a JSON array of {columns} values, as [\"a\", 1]", i + 1));
        values.ok_or_else(|| expected().into())
    };
    keys.iter().enumerate().map(of).collect()
}

impl Out {
    fn format(&self) -> anyhow::Result<Format> {
        let format = match &self.output {
            Some(output) => output.format(self.format)?,
            None => self.format,
        };
        let format = format.unwrap_or(Format::Table);
        if format.binary() && self.output.is_none() && std::io::stdout().is_terminal() {
            let name = file_format::value_name(&format);
            bail!("{name} is no text for a terminal; add --output FILE, or a pipe");
        }
        Ok(format)
    }
}

/// A function that writes one batch of rows.
type Sink<'a> = &'a mut dyn FnMut(&RecordBatch) -> anyhow::Result<()>;

/// Writes a result whose rows `give` hands over.
fn write(
    format: Format,
    schema: &SchemaRef,
    out: Output,
    give: impl FnOnce(Sink<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 18, &out);
    let mut rows = output::start(format, schema, None, &mut buffered)?;
    give(&mut |batch| rows.batch(batch))?;
    let note = rows.end()?;
    buffered.flush()?;
    drop(buffered);
    out.commit()?;
    if let Some(note) = note {
        tracing::info!("{note}");
    }
    Ok(())
}

impl DiffArgs {
    fn run(self) -> anyhow::Result<Done> {
        let format = self.out.format()?;
        let out = Output::open(self.out.output.as_ref())?;
        let store = self.out.store.look()?;
        let parsed = model_ref::Name::parse(&self.segmentation).map_err(anyhow::Error::msg)?;
        let registry = parsed.registry(&store);
        let model = |version| model_ref::version_of(&registry, &self.segmentation, version).map_err(anyhow::Error::msg);
        let (before, after) = (model(self.before)?, model(self.after)?);
        ensure!(
            before.entity == after.entity,
            "{} and {} have different entities ({} and {}): their members can't be compared",
            title(&before),
            title(&after),
            before.entity.join(", "),
            after.entity.join(", ")
        );
        let all = |model: &Model| -> anyhow::Result<RecordBatch> {
            let members = open(&store, model)?;
            let batches = members.read(0)?.collect::<Result<Vec<_>, _>>()?;
            Ok(concat_batches(&members.schema(), &batches)?)
        };
        let (old, new) = (all(&before)?, all(&after)?);
        let compared = Compared::of(&old, &new, before.entity.len())?;
        let rows = compared.rows((&old, &before), (&new, &after))?;
        write(format, &rows.schema(), out, |write| write(&rows))?;
        tracing::info!(
            "{} to {}: of {} entities that both have, {} are in another cluster; {} came, {} left",
            title(&before),
            title(&after),
            thousands(compared.common),
            thousands(compared.moved),
            thousands(compared.came),
            thousands(compared.left)
        );
        Ok(Done::Well)
    }
}

/// Rows with the same key in an older and in a newer list; one of them is missing if the entity came or left.
type Pair = (Option<usize>, Option<usize>);

/// The row of one of the lists.
type Side = fn(&Pair) -> Option<usize>;

/// Rows of an older and of a newer list of members that differ.
#[derive(Default)]
struct Compared {
    pairs: Vec<Pair>,
    common: u64,
    moved: u64,
    came: u64,
    left: u64,
}

impl Compared {
    /// Merges two lists that are sorted by key.
    fn of(old: &RecordBatch, new: &RecordBatch, keys: usize) -> anyhow::Result<Self> {
        let order = Order::of(&old.columns()[..keys], &new.columns()[..keys])?;
        let (Some(was), Some(is)) = (members::clusters(old), members::clusters(new)) else { bail!("no clusters") };
        let (mut a, mut b, mut all) = (0, 0, Self::default());
        while a < old.num_rows() || b < new.num_rows() {
            let order = match (a < old.num_rows(), b < new.num_rows()) {
                (true, true) => order.compare(a, b),
                (true, false) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            match order {
                std::cmp::Ordering::Less => {
                    all.left += 1;
                    all.pairs.push((Some(a), None));
                    a += 1;
                }
                std::cmp::Ordering::Greater => {
                    all.came += 1;
                    all.pairs.push((None, Some(b)));
                    b += 1;
                }
                std::cmp::Ordering::Equal => {
                    all.common += 1;
                    if was.value(a) != is.value(b) {
                        all.moved += 1;
                        all.pairs.push((Some(a), Some(b)));
                    }
                    (a, b) = (a + 1, b + 1);
                }
            }
        }
        Ok(all)
    }

    /// Keys, then cluster and description before and after; NULL where an entity is not a member.
    fn rows(
        &self,
        (old, before): (&RecordBatch, &Model),
        (new, after): (&RecordBatch, &Model),
    ) -> anyhow::Result<RecordBatch> {
        let keys = before.entity.len();
        let key_schema = Arc::new(Schema::new(old.schema().fields()[..keys].to_vec()));
        // The keys of both lists, one after the other: a pair takes its key from the side that has it.
        let side =
            |batch: &RecordBatch| RecordBatch::try_new(Arc::clone(&key_schema), batch.columns()[..keys].to_vec());
        let both = concat_batches(&key_schema, [&side(old)?, &side(new)?])?;
        let at = |(a, b): &Pair| a.or_else(|| b.map(|b| old.num_rows() + b)).map(|row| row as u32);
        let taken = take_record_batch(&both, &self.pairs.iter().map(at).collect::<UInt32Array>())?;
        let mut fields: Vec<Field> = key_schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
        let sides: [(&str, &RecordBatch, &Model, Side); 2] =
            [("from", old, before, |pair| pair.0), ("to", new, after, |pair| pair.1)];
        for (name, batch, model, row) in sides {
            let clusters = members::clusters(batch);
            let cluster = |pair| Some(clusters?.value(row(pair)?));
            let numbers: UInt32Array = self.pairs.iter().map(cluster).collect();
            let descriptions = model.descriptions("en");
            let text = |cluster: Option<u32>| descriptions.get(cluster? as usize).copied();
            let texts: StringArray = numbers.iter().map(text).collect();
            fields.push(Field::new(name, DataType::UInt32, true));
            fields.push(Field::new(format!("{name}_description"), DataType::Utf8, true));
            columns.extend([Arc::new(numbers) as ArrayRef, Arc::new(texts)]);
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}
