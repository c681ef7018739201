//! A watchdog thread that handles signals and deadlines and ends a process whose runtime does not respond.
//!
//! A query can compute forever within one poll (a join without an equality, for example). Then the runtime's threads
//! are busy, and neither its timers nor its signal handlers run. Therefore the watchdog has its own thread with a
//! small runtime. On a signal or a deadline it first requests a shutdown, and the command has [`GRACE`] to end by
//! itself. After that the watchdog runs the handlers registered in [`tercile_store::cleanup`], logs one line and
//! exits with the documented code.
//!
//! Every command runs under the watchdog; a new command needs no extra code. Long work in a process that must survive
//! (a shell, a server) runs in a child process ([`crate::process`]) with its own watchdog.

#![allow(unsafe_code, reason = "blocks signals of threads, and ends the process without unwinding")]

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tercile_store::cleanup;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// Time for the command to end by itself after a signal or a deadline.
const GRACE: Duration = Duration::from_millis(500);
/// Time for cleanup and logging.
const GOODBYE: Duration = Duration::from_millis(300);
/// A second signal within this time counts as the first one: `timeout` signals a process and then its process group.
const SAME_WISH: Duration = Duration::from_millis(500);

/// A request to end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalled {
    Interrupt,
    Terminate,
    Hangup,
}

impl Signalled {
    /// The exit code of a cancelled job: 128 plus the signal number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Hangup => 129,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }

    /// The log line for this signal.
    pub fn line(self) -> String {
        format!("stopped by {}", self.name())
    }
}

/// The effect of signals on this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A signal ends the process within [`GRACE`].
    Job,
    /// A signal starts a graceful shutdown, which may take long; a second signal ends the process at once.
    Service,
    /// SIGINT cancels the running statement, if any. It ends the process only if the statement does not end within
    /// [`GRACE`].
    Session,
    /// SIGINT is handled by the child process that runs the statement; other signals end the process.
    Shell,
    /// Like [`Mode::Job`], but without logging, which the parent process does.
    Worker,
}

struct State {
    mode: Mode,
    /// True while a statement of a session runs.
    busy: bool,
    first: Option<(Instant, Signalled)>,
    /// The time when the process ends, unless the command ends first.
    ends: Option<(Instant, Signalled)>,
    deadlines: BTreeMap<u64, Deadline>,
    next: u64,
}

struct Deadline {
    at: Instant,
    report: Box<dyn FnOnce() + Send>,
}

struct Watchdog {
    state: Mutex<State>,
    changed: Notify,
    wish: watch::Sender<Option<Signalled>>,
    /// Number of SIGINTs received by a session or a shell.
    interrupts: watch::Sender<u64>,
    bars: MultiProgress,
}

static WATCHDOG: OnceLock<Arc<Watchdog>> = OnceLock::new();

/// Starts the watchdog of this process. `bars` are cleared from the terminal at the end.
pub fn start(bars: &MultiProgress) -> std::io::Result<()> {
    let state = State { mode: Mode::Job, busy: false, first: None, ends: None, deadlines: BTreeMap::new(), next: 0 };
    let watchdog = Arc::new(Watchdog {
        state: Mutex::new(state),
        changed: Notify::new(),
        wish: watch::Sender::new(None),
        interrupts: watch::Sender::new(0),
        bars: bars.clone(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    if WATCHDOG.set(Arc::clone(&watchdog)).is_err() {
        return Ok(());
    }
    let watch = move || runtime.block_on(watchdog.watch(&mut signals));
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if SIGHUP was ignored when the process started, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let hangup = if ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.interrupt.recv() => Signalled::Interrupt,
            _ = self.terminate.recv() => Signalled::Terminate,
            Some(_) = async { self.hangup.as_mut()?.recv().await } => Signalled::Hangup,
        }
    }
}

/// True if the signal was ignored when the process started.
fn ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is valid, and without a new action the call only writes the current action into
    // it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

impl Watchdog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch(&self, signals: &mut Signals) {
        loop {
            let next = {
                let state = self.state();
                let deadlines = state.deadlines.values().map(|deadline| deadline.at);
                deadlines.chain(state.ends.map(|(at, _)| at)).min()
            };
            let over = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                signal = signals.next() => self.signalled(signal),
                () = self.changed.notified() => {}
                () = over => self.expired(),
            }
        }
    }

    fn signalled(&self, signal: Signalled) {
        let now = Instant::now();
        let mut state = self.state();
        if signal == Signalled::Interrupt && matches!(state.mode, Mode::Session | Mode::Shell) {
            if state.mode == Mode::Session && state.busy && state.ends.is_none() {
                state.ends = Some((now + GRACE, signal));
            }
            drop(state);
            self.interrupts.send_modify(|count| *count += 1);
            return;
        }
        match state.first {
            None => {
                state.first = Some((now, signal));
                match state.mode {
                    Mode::Service => {}
                    // The line editor waits for a key.
                    Mode::Shell => state.ends = Some((now, signal)),
                    _ => state.ends = Some((now + GRACE, signal)),
                }
                drop(state);
                self.wish.send_replace(Some(signal));
            }
            Some((at, _)) if now.duration_since(at) <= SAME_WISH => {}
            Some(_) => {
                drop(state);
                self.end(signal.exit_code(), move || tracing::error!("{}", signal.line()));
            }
        }
    }

    /// Ends the process if its time is up.
    fn expired(&self) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some((_, signal)) = state.ends.filter(|(at, _)| *at <= now) {
            let statement = state.mode == Mode::Session && state.first.is_none();
            drop(state);
            if statement {
                self.end(signal.exit_code(), || eprintln!("cancelled"));
            }
            self.end(signal.exit_code(), move || tracing::error!("{}", signal.line()));
        }
        let over = state.deadlines.iter().find(|(_, deadline)| deadline.at <= now).map(|(number, _)| *number);
        if let Some(deadline) = over.and_then(|number| state.deadlines.remove(&number)) {
            drop(state);
            self.end(1, deadline.report);
        }
    }

    /// Cleans up, logs and ends the process. A lock held by another thread must not delay it.
    fn end(&self, code: u8, report: impl FnOnce() + Send + 'static) -> ! {
        let (done, over) = mpsc::channel();
        let bars = self.bars.clone();
        let quiet = self.state().mode == Mode::Worker;
        let goodbye = move || {
            cleanup::run();
            let _ = bars.clear();
            bars.set_draw_target(ProgressDrawTarget::hidden());
            if !quiet {
                report();
            }
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("goodbye".to_owned()).spawn(goodbye).is_ok() {
            let _ = over.recv_timeout(GOODBYE);
        }
        // SAFETY: the call ends the process. atexit handlers must not run, because other threads still use the
        // resources that they free.
        unsafe { libc::_exit(i32::from(code)) }
    }
}

/// The watchdog of this process; `None` in unit tests.
fn watchdog() -> Option<&'static Arc<Watchdog>> {
    WATCHDOG.get()
}

/// Sets the effect of signals on this process.
pub fn set_mode(mode: Mode) {
    if let Some(watchdog) = watchdog() {
        watchdog.state().mode = mode;
    }
}

/// Shutdown requests for this process: `None` until the first one.
pub fn stops() -> watch::Receiver<Option<Signalled>> {
    match watchdog() {
        Some(watchdog) => watchdog.wish.subscribe(),
        None => watch::Sender::new(None).subscribe(),
    }
}

/// Completes when a signal requests a shutdown.
pub async fn stopped() -> Signalled {
    let mut stops = stops();
    match stops.wait_for(Option::is_some).await.map(|signal| *signal) {
        Ok(Some(signal)) => signal,
        _ => std::future::pending().await,
    }
}

/// Ends the process at `limit` from now plus [`GRACE`], with code 1 and the log output of `report`, unless the
/// returned value is dropped before.
#[must_use = "dropping it takes the deadline away"]
pub fn deadline(limit: Duration, report: impl FnOnce() + Send + 'static) -> Armed {
    let Some(watchdog) = watchdog() else { return Armed(None) };
    let mut state = watchdog.state();
    let number = state.next;
    state.next += 1;
    let at = Instant::now() + limit + GRACE;
    state.deadlines.insert(number, Deadline { at, report: Box::new(report) });
    drop(state);
    watchdog.changed.notify_one();
    Armed(Some(number))
}

/// A deadline that is active until it is dropped.
pub struct Armed(Option<u64>);

impl Drop for Armed {
    fn drop(&mut self) {
        if let (Some(number), Some(watchdog)) = (self.0, watchdog()) {
            watchdog.state().deadlines.remove(&number);
        }
    }
}

/// A running statement of a session. SIGINT must end the statement or the process.
pub struct Busy(watch::Receiver<u64>);

/// Marks the start of a statement of a session.
pub fn busy() -> Busy {
    let Some(watchdog) = watchdog() else { return Busy(watch::Sender::new(0).subscribe()) };
    let mut interrupts = watchdog.interrupts.subscribe();
    interrupts.mark_unchanged();
    watchdog.state().busy = true;
    Busy(interrupts)
}

impl Busy {
    /// Completes at the next SIGINT.
    pub async fn interrupted(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(watchdog) = watchdog() {
            let mut state = watchdog.state();
            state.busy = false;
            if state.first.is_none() {
                state.ends = None;
            }
        }
    }
}

/// The number of SIGINTs received by a shell.
pub fn interrupts() -> watch::Receiver<u64> {
    match watchdog() {
        Some(watchdog) => watchdog.interrupts.subscribe(),
        None => watch::Sender::new(0).subscribe(),
    }
}

/// Ends this process without logging when its stdin is closed: the parent process has ended or closed the pipe to
/// cancel the work.
///
/// # Errors
/// If no thread can be started.
pub fn end_with(mut stdin: impl std::io::Read + Send + 'static) -> std::io::Result<()> {
    let wait = move || {
        let mut buffer = [0_u8; 64];
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        end_quietly();
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(wait)?;
    Ok(())
}

/// Cleans up and ends this process without logging.
pub fn end_quietly() -> ! {
    match watchdog() {
        Some(watchdog) => watchdog.end(1, || {}),
        None => std::process::exit(1),
    }
}
