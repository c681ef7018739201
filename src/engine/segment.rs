//! The SQL functions `segment(model, feature, …)` and `segment_name(model, feature, …)`: the cluster of a row and its
//! description.
//!
//! Input: the model's name (`price_rating`, `price_rating@2` for a slice, `price_rating@2@5` for a version of the
//! slice) and its features in order. Output: the cluster's number, or its description in English. The result is NULL
//! if a feature is NULL or if the row is too far away for a nearest cluster. NaN and infinity are errors. A model is
//! reloaded after a promotion.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;
use tercile_store::Store;

use crate::model::model_ref::{self, Name};
use crate::model::{Model, Predictor};

/// Names of the functions: the number of a cluster, and its description.
pub const NAMES: [&str; 2] = ["segment", "segment_name"];

/// Both functions for the models of a store, if there is one.
///
/// Without `paths`, error messages contain no local paths.
pub fn functions(store: Option<&Store>, paths: bool) -> [ScalarUDF; 2] {
    let models = Arc::new(Models { store: store.cloned(), paths, read: Mutex::default() });
    [Answer::Cluster, Answer::Name].map(|answer| {
        let signature = Signature::variadic_any(Volatility::Stable);
        ScalarUDF::from(Segment { answer, models: Arc::clone(&models), signature })
    })
}

#[derive(Debug)]
struct Models {
    store: Option<Store>,
    paths: bool,
    read: Mutex<HashMap<String, Arc<Ready>>>,
}

#[derive(Debug)]
struct Ready {
    /// The serving state at the time of loading.
    stamp: Option<Vec<u8>>,
    model: Model,
    predictor: Predictor,
}

impl Models {
    fn get(&self, name: &str) -> Result<Arc<Ready>, String> {
        let store = self.store.as_ref().ok_or("no models are in reach here")?;
        let stamp = Name::parse(name)?.registry(store).stamp();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = read.get(name).filter(|ready| ready.stamp == stamp) {
            return Ok(Arc::clone(ready));
        }
        let model = model_ref::find_for(store, name, self.paths)?;
        let ready = Arc::new(Ready { stamp, predictor: model.predictor(), model });
        read.insert(name.to_owned(), Arc::clone(&ready));
        Ok(ready)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Cluster,
    Name,
}

#[derive(Debug)]
struct Segment {
    answer: Answer,
    models: Arc<Models>,
    signature: Signature,
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        self.answer == other.answer && Arc::ptr_eq(&self.models, &other.models)
    }
}

impl Eq for Segment {}

impl Hash for Segment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.answer.hash(state);
    }
}

impl ScalarUDFImpl for Segment {
    fn name(&self) -> &str {
        match self.answer {
            Answer::Cluster => NAMES[0],
            Answer::Name => NAMES[1],
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let name = self.name();
        let features = arguments.get(1..).unwrap_or_default();
        if features.is_empty() {
            return Err(DataFusionError::Plan(format!("'{name}' takes a model's name and its features")));
        }
        if let Some(wrong) = features.iter().find(|kind| !(kind.is_numeric() || kind.is_null())) {
            return Err(DataFusionError::Plan(format!("'{name}' takes features that are numbers, not {wrong}")));
        }
        Ok(match self.answer {
            Answer::Cluster => DataType::Int64,
            Answer::Name => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = self.name();
        let Some((ColumnarValue::Scalar(model), features)) = args.args.split_first() else {
            return exec_err!("{name} takes the model's name as a text in quotes, the same for all rows");
        };
        let (ScalarValue::Utf8(Some(model)) | ScalarValue::Utf8View(Some(model)) | ScalarValue::LargeUtf8(Some(model))) =
            model
        else {
            return exec_err!("{name} takes the model's name as a text in quotes");
        };
        let ready = self.models.get(model).map_err(|why| DataFusionError::Execution(format!("{name}: {why}")))?;
        let wanted = &ready.model.features;
        if wanted.len() != features.len() {
            let (n, names, given) = (wanted.len(), wanted.join(", "), features.len());
            return exec_err!("{name}: {model} takes {n} features ({names}), and was given {given}");
        }
        let columns: Result<Vec<_>> = features
            .iter()
            .map(|feature| Ok(cast(&feature.to_array(args.number_rows)?, &DataType::Float64)?))
            .map(|column: Result<ArrayRef>| Ok(column?.as_primitive::<Float64Type>().clone()))
            .collect();
        let columns = columns?;
        for (column, feature) in columns.iter().zip(wanted) {
            if let Some(value) = column.iter().flatten().find(|value| !value.is_finite()) {
                return exec_err!("{name}: {feature} is {value}, which is no finite number");
            }
        }
        let mut row = vec![0.0; columns.len()];
        let clusters: Vec<Option<usize>> = (0..args.number_rows)
            .map(|i| {
                for (value, column) in row.iter_mut().zip(&columns) {
                    *value = column.is_valid(i).then(|| column.value(i))?;
                }
                let (cluster, distance) = ready.predictor.predict(&mut row);
                ready.predictor.tells(distance).then_some(cluster)
            })
            .collect();
        let answer: ArrayRef = match self.answer {
            Answer::Cluster => {
                Arc::new(clusters.iter().map(|cluster| cluster.map(|c| c as i64)).collect::<Int64Array>())
            }
            Answer::Name => {
                let of = |cluster: &Option<usize>| Some(ready.model.clusters.get((*cluster)?)?.description.as_str());
                Arc::new(clusters.iter().map(of).collect::<StringArray>())
            }
        };
        debug_assert_eq!(answer.len(), args.number_rows);
        Ok(ColumnarValue::Array(answer))
    }
}
