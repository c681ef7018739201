//! The contents of a configuration file, checked against the definition of the command line.

use std::any::TypeId;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml_edit::{Document, Item, TableLike, Value};

use crate::cli::output_file::OutputFile;
use crate::printable::printable;
use crate::sql::fault::nearest;

/// The table of the values of single commands. Other top-level keys are flags of every command that has them.
pub const COMMANDS: &str = "commands";

/// A configuration file.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub settings: Vec<Setting>,
}

/// A value of the file, for a flag.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The command whose table has the value, from the outermost to the innermost; empty for all commands.
    pub command: Vec<String>,
    /// The long name of the flag, without dashes.
    pub flag: String,
    pub value: Given,
    /// Line of the key, from 1.
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    Bool(bool),
    One(String),
    Several(Vec<String>),
}

impl Given {
    /// Whether a flag takes such a value; otherwise what it expects.
    pub fn fits(&self, arg: &Arg) -> Result<(), &'static str> {
        match (arg.get_action(), self) {
            (ArgAction::SetTrue, Self::Bool(_)) | (ArgAction::Append, Self::One(_) | Self::Several(_)) => Ok(()),
            (ArgAction::SetTrue, _) => Err("true or false"),
            (ArgAction::Append, Self::Bool(_)) => Err("a string, a number, or a list of them"),
            (_, Self::One(_)) => Ok(()),
            _ => Err("a string or a number"),
        }
    }

    /// What it is, in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::One(_) => "a single value",
            Self::Several(_) => "a list",
        }
    }
}

impl Setting {
    /// The arguments that stand for the value on a command line.
    pub fn arguments(&self) -> Vec<String> {
        let flag = &self.flag;
        match &self.value {
            Given::Bool(false) => Vec::new(),
            Given::Bool(true) => vec![format!("--{flag}")],
            Given::One(value) => vec![format!("--{flag}={value}")],
            Given::Several(values) => values.iter().map(|value| format!("--{flag}={value}")).collect(),
        }
    }
}

impl File {
    /// Reads a file. Its keys are the long names of flags.
    ///
    /// # Errors
    /// One line with the file and the line: a file that cannot be read, invalid TOML, a key that is no flag of such a command, a
    /// flag that has no place in a file, or a value of another type than the flag's.
    pub fn read(path: &Path, definition: &Command) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
        let mut reader = Reader { path, text: &text, root: definition, settings: Vec::new() };
        let document = Document::parse(text.as_str()).map_err(|error| {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            reader.fault(reader.line(error.span().map(|span| span.start)), &message)
        })?;
        for (key, item) in document.as_table().iter() {
            match item.as_table_like() {
                Some(commands) if key == COMMANDS => reader.commands(commands)?,
                _ => reader.flag(document.as_table(), key, item, definition, &[])?,
            }
        }
        let settings = reader.settings;
        Ok(Self { path: path.to_owned(), settings })
    }

    /// A message about a line of the file.
    pub fn fault(&self, line: usize, message: &str) -> String {
        fault(&self.path, line, message)
    }
}

/// A message about a line of a file. Keys and values may have any characters.
fn fault(path: &Path, line: usize, message: &str) -> String {
    printable(&format!("{}, line {line}: {message}", path.display())).into_owned()
}

/// The flags of a command that a file may set, and of its subcommands.
fn flags<'a>(command: &'a Command, found: &mut Vec<&'a Arg>) {
    found.extend(command.get_arguments().filter(|arg| arg.get_long().is_some()));
    for command in visible(command) {
        flags(command, found);
    }
}

/// Commands for users. Hidden ones are processes of this program, which get their settings from it.
pub fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// The reason why a flag has no place in a file.
fn refused(arg: &Arg) -> Option<&'static str> {
    if arg.get_id() == "config" {
        Some("a file cannot name another one; give --config on the command line")
    } else if arg.get_id() == "allow_plugins" {
        // A file that somebody else left in the working directory must not run code.
        Some(
            "loading libraries is not allowed by a file; give --allow-plugins on the command line, or TERCILE_ALLOW_PLUGINS",
        )
    } else if arg.get_value_parser().type_id() == TypeId::of::<OutputFile>() {
        Some("a file does not decide which files are written; name the output on the command line")
    } else {
        None
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    root: &'a Command,
    settings: Vec<Setting>,
}

impl Reader<'_> {
    fn line(&self, position: Option<usize>) -> usize {
        let before = position.and_then(|end| self.text.get(..end)).unwrap_or_default();
        before.matches('\n').count() + 1
    }

    fn fault(&self, line: usize, message: &str) -> String {
        fault(self.path, line, message)
    }

    /// Reads the tables of commands.
    fn commands(&mut self, tables: &dyn TableLike) -> Result<(), String> {
        for (key, item) in tables.iter() {
            let line = self.line_of(tables, key);
            let Some(command) = visible(self.root).find(|command| command.get_name() == key) else {
                let alias = visible(self.root).find(|command| command.get_all_aliases().any(|alias| alias == key));
                let hint = match alias {
                    Some(command) => format!("; here it is called {}", command.get_name()),
                    None => suggestion(key, visible(self.root).map(Command::get_name)),
                };
                return Err(self.fault(line, &format!("there is no command {key}{hint}")));
            };
            let Some(table) = item.as_table_like() else {
                return Err(self.fault(line, &format!("expected a table [{COMMANDS}.{key}] of flags of the command")));
            };
            self.command(table, command, &[key.to_owned()])?;
        }
        Ok(())
    }

    /// Reads the table of a command: its flags, and the tables of its subcommands.
    fn command(&mut self, table: &dyn TableLike, command: &Command, path: &[String]) -> Result<(), String> {
        for (key, item) in table.iter() {
            let subcommand = visible(command).find(|subcommand| subcommand.get_name() == key);
            match (item.as_table_like(), subcommand) {
                (Some(inner), Some(subcommand)) => {
                    self.command(inner, subcommand, &[path, &[key.to_owned()]].concat())?
                }
                _ => self.flag(table, key, item, command, path)?,
            }
        }
        Ok(())
    }

    fn line_of(&self, table: &dyn TableLike, key: &str) -> usize {
        self.line(table.get_key_value(key).and_then(|(key, _)| key.span()).map(|span| span.start))
    }

    /// Reads the value of a flag.
    fn flag(
        &mut self,
        table: &dyn TableLike,
        key: &str,
        item: &Item,
        command: &Command,
        path: &[String],
    ) -> Result<(), String> {
        let line = self.line_of(table, key);
        let mut known = Vec::new();
        flags(command, &mut known);
        if !path.is_empty() {
            known.extend(self.root.get_arguments());
        }
        let named: Vec<&Arg> = known.iter().copied().filter(|arg| arg.get_long() == Some(key)).collect();
        if named.is_empty() {
            let of = match path.join(" ") {
                path if path.is_empty() => "no command has".to_owned(),
                path => format!("tercile {path} has no"),
            };
            let is_command = path.is_empty() && visible(command).any(|command| command.get_name() == key);
            let hint = match is_command {
                true => format!("; the flags of the command are below [{COMMANDS}.{key}]"),
                false => suggestion(key, known.iter().filter_map(|arg| arg.get_long())),
            };
            let what = if path.is_empty() { "a flag" } else { "flag" };
            return Err(self.fault(line, &format!("{of} {what} --{key}{hint}")));
        }
        if let Some(why) = named.iter().find_map(|arg| refused(arg)) {
            return Err(self.fault(line, &format!("{key}: {why}")));
        }
        let Some(value) = item.as_value().and_then(given) else {
            let expected = "expected a string, a number, a boolean, or a list of strings and numbers";
            return Err(self.fault(line, &format!("{key}: {expected}")));
        };
        let mut faults = named.iter().map(|arg| value.fits(arg));
        if let Some(Err(expected)) = faults.clone().next().filter(|_| faults.all(|fault| fault.is_err())) {
            return Err(self.fault(line, &format!("{key}: expected {expected}, found {}", value.kind())));
        }
        self.settings.push(Setting { command: path.to_vec(), flag: key.to_owned(), value, line });
        Ok(())
    }
}

/// The name that was probably meant, as the end of a message.
fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    // Names are written with a dash in flags, and with an underscore in many configuration files.
    nearest(&name.replace('_', "-"), known).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

/// The value of a key; `None` if it is a table, or a list of other things than strings and numbers.
fn given(value: &Value) -> Option<Given> {
    fn scalar(value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text.value().clone()),
            Value::Integer(number) => Some(number.value().to_string()),
            Value::Float(number) => Some(number.value().to_string()),
            Value::Datetime(time) => Some(time.value().to_string()),
            _ => None,
        }
    }
    match value {
        Value::Boolean(value) => Some(Given::Bool(*value.value())),
        Value::Array(values) => values.iter().map(scalar).collect::<Option<_>>().map(Given::Several),
        value => scalar(value).map(Given::One),
    }
}
