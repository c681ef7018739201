//! `tercile fit`: clusters the rows of a file.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use ndarray::Array2;
use serde::Serialize;
use tercile_kmeans::MAX_FEATURES;
use tercile_kmeans::column_buffer::{self, Space};
use tercile_kmeans::features::scaling::Scaling;
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Limits, Settings, Step};

use super::output_file::{Output, OutputFile};
use super::scaling::ScalingArgs;
use super::table::short;
use super::{Done, Terminal, Usage, imputed, quartiles, table, thousands};
use crate::bulk::{Format, Reader, Scorer, Writer};
use crate::columns::{self, Columns};
use crate::config::{InputArgs, SolverArgs, bytes};
use crate::engine::file_table::FileTypes;
use crate::file_format;
use crate::files::{self, Source};
use crate::fit::{self, Job, Receipt, Report};
use crate::missing::{self, Missing, NotNumbers, Policy};
use crate::model::{self, Tiny};
use crate::sql::header::MAX_K;
use crate::suggest;
use crate::train::SEED;

/// Default number of clusters.
const K: usize = 3;
/// Greatest number of clusters that is tried without the rows of tiny clusters.
const TRIED: usize = 8;
/// Maximum number of quartile lines in a table. Longer results are only complete in JSON.
const QUARTILE_ROWS: usize = 60;

/// The numbers of clusters to fit, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ks {
    One(usize),
    Each(RangeInclusive<usize>),
}

/// Run KMeans on a Parquet, Arrow, CSV or JSON file
///
/// Features are standardised with their mean and population deviation. Missing values (NULL, an empty cell, NaN) are replaced by
/// the mean and counted; other text and infinities are errors, unless --missing says otherwise. Lloyd's algorithm then minimises
/// the sum of squared distances to the nearest of k centroids, from greedy k-means++ starts and crossings of their results: on
/// all distinct rows up to 65,536 rows, otherwise on a weighted sample that keeps rare and distant rows. The best results are
/// refined on all rows until assignments stop changing. A single feature is solved exactly. The same file and settings give the
/// same bits for any number of threads.
#[derive(Args)]
pub struct Fit {
    #[command(flatten)]
    from: FileArgs,
    /// Number of clusters, or a range: 2..10 fits each number from 2 to 10 [default: 3, or the number in --init]
    #[arg(long, env = "TERCILE_K", value_name = "N", value_parser = ks)]
    k: Option<Ks>,
    /// File with the initial centroids: a JSON array of k arrays, in original units, in the order of --features
    #[arg(long, env = "TERCILE_INIT", value_name = "FILE", conflicts_with = "n_init")]
    init: Option<PathBuf>,
    /// Maximum number of iterations over all rows
    #[arg(long, env = "TERCILE_MAX_ITER", value_name = "N", default_value = "300")]
    max_iter: NonZero<u32>,
    /// Relative tolerance: stop when the squared shift of all centroids is at most this fraction of the features' mean variance;
    /// 0: when assignments stop changing
    #[arg(long, env = "TERCILE_TOL", value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    tol: f64,
    #[command(flatten)]
    solver: SolverArgs,
    /// File for the rows with their clusters, as in rows.csv, or for the result as JSON, as in result.json; in addition to stdout. The
    /// rows have the columns that tercile predict adds
    #[arg(long, short, env = "TERCILE_OUTPUT", value_name = "FILE")]
    output: Option<OutputFile>,
    /// File for the model, as in m.json: tercile predict m.json FILE finds the clusters of other rows
    #[arg(long, env = "TERCILE_MODEL_FILE", value_name = "FILE")]
    model: Option<OutputFile>,
    /// Print the result as JSON: the fields of a model, scores, and durations
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
}

/// Which rows, and what starts are drawn on them.
#[derive(Args)]
pub(super) struct FileArgs {
    /// The file: Parquet, Arrow, CSV or JSON; a directory or a quoted pattern of CSV or NDJSON files; - is stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Columns to cluster by, separated by commas
    #[arg(long, env = "TERCILE_FEATURES", value_name = "NAMES", value_delimiter = ',', required = true)]
    pub features: Vec<String>,
    #[command(flatten)]
    scaling: ScalingArgs,
    /// Policy for rows in which a feature is missing or not a number [default: impute missing values, refuse text and
    /// infinities]
    #[arg(long, env = "TERCILE_MISSING", value_name = "CHOICE")]
    missing: Option<Missing>,
    /// Number of restarts [default: 10, or 2,000,000 / rows if that is more, at most 1,000]
    #[arg(long, env = "TERCILE_N_INIT", value_name = "N")]
    n_init: Option<NonZero<u32>>,
    /// Seed of the random number generator
    #[arg(long, env = "TERCILE_SEED", value_name = "N", default_value_t = SEED)]
    pub seed: u64,
    /// Number of threads [default: one per processor]
    #[arg(long, env = "TERCILE_THREADS", value_name = "N")]
    threads: Option<NonZero<u16>>,
    /// Memory limit, as in 512MB or 2GiB: larger columns are kept in files in TMPDIR (out of core)
    /// [default: half of the memory]
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", value_parser = bytes)]
    memory_limit: Option<usize>,
    #[command(flatten)]
    input: InputArgs,
}

impl FileArgs {
    /// Checks that no feature is named twice and that their number is allowed.
    pub fn check(&self) -> anyhow::Result<()> {
        let twice = self.features.iter().enumerate().find(|(i, name)| self.features[..*i].contains(name));
        if let Some((_, name)) = twice {
            bail!("--features names {name} twice");
        }
        let count = self.features.len();
        ensure!(count <= MAX_FEATURES, "--features names {count} columns; {MAX_FEATURES} are the most");
        Ok(())
    }

    /// How each feature is scaled.
    pub fn scaling(&self) -> Result<Vec<Scaling>, Usage> {
        self.scaling.of(&self.features)
    }

    /// The file, which can be read more than once.
    pub fn input(&self) -> Result<columns::Input, columns::Error> {
        Ok(columns::Input { source: Source::named(&self.file)?.rereadable()?, options: self.input.options() })
    }

    /// Reads the features.
    pub fn read(&self, file: &columns::Input) -> Result<Columns, columns::Error> {
        let policy = self.missing.map_or(Policy::FIT, Policy::all);
        columns::read(file, &self.features, policy, self.threads(), &self.space())
    }

    fn space(&self) -> Space {
        Space::within(self.memory_limit.unwrap_or_else(column_buffer::half_of_memory), column_buffer::scratch())
    }

    pub fn threads(&self) -> usize {
        self.threads.map_or_else(processors, |n| usize::from(n.get()))
    }

    /// The number of restarts for this number of rows.
    pub fn starts(&self, rows: usize) -> usize {
        self.n_init.map_or_else(|| kmeans::starts_for(rows), |n| n.get() as usize)
    }
}

/// The result with its input and receipt.
#[derive(Serialize)]
struct Printed<'a> {
    file: &'a Path,
    #[serde(flatten)]
    report: Report,
    /// Rows that form clusters of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    tiny: Option<Tiny>,
    /// Per feature: counts of text values and infinities, if there are any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    not_numbers: BTreeMap<String, NotNumbers>,
    receipt: Receipt,
    seconds: Seconds,
}

/// Several results for the same rows.
#[derive(Serialize)]
struct Several<'a> {
    file: &'a Path,
    rows: u64,
    rows_left_out: u64,
    imputed: BTreeMap<String, u64>,
    features: &'a [String],
    /// The number of clusters with the greatest silhouette.
    best: Option<u32>,
    /// Each result in the format of a single fit.
    fits: Vec<Printed<'a>>,
}

#[derive(Clone, Serialize)]
struct Seconds {
    read: f64,
    fit: f64,
    score: f64,
}

impl Fit {
    pub fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        let (job, ks) = self.job()?;
        // The rows are written in any format but JSON, which is the result.
        let rows_format = match &self.output {
            Some(file) => file.format::<Format>(None)?.filter(|format| *format != Format::Json),
            None => None,
        };
        if let Some(file) = &self.model {
            file.check_format("json")?;
        }
        if let Ks::Each(_) = ks {
            let flag = if self.model.is_some() { Some("--model") } else { rows_format.map(|_| "--output for rows") };
            if let Some(flag) = flag {
                return Err(Usage(format!("{flag} takes one number of clusters; give one --k")).into());
            }
        }
        let result = if rows_format.is_none() { self.output.as_ref() } else { None };
        for (flag, file) in [("--output", result), ("--model", self.model.as_ref())] {
            // Beside other rows, JSON by name is what a user takes for rows.
            let is_json = |file: &&OutputFile| file_format::name_of(file.path()) == Some("json");
            if file.filter(is_json).is_some_and(|file| file.is_same(&self.from.file)) {
                let why = format!("{flag} would replace the rows of {}; name another file", self.from.file.display());
                return Err(Usage(why).into());
            }
        }
        let output = self.output.as_ref().map(OutputFile::open).transpose()?;
        let model = self.model.as_ref().map(OutputFile::open).transpose()?;
        let bar = terminal.bar(None);
        bar.enable_steady_tick(Duration::from_millis(100));
        let FileArgs { file, features, .. } = &self.from;
        bar.set_message(format!("reading {}", file.display()));
        let began = Instant::now();
        let threads = job.settings.threads;
        let input = self.from.input()?;
        let columns = self.from.read(&input)?;
        let not_numbers = missing::not_numbers(features, &columns.gaps);
        let read = began.elapsed().as_secs_f64();
        let starts = self.from.starts(columns.rows);
        // The table does not show a receipt.
        let rows_hash = match self.json || self.output.is_some() {
            true => fit::rows_hash(&columns.columns, threads),
            false => String::new(),
        };
        let one = |k: usize| {
            let job = Job { settings: Settings { k, starts, ..job.settings.clone() }, ..job.clone() };
            bar.set_message(format!("{k} clusters of {} rows", thousands(columns.rows as u64)));
            let watch = |Step { iteration, inertia, shift }: Step| {
                bar.set_message(format!("{k} clusters, pass {iteration}: inertia {inertia:.6e}, shift {shift:.2e}"));
            };
            let report = fit::fit(&columns.columns, &job, &watch);
            let report = report.with_context(|| format!("cannot cluster {}", file.display()))?;
            let report = Report { rows_left_out: columns.rows_left_out, ..report };
            let (fit, score) = (report.took.fit.as_secs_f64(), report.took.score.as_secs_f64());
            let receipt = Receipt::new(&job, &report, &rows_hash);
            let (not_numbers, seconds) = (not_numbers.clone(), Seconds { read, fit, score });
            let tiny = tiny(&report, &columns, &job.settings)?;
            Ok::<_, anyhow::Error>(Printed { file, report, tiny, not_numbers, receipt, seconds })
        };
        let done = match ks {
            Ks::One(k) => one(k).and_then(|printed| {
                if let Some(model) = model {
                    (&model).write_all((serde_json::to_string_pretty(&printed)? + "\n").as_bytes())?;
                    model.commit()?;
                }
                if let (Some(output), Some(format)) = (&output, rows_format) {
                    bar.set_message("writing the rows");
                    self.label(&printed.report, &input, format, output)?;
                }
                Ok((serde_json::to_string_pretty(&printed)?, words(&printed, &columns)))
            }),
            Ks::Each(ks) => each(ks, one).and_then(|fits| {
                let best = fit::best_by_silhouette(fits.iter().map(|printed| &printed.report));
                let (rows, rows_left_out) = (columns.rows as u64, columns.rows_left_out);
                let imputed = fit::imputed(features, &columns.columns);
                let several = Several { file, rows, rows_left_out, imputed, features, best, fits };
                let lines = imputed::of_file(features, &columns);
                Ok((serde_json::to_string_pretty(&several)?, scores(&several) + &lines))
            }),
        };
        bar.finish_and_clear();
        let (json, words) = done?;
        let json = json + "\n";
        if let Some(output) = output {
            if rows_format.is_none() {
                (&output).write_all(json.as_bytes())?;
            }
            output.commit()?;
        }
        let text = if self.json { json } else { words };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Done::Well)
    }

    /// Writes the rows of the file with their clusters.
    fn label(&self, report: &Report, input: &columns::Input, format: Format, output: &Output) -> anyhow::Result<()> {
        let missing = self.from.missing.unwrap_or(Missing::Impute);
        let scorer = Scorer::fitted(&report.model(), "en").with_missing(missing);
        let name = input.source.name().display().to_string();
        let opened = files::open(&input.source, &input.options)?;
        let reader = Reader::of_file(opened, &scorer.features).with_context(|| name.clone())?;
        let mut reader = reader.with_missing(missing);
        let out = BufWriter::with_capacity(1 << 18, output);
        let is_text = |format| matches!(format, Format::Csv | Format::Tsv);
        let mut writer = match is_text(reader.format) && is_text(format) {
            true => {
                let delimiter = match format {
                    Format::Tsv => b'\t',
                    _ if reader.format == Format::Csv => reader.dialect.delimiter,
                    _ => b',',
                };
                Writer::csv(out, delimiter, reader.dialect.decimal)
            }
            false => {
                let types = FileTypes::for_conversion(&input.source, &input.options, (reader.format, format))?;
                Writer::new(out, format).with_types(types)
            }
        };
        while let Some(block) = reader.block().with_context(|| name.clone())? {
            let found = scorer.score(&block).with_context(|| name.clone())?;
            writer.write(block, found, &scorer)?;
        }
        if let Some(columns) = reader.replaced() {
            tracing::warn!("{name}: {columns} of an earlier prediction were replaced");
        }
        Ok(writer.finish()?)
    }

    /// The job and the numbers of clusters.
    fn job(&self) -> anyhow::Result<(Job, Ks)> {
        self.from.check()?;
        let init = self.init.as_deref().map(|path| self.centroids(path)).transpose()?;
        let ks = self.k.clone().unwrap_or_else(|| Ks::One(init.as_ref().map_or(K, Array2::nrows)));
        match &ks {
            Ks::One(k) => ensure!((1..=MAX_K).contains(k), "--k must be from 1 to {MAX_K}, found {k}"),
            Ks::Each(ks) => {
                let (low, high) = (*ks.start(), *ks.end());
                let fine = 1 <= low && low <= high && high <= MAX_K;
                ensure!(fine, "--k must go from a smaller to a greater number, from 1 to {MAX_K}, found {low}..{high}");
            }
        }
        if let Some(rows) = init.as_ref().map(Array2::nrows) {
            let told = match &ks {
                Ks::One(k) if *k == rows => None,
                Ks::One(k) => Some(k.to_string()),
                Ks::Each(ks) => Some(format!("{}..{}", ks.start(), ks.end())),
            };
            if let Some(told) = told {
                bail!("--init holds {rows} centroids, and --k says {told}; leave --k out");
            }
        }
        let limits = Limits { iterations: self.max_iter.get() as usize, tolerance: self.tol };
        let solver = self.solver.solver;
        let settings = Settings { k: K, seed: self.from.seed, starts: 1, limits, threads: self.from.threads() };
        let (features, scaling) = (self.from.features.clone(), self.from.scaling()?);
        Ok((Job { features, scaling, settings, init, solver }, ks))
    }

    fn centroids(&self, path: &Path) -> anyhow::Result<Array2<f64>> {
        let text = std::fs::read_to_string(path).map_err(|e| anyhow!("cannot read {}: {e}", path.display()))?;
        let shape =
            || format!("{}: expected a JSON array of arrays of {} numbers", path.display(), self.from.features.len());
        let rows: Vec<Vec<f64>> = serde_json::from_str(&text).with_context(shape)?;
        let fits = !rows.is_empty() && rows.iter().all(|row| row.len() == self.from.features.len());
        ensure!(fits, shape());
        Ok(Array2::from_shape_fn((rows.len(), self.from.features.len()), |(c, f)| rows[c][f]))
    }
}

/// Parses `3`, or `2..10` for the numbers from 2 to 10.
fn ks(text: &str) -> Result<Ks, String> {
    let number = |text: &str| text.trim().parse().map_err(|_| "expected a number, or a range such as 2..10".to_owned());
    match text.split_once("..") {
        Some((low, high)) => Ok(Ks::Each(number(low)?..=number(high.strip_prefix('=').unwrap_or(high))?)),
        None => Ok(Ks::One(number(text)?)),
    }
}

/// Fits each number of clusters up to the number of distinct rows.
fn each<T>(ks: RangeInclusive<usize>, one: impl Fn(usize) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    let mut fits = Vec::new();
    for k in ks {
        match one(k) {
            Err(error) if !fits.is_empty() && matches!(error.downcast_ref(), Some(fit::Error::TooFew(_))) => {
                tracing::warn!("no more than {} clusters: {error:#}", k - 1);
                break;
            }
            fit => fits.push(fit?),
        }
    }
    Ok(fits)
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| share.is_finite() && *share >= 0.0);
    share.ok_or_else(|| "expected a number from 0 upwards, such as 1e-4".to_owned())
}

/// Rows of a fit that form clusters of their own.
fn tiny(report: &Report, columns: &Columns, settings: &Settings) -> Result<Option<Tiny>, fit::Error> {
    let rows = suggest::Rows { scale: &report.scale, columns: &columns.columns, weights: None };
    suggest::tiny(rows, &report.found, 2..=TRIED, settings)
}

fn words(printed: &Printed<'_>, columns: &Columns) -> String {
    let Printed { file, report, seconds, .. } = printed;
    let mut header = vec!["cluster", "rows", "share"];
    header.extend(report.features.iter().map(String::as_str));
    header.push("description");
    let row = |cluster: &crate::model::Cluster| {
        let mut cells = vec![cluster.cluster.to_string(), thousands(cluster.size)];
        cells.push(format!("{:.1}%", cluster.size as f64 * 100.0 / report.rows as f64));
        cells.extend(report.features.iter().map(|name| short(cluster.centroid[name])));
        cells.push(cluster.description.clone());
        cells
    };
    let rows: Vec<Vec<String>> = report.clusters.iter().map(row).collect();
    let mut text = format!("{} rows of {}\n{}", thousands(report.rows), file.display(), table::render(&header, &rows));
    if report.clusters.len() * report.features.len() <= QUARTILE_ROWS {
        text.push_str(&format!("\n{}\n", quartiles::render(&report.features, &report.clusters)));
    }
    let mut line = |words: String| text.push_str(&(words + "\n"));
    if let Some(words) = model::scaling::in_words(&report.features, report.scaling.as_deref()) {
        line(format!("scaled             {words}"));
    }
    line(format!("inertia            {}", short(report.inertia)));
    if let Some(score) = report.silhouette {
        let of = if report.silhouette_rows == report.rows { "all" } else { "a weighted sample of" };
        line(format!("silhouette         {score:.4} ({of} {} rows)", thousands(report.silhouette_rows)));
    }
    if let (Some(davies_bouldin), Some(calinski_harabasz)) = (report.davies_bouldin, report.calinski_harabasz) {
        line(format!("Davies-Bouldin     {davies_bouldin:.4}"));
        line(format!("Caliński-Harabasz  {}", short(calinski_harabasz)));
    }
    imputed::of_file(&report.features, columns).lines().for_each(|text| line(text.to_owned()));
    if let Some(tiny) = &printed.tiny {
        line(tiny.sentence(&thousands(report.rows), &thousands(tiny.rows)));
    }
    let empty = report.clusters.iter().filter(|cluster| cluster.size == 0).count();
    if empty > 0 {
        line(format!("{empty} of the clusters are empty: they stand where others do, or no row is nearest to them"));
    }
    if report.iterations == Some(printed.receipt.max_iter) {
        line(format!("stopped at --max-iter {}: more passes may change it", printed.receipt.max_iter));
    }
    let passes = report.iterations.map_or_else(String::new, |n| format!("{n} passes; "));
    line(format!(
        "{passes}{:.3} s to read, {:.3} s to fit, {:.3} s to score",
        seconds.read, seconds.fit, seconds.score
    ));
    text
}

/// One line per number of clusters.
fn scores(several: &Several<'_>) -> String {
    let score = |score: Option<f64>, digits: usize| score.map_or_else(String::new, |score| format!("{score:.digits$}"));
    let row = |Printed { report, seconds, .. }: &Printed<'_>| {
        vec![
            report.k.to_string(),
            short(report.inertia),
            score(report.silhouette, 4),
            score(report.davies_bouldin, 4),
            report.calinski_harabasz.map_or_else(String::new, short),
            report.iterations.map_or_else(String::new, |n| n.to_string()),
            format!("{:.3}", seconds.fit),
            if several.best == Some(report.k) { "best by silhouette".to_owned() } else { String::new() },
        ]
    };
    let header = ["k", "inertia", "silhouette", "Davies-Bouldin", "Caliński-Harabasz", "passes", "seconds", ""];
    let rows: Vec<Vec<String>> = several.fits.iter().map(row).collect();
    let (n, file, features) = (thousands(several.rows), several.file.display(), several.features.join(", "));
    format!("{n} rows of {file}, by {features}\n{}", table::render(&header, &rows))
}

#[cfg(test)]
mod tests {
    use super::{Ks, ks, short};

    #[test]
    fn one_number_or_a_range() {
        assert_eq!([ks("3"), ks("2..10"), ks("2..=4")], [Ok(Ks::One(3)), Ok(Ks::Each(2..=10)), Ok(Ks::Each(2..=4))]);
        for wrong in ["", "x", "2..", "..3", "2.5", "-1", "2...4"] {
            assert!(ks(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_shortened_not_changed() {
        let cases = [(0.0, "0"), (-399.0, "-399"), (0.1, "0.1"), (12_345.678_912, "12345.68"), (1.5e-9, "1.500000e-9")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
