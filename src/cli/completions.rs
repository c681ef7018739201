//! `tercile completions`: completions of a shell, from the definition of the command line.
//!
//! The script asks this program what can follow, with [`VARIABLE`] set. Names of segmentations and models are those of the store and of
//! the SQL files that the unfinished command line, the environment or the configuration file name.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _, ValueHint};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use tercile_store::Store;

use super::output_file::OutputFile;
use super::{Cli, Done, config_file};
use crate::model::registry::ModelRegistry;
use crate::slices::all_slices;
use crate::sql;

/// The variable that makes this program answer a shell; its value is the name of the shell.
const VARIABLE: &str = "TERCILE_COMPLETE";

/// Print the completions of a shell
///
/// The script asks tercile for what can follow, so that it fits every version. In bash: source <(tercile completions bash); in zsh, after
/// compinit: source <(tercile completions zsh); in fish: tercile completions fish | source
#[derive(Args)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL", value_parser = Shells::builtins().names().collect::<Vec<_>>())]
    shell: String,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<Done> {
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell).context("there are no completions of this shell")?;
        let mut script = Vec::new();
        shell.write_registration(VARIABLE, "tercile", "tercile", &program()?, &mut script)?;
        std::io::stdout().write_all(&script)?;
        Ok(Done::Well)
    }
}

/// How the script starts this program: by its name, or by its path if it was started by one.
fn program() -> anyhow::Result<String> {
    let called = std::env::args_os().next().unwrap_or_default();
    let path = match Path::new(&called).components().count() {
        0 | 1 => PathBuf::from("tercile"),
        _ => std::path::absolute(&called).context("cannot tell the path of this program")?,
    };
    path.into_os_string()
        .into_string()
        .map_err(|_| anyhow::anyhow!("the path of this program is not UTF-8; start it by its name"))
}

/// Answers a shell, if one asks. Returns whether one did.
///
/// # Errors
/// If the shell is not known, or the answer cannot be written.
pub fn answer() -> Result<bool, clap::Error> {
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(false);
    }
    let here = std::env::current_dir().ok();
    CompleteEnv::with_factory(|| hinted(Cli::command()))
        .var(VARIABLE)
        .try_complete(std::env::args_os(), here.as_deref())
}

/// Adds that output files are files.
fn hinted(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_value_parser().type_id() == TypeId::of::<OutputFile>() {
        true => arg.value_hint(ValueHint::FilePath),
        false => arg,
    });
    command.mut_subcommands(hinted)
}

/// The store and the SQL files of an unfinished command line.
struct Context {
    store: Option<Store>,
    sql: Option<PathBuf>,
}

impl Context {
    /// A shell passes the line after `--`.
    fn of_the_line() -> Self {
        let line: Vec<OsString> = std::env::args_os().skip_while(|arg| arg != "--").skip(1).collect();
        let matches = config_file::unfinished(&Cli::command(), &line);
        let path = |id: &str| matches.as_ref()?.try_get_one::<PathBuf>(id).ok()?.cloned();
        // A store that is elsewhere would delay each key press.
        let store = path("store").and_then(|root| Store::at(&root).ok()).filter(|store| store.place().is_disk());
        Self { store, sql: path("sql") }
    }

    /// Segmentations of the SQL files, and those that have models.
    fn segmentations(&self) -> Vec<String> {
        let files = sql::Files::load(self.sql.as_deref());
        let mut names: Vec<String> =
            files.iter().flat_map(|files| files.segmentations()).map(|(view, _)| view.name.clone()).collect();
        names.extend(self.trained());
        names.sort();
        names.dedup();
        names
    }

    fn trained(&self) -> Vec<String> {
        self.store.as_ref().and_then(|store| store.segmentations().ok()).unwrap_or_default()
    }

    /// The versions of a slice of a segmentation.
    fn versions(&self, segmentation: &str, slice: u8) -> Vec<u64> {
        // The name becomes a directory name.
        let Some(store) = self.store.as_ref().filter(|_| self.trained().iter().any(|name| name == segmentation)) else {
            return Vec::new();
        };
        let models = ModelRegistry::new(store, segmentation).versions(&mut |_| {}).unwrap_or_default();
        models.iter().filter(|model| model.slice == slice).map(|model| model.version).collect()
    }
}

/// Completes a segmentation.
pub fn segmentation() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        Context::of_the_line().segmentations().into_iter().map(CompletionCandidate::new).collect()
    })
}

/// Completes a model: `price_rating`, `price_rating@2`, `price_rating@2@5`, or a file.
pub fn model() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let Some(current) = current.to_str() else { return Vec::new() };
        let context = Context::of_the_line();
        let mut parts = current.split('@');
        let (name, slice, version) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let names = match (slice, version) {
            (None, _) => context.trained(),
            (Some(_), None) => all_slices().map(|slice| format!("{name}@{slice}")).collect(),
            (Some(slice), Some(_)) => {
                let versions = slice.parse().map(|slice| context.versions(name, slice)).unwrap_or_default();
                versions.iter().map(|version| format!("{name}@{slice}@{version}")).collect()
            }
        };
        names.into_iter().filter(|name| name.starts_with(current)).map(CompletionCandidate::new).collect()
    })
}

/// Completes a command.
pub fn command() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let definition = Cli::command();
        let commands = definition.get_subcommands().filter(|command| !command.is_hide_set());
        commands
            .map(|command| CompletionCandidate::new(command.get_name()).help(command.get_about().cloned()))
            .collect()
    })
}
