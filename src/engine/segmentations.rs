//! The segmentations of the SQL files, with the features of their views.

use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use tercile_kmeans::MAX_FEATURES;
use tercile_kmeans::features::scaling::Scaling;

use super::entity::KEYS;
use super::{Error, collect, entity, explain};
use crate::missing;
use crate::model::imputed;
use crate::sql::fault::Fault;
use crate::sql::header;
use crate::sql::piece::Place;
use crate::sql::{Files, Segmentation, View, quote};

/// The segmentations of some files.
pub struct Segmentations {
    pub usable: Vec<Segmentation>,
    pub unusable: Vec<Unusable>,
}

/// A view with a number of clusters that is no segmentation: it does not plan, or a feature is no number.
pub struct Unusable {
    pub view: View,
    pub k: usize,
    pub error: Error,
}

impl Segmentations {
    /// The segmentation with this name; `None` if there is none.
    ///
    /// # Errors
    /// If its view is unusable.
    pub fn named(self, name: &str) -> Result<Option<Segmentation>, Error> {
        match self.unusable.into_iter().find(|unusable| unusable.view.name == name) {
            Some(unusable) => Err(unusable.error),
            None => Ok(self.usable.into_iter().find(|segmentation| segmentation.name == name)),
        }
    }
}

/// The segmentations of these files, with the features of their views.
///
/// # Errors
/// If one of them is unusable.
pub async fn segmentations(ctx: &SessionContext, files: &Files) -> Result<Vec<Segmentation>, Error> {
    let Segmentations { usable, unusable } = each_segmentation(ctx, files).await;
    match unusable.into_iter().next() {
        Some(unusable) => Err(unusable.error),
        None => Ok(usable),
    }
}

/// The segmentations of these files. One that is unusable does not affect the others.
pub async fn each_segmentation(ctx: &SessionContext, files: &Files) -> Segmentations {
    let mut all = Segmentations { usable: Vec::new(), unusable: Vec::new() };
    for (view, k) in files.segmentations() {
        match segmentation(ctx, files, (view, k)).await {
            Ok(segmentation) => all.usable.push(segmentation),
            Err(error) => all.unusable.push(Unusable { view: view.clone(), k, error }),
        }
    }
    all
}

async fn segmentation(ctx: &SessionContext, files: &Files, (view, k): (&View, usize)) -> Result<Segmentation, Error> {
    let fault = |why: String| Error::View { file: view.file.clone(), why };
    let table = ctx.table(view.name.as_str()).await.map_err(|e| fault(explain(&e)))?;
    let entity = &view.header.entity;
    let key = |name: &String| KEYS.contains(&name.as_str()) || entity.contains(name);
    let kind = |field: &Field| key(field.name()) || !field.data_type().is_string();
    let warnings = match entity.is_empty() {
        true => Vec::new(),
        false => entity::check(files, view, &table).map_err(Error::Sql)?,
    };
    if let Some(text) = table.schema().fields().iter().find(|field| !kind(field)) {
        return Err(fault(textual(ctx, view, text.name()).await));
    }
    let features = features(&table, entity).map_err(fault)?;
    check_labels(view, &features).map_err(Error::Sql)?;
    check_scaling(view, &features).map_err(Error::Sql)?;
    let scaled: Vec<_> = features.iter().map(|feature| view.header.scaling.get(feature)).collect();
    Ok(Segmentation {
        name: view.name.clone(),
        file: view.file.clone(),
        k,
        labels: view.header.labels.clone(),
        guard: view.header.guard.clone(),
        scaling: scaled.iter().map(|of| of.map_or_else(Scaling::default, |of| of.scaling)).collect(),
        scaling_lines: scaled.iter().map(|of| of.map(|of| of.line)).collect(),
        sql_hash: files.hash(&view.name),
        entity: entity.clone(),
        warnings,
        features,
    })
}

/// The message for a text column that cannot be a feature, with an example value and SQL that converts it to numbers.
async fn textual(ctx: &SessionContext, view: &View, name: &str) -> String {
    let (column, view) = (quote(name), quote(&view.name));
    let sql = format!("SELECT CAST({column} AS VARCHAR) FROM {view} WHERE {column} IS NOT NULL LIMIT 1");
    // The message is given without an example if none can be read.
    let found = collect(ctx, &sql).await.ok().filter(|found| found.num_rows() > 0);
    let text = found.and_then(|found| cast(found.column(0), &DataType::Utf8).ok());
    let text = text.map(|text| text.as_string::<i32>().value(0).to_owned());
    let example = text.as_ref().map_or(String::new(), |text| format!(", such as `{}`", missing::shortened(text)));
    let number = text.and_then(|text| missing::cleaning(name, &text)).unwrap_or_else(|| format!("to_number({column})"));
    format!(
        "the feature {name} is text{example}, and must be a number: select {number}, which is NULL where the text is no \
         number (and a NULL takes the mean and is counted), or leave the column out"
    )
}

/// The columns of a view that are neither its entity nor, in a segmentation of records, the record's place.
fn features(table: &DataFrame, entity: &[String]) -> Result<Vec<String>, String> {
    let schema = table.schema();
    let keys: Vec<&str> = if entity.is_empty() { KEYS.to_vec() } else { entity.iter().map(String::as_str).collect() };
    for key in KEYS.iter().filter(|_| entity.is_empty()) {
        if !schema.fields().iter().any(|field| field.name() == key) {
            return Err(format!("a segmentation must give {}; {key} is missing", KEYS.join(", ")));
        }
    }
    let mut features = Vec::new();
    for field in schema.fields().iter().filter(|field| !keys.contains(&field.name().as_str())) {
        let name = field.name();
        if !(field.data_type().is_numeric() || *field.data_type() == DataType::Null) {
            return Err(format!("the feature {name} must be a number, and is {}", field.data_type()));
        }
        if matches!(name.as_str(), "cluster" | "prediction" | imputed::COLUMN) {
            return Err(format!(
                "a feature may not be called {name}, which is a column of the answers or of the sample"
            ));
        }
        features.push(name.clone());
    }
    if features.is_empty() || features.len() > MAX_FEATURES {
        return Err(format!("a segmentation has 1 to {MAX_FEATURES} features; this one has {}", features.len()));
    }
    Ok(features)
}

/// Checks that labels refer to features of the view.
fn check_labels(view: &View, features: &[String]) -> Result<(), Fault> {
    let Some(label) = view.header.labels.keys().find(|label| !features.contains(label)) else { return Ok(()) };
    let why = format!("the header labels {label}, which is none of the view's features {}", features.join(", "));
    Err(match header::label_line(&view.text, label) {
        Some(line) => view.source().fault(Place { line, column: 1 }, why),
        None => view.source().fault_somewhere(why),
    })
}

/// Checks that scales and weights refer to features of the view.
fn check_scaling(view: &View, features: &[String]) -> Result<(), Fault> {
    match view.header.scaling.iter().find(|(feature, _)| !features.contains(feature)) {
        None => Ok(()),
        Some((feature, scaling)) => {
            let why =
                format!("the header scales {feature}, which is none of the view's features {}", features.join(", "));
            Err(view.source().fault(Place { line: scaling.line, column: 1 }, why))
        }
    }
}
