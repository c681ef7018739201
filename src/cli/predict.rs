//! `tercile predict`: adds clusters to the rows of a file.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::output_file::{Output, OutputFile};
use super::{Done, Usage, blocking, completions, count, imputed, thousands};
use crate::bulk::{self, Format, Keep, Reader, Scorer, Writer};
use crate::config::{InputArgs, SqlArgs, StoreArgs, language};
use crate::engine::file_table::FileTypes;
use crate::file_format;
use crate::files::{self, Dialect, Source};
use crate::missing::Missing;
use crate::model::fitted::FittedModel;
use crate::model::{ModelRegistry, model_ref};
use crate::scoring::RecordScorer;
use crate::slices::SLICES;
use crate::sql::Segmentation;

/// Predict the segment of each row
///
/// Reads rows from a file or stdin (CSV, TSV, JSON, NDJSON, Arrow or Parquet) and writes them in the same format with three more
/// columns: cluster, description, and distance to the centroid in standardised units. Columns of the input are kept: beside a column
/// description the added one is description_2. If the input has all three, they are those of an earlier prediction and are replaced. CSV keeps the
/// delimiter and the decimal mark of the input, in UTF-8. Features must be finite numbers; --missing decides about rows in which one is
/// not. Memory is constant, whatever the number of rows.
#[derive(Args)]
pub struct Predict {
    /// Segmentation, as in price_rating, or a file of a model, as in m.json: tercile fit --model writes it
    #[arg(value_name = "SEGMENTATION|MODEL.json", add = completions::segmentation())]
    segmentation: String,
    /// The file of rows, a directory, or a quoted pattern of files; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Slice of the model: 1, 2, or 3 (the whole stream)
    #[arg(long, env = "TERCILE_MODEL", value_name = "SLICE", default_value_t = SLICES,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(SLICES)))]
    model: u8,
    /// Version of the model [default: the serving version]
    #[arg(long, env = "TERCILE_AS_OF", value_name = "VERSION", conflicts_with = "model")]
    as_of: Option<u64>,
    /// Language of the descriptions
    #[arg(long, env = "TERCILE_LANG", value_name = "LANGUAGE", default_value = "en", value_parser = language)]
    lang: String,
    /// The rows are raw records, as on the topic: the SQL files clean them first. A record without a cluster has the column reason
    #[arg(long, env = "TERCILE_RAW", conflicts_with = "missing")]
    raw: bool,
    /// Policy for rows in which a feature is missing or not a number; with impute, a fourth column `imputed` names the features
    /// that were replaced by the model's mean
    #[arg(long, env = "TERCILE_MISSING", value_name = "CHOICE", default_value = "refuse")]
    missing: Missing,
    /// Output format [default: by the file extension of the output, else the input format]
    #[arg(short, long, env = "TERCILE_FORMAT", value_name = "FORMAT")]
    format: Option<Format>,
    /// Output file, written after all rows were read; it may be FILE itself [default: stdout]
    #[arg(short, long, env = "TERCILE_OUTPUT", value_name = "FILE")]
    output: Option<OutputFile>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

impl Predict {
    pub async fn run(self) -> anyhow::Result<Done> {
        if let Some(path) = self.model_file() {
            let flag = if self.raw { Some("--raw") } else { self.as_of.map(|_| "--as-of") };
            if let Some(flag) = flag {
                let shown = path.display();
                return Err(Usage(format!(
                    "{flag} is for a segmentation of a store, and {shown} is a file; leave it out"
                ))
                .into());
            }
        }
        let records = match self.raw {
            true => Some(RecordScorer::of(&self.sql.load()?, &self.segmentation).await?),
            false => None,
        };
        blocking(move || self.predict(records)).await
    }

    fn predict(self, records: Option<(RecordScorer, Segmentation)>) -> anyhow::Result<Done> {
        let asked = match &self.output {
            Some(output) => output.format(self.format)?,
            None => self.format,
        };
        let out = Output::open(self.output.as_ref())?;
        let missing = if self.raw { Missing::Skip } else { self.missing };
        let scorer = self.scorer()?.with_missing(missing);
        if let Some((_, now)) = &records
            && now.features != scorer.features
        {
            let (now, then) = (now.features.join(", "), scorer.features.join(", "));
            anyhow::bail!(
                "the model has the features {then}, and the SQL files give {now}; run tercile train, or check --sql"
            );
        }
        let mut source = Source::named(&self.file)?;
        let name = source.name().display().to_string();
        let mut options = self.input.options();
        let mut opened = files::open(&source, &options)?;
        let is_converted = !self.raw && asked.is_some_and(|to| FileTypes::are_needed(opened.format, to));
        if is_converted && source.is_pipe() {
            (source, options) = opened.copied(options)?;
            opened = files::open(&source, &options)?;
        }
        let mut reader = match self.raw {
            true => Reader::of_file(opened, &[]).and_then(Reader::of_records).with_context(|| name.clone())?,
            false => Reader::of_file(opened, &scorer.features).with_context(|| name.clone())?.with_missing(missing),
        };
        let format = asked.unwrap_or(reader.format);
        let types =
            if is_converted { FileTypes::for_conversion(&source, &options, (reader.format, format))? } else { None };
        let buffer = BufWriter::with_capacity(1 << 18, &out);
        let mut writer = match self.answer_dialect(&reader, format) {
            Some((delimiter, decimal)) => Writer::csv(buffer, delimiter, decimal),
            None => Writer::new(buffer, format).with_types(types),
        };
        // Rows without a cluster, and the reasons of raw records.
        let (mut skipped, mut reasons) = (0, BTreeMap::new());
        while let Some(block) = reader.block().map_err(|error| refused(error, &name))? {
            let (block, found) = match &records {
                None => {
                    let found = scorer.score(&block).with_context(|| name.clone())?;
                    (block, found)
                }
                Some((records, _)) => {
                    records.score(block, &scorer, (Keep::Row, usize::MAX)).with_context(|| name.clone())?
                }
            };
            for reason in found.reasons.iter().flatten().flatten() {
                *reasons.entry(kind_of(reason)).or_insert(0_u64) += 1;
            }
            skipped += found.present.as_ref().map_or(0, |present| present.null_count() as u64);
            writer.write(block, found, &scorer)?;
        }
        if let Some(field) = reader.absent().filter(|_| !self.raw) {
            anyhow::bail!(
                "{name}: no row has the field {field}, which the model needs; correct its name, or use --raw for the SQL of the segmentation"
            );
        }
        writer.finish()?;
        out.commit()?;
        for (reason, n) in &reasons {
            tracing::warn!("{name}: {} without a cluster: {reason}", count(*n, "record"));
        }
        self.tell_gaps(&name, &scorer.features, &reader, skipped);
        tracing::debug!("{} of {name} clustered", count(reader.rows, "row"));
        Ok(Done::Well)
    }

    /// Delimiter and decimal mark of the answer, if it is CSV like the input: those of the input. What else changes is told.
    fn answer_dialect(&self, reader: &Reader, format: Format) -> Option<(u8, char)> {
        let is_text = |format| matches!(format, Format::Csv | Format::Tsv);
        if !is_text(reader.format) || !is_text(format) {
            return None;
        }
        // A file of tabs may be called .csv, and so may its answer.
        let csv = format == Format::Csv && self.format.is_none() && file_format::name_of(&self.file) == Some("csv");
        let same = reader.format == format || csv;
        let dialect = Dialect { encoding: encoding_rs::UTF_8, compression: None, skip: 0, ..reader.dialect.clone() };
        let dialect = if same {
            dialect
        } else {
            Dialect { delimiter: if format == Format::Tsv { b'\t' } else { b',' }, ..dialect }
        };
        if dialect != reader.dialect {
            let skipped = if reader.dialect.skip > 0 { ", without the lines before the header" } else { "" };
            let plain = if reader.dialect.compression.is_some() { ", not compressed" } else { "" };
            let name = self.file.display();
            tracing::info!("{name}: the answer is {}{skipped}{plain}", dialect.describe(format));
        }
        Some((dialect.delimiter, dialect.decimal))
    }

    /// Prints a line per feature with missing values and a line for the rows that have no cluster because of them.
    fn tell_gaps(&self, name: &str, features: &[String], reader: &Reader, skipped: u64) {
        let rows = thousands(reader.rows);
        for (feature, gaps) in features.iter().zip(reader.gaps()).filter(|(_, gaps)| gaps.count() > 0) {
            let n = thousands(gaps.count());
            let took = if self.missing == Missing::Impute { " and took the model's mean" } else { "" };
            tracing::warn!("{name}: {feature} was missing in {n} of {rows} rows{took}{}", imputed::not_numbers(gaps));
        }
        if let Some(columns) = reader.replaced() {
            tracing::warn!("{name}: {columns} of an earlier prediction were replaced");
        }
        if skipped > 0 && !self.raw {
            tracing::warn!("{name}: {} of {rows} rows have no cluster", thousands(skipped));
        }
    }

    /// The file of the model, if one is named instead of a segmentation.
    fn model_file(&self) -> Option<&Path> {
        let path = Path::new(&self.segmentation);
        (file_format::name_of(path) == Some("json")).then_some(path)
    }

    fn scorer(&self) -> anyhow::Result<Scorer> {
        let name = &self.segmentation;
        if let Some(path) = self.model_file() {
            let model = FittedModel::read(path).map_err(anyhow::Error::msg)?;
            model.check_language(path, &self.lang)?;
            return Ok(Scorer::fitted(&model, &self.lang));
        }
        let store = self.store.look()?;
        let trained = store.segmentations()?;
        if !trained.contains(name) {
            let there = if trained.is_empty() { "none".to_owned() } else { trained.join(", ") };
            anyhow::bail!(
                "the store {} has no model of {name:?}, it has {there}; run tercile train, or check --store",
                store.root().display()
            );
        }
        let registry = ModelRegistry::new(&store, name);
        if let Some(version) = self.as_of {
            let model = model_ref::version_of(&registry, name, version).map_err(anyhow::Error::msg)?;
            model.check_language(&self.lang)?;
            return Ok(Scorer::new(&model, &self.lang));
        }
        let Some(model) = registry.serving(self.model)? else {
            let refused = registry.slices()?.get(&self.model).and_then(|standing| standing.refused.clone());
            let why = refused.unwrap_or_else(|| "it is not trained yet; run tercile train".to_owned());
            anyhow::bail!("{name} of slice {} has no model: {why}", self.model);
        };
        model.check_language(&self.lang)?;
        Ok(Scorer::new(&model, &self.lang))
    }
}

/// A reason without the details of one record, for counts.
fn kind_of(reason: &str) -> String {
    reason.split([':', '\'', '"']).next().unwrap_or(reason).trim_end().to_owned()
}

/// Converts an error in a file's rows; if a value was refused, the message names the alternatives.
fn refused(error: bulk::Error, name: &str) -> anyhow::Error {
    match error {
        bulk::Error::Gap { at, field, what } => anyhow::anyhow!(
            "{name}, {at}: {field} {what}; correct it, or give --missing skip (such rows go through without a cluster) or \
             --missing impute (the model's mean takes its place)"
        ),
        error => anyhow::Error::new(error).context(name.to_owned()),
    }
}
