//! Bulk prediction endpoint: rows in several formats, answered in a negotiated format.
//!
//! Input: a body as JSON, NDJSON, CSV or Arrow, and a model. Output: a response that streams while the body arrives. An error
//! within the first mebibyte of the response becomes a problem with a status; a later one aborts the response, so that it
//! cannot be mistaken for a complete one.

use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;

use futures::Stream;
use poem::{Body, Request, RequestBody};
use poem_openapi::payload::{Binary, Payload as _, PlainText};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::State;
use super::budget::Exhausted;
use super::buffered_body::BufferedBody;
use super::memory_charge::{MemoryCharge, Metered};
use super::posted::{self, media_type};
use super::problem::Problem;
use super::rows::AnyRow;
use super::streaming_body::{self, Outgoing, Shared};
use crate::bulk::{Answers, At, Error, Format, Keep, Limits, Meter, Reader, Scorer, Writer};
use crate::drift::asked::AskedRows;
use crate::model_cache::Tally;
use crate::panics;
use crate::scoring::RecordScorer;

/// Media types of rows, for requests and responses.
pub const FORMS: [(Format, &str); 4] = [
    (Format::Json, "application/json"),
    (Format::Ndjson, "application/x-ndjson"),
    (Format::Csv, "text/csv"),
    (Format::Arrow, "application/vnd.apache.arrow.stream"),
];

/// Media types of predictions that are accepted beside those of the document: other names, and CSV with tabs.
pub const ALSO: [(Format, &str); 3] = [
    (Format::Ndjson, "application/jsonl"),
    (Format::Ndjson, "application/ndjson"),
    (Format::Tsv, "text/tab-separated-values"),
];

/// Media type of a format.
pub fn kind(format: Format) -> &'static str {
    FORMS.iter().find(|(known, _)| *known == format).map_or("application/octet-stream", |(_, kind)| kind)
}

/// Response content by format: `json` is the schema for JSON; the other formats are text or bytes.
pub fn content(json: MetaSchemaRef) -> Vec<MetaMediaType> {
    let schema = |format| match format {
        Format::Json => json.clone(),
        Format::Arrow => Binary::<Vec<u8>>::schema_ref(),
        _ => PlainText::<String>::schema_ref(),
    };
    FORMS.iter().map(|(format, content_type)| MetaMediaType { content_type, schema: schema(*format) }).collect()
}

/// Limits of bulk bodies and their concurrency.
pub struct Bodies {
    pub bytes: u64,
    pub limits: Limits,
    running: Arc<Semaphore>,
}

impl Bodies {
    pub fn new(bytes: u64, rows: u64, fields: usize, depth: usize, running: usize) -> Self {
        let limits = Limits { rows, fields, depth, piece: posted::MAX_BODY };
        Self { bytes, limits, running: Arc::new(Semaphore::new(running)) }
    }

    /// A place among the bodies that are streamed.
    ///
    /// # Errors
    /// 503 if all are taken.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = Arc::clone(&self.running).try_acquire_owned();
        permit.map_err(|_| Problem::unavailable("as many bodies as may are being answered; try again in a moment"))
    }
}

/// Request body and its format. It is read after the model is known.
pub struct Rows {
    pub format: Format,
    pub body: Body,
}

impl<'a> ApiExtractor<'a> for Rows {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        Vec::<AnyRow>::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: Some(
                "The rows: a JSON array of objects, an object a line, a CSV or TSV with a header line, or Arrow's streaming format.",
            ),
            content: content(Vec::<AnyRow>::schema_ref()),
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let said = request.content_type().map(media_type).unwrap_or_default();
        let Some((format, _)) = FORMS.iter().chain(&ALSO).find(|(_, kind)| kind.eq_ignore_ascii_case(said)) else {
            let known = FORMS.map(|(_, kind)| kind).join(", ");
            return Err(Problem::unsupported(format!("send rows with a Content-Type of {known}")).into());
        };
        Ok(Self { format: *format, body: body.take()? })
    }
}

/// Parameters of a bulk response.
pub struct Order {
    pub from: Format,
    pub to: Format,
    pub scorer: Scorer,
    /// Counts the predictions.
    pub tally: Tally,
    /// Keeps a sample of the rows.
    pub asked: Arc<AskedRows>,
    /// Prediction objects, for JSON and NDJSON.
    pub answers: Answers,
    /// The rows are raw records, which the SQL files clean.
    pub records: Option<Arc<RecordScorer>>,
}

/// Responds to a body whose first bytes are `head`; without `rest` they are the whole body.
///
/// # Errors
/// A problem, if an error occurs within the first mebibyte of the response; 503 if too many bodies are being processed or the
/// memory budget is exhausted.
pub async fn answer<S, B>(state: &State, order: Order, head: BufferedBody, rest: Option<S>) -> Result<Body, Problem>
where
    S: Stream<Item = io::Result<B>> + Send + Unpin + 'static,
    B: AsRef<[u8]> + Send + 'static,
{
    let bodies = &state.bodies;
    begins_well(order.from, &head.bytes, rest.is_none())?;
    let permit = bodies.enter()?;
    let charge = MemoryCharge::begin(&state.budget)?;
    let shared = Shared::new(&charge);
    let left = bodies.bytes.saturating_sub(head.bytes.len() as u64);
    let head = Cursor::new(head);
    let input: Box<dyn Read + Send> = match rest {
        Some(rest) => {
            let input = streaming_body::incoming(rest, left, bodies.bytes, &shared);
            Box::new(head.chain(Metered { input, charge: Arc::clone(&charge) }))
        }
        None => Box::new(head),
    };
    let mut out = Outgoing::new(&shared);
    let limits = bodies.limits;
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        // A panic in a decoder ends only this response.
        let ran = panics::decoding("a body of rows", || run(order, input, &mut out, limits, &charge));
        out.end(ran.unwrap_or_else(|| Err(Error::Read("they are damaged".to_owned()))));
    });
    shared.begun().await.map_err(problem)?;
    Ok(shared.body())
}

/// Responds to a short body, all of whose bytes are `body`.
///
/// # Errors
/// A problem, as for [`answer`].
pub fn at_once(state: &State, order: Order, body: BufferedBody) -> Result<Vec<u8>, Problem> {
    begins_well(order.from, &body.bytes, true)?;
    let charge = MemoryCharge::begin(&state.budget)?;
    let mut out = Vec::new();
    let limits = state.bodies.limits;
    let ran = panics::decoding("a body of rows", || run(order, Box::new(Cursor::new(body)), &mut out, limits, &charge));
    ran.unwrap_or_else(|| Err(Error::Read("they are damaged".to_owned()))).map_err(problem)?;
    Ok(out)
}

/// Rejects a body that does not start as its Content-Type requires. An empty body is valid NDJSON without rows.
fn begins_well(format: Format, head: &[u8], whole: bool) -> Result<(), Problem> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").filter(|_| format != Format::Arrow).unwrap_or(head);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    match (format, first) {
        (Format::Ndjson, None) => Ok(()),
        (_, None) if whole => Err(Problem::bad_request("the body is empty")),
        (Format::Json, Some(b'[') | None) => Ok(()),
        (Format::Json, _) => Err(Problem::unprocessable("expected an array of objects, one for each row")),
        (Format::Ndjson, Some(b'[')) => {
            Err(Problem::unprocessable("row 0: expected an object, found an array; arrays go as application/json")
                .at(0))
        }
        _ => Ok(()),
    }
}

fn run(
    order: Order,
    input: Box<dyn Read + Send>,
    out: impl Write + Send,
    limits: Limits,
    charge: &Arc<MemoryCharge>,
) -> Result<(), Error> {
    let Order { from, to, scorer, tally, asked, answers, records } = order;
    // Columnar output keeps all columns; JSON output becomes prediction objects with the other fields.
    let keep = if matches!(to, Format::Json | Format::Ndjson) { Keep::Other } else { Keep::Row };
    let meter: Arc<dyn Meter> = Arc::clone(charge) as _;
    let mut reader = match &records {
        Some(_) => Reader::raw(input, from, (limits, keep), meter)?,
        None => Reader::open_metered(input, Some(from), &scorer.features, (limits, keep), meter)?,
    };
    let mut writer = Writer::new(out, to).with_answers(answers, limits);
    while let Some(block) = reader.block()? {
        let (block, found) = match &records {
            Some(records) => records.score(block, &scorer, (keep, limits.piece))?,
            None => {
                let found = scorer.score(&block)?;
                (block, found)
            }
        };
        tally.add(found.assigned());
        asked.add_columns(&block.features);
        writer.write(block, found, &scorer)?;
        charge.answered();
    }
    writer.finish()
}

fn problem(error: Error) -> Problem {
    let detail = error.to_string();
    // API clients count rows from 0, as `index` does, whatever the line.
    let row = |at: At, what: &str| format!("row {}: {what}", at.row);
    match error {
        Error::Gap { at, field, what } | Error::Field { at, field, what } => {
            Problem::unprocessable(row(at, &format!("{field} {what}"))).at(at.row).field(field)
        }
        Error::Row { at, what } => Problem::unprocessable(row(at, &what)).at(at.row),
        Error::Syntax { at, what } => Problem::bad_request(row(at, &what)).at(at.row),
        Error::Column { field, .. } | Error::Missing(field, _) => Problem::unprocessable(detail).field(field),
        Error::TooMuch(_) => Problem::too_large(detail),
        Error::Read(_) => Problem::bad_request(detail),
        Error::Io(error) => arrived(&error),
        Error::Write(_) => Problem::unprocessable(detail),
    }
}

/// Problem for a body that did not arrive.
pub fn arrived(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Problem::too_large(error.to_string()),
        io::ErrorKind::OutOfMemory => Problem::from(Exhausted),
        io::ErrorKind::InvalidData => Problem::bad_request(error.to_string()),
        _ => Problem::bad_request(format!("the body did not arrive: {error}")),
    }
}
