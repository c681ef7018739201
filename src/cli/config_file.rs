//! The configuration file: `tercile.toml` in the working directory, or the file that `--config` names.
//!
//! Input: the arguments of the process, and the definition of all commands. Output: the same arguments with the values of the file for
//! flags that neither the command line nor the environment sets. The parsers and the rules of flags are thus those of the command
//! line, and the keys of the file are its flags: there is no second list.

mod toml;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use toml::{File, Setting};

use super::{Usage, count};

/// The file that is read if `--config` names none.
pub const NAME: &str = "tercile.toml";

/// The command that prints where settings come from, and checks the values that the file has for others.
const EXPLAINS: &str = "doctor";

/// Which configuration file is read.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Configuration file, whose keys are names of flags [default: tercile.toml, if the working directory has one]
    #[arg(long, global = true, env = "TERCILE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A flag that is not at its default.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The flag and its value, as on a command line.
    pub setting: String,
    /// What set it.
    pub origin: String,
}

/// Why there is no command line.
#[derive(Debug)]
pub enum Error {
    /// The command line is wrong, or asks for help.
    Line(clap::Error),
    /// The file is wrong: file, line, and reason.
    File(Usage),
}

impl From<clap::Error> for Error {
    fn from(error: clap::Error) -> Self {
        Self::Line(error)
    }
}

/// A command line that was parsed together with the configuration file.
#[derive(Debug, Default)]
struct Line {
    arguments: Vec<OsString>,
    origins: Vec<Origin>,
    /// A sentence about the values of the file that do not apply beside the given flags.
    without: Vec<String>,
    /// What the file says for all commands; `None` without a file.
    checked: Option<Result<String, String>>,
}

static LINE: OnceLock<Line> = OnceLock::new();

/// The arguments of this process, with those of the file.
pub fn arguments() -> Vec<OsString> {
    LINE.get().map_or_else(|| std::env::args_os().collect(), |line| line.arguments.clone())
}

/// The flags of this process that are not at their default, for the command that explains them.
pub fn origins() -> &'static [Origin] {
    LINE.get().map_or(&[], |line| &line.origins)
}

/// The result of checking the values that the file has for any command; `None` without a file.
pub fn checked() -> Option<&'static Result<String, String>> {
    LINE.get()?.checked.as_ref()
}

/// Logs which values of the file do not apply.
pub fn report() {
    for sentence in LINE.get().map_or(&[][..], |line| &line.without) {
        tracing::info!("{sentence}");
    }
}

/// Parses the arguments of this process together with the configuration file. `define` returns the definition of all commands.
///
/// # Errors
/// If either is wrong.
pub fn parse(define: fn() -> Command) -> Result<ArgMatches, Error> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut line = Line { arguments, ..Line::default() };
    // Parsing adds to the definition. Another one is made only if it is needed, because that takes longer than the rest.
    let mut parsed = define();
    let given = parsed.try_get_matches_from_mut(&line.arguments);
    let is_all = match &given {
        Ok(matches) => {
            let running = Running::of(matches, &parsed);
            let reads = running.reads_a_file() && locate(matches).is_some();
            !reads && running.path != [EXPLAINS]
        }
        // Help and the version.
        Err(error) => !error.use_stderr(),
    };
    if is_all {
        let _ = LINE.set(line);
        return Ok(given?);
    }
    let definition = &define();
    let lenient;
    let understood = match &given {
        Ok(matches) => matches,
        // The configuration file may have the missing value; the rest of the line names that file.
        Err(_) => {
            lenient = definition.clone().ignore_errors(true).try_get_matches_from(&line.arguments)?;
            &lenient
        }
    };
    let running = Running::of(understood, definition);
    let file = match running.reads_a_file() {
        true => locate(understood).transpose(),
        false => Ok(None),
    };
    let file = file.and_then(|path| path.map(|path| File::read(&path, definition)).transpose());
    let file = file.map_err(|error| Error::File(Usage(error)))?;
    let mut applied = Vec::new();
    if let Some(file) = &file {
        applied = running.settings(file);
        line.without =
            running.resolve(file, &line.arguments, &mut applied).map_err(|error| Error::File(Usage(error)))?;
        line.arguments = running.with(&line.arguments, &applied);
        if running.path == [EXPLAINS] {
            line.checked = Some(check(file, definition));
        }
    }
    let matches = match applied.is_empty() {
        true => given?,
        false => definition.clone().try_get_matches_from(&line.arguments)?,
    };
    line.origins = running.origins(&matches, file.as_ref().map(|file| (file.path.as_path(), &applied[..])));
    let _ = LINE.set(line);
    Ok(matches)
}

/// An unfinished command line together with the configuration file, as far as both can be understood.
pub fn unfinished(definition: &Command, arguments: &[OsString]) -> Option<ArgMatches> {
    let lenient = definition.clone().ignore_errors(true);
    let matches = lenient.clone().try_get_matches_from(arguments).ok()?;
    let running = Running::of(&matches, definition);
    let file = locate(&matches).and_then(|path| File::read(&path.ok()?, definition).ok());
    let settings = file.as_ref().map(|file| running.settings(file)).unwrap_or_default();
    let matches = lenient.try_get_matches_from(running.with(arguments, &settings)).ok()?;
    let mut level = &matches;
    while let Some((_, matches)) = level.subcommand() {
        level = matches;
    }
    Some(level.clone())
}

/// The file to read, if there is one.
fn locate(matches: &ArgMatches) -> Option<Result<PathBuf, String>> {
    let named = ConfigArgs::from_arg_matches(matches).ok().and_then(|args| args.config);
    if let Some(named) = named {
        return Some(match named.exists() {
            true => Ok(named),
            false => Err(format!("there is no file {}; name an existing one with --config", named.display())),
        });
    }
    // A file that is there but cannot be read is an error, and not the same as none.
    let default = Path::new(NAME);
    let there = std::fs::symlink_metadata(default).map(|_| ());
    match there {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(format!("cannot read {NAME}: {error}"))),
        Ok(()) => Some(Ok(default.to_owned())),
    }
}

/// The command that runs.
struct Running<'a> {
    root: &'a Command,
    /// Its names, from the outermost to the innermost.
    path: Vec<String>,
    /// Its definition.
    command: &'a Command,
    /// Its matches, without the file.
    matches: ArgMatches,
    hidden: bool,
}

impl<'a> Running<'a> {
    fn of(matches: &ArgMatches, root: &'a Command) -> Self {
        let (mut path, mut command, mut level, mut hidden) = (Vec::new(), root, matches, false);
        while let Some((name, matches)) = level.subcommand() {
            let Some(found) = command.find_subcommand(name) else { break };
            path.push(name.to_owned());
            hidden |= found.is_hide_set();
            (command, level) = (found, matches);
        }
        Self { root, path, command, matches: level.clone(), hidden }
    }

    /// Processes of this program get their settings from it, and commands about the program itself work beside any file.
    fn reads_a_file(&self) -> bool {
        !self.path.is_empty() && !self.hidden && !super::ABOUT_ITSELF.contains(&self.path[0].as_str())
    }

    /// The flag of this command with that long name.
    fn flag(&self, long: &str) -> Option<&'a clap::Arg> {
        let mut flags = self.command.get_arguments().chain(self.root.get_arguments());
        flags.find(|arg| arg.get_long() == Some(long))
    }

    /// Whether the command line or the environment sets it.
    fn is_given(&self, flag: &clap::Arg) -> bool {
        source(&self.matches, flag).is_some_and(|source| source != ValueSource::DefaultValue)
    }

    /// The values of the file for flags that are not given. The table of an inner command comes before that of an outer one.
    fn settings<'f>(&self, file: &'f File) -> Vec<&'f Setting> {
        let mut found: Vec<&Setting> = Vec::new();
        let here = file.settings.iter().filter(|setting| self.path.starts_with(&setting.command));
        for setting in here {
            if self.flag(&setting.flag).is_none_or(|flag| self.is_given(flag)) {
                continue;
            }
            match found.iter_mut().find(|other| other.flag == setting.flag) {
                Some(other) if other.command.len() < setting.command.len() => *other = setting,
                Some(_) => {}
                None => found.push(setting),
            }
        }
        found
    }

    /// The arguments with those of the file, which follow the name of the command: what the user wrote comes later, so that none
    /// of it can become part of something else.
    fn with(&self, arguments: &[OsString], settings: &[&Setting]) -> Vec<OsString> {
        let values: Vec<String> = self
            .root
            .get_arguments()
            .filter(|arg| arg.get_action().takes_values())
            .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
            .collect();
        let (mut at, mut command) = (0, self.root);
        for name in &self.path {
            let token = (at + 1..arguments.len()).find(|&i| {
                let is_value = arguments[i - 1].to_str().is_some_and(|before| values.iter().any(|flag| flag == before));
                let found = arguments[i].to_str().and_then(|token| command.find_subcommand(token));
                !is_value && found.is_some_and(|found| found.get_name() == name)
            });
            let Some(token) = token else { break };
            at = token;
            command = command.find_subcommand(name).unwrap_or(command);
        }
        let (before, after) = arguments.split_at((at + 1).min(arguments.len()));
        let ours = settings.iter().flat_map(|setting| setting.arguments()).map(OsString::from);
        before.iter().cloned().chain(ours).chain(after.iter().cloned()).collect()
    }

    fn parse(&self, arguments: &[OsString], settings: &[&Setting]) -> Result<(), clap::Error> {
        self.root.clone().try_get_matches_from(self.with(arguments, settings)).map(|_| ())
    }

    /// Removes values that contradict a given flag. Returns a sentence for each.
    ///
    /// # Errors
    /// A value that the flag rejects, or that contradicts another of the file.
    fn resolve(&self, file: &File, arguments: &[OsString], applied: &mut Vec<&Setting>) -> Result<Vec<String>, String> {
        if let Some(fault) = applied.iter().find_map(|setting| self.rejected(file, setting)) {
            return Err(fault);
        }
        let Err(error) = self.parse(arguments, applied) else { return Ok(Vec::new()) };
        if let Err(given) = self.parse(arguments, &[])
            && !about_others(given.kind())
        {
            // The user's own fault is reported as if there were no file.
            return Ok(Vec::new());
        }
        let mut without = Vec::new();
        if error.kind() == ErrorKind::ArgumentConflict {
            applied.retain(|setting| {
                let fits = without_error(self.parse(arguments, &[setting]), ErrorKind::ArgumentConflict);
                if !fits {
                    without.push(
                        file.fault(setting.line, &format!("{} does not apply beside the given flags", setting.flag)),
                    );
                }
                fits
            });
        }
        let Err(error) = self.parse(arguments, applied) else { return Ok(without) };
        // The value without which there is no such error.
        let cause = (0..applied.len()).find(|&i| {
            let mut others = applied.clone();
            others.remove(i);
            without_error(self.parse(arguments, &others), error.kind())
        });
        if let Some(cause) = cause.filter(|_| about_others(error.kind())) {
            return Err(file.fault(applied[cause].line, &first_line(&error)));
        }
        Ok(without)
    }

    /// Why this command's flag does not accept the value.
    fn rejected(&self, file: &File, setting: &Setting) -> Option<String> {
        let flag = self.flag(&setting.flag)?;
        if let Err(expected) = setting.value.fits(flag) {
            let command = self.path.join(" ");
            let found = setting.value.kind();
            return Some(file.fault(
                setting.line,
                &format!("{}: tercile {command} expects {expected}, found {found}", setting.flag),
            ));
        }
        let line: Vec<OsString> = [self.root.get_name()]
            .into_iter()
            .chain(self.path.iter().map(String::as_str))
            .map(OsString::from)
            .collect();
        let error = self.parse(&line, &[setting]).err()?;
        let about = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(about)) => about,
            _ => return None,
        };
        let about_it = about.split([' ', '=']).next() == Some(&format!("--{}", setting.flag));
        let refused = !about_others(error.kind()) && about_it;
        refused.then(|| file.fault(setting.line, &first_line(&error)))
    }

    /// The flags that are not at their default, with what set them.
    fn origins(&self, matches: &ArgMatches, file: Option<(&Path, &[&Setting])>) -> Vec<Origin> {
        let mut level = matches;
        while let Some((_, matches)) = level.subcommand() {
            level = matches;
        }
        let mut origins = Vec::new();
        for flag in self.command.get_arguments().chain(self.root.get_arguments()) {
            let id = flag.get_id().as_str();
            let name = match (flag.get_long(), flag.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, Some(short)) => format!("-{short}"),
                (None, None) => continue,
            };
            let from_file = file.and_then(|(path, settings)| {
                let setting = settings.iter().find(|setting| Some(setting.flag.as_str()) == flag.get_long())?;
                Some(format!("{}, line {}", path.display(), setting.line))
            });
            let origin = match (from_file, source(level, flag)) {
                (Some(origin), _) => origin,
                (None, Some(ValueSource::CommandLine)) => "command line".to_owned(),
                (None, Some(ValueSource::EnvVariable)) => match flag.get_env().and_then(OsStr::to_str) {
                    Some(variable) => format!("environment, {variable}"),
                    None => "environment".to_owned(),
                },
                _ => continue,
            };
            let raw = flag.get_action().takes_values().then(|| level.get_raw(id)).flatten();
            let values: Vec<String> = raw.into_iter().flatten().map(|raw| raw.to_string_lossy().into_owned()).collect();
            // `-X sasl.password=…`: a setting without a long name may be a secret, and only its key is shown.
            let shown = |value: &String| match flag.get_long() {
                Some(_) => value.clone(),
                None => value.split('=').next().unwrap_or_default().to_owned(),
            };
            let values = values.iter().map(shown).collect::<Vec<_>>().join(",");
            origins.push(Origin { setting: format!("{name} {values}").trim_end().to_owned(), origin });
        }
        origins
    }
}

/// Whether a command line fails for another reason than this one, or not at all.
fn without_error(parsed: Result<(), clap::Error>, kind: ErrorKind) -> bool {
    parsed.err().is_none_or(|error| error.kind() != kind)
}

/// Whether an error is about the combination of flags, and not about one of them.
fn about_others(kind: ErrorKind) -> bool {
    use ErrorKind::{ArgumentConflict, MissingRequiredArgument, MissingSubcommand};
    matches!(kind, ArgumentConflict | MissingRequiredArgument | MissingSubcommand)
}

fn source(matches: &ArgMatches, flag: &clap::Arg) -> Option<ValueSource> {
    let id = flag.get_id().as_str();
    matches!(matches.try_contains_id(id), Ok(true)).then(|| matches.value_source(id)).flatten()
}

/// The message of an error in one line, without the advice to ask for help.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = text.trim_start_matches("error: ").lines().map(str::trim).collect();
    lines.join(" ")
}

/// Checks the values of the file for every command that has their flags.
fn check(file: &File, definition: &Command) -> Result<String, String> {
    fn walk<'a>(running: &Running<'a>, found: &mut Vec<Running<'a>>) {
        for command in toml::visible(running.command) {
            let path = [&running.path[..], &[command.get_name().to_owned()]].concat();
            let inner = Running { root: running.root, path, command, matches: ArgMatches::default(), hidden: false };
            walk(&inner, found);
            found.push(inner);
        }
    }
    let mut commands = Vec::new();
    walk(
        &Running {
            root: definition,
            path: Vec::new(),
            command: definition,
            matches: ArgMatches::default(),
            hidden: false,
        },
        &mut commands,
    );
    let mut faults: Vec<String> = Vec::new();
    for running in commands.iter().filter(|running| running.reads_a_file()) {
        for setting in running.settings(file) {
            faults.extend(running.rejected(file, setting).filter(|fault| !faults.contains(fault)));
        }
    }
    match faults.is_empty() {
        true => Ok(format!(
            "{}: {}, accepted by their commands",
            file.path.display(),
            count(file.settings.len() as u64, "value")
        )),
        false => Err(faults.join("\n")),
    }
}
