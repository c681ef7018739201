//! Formats that are read from the first row to the last by one thread: CSV, JSON, and batches of Arrow.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use csv::StringRecord;
use datafusion::arrow::array::{Float64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, SchemaRef};
use datafusion::arrow::error::ArrowError;
use serde_json::{Map, Value as Json};
use tercile_kmeans::column_buffer::{Growing, Space};

use super::{BATCH, Columns, Error, Watch, find};
use crate::file_format::Format;
use crate::files::{self, CsvRecords, Opened, Splitter, decimal_point};
use crate::missing::{Place, Policy, Value};

/// Columns that grow row by row.
struct Builder<'a> {
    path: &'a Path,
    space: &'a Space,
    watches: Vec<Watch<'a>>,
    columns: Vec<Growing<Float64Type>>,
    /// Values that are not in `columns` yet.
    waiting: Vec<Vec<Option<f64>>>,
    rows: usize,
}

impl<'a> Builder<'a> {
    fn new(path: &'a Path, names: &'a [String], policy: Policy, space: &'a Space) -> Self {
        let watches = names.iter().map(|name| Watch::new(path, name, policy)).collect();
        let columns = names.iter().map(|_| Growing::new(0)).collect();
        let waiting = vec![Vec::with_capacity(BATCH); names.len()];
        Self { path, space, watches, columns, waiting, rows: 0 }
    }

    /// Adds the value of a column to the current row.
    fn push(&mut self, column: usize, value: Value<'_>, place: Place) -> Result<(), Error> {
        let number = self.watches[column].see(value, place)?;
        self.waiting[column].push(number);
        Ok(())
    }

    fn end_row(&mut self) -> Result<(), Error> {
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let waiting = self.waiting.iter_mut().map(|values| values.drain(..).collect()).collect::<Vec<_>>();
        self.append(&waiting)
    }

    fn append(&mut self, values: &[Float64Array]) -> Result<(), Error> {
        let spooled = |source| Error::Spool { path: self.path.to_owned(), source };
        for (column, values) in self.columns.iter_mut().zip(values) {
            column.append(values).map_err(spooled)?;
        }
        if !self.space.holds(self.columns.iter().map(Growing::held).sum()) {
            self.columns.iter_mut().try_for_each(|column| column.spill(self.space)).map_err(spooled)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Columns, Error> {
        self.flush()?;
        let columns: io::Result<_> = self.columns.into_iter().map(Growing::finish).collect();
        let columns = columns.map_err(|source| Error::Spool { path: self.path.to_owned(), source })?;
        let gaps = self.watches.into_iter().map(|watch| watch.gaps).collect();
        Ok(Columns { columns, rows: self.rows, gaps, rows_left_out: 0 })
    }
}

/// Columns of a CSV file.
pub(super) fn csv(opened: Opened, names: &[String], policy: Policy, space: &Space) -> Result<Columns, Error> {
    let Opened { path, format, dialect, input, .. } = opened;
    let mut records = CsvRecords::open(input, &dialect).map_err(|fault| fault.at(&path))?;
    files::report(&path, format, &dialect, Some(&records));
    let mut places = Vec::new();
    for name in names {
        let Some(place) = records.names().iter().position(|title| title == name) else {
            let has = records.names().join(", ");
            return Err(Error::NoColumn { path, name: name.clone(), has });
        };
        if records.is_ambiguous(name) {
            return Err(Error::Ambiguous { path, name: name.clone() });
        }
        places.push(place);
    }
    let mut builder = Builder::new(&path, names, policy, space);
    let mut record = StringRecord::new();
    while let Some(line) = records.next(&mut record).map_err(|fault| fault.at(&path))? {
        for (column, &place) in places.iter().enumerate() {
            let text = decimal_point(record.get(place).unwrap_or_default(), dialect.decimal);
            builder.push(column, Value::of_text(&text), Place::Line(line))?;
        }
        builder.end_row()?;
    }
    builder.finish()
}

/// Fields of JSON objects.
pub(super) fn json(opened: Opened, names: &[String], policy: Policy, space: &Space) -> Result<Columns, Error> {
    let Opened { path, format, input, .. } = opened;
    let mut values = Splitter::new(input, usize::MAX).by_lines();
    let mut builder = Builder::new(&path, names, policy, space);
    // Names of fields, until each feature was found.
    let (mut missing, mut has): (BTreeSet<&String>, BTreeSet<String>) = (names.iter().collect(), BTreeSet::new());
    while let Some((line, text)) = files::object(&mut values).map_err(|fault| fault.at(&path))? {
        let place = if format == Format::Json { Place::Row(builder.rows as u64) } else { Place::Line(line) };
        let object: Map<String, Json> = serde_json::from_str(text).map_err(|error| {
            files::Fault::line(line, format!("expected a JSON object, found an error: {error}")).at(&path)
        })?;
        if !missing.is_empty() {
            missing.retain(|name| !object.contains_key(*name));
            has.extend(object.keys().cloned());
        }
        for (column, name) in names.iter().enumerate() {
            match object.get(name) {
                None | Some(Json::Null) => builder.push(column, Value::Missing, place)?,
                Some(Json::Number(number)) => match number.as_f64().filter(|number| number.is_finite()) {
                    Some(number) => builder.push(column, Value::Number(number), place)?,
                    None => builder.push(column, Value::Invalid(&number.to_string()), place)?,
                },
                Some(Json::String(text)) => builder.push(column, Value::Invalid(text), place)?,
                Some(other) => builder.push(column, Value::Invalid(&other.to_string()), place)?,
            }
        }
        builder.end_row()?;
    }
    if let Some(name) = missing.first().filter(|_| builder.rows > 0) {
        let (name, has) = ((*name).clone(), has.into_iter().collect::<Vec<_>>().join(", "));
        return Err(Error::NoColumn { path, name, has });
    }
    builder.finish()
}

/// Columns of batches.
pub(super) fn arrow(
    (path, schema): (&Path, &SchemaRef),
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    names: &[String],
    policy: Policy,
    space: &Space,
) -> Result<Columns, Error> {
    let places = find(path, schema.fields(), names)?;
    let mut builder = Builder::new(path, names, policy, space);
    for batch in batches {
        let batch =
            batch.map_err(|source| Error::Arrow { path: path.to_owned(), name: "a batch".to_owned(), source })?;
        let mut columns = Vec::new();
        for (watch, &place) in builder.watches.iter_mut().zip(&places) {
            let (numbers, present) = watch.numbers(batch.column(place), builder.rows)?;
            columns.push(Float64Array::new(numbers.values().clone(), present.map(Into::into)));
        }
        builder.append(&columns)?;
        builder.rows += batch.num_rows();
    }
    builder.finish()
}
