//! Members as they are posted and shown: keys of a request, rows of JSON, pages, and complete lists.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::csv::WriterBuilder as CsvBuilder;
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};
use datafusion::arrow::ipc::writer::StreamWriter;
use poem::{Body, IntoResponse, Response};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ApiResponse, Object};
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tercile_store as store;

use super::State;
use super::bulk::{content, kind};
use super::etag::{self, EntityTag};
use super::language::Language;
use super::memory_charge::MemoryCharge;
use super::problem::Problem;
use super::streaming_body::{Outgoing, Shared};
use crate::bulk::{Error, Format};
use crate::model::Model;
use crate::model::members::{self, Members, key_value};
use crate::model_cache::Serving;
use crate::sql::language::FALLBACK;

/// Keys of a request.
pub const MAX_KEYS: usize = 10_000;

/// A member: an entity and its cluster.
#[derive(Debug, Clone, Object)]
pub struct Member {
    /// The key by column.
    pub key: BTreeMap<String, Value>,
    /// The cluster's number, from 0.
    pub cluster: u32,
    /// What the cluster's centroid is like.
    pub description: String,
    /// The entity's features; null where one is missing.
    pub features: BTreeMap<String, Option<f64>>,
    /// Distance to the centroid, in standardised units.
    pub distance: f64,
    /// The entity's cluster in the model before; null if it is new or if numbers began anew.
    pub previous: Option<u32>,
    /// The slice whose model answered.
    pub model: u8,
    /// The version of that model.
    pub version: u64,
}

/// A page of members, in the order of their keys.
#[derive(Debug, Clone, Object)]
pub struct MemberPage {
    pub members: Vec<Member>,
    /// The `after` of the next page: the last key, or a JSON array of its columns; null on the last page.
    pub next: Option<Value>,
}

/// The problem of members that cannot be read.
pub fn unreadable(error: &store::Error) -> Problem {
    tracing::error!("{error}");
    let why = match error {
        store::Error::File(fault) => fault.class(),
        _ => "the members cannot be read".to_owned(),
    };
    Problem::unavailable(format!("{why}; tercile doctor says which file"))
}

/// The texts of posted keys by column.
pub fn keys_of(body: &[u8], entity: &[String]) -> Result<Vec<Vec<String>>, Problem> {
    struct Elements;
    impl<'de> Visitor<'de> for Elements {
        type Value = Vec<Box<RawValue>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array of keys")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
            let mut keys = Vec::new();
            while let Some(key) = array.next_element()? {
                if keys.len() == MAX_KEYS {
                    return Err(A::Error::custom(TOO_MANY));
                }
                keys.push(key);
            }
            Ok(keys)
        }
    }
    const TOO_MANY: &str = "too many keys";
    let mut json = serde_json::Deserializer::from_slice(body);
    let keys = json.deserialize_seq(Elements).and_then(|keys| json.end().map(|()| keys));
    let keys = keys.map_err(|error| match error.classify() {
        serde_json::error::Category::Data if error.to_string().starts_with(TOO_MANY) => {
            Problem::too_large(format!("a request may have {MAX_KEYS} keys at most"))
        }
        serde_json::error::Category::Data => Problem::unprocessable("expected an array of keys"),
        // The parser's message may quote a key.
        _ => Problem::bad_request(format!("the body is no JSON, at line {}, column {}", error.line(), error.column())),
    })?;
    let row = |(i, raw): (usize, Box<RawValue>)| {
        let wrong = || {
            let expected = match entity {
                [column] => format!("the value of {column}, or an object with it"),
                _ => format!("an object with {}", entity.join(", ")),
            };
            Problem::unprocessable(format!("key {i}: expected {expected}")).at(i as u64)
        };
        let value: Value = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        let texts = match (&value, entity) {
            (Value::Object(object), _) if object.len() == entity.len() => {
                entity.iter().map(|column| object.get(column).and_then(members::key_text)).collect()
            }
            (value, [_]) => members::key_text(value).map(|text| vec![text]),
            _ => None,
        };
        texts.ok_or_else(wrong)
    };
    keys.into_iter().enumerate().map(row).collect()
}

/// The parts of a model that the representation of its members needs.
pub struct Shape<'a> {
    model: &'a Model,
    descriptions: Vec<&'a str>,
}

impl<'a> Shape<'a> {
    pub fn of(serving: &'a Serving, language: Option<&Language>) -> Self {
        let descriptions = serving.model.descriptions(language.map_or(FALLBACK, Language::code));
        Self { model: &serving.model, descriptions }
    }

    /// A row of the stored columns.
    pub fn member(&self, batch: &RecordBatch, row: usize) -> Result<Member, Problem> {
        let model = self.model;
        let cut = || Problem::unavailable("the members of this version are damaged; tercile doctor says which file");
        let (keys, features) = (model.entity.len(), model.features.len());
        let key = model
            .entity
            .iter()
            .zip(batch.columns())
            .map(|(name, column)| Ok((name.clone(), key_value(column, row).ok_or_else(cut)?)));
        let feature = |(name, column): (&String, &Arc<dyn Array>)| {
            let column = column.as_primitive_opt::<Float64Type>()?;
            Some((name.clone(), column.is_valid(row).then(|| column.value(row))))
        };
        let of_features = model.features.iter().zip(&batch.columns()[keys..keys + features]).map(feature);
        let cluster = members::clusters(batch).ok_or_else(cut)?.value(row);
        let distance = batch.column(keys + features + 1).as_primitive_opt::<Float64Type>().ok_or_else(cut)?;
        let previous = batch.column(keys + features + 2).as_primitive_opt::<UInt32Type>().ok_or_else(cut)?;
        Ok(Member {
            key: key.collect::<Result<_, Problem>>()?,
            cluster,
            description: self.descriptions.get(cluster as usize).copied().unwrap_or_default().to_owned(),
            features: of_features.collect::<Option<_>>().ok_or_else(cut)?,
            distance: distance.value(row),
            previous: previous.is_valid(row).then(|| previous.value(row)),
            model: model.slice,
            version: model.version,
        })
    }
}

/// Which members of a version a list has.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    pub cluster: u32,
    /// Only those that were in another cluster before.
    pub moved: bool,
}

impl Listed {
    /// The rows of a batch; `None` if it lacks a column.
    fn rows(self, batch: &RecordBatch) -> Option<BooleanArray> {
        let [_, _, previous] = members::COLUMNS;
        let previous = batch.column_by_name(previous)?.as_primitive_opt::<UInt32Type>()?;
        let moved = |row| previous.is_valid(row) && previous.value(row) != self.cluster;
        let clusters = members::clusters(batch)?.values().iter().enumerate();
        Some(clusters.map(|(row, of)| Some(*of == self.cluster && (!self.moved || moved(row)))).collect())
    }
}

/// A page of the members of a cluster.
pub fn page(
    members: &Members,
    shape: &Shape<'_>,
    listed: Listed,
    (after, limit): (Option<String>, usize),
) -> Result<MemberPage, Problem> {
    let entity = &shape.model.entity;
    let failed = |error: store::Error| unreadable(&error);
    let wrong = || {
        Problem::unprocessable("after is not a key of this segmentation: give the next of the page before")
            .field("after")
    };
    let after = after.map(|after| match entity.as_slice() {
        [_] => Ok(vec![after]),
        _ => {
            let values = serde_json::from_str::<Vec<Value>>(&after).ok().filter(|values| values.len() == entity.len());
            values.and_then(|values| values.iter().map(members::key_text).collect()).ok_or_else(wrong)
        }
    });
    let after = after.transpose()?.map(|key| members.keys(&[key]).map_err(|_| wrong())).transpose()?;
    if after.iter().flatten().any(|key| key.is_null(0)) {
        return Err(wrong());
    }
    let mut page = MemberPage { members: Vec::new(), next: None };
    let from = after.as_ref().map_or(Ok(0), |key| members.group_after(key)).map_err(failed)?;
    for batch in members.read(from).map_err(failed)? {
        let batch = batch.map_err(failed)?;
        let first = after.as_ref().map_or(Ok(0), |key| members.first_after(&batch, key)).map_err(failed)?;
        let rows = listed.rows(&batch).ok_or_else(wrong)?;
        for row in (first..batch.num_rows()).filter(|&row| rows.value(row)) {
            if page.members.len() == limit {
                page.next = page.members.last().map(|last| next(&last.key, entity));
                return Ok(page);
            }
            page.members.push(shape.member(&batch, row)?);
        }
    }
    Ok(page)
}

/// The `after` that follows a key.
fn next(key: &BTreeMap<String, Value>, entity: &[String]) -> Value {
    let values: Vec<Value> = entity.iter().filter_map(|column| key.get(column).cloned()).collect();
    match values.as_slice() {
        [one] => one.clone(),
        _ => Value::String(Value::Array(values).to_string()),
    }
}

/// A response of JSON that is documented as `T`, or another format.
pub struct Answer<T> {
    kind: &'static str,
    body: Body,
    stamp: EntityTag,
    of: PhantomData<fn() -> T>,
}

impl<T: ToJSON> Answer<T> {
    /// A response of JSON.
    pub fn json(answer: &T, model: &Model) -> Self {
        let body = Body::from(answer.to_json_string());
        Self { kind: "application/json", body, stamp: EntityTag::of(model), of: PhantomData }
    }
}

impl<T> Answer<T> {
    /// A response in another format.
    pub fn of(kind: &'static str, body: Body, stamp: EntityTag) -> Self {
        Self { kind, body, stamp, of: PhantomData }
    }
}

impl<T> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut response = Response::builder().content_type(self.kind).body(self.body);
        self.stamp.put(&mut response);
        response
    }
}

fn meta(description: &'static str, content: Vec<MetaMediaType>) -> MetaResponses {
    let headers = etag::headers();
    MetaResponses {
        responses: vec![MetaResponse { description, status: Some(200), status_range: None, content, headers }],
    }
}

fn json<T: Type>() -> Vec<MetaMediaType> {
    vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }]
}

impl ApiResponse for Answer<Member> {
    fn meta() -> MetaResponses {
        meta("The member.", json::<Member>())
    }

    fn register(registry: &mut Registry) {
        Member::register(registry);
    }
}

impl ApiResponse for Answer<Vec<Option<Member>>> {
    fn meta() -> MetaResponses {
        meta("The members in the order of the keys, with null for unknown ones.", json::<Vec<Option<Member>>>())
    }

    fn register(registry: &mut Registry) {
        Vec::<Option<Member>>::register(registry);
    }
}

impl ApiResponse for Answer<MemberPage> {
    fn meta() -> MetaResponses {
        let description = "As JSON a page of members. As NDJSON, CSV or Arrow the complete list: as NDJSON a member a line, as CSV or \
                           Arrow the columns of the key, of the features, and `cluster`, `description`, `distance` and `previous`. \
                           A list that breaks off in the middle ended in an error.";
        meta(description, content(MemberPage::schema_ref()))
    }

    fn register(registry: &mut Registry) {
        MemberPage::register(registry);
    }
}

/// Streams all members of a cluster.
pub async fn list(
    state: &State,
    members: Arc<Members>,
    (serving, language): (Arc<Serving>, Option<Language>),
    listed: Listed,
    format: Format,
) -> Result<Answer<MemberPage>, Problem> {
    let permit = state.bodies.enter()?;
    let charge = MemoryCharge::begin(&state.budget)?;
    let shared = Shared::new(&charge);
    let out = Outgoing::new(&shared);
    let model = serving.model.clone();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut out = out;
        let written = write_list(&members, &Shape::of(&serving, language.as_ref()), listed, format, &mut out);
        out.end(written.map_err(|error| match error {
            ListError::Io(error) => Error::Io(error),
            ListError::Other(why) => Error::Write(why),
        }));
    });
    shared.begun().await.map_err(|error| {
        tracing::error!("a list of members failed: {error}");
        Problem::unavailable("the members cannot be read; tercile doctor says which file")
    })?;
    let kind = if format == Format::Csv { "text/csv; charset=utf-8" } else { kind(format) };
    Ok(Answer::of(kind, shared.body(), EntityTag::of(&model)))
}

enum ListError {
    Io(io::Error),
    Other(String),
}

impl From<io::Error> for ListError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn other(error: impl std::fmt::Display) -> ListError {
    ListError::Other(error.to_string())
}

fn write_list(
    members: &Members,
    shape: &Shape<'_>,
    listed: Listed,
    format: Format,
    out: &mut Outgoing,
) -> Result<(), ListError> {
    let batches = members.read(0).map_err(other)?.map(|batch| {
        let batch = batch.map_err(other)?;
        let rows = listed.rows(&batch).ok_or_else(|| other("the members have no clusters"))?;
        filter_record_batch(&batch, &rows).map_err(other)
    });
    let schema = members::shown_schema(&members.schema());
    let shown = |batch: &RecordBatch| members::shown(batch, &shape.descriptions).map_err(other);
    match format {
        Format::Csv => {
            let mut csv = CsvBuilder::new().with_header(true).build(&mut *out);
            // The header also stands above an empty list.
            csv.write(&RecordBatch::new_empty(schema)).map_err(other)?;
            for batch in batches {
                csv.write(&shown(&batch?)?).map_err(other)?;
            }
        }
        Format::Arrow => {
            let mut arrow = StreamWriter::try_new(&mut *out, &schema).map_err(other)?;
            for batch in batches {
                arrow.write(&shown(&batch?)?).map_err(other)?;
            }
            arrow.finish().map_err(other)?;
        }
        _ => {
            for batch in batches {
                let batch = batch?;
                for row in 0..batch.num_rows() {
                    let member = shape.member(&batch, row).map_err(|problem| other(problem.detail))?;
                    out.write_all(member.to_json_string().as_bytes())?;
                    out.write_all(b"\n")?;
                }
            }
        }
    }
    Ok(())
}
