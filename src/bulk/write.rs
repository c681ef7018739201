//! Writer of blocks of rows with their clusters.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray,
    UInt32Array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv::{Writer as CsvWriter, WriterBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::{FileWriter, StreamWriter};
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use parquet::arrow::ArrowWriter;
use tercile_store::json_text::push_json_string;

use super::lines::push_number;
use super::{
    ADDED, Block, Carried, Error, Explainer, Format, Found, IMPUTED, Limits, Lines, REASON, Scorer, added_name,
    is_added, is_answer,
};
use crate::engine::file_table::FileTypes;
use crate::files;
use crate::missing::Missing;
use crate::parquet_types;
use crate::text_columns::{flat, readable};

/// Writes a sequence of blocks. Columns keep their types and JSON objects their text; `cluster`, `description` and `distance`
/// (numbered beside columns of these names) are appended, null for a row without a cluster, and `imputed` where imputation is
/// allowed. With [`Answers`], JSON output contains the API's prediction objects instead of the rows. JSON input in a columnar output
/// becomes the columns of its [`FileTypes`], and without them the feature columns and a text column `row` with the object.
pub struct Writer<W: Write + Send> {
    sink: Sink<W>,
    answers: Option<Answers>,
    types: Option<FileTypes>,
    /// Whether typed objects were an earlier prediction, as far as the first block shows, which determines the columns.
    replaces: Option<bool>,
    limits: Limits,
    any: bool,
}

/// Serialisers of prediction objects, which JSON output contains instead of the rows.
pub struct Answers {
    pub lines: Lines,
    pub explainer: Option<Explainer>,
}

enum Sink<W: Write + Send> {
    Csv {
        csv: Box<CsvWriter<W>>,
        /// The decimal mark of distances.
        decimal: char,
    },
    /// Objects, in an array or one per line.
    Json {
        out: W,
        array: bool,
    },
    /// Opened by the first block, which determines the schema.
    Arrow(Option<W>, Option<Box<StreamWriter<W>>>),
    Feather(Option<W>, Option<Box<FileWriter<W>>>),
    Parquet(Option<W>, Option<Box<ArrowWriter<W>>>),
}

impl<W: Write + Send> Writer<W> {
    pub fn new(out: W, format: Format) -> Self {
        let sink = match format {
            Format::Csv => return Self::csv(out, b',', '.'),
            Format::Tsv => return Self::csv(out, b'\t', '.'),
            Format::Json => Sink::Json { out, array: true },
            Format::Ndjson => Sink::Json { out, array: false },
            Format::Arrow => Sink::Arrow(Some(out), None),
            Format::Feather => Sink::Feather(Some(out), None),
            Format::Parquet => Sink::Parquet(Some(out), None),
        };
        Self { sink, answers: None, types: None, replaces: None, limits: Limits::NONE, any: false }
    }

    /// Writes CSV with this delimiter, and distances with this decimal mark.
    pub fn csv(out: W, delimiter: u8, decimal: char) -> Self {
        let csv = Box::new(WriterBuilder::new().with_header(true).with_delimiter(delimiter).build(out));
        Self {
            sink: Sink::Csv { csv, decimal },
            answers: None,
            types: None,
            replaces: None,
            limits: Limits::NONE,
            any: false,
        }
    }

    /// Writes prediction objects instead of rows, in JSON and NDJSON; `limits` bounds the length of their text.
    #[must_use]
    pub fn with_answers(self, answers: Answers, limits: Limits) -> Self {
        Self { answers: Some(answers), limits, ..self }
    }

    /// Gives the columns of CSV, which are text, and the fields of JSON objects these types.
    #[must_use]
    pub fn with_types(self, types: Option<FileTypes>) -> Self {
        Self { types, ..self }
    }

    /// Writes a block with the clusters of its rows. A block without rows only sets the schema.
    ///
    /// # Errors
    /// If the output fails, or if the rows exceed a limit as text.
    pub fn write(&mut self, mut block: Block, found: Found, scorer: &Scorer) -> Result<(), Error> {
        if let Some(types) = &self.types {
            if matches!(block.carried, Carried::Objects(_)) {
                self.replaces.get_or_insert(block.has_answers);
            }
            let typed = match &block.carried {
                Carried::Columns(texts) => types.texts(texts).map_err(wrote)?,
                // No object has a field.
                Carried::Objects(_) if types.is_empty() => features(&block, scorer)?,
                Carried::Objects(objects) => types.objects(objects).map_err(wrote)?,
            };
            block.carried = Carried::Columns(typed);
        }
        let replaces = self.replaces;
        match &mut self.sink {
            Sink::Json { out, array } => {
                let rows = block.rows();
                let text = match &self.answers {
                    Some(answers) => answers.text(block, &found, (*array, self.any), (self.limits, scorer))?,
                    None => as_rows(&block, &found, scorer, (*array, self.any))?,
                };
                self.any |= rows > 0;
                Ok(out.write_all(&text)?)
            }
            Sink::Csv { csv, decimal } => {
                let mut batch = with_clusters(block, found, scorer, replaces)?;
                if *decimal != '.' {
                    batch.0 = with_marks(&batch, *decimal)?;
                }
                csv.write(&flat(&batch.0).map_err(wrote)?).map_err(wrote)
            }
            Sink::Arrow(out, writer) => {
                let batch = with_clusters(block, found, scorer, replaces)?.0;
                if let Some(out) = out.take() {
                    *writer = Some(Box::new(StreamWriter::try_new(out, &batch.schema()).map_err(wrote)?));
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(wrote)
            }
            Sink::Feather(out, writer) => {
                let batch = with_clusters(block, found, scorer, replaces)?.0;
                if let Some(out) = out.take() {
                    *writer = Some(Box::new(FileWriter::try_new(out, &batch.schema()).map_err(wrote)?));
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(wrote)
            }
            Sink::Parquet(out, writer) => {
                let batch = parquet_types::batch(&with_clusters(block, found, scorer, replaces)?.0).map_err(wrote)?;
                if let Some(out) = out.take() {
                    *writer = Some(Box::new(ArrowWriter::try_new(out, batch.schema(), None).map_err(wrote)?));
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(wrote)
            }
        }
    }

    /// Writes the end of the output, such as a footer.
    ///
    /// # Errors
    /// If the output fails.
    pub fn finish(self) -> Result<(), Error> {
        match self.sink {
            Sink::Json { mut out, array } => {
                if array {
                    out.write_all(if self.any { b"]\n" } else { b"[]\n" })?;
                }
                Ok(out.flush()?)
            }
            Sink::Csv { csv, .. } => Ok(csv.into_inner().flush()?),
            Sink::Arrow(_, Some(mut writer)) => writer.finish().map_err(wrote),
            Sink::Feather(_, Some(mut writer)) => writer.finish().map_err(wrote),
            Sink::Parquet(_, Some(writer)) => writer.close().map(|_| ()).map_err(wrote),
            // No block was written.
            Sink::Arrow(..) | Sink::Feather(..) | Sink::Parquet(..) => Ok(()),
        }
    }
}

/// Recognises a closed pipe by its message, because the writers wrap the error as text.
fn wrote(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    if text.contains("Broken pipe") {
        return std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
    }
    if text.contains(TOO_LONG) {
        return Error::TooMuch("the rows are too long as text; ask for them in the format they came in".to_owned());
    }
    Error::Write(crate::sql::one_line(&text))
}

/// Separator before an object.
fn before(array: bool, any: bool) -> &'static [u8] {
    match (array, any) {
        (true, false) => b"[",
        (true, true) => b",\n",
        (false, _) => b"",
    }
}

/// The rows as JSON with the added fields.
fn as_rows(block: &Block, found: &Found, scorer: &Scorer, (array, any): (bool, bool)) -> Result<Vec<u8>, Error> {
    let converted;
    let objects = match &block.carried {
        Carried::Objects(objects) => objects,
        Carried::Columns(batch) => {
            let kept: Vec<usize> = kept(batch.schema_ref(), &scorer.features, None).collect();
            converted = objects(&batch.project(&kept).map_err(wrote)?, usize::MAX, true)?;
            &converted
        }
    };
    let mut text = Vec::new();
    for (i, object) in objects.iter().enumerate() {
        let [cluster_name, description_name, distance_name, reason_name, imputed_name] = names_beside(object);
        text.extend_from_slice(before(array, any || i > 0));
        text.extend_from_slice(object.strip_suffix('}').unwrap_or(object).as_bytes());
        let comma = if object == "{}" { "" } else { "," };
        text.extend_from_slice(format!("{comma}\"{cluster_name}\":").as_bytes());
        match found.of(i) {
            Some((cluster, distance)) => {
                let mut words = String::new();
                push_json_string(&mut words, &scorer.descriptions[cluster as usize]);
                let words = format!("{cluster},\"{description_name}\":{words},\"{distance_name}\":");
                text.extend_from_slice(words.as_bytes());
                push_number(&mut text, distance);
            }
            None => {
                let nothing = format!("null,\"{description_name}\":null,\"{distance_name}\":null");
                text.extend_from_slice(nothing.as_bytes());
            }
        }
        if let Some(reasons) = &found.reasons {
            let mut reason = "null".to_owned();
            if let Some(why) = &reasons[i] {
                reason.clear();
                push_json_string(&mut reason, why);
            }
            text.extend_from_slice(format!(",\"{reason_name}\":{reason}").as_bytes());
        }
        if scorer.missing == Missing::Impute {
            let mut names: Vec<String> = Vec::new();
            for name in scorer.imputed(block, i) {
                let mut quoted = String::new();
                push_json_string(&mut quoted, name);
                names.push(quoted);
            }
            text.extend_from_slice(format!(",\"{imputed_name}\":[{}]", names.join(",")).as_bytes());
        }
        text.extend_from_slice(if array { b"}" } else { b"}\n" });
    }
    Ok(text)
}

impl Answers {
    fn text(
        &self,
        block: Block,
        found: &Found,
        (array, any): (bool, bool),
        (limits, scorer): (Limits, &Scorer),
    ) -> Result<Vec<u8>, Error> {
        let converted;
        let others = match &block.carried {
            Carried::Objects(others) => others,
            Carried::Columns(batch) if found.reasons.is_some() => {
                converted = vec![String::new(); batch.num_rows()];
                &converted
            }
            Carried::Columns(batch) => {
                converted = others(batch, &scorer.features, limits.piece)?;
                &converted
            }
        };
        let mut text = Vec::with_capacity(others.len() * 192);
        let mut values = vec![0.0; block.features.len()];
        for (i, (other, (&cluster, &distance))) in
            others.iter().zip(found.clusters.iter().zip(&found.distances)).enumerate()
        {
            for (value, column) in values.iter_mut().zip(&block.features) {
                *value = column.value(i);
            }
            text.extend_from_slice(before(array, any || i > 0));
            let nearest = (cluster as usize, distance);
            let other = match &found.reasons {
                None => Some(other.as_str()),
                Some(reasons) => match &reasons[i] {
                    None => None,
                    Some(why) => {
                        let mut reason = String::new();
                        push_json_string(&mut reason, why);
                        let end = if array { "" } else { "\n" };
                        text.extend_from_slice(format!("{{\"cluster\":null,\"{REASON}\":{reason}}}{end}").as_bytes());
                        continue;
                    }
                },
            };
            let pushed = self.lines.push(&mut text, &values, nearest, other, self.explainer.as_ref());
            pushed.map_err(|far| Error::Field {
                at: block.at(i),
                field: scorer.features[far.feature].clone(),
                what: far.why.to_owned(),
            })?;
            if !array {
                text.push(b'\n');
            }
        }
        Ok(text)
    }
}

/// The columns that are not features, as one JSON object per row; empty if there are none.
fn others(batch: &RecordBatch, features: &[String], limit: usize) -> Result<Vec<String>, Error> {
    let schema = batch.schema_ref();
    let mut kept: Vec<usize> = Vec::new();
    for (i, field) in schema.fields().iter().enumerate().filter(|(_, field)| !features.contains(field.name())) {
        if kept.iter().any(|&other| schema.field(other).name() == field.name()) {
            return Err(Error::Column { field: field.name().clone(), what: "stands twice".to_owned() });
        }
        kept.push(i);
    }
    if kept.is_empty() {
        return Ok(vec![String::new(); batch.num_rows()]);
    }
    as_objects(&batch.project(&kept).map_err(wrote)?, limit)
}

/// Rows of a batch as JSON objects, at most `limit` bytes in total. The limit is needed because dictionaries and views can
/// repeat one long value in many rows.
pub fn as_objects(batch: &RecordBatch, limit: usize) -> Result<Vec<String>, Error> {
    objects(batch, limit, false)
}

/// As [`as_objects`]. With `nulls`, each object has all fields.
fn objects(batch: &RecordBatch, limit: usize, nulls: bool) -> Result<Vec<String>, Error> {
    let mut text = Bounded { text: Vec::new(), limit };
    let mut writer = JsonBuilder::new().with_explicit_nulls(nulls).build::<_, LineDelimited>(&mut text);
    let batch = readable(batch).map_err(wrote)?;
    writer.write(&batch).and_then(|()| writer.finish()).map_err(wrote)?;
    let text = String::from_utf8(text.text).map_err(wrote)?;
    Ok(text.lines().map(str::to_owned).collect())
}

struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

const TOO_LONG: &str = "too long as text";

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LONG));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The columns that no added column replaces. `replaces`: whether the rows were an earlier prediction, if that is known otherwise than
/// by the names.
fn kept<'a>(schema: &'a Schema, features: &[String], replaces: Option<bool>) -> impl Iterator<Item = usize> + 'a {
    let answer = replaces != Some(false) && is_answer(features, |name| schema.index_of(name).is_ok());
    let fields = schema.fields().iter().enumerate();
    fields.filter(move |(_, field)| !(answer && is_added(field.name()))).map(|(i, _)| i)
}

/// The features as columns.
fn features(block: &Block, scorer: &Scorer) -> Result<RecordBatch, Error> {
    let fields: Vec<Field> = scorer.features.iter().map(|name| Field::new(name, DataType::Float64, true)).collect();
    let columns = block.features.iter().map(|column| Arc::new(column.clone()) as ArrayRef).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(wrote)
}

/// The names of the added fields beside those of an object.
fn names_beside(object: &str) -> [Cow<'static, str>; 5] {
    let names = [ADDED[0], ADDED[1], ADDED[2], REASON, IMPUTED];
    // Most objects have none of these words, and are not parsed again. A name may be written with escapes.
    let may_have = object.contains('\\') || names.iter().any(|name| object.contains(name));
    let fields = if may_have { files::fields(object).unwrap_or_default() } else { Vec::new() };
    names.map(|name| added_name(name, |taken| fields.iter().any(|(key, _)| key == taken)))
}

/// The rows with the added columns, and the position of the distances.
fn with_clusters(
    block: Block,
    found: Found,
    scorer: &Scorer,
    replaces: Option<bool>,
) -> Result<(RecordBatch, usize), Error> {
    let imputed = (scorer.missing == Missing::Impute).then(|| imputed(&block, scorer));
    let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = match block.carried {
        Carried::Columns(batch) => {
            let kept = kept(batch.schema_ref(), &scorer.features, replaces);
            kept.map(|i| (batch.schema_ref().field(i).clone(), Arc::clone(batch.column(i)))).unzip()
        }
        Carried::Objects(objects) => {
            let nullable = scorer.missing != Missing::Refuse;
            let features = scorer.features.iter().zip(block.features);
            let features = features
                .map(|(name, column)| (Field::new(name, DataType::Float64, nullable), Arc::new(column) as ArrayRef));
            let rows = StringArray::from(objects);
            features.chain([(Field::new("row", DataType::Utf8, false), Arc::new(rows) as ArrayRef)]).unzip()
        }
    };
    // Dictionary-encoded: each description is stored once.
    let present = found.present;
    let clusters = UInt32Array::new(found.clusters.into(), present.clone());
    let keys = Int32Array::new(clusters.values().inner().clone().into(), present.clone());
    let descriptions = DictionaryArray::try_new(keys, Arc::clone(&scorer.words)).map_err(wrote)?;
    let distances = Float64Array::new(found.distances.into(), present);
    let added: [ArrayRef; 3] = [Arc::new(clusters), Arc::new(descriptions), Arc::new(distances)];
    let own = fields.len();
    let distances = own + 2;
    let name_of =
        |name, fields: &[Field]| added_name(name, |taken| fields[..own].iter().any(|own| own.name() == taken));
    for (name, column) in ADDED.into_iter().zip(added) {
        let name = name_of(name, &fields);
        fields.push(Field::new(name, column.data_type().clone(), scorer.missing == Missing::Skip));
        columns.push(column);
    }
    if let Some(reasons) = found.reasons {
        fields.push(Field::new(name_of(REASON, &fields), DataType::Utf8, true));
        columns.push(Arc::new(StringArray::from(reasons)));
    }
    if let Some(imputed) = imputed {
        fields.push(Field::new(name_of(IMPUTED, &fields), DataType::Utf8, true));
        columns.push(Arc::new(imputed));
    }
    Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(wrote)?, distances))
}

/// The batch with its column of distances as text with this decimal mark.
fn with_marks((batch, distances): &(RecordBatch, usize), decimal: char) -> Result<RecordBatch, Error> {
    let mut fields: Vec<Field> = batch.schema_ref().fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns = batch.columns().to_vec();
    for (field, column) in fields.iter_mut().zip(&mut columns).skip(*distances).take(1) {
        let texts = cast(column, &DataType::Utf8).map_err(wrote)?;
        let marked = texts.as_string::<i32>().iter().map(|text| Some(text?.replace('.', &decimal.to_string())));
        *column = Arc::new(marked.collect::<StringArray>());
        *field = Field::new(field.name(), DataType::Utf8, field.is_nullable());
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(wrote)
}

/// Names of each row's imputed features, separated by commas; null if none.
fn imputed(block: &Block, scorer: &Scorer) -> StringArray {
    let gaps = block.features.iter().any(|column| column.null_count() > 0);
    let names = |row: usize| scorer.imputed(block, row).collect::<Vec<_>>().join(",");
    (0..block.rows()).map(|row| gaps.then(|| names(row)).filter(|names| !names.is_empty())).collect()
}
