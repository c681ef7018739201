//! `tercile init`: writes initial SQL files for a topic or a file.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::staged_file::StagedFile;
use super::{Done, blocking, count, first_records};
use crate::config::{InputArgs, MaybeKafkaArgs};
use crate::file_format::Format;
use crate::files::{Rows, Source};
use crate::printable::{printable, shell_word};
use crate::sql::identifier;
use crate::sql::infer::{Inference, segmentation_file, view_name};

/// Number of sampled records that determine the files: of a file, and of a topic.
const FILE_RECORDS: usize = 100_000;
const TOPIC_RECORDS: usize = 10_000;

/// Write initial SQL files for a file or a topic
///
/// Looks at the first 100,000 records of a CSV or NDJSON file, or the first 10,000 of a topic, and writes 00_records.sql,
/// which declares their fields, 10_….sql, which types them, 20_slices.sql, and a segmentation as a comment. Tells why a
/// column is text, and which texts it takes for missing values. With --entity it writes a segmentation of entities, which is
/// trained at once. Edit the files. Nothing is overwritten.
#[derive(Args)]
pub struct Init {
    /// A file; or a topic, with --bootstrap-servers
    #[arg(value_name = "TOPIC|FILE")]
    from: String,
    /// The directory to write to
    #[arg(long, env = "TERCILE_SQL", value_name = "DIR", default_value = "sql")]
    sql: PathBuf,
    /// Texts that stand for a missing value, separated by commas, in columns of any type [default: NA, N/A, NaN, NULL, None,
    /// nil, ?, - and . in any case, in columns of numbers and times]
    #[arg(long, env = "TERCILE_NA", value_name = "TEXTS", value_delimiter = ',', allow_hyphen_values = true)]
    na: Option<Vec<String>>,
    /// Write a segmentation of entities: the fields that name one, separated by commas. Its rows are the latest record of each
    /// entity, or number of records, sums and recency if there are 1.5 records or more for each
    #[arg(long, env = "TERCILE_ENTITY", value_name = "FIELDS", value_delimiter = ',')]
    entity: Vec<String>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    kafka: MaybeKafkaArgs,
}

impl Init {
    pub async fn run(self) -> anyhow::Result<Done> {
        let (from, sql) = (self.from.clone(), self.sql.clone());
        let (flags, secrets) = self.kafka.flags();
        let kafka = (!self.is_file()?).then_some(flags);
        let secrets: Vec<String> = secrets.iter().map(|key| format!("-X {key}=…")).collect();
        let next = Next { from: from.clone(), sql: sql.clone(), input: self.input.flags(), kafka };
        let sketch = blocking(move || self.look()).await?;
        if sketch.is_empty() {
            anyhow::bail!(
                "{from}: found no field in {}, {} of them unreadable; expected JSON objects, or a CSV with a header line",
                count(sketch.records as u64, "record"),
                sketch.unreadable
            );
        }
        let observed = sketch.observed(&from).map_err(anyhow::Error::msg)?;
        let files = sketch.files(&from);
        // All files or none: a directory with half of them would not run.
        if let Some((name, _)) = files.iter().find(|(name, _)| sql.join(name).exists()) {
            anyhow::bail!("{} is there already; choose another --sql DIR", sql.join(name).display());
        }
        fs::create_dir_all(&sql).with_context(|| format!("cannot make {}", sql.display()))?;
        write_new(&sql, &files)?;
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "looked at {} of {}: {}",
            count(sketch.records as u64, "record"),
            printable(&from),
            count(sketch.len() as u64, "field")
        )?;
        for (name, _) in &files {
            writeln!(out, "wrote {}", printable(&sql.join(name).display().to_string()))?;
        }
        for (name, why) in sketch.left_in_extra() {
            writeln!(out, "field \"{name}\" stays in _extra: {why}")?;
        }
        for (name, note) in sketch.notes() {
            writeln!(out, "`{name}`: {note}")?;
        }
        let (features, others) = sketch.features();
        let others: Vec<String> = others.iter().map(|(name, why)| format!("{} ({why})", printable(name))).collect();
        if !others.is_empty() {
            writeln!(out, "numbers that are no features: {}", others.join(", "))?;
        }
        if let Some(observed) = observed {
            let names = sketch.entity_names();
            writeln!(out, "{}: {}: {}", printable(&names), observed.words(), observed.rule())?;
            for note in observed.notes() {
                writeln!(out, "{}: {note}", printable(&names))?;
            }
        }
        let times = sketch.times();
        let counted = observed.is_some_and(|observed| !observed.is_latest());
        match features.is_empty() && !counted {
            true => writeln!(out, "no column is a feature yet: a segmentation needs numbers")?,
            false => writeln!(out, "Features can be: {}", printable(&features.join(", ")))?,
        }
        match times.as_slice() {
            [] => {}
            times => writeln!(
                out,
                "Times can be: {}; the first line of 00_records.sql chooses one, as in -- timestamp: {}",
                printable(&times.join(", ")),
                printable(&times[0])
            )?,
        }
        match secrets.is_empty() || next.kafka.is_none() {
            true => writeln!(out, "next:")?,
            false => writeln!(out, "next, adding {}:", secrets.join(" "))?,
        }
        // A segmentation of entities is active as it is.
        for line in next.lines(&view_name(&from), observed.is_none() && !features.is_empty()) {
            writeln!(out, "  {line}")?;
        }
        Ok(Done::Well)
    }

    /// Whether the records are in a file, and not in a topic.
    fn is_file(&self) -> anyhow::Result<bool> {
        let source = Source::named(Path::new(&self.from))?;
        Ok(!matches!(&source, Source::File(path) if !path.exists()))
    }

    fn entity_names(&self) -> Vec<String> {
        self.entity.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    }

    /// Infers the fields from the first records.
    fn look(&self) -> anyhow::Result<Inference> {
        let source = Source::named(Path::new(&self.from))?;
        if self.is_file()? {
            let options = self.input.options();
            let (mut rows, mut json) = (Rows::open(&source, &options)?, String::new());
            rows.report();
            // Numbers of JSON always have a point.
            let decimal = options.decimal.filter(|_| matches!(rows.format, Format::Csv | Format::Tsv));
            let mut sketch = Inference::new(self.na.clone()).with_entity(self.entity_names()).with_decimal(decimal);
            while sketch.records < FILE_RECORDS && rows.next_row(&mut json)?.is_some() {
                sketch.see(json.as_bytes());
            }
            return Ok(sketch);
        }
        let Some(cluster) = self.kafka.cluster()? else {
            anyhow::bail!("there is no file {}; if it is a topic, add --bootstrap-servers", self.from);
        };
        let topic = cluster.topic(&self.from)?;
        let mut sketch = Inference::new(self.na.clone()).with_entity(self.entity_names());
        first_records::read(&cluster, &topic, TOPIC_RECORDS, &mut |payload| sketch.see(payload))?;
        Ok(sketch)
    }
}

/// The commands that follow.
struct Next {
    from: String,
    sql: PathBuf,
    /// The flags that say how the file is written.
    input: Vec<String>,
    /// The flags that name the Kafka cluster; `None` for a file.
    kafka: Option<Vec<String>>,
}

impl Next {
    /// Command lines that a shell runs as they are.
    fn lines(&self, view: &str, has_features: bool) -> Vec<String> {
        let line = |words: &[&str]| words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
        let sql = self.sql.display().to_string();
        // A store of its own: the default one may have been fed from something else.
        let store = (1..).map(|n: u32| if n == 1 { format!("{view}-store") } else { format!("{view}-store-{n}") });
        let store = store.into_iter().find(|name| !Path::new(name).exists()).unwrap_or_default();
        let mut lines = Vec::new();
        if has_features {
            let file = self.sql.join(segmentation_file(view)).display().to_string();
            lines.push(line(&["sed", "-i.off", r"s/^-- \{0,1\}//", &file]));
        }
        let mut up = vec!["tercile", "up"];
        match &self.kafka {
            Some(flags) => {
                up.extend(flags.iter().map(String::as_str));
                up.extend(["--topic", &self.from]);
            }
            None => {
                up.extend(["--data", &self.from]);
                up.extend(self.input.iter().map(String::as_str));
                up.extend(["--topic", view]);
            }
        }
        up.extend(["--sql", &sql, "--store", &store]);
        lines.push(line(&up));
        let select = format!("SELECT * FROM {} LIMIT 10", identifier(view));
        lines.push(line(&["tercile", "sql", "--sql", &sql, "--store", &store, "-c", &select]));
        lines
    }
}

/// Writes all files into a directory, or none. Existing files are never changed.
fn write_new(dir: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    let cannot = |path: &Path, e: io::Error| anyhow::anyhow!("cannot write {}: {e}", path.display());
    let mut staged = Vec::new();
    for (name, text) in files {
        let path = dir.join(name);
        let file = StagedFile::create_in(dir).map_err(|e| cannot(&path, e))?;
        file.file().write_all(text.as_bytes()).map_err(|e| cannot(&path, e))?;
        staged.push((path, file));
    }
    let mut written: Vec<PathBuf> = Vec::new();
    for (path, file) in staged {
        if let Err(e) = file.publish_new(&path) {
            for path in &written {
                let _ = fs::remove_file(path);
            }
            return Err(cannot(&path, e));
        }
        written.push(path);
    }
    Ok(())
}
