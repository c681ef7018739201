//! The sandbox process that runs one statement of `POST /api/sql`.
//!
//! Input: an order as a line of JSON on stdin. Output: the result on stdout and exit code 0, or the reason on the
//! last line of stderr and [`REFUSED`]. The process first restricts itself irrevocably and then reads the statement.
//! It ends when its parent ends.

#![allow(
    unsafe_code,
    reason = "resource limits and descriptors of a process have no safe wrapper in the standard library"
)]

use std::io::{self, BufRead as _, BufWriter, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt as _;
use tercile_store::Store;

use super::super::STACK;
use super::output::{self, Format};
use super::query::{Ready, Work, params_of, prepare};
use crate::api::sandbox::{Form, Order, REFUSED, Refusal, too_large, too_long};
use crate::engine::{self, Limits};
use crate::sql::fault::{Fault, Source};
use crate::sql::piece::Piece;
use crate::sql::script;
use crate::sql::{self, Files, one_line};

/// Maximum length of a reason in characters.
const REASON: usize = 1000;
/// Limit of open files.
const OPEN_FILES: u64 = 256;
/// Niceness: predictions and ingest have priority.
const NICENESS: i32 = 10;
/// Stack size of the threads that read files, in bytes.
const READER_STACK: usize = 2 << 20;

/// Run one statement that came over HTTP, as told on stdin
#[derive(Args)]
pub struct ConfinedSql {}

impl ConfinedSql {
    pub fn run(self) -> ExitCode {
        match obey() {
            Ok(()) => ExitCode::SUCCESS,
            Err(refusal) => {
                let said = serde_json::to_string(&refusal).unwrap_or_default();
                // Writing fails only if the server is gone.
                let _ = writeln!(io::stderr(), "\n{said}");
                ExitCode::from(REFUSED)
            }
        }
    }
}

fn obey() -> Result<(), Refusal> {
    close_inherited();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|e| broken("cannot read the order", &e))?;
    let order: Order = serde_json::from_str(&line).map_err(|e| broken("the order can't be read", &e))?;
    let files = Files::load(order.sql.as_deref()).map_err(|e| broken("the SQL files can't be read", &e))?;
    limit(&order).map_err(|e| broken("cannot limit the process", &e))?;
    // Landlock applies to the calling thread and to threads started later; this is still the only thread. From here
    // on the process can access only the store, whose directories may be symbolic links to other places.
    #[cfg(target_os = "linux")]
    super::landlock::leave_only(&[order.store.clone(), order.store.join("records"), order.store.join("models")])
        .map_err(|e| broken("cannot limit the process", &e))?;
    // Planning recurses deeply. The stack counts as memory, which limit() takes into account.
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || work(&order, &files));
    let thread = thread.map_err(|e| broken("cannot start a thread", &e))?;
    std::thread::spawn(|| {
        // The parent keeps the pipe open as long as a client waits for the answer.
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    thread.join().unwrap_or_else(|_| std::process::exit(101))
}

/// Closes all descriptors except stdin, stdout and stderr. The server opens its descriptors with close-on-exec, but a
/// library may open one without it while this process is started.
fn close_inherited() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: this process has not opened any descriptor yet.
        if unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) } == 0 {
            return;
        }
    }
    // For Linux before 5.9 and other systems. The listing's own descriptor is closed before the loop reaches it.
    let open = std::fs::read_dir("/proc/self/fd").or_else(|_| std::fs::read_dir("/dev/fd"));
    let open: Vec<i32> =
        open.into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
}

/// The limit of open files: [`OPEN_FILES`], or the hard limit of this process if that is lower.
fn open_files() -> u64 {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes only this structure.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) } == 0;
    if known { now.rlim_max.min(OPEN_FILES) } else { OPEN_FILES }
}

/// Sets the resource limits of this process irrevocably.
fn limit(order: &Order) -> io::Result<()> {
    let memory = order.memory as u64 + STACK as u64;
    let limits = [
        (libc::RLIMIT_DATA, memory),
        (libc::RLIMIT_CPU, order.seconds),
        (libc::RLIMIT_NOFILE, open_files()),
        // The process writes only to pipes.
        (libc::RLIMIT_FSIZE, 0),
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, most) in limits {
        let most = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: the call only reads the structure, which outlives it.
        if unsafe { libc::setrlimit(resource, &raw const most) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the call takes an integer. It fails only when it would raise the priority.
    let _ = unsafe { libc::nice(NICENESS) };
    Ok(())
}

fn work(order: &Order, files: &Files) -> Result<(), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(2)
        .thread_stack_size(READER_STACK)
        .build()
        .map_err(|e| broken("cannot start the runtime", &e))?;
    runtime.block_on(answer(order, files))
}

async fn answer(order: &Order, files: &Files) -> Result<(), Refusal> {
    let source = Source { name: None, text: &order.statement };
    let piece = only_piece(&source).map_err(|fault| at(&fault))?;
    let statement = sql::parse(&source, &piece).map_err(|fault| at(&fault))?;
    if !matches!(&statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::Query(_))) {
        return Err(at(&source.fault(piece.place, "only a query is answered here: SELECT, WITH … SELECT or VALUES")));
    }
    let given = order.params.iter().map(|(name, value)| (name.clone(), scalar(value))).collect();
    let params = params_of(&source, &piece, &given, |name| format!("add \"{name}\" to \"params\""));
    let params = params.map_err(|fault| at(&fault))?;
    if let Some(name) = order.params.keys().find(|name| !params.contains_key(*name)) {
        return Err(Refusal::statement(format!("the parameter {name} is given, but the statement has no ${name}")));
    }

    let store = Store::at(&order.store).map_err(|e| broken("the store can't be read", &e))?;
    let snapshot = store.snapshot().map_err(|e| broken("the store can't be read", &e))?;
    // One half is DataFusion's memory pool, which fails with an error message; the other half is for untracked
    // memory.
    let limits = Limits {
        memory: Some(order.memory / 2),
        models: Some(store),
        serial: true,
        confined: true,
        ..Limits::default()
    };
    let opened = engine::open_what_plans(&snapshot, files, limits).await;
    let (ctx, unplanned) = opened.map_err(|e| broken("the store can't be opened", &e))?;
    let reads = sql::tables_of(&statement).unwrap_or_default();
    if let Some((view, fault)) = reads.iter().find_map(|name| unplanned.get_key_value(name)) {
        let file = fault.file.as_deref().and_then(|file| Path::new(file).file_name()?.to_str()).map(str::to_owned);
        let fault = Fault { file, ..fault.clone() };
        return Err(Refusal::server(format!("the view {view} does not run: {fault}")));
    }
    let work = Work { statement, params, explain: false, limit: None, read_only: true };
    let ready = prepare(ctx.clone(), work).await;
    let mut out = Capped { out: BufWriter::new(io::stdout()), left: order.bytes, full: false };
    let written = match ready {
        Ok(ready) => write(ready, order.form, &mut out).await,
        Err(error) => Err(Trouble::Query(error)),
    };
    match written {
        _ if out.full => Err(too_long(order.bytes)),
        Ok(()) => out.flush().map_err(|e| broken("cannot write the rows", &e)),
        Err(Trouble::Query(error)) => Err(blame(&source, &piece, &error, &ctx, order)),
        Err(Trouble::Output(error)) => {
            let why = one_line(&format!("{error:#}"));
            Err(Refusal::statement(format!("{why}; choose other columns, or another format")))
        }
    }
}

/// The only statement of a text.
fn only_piece<'a>(source: &Source<'a>) -> Result<Piece<'a>, Fault> {
    let pieces = script::complete(source)?.pieces;
    match pieces.as_slice() {
        [] => Err(source.fault_somewhere("\"sql\" holds no statement; send one SELECT")),
        [piece] if piece.dot => Err(source.fault(piece.place, "a dot command is for the shell; send one SELECT")),
        [piece] => Ok(*piece),
        [_, second, ..] => {
            Err(source.fault(second.place, format!("one statement is allowed, and there are {}", pieces.len())))
        }
    }
}

fn scalar(value: &serde_json::Value) -> ScalarValue {
    match value {
        serde_json::Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        serde_json::Value::String(value) => ScalarValue::Utf8(Some(value.clone())),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => ScalarValue::Int64(Some(value)),
            (None, Some(value)) => ScalarValue::UInt64(Some(value)),
            (None, None) => ScalarValue::Float64(number.as_f64()),
        },
        // The server rejects all other types.
        _ => ScalarValue::Null,
    }
}

/// An error during output: from the query or from the writer.
enum Trouble {
    Query(DataFusionError),
    Output(anyhow::Error),
}

async fn write(ready: Ready, form: Form, out: &mut Capped) -> Result<(), Trouble> {
    let Ready { mut stream, .. } = ready;
    let format = match form {
        Form::Json => Format::Json,
        Form::Csv => Format::Csv,
        Form::Arrow => Format::Arrow,
    };
    let mut rows = output::start(format, &stream.schema(), None, out).map_err(Trouble::Output)?;
    while let Some(batch) = stream.next().await {
        rows.batch(&batch.map_err(Trouble::Query)?).map_err(Trouble::Output)?;
    }
    rows.end().map(drop).map_err(Trouble::Output)
}

/// An output with a size limit.
struct Capped {
    out: BufWriter<io::Stdout>,
    left: usize,
    /// True if the limit was exceeded.
    full: bool,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            self.full = true;
            return Err(io::Error::other("the result is too long"));
        }
        self.left -= bytes.len();
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Converts an engine error to a message for remote clients: without local paths and with limited length.
fn blame(
    source: &Source<'_>,
    piece: &Piece<'_>,
    error: &DataFusionError,
    ctx: &SessionContext,
    order: &Order,
) -> Refusal {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => return too_large(order.memory),
        DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) | DataFusionError::ParquetError(_) => {
            return broken("the store's files can't be read", error);
        }
        _ => {}
    }
    at(&source.blame(piece, error, &engine::tables(ctx)))
}

fn at(fault: &Fault) -> Refusal {
    let why = fault.to_string();
    let why = why.split(" This issue was likely caused by a bug").next().unwrap_or_default();
    // DataFusion includes its debug output for unsupported syntax.
    let why = if why.starts_with("Unsupported ast node") { why.split(" {").next().unwrap_or_default() } else { why };
    let mut shown: String = why.chars().take(REASON).collect();
    if shown.len() < why.len() {
        shown.push('…');
    }
    let (line, column) = (fault.place.map(|place| place.line as u64), fault.place.map(|place| place.column as u64));
    Refusal { line, column, ..Refusal::statement(shown) }
}

/// An internal error: the client receives `what`, the log also the reason.
fn broken(what: &str, why: &dyn std::fmt::Display) -> Refusal {
    eprintln!("{what}: {}", one_line(&why.to_string()));
    Refusal::server(format!("{what}; the server's log says why"))
}
