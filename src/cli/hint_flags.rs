//! The flags that command lines in messages get.
//!
//! Input: the parsed command line, and its definition. Output: what [`crate::hints`] needs.

use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::hints::Flags;

/// The flags that printed command lines get: the store and the SQL files of this command, if they were chosen.
pub fn of(matches: &ArgMatches, definition: &clap::Command) -> Flags {
    const CHOSEN: [&str; 2] = ["store", "sql"];
    fn add(command: &clap::Command, path: &str, commands: &mut Vec<(String, Vec<String>)>) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
            let flags = command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
            commands.push((path.clone(), flags.collect()));
            add(command, &path, commands);
        }
    }
    let mut flags = Flags::default();
    let mut level = Some(matches);
    while let Some(matches) = level {
        for (id, flag) in CHOSEN.into_iter().zip(["--store", "--sql"]) {
            let chosen = matches!(matches.try_contains_id(id), Ok(true))
                && matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
            if let (true, Ok(Some(path))) = (chosen, matches.try_get_one::<PathBuf>(id)) {
                flags.values.push((flag, path.display().to_string()));
            }
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    add(definition, "", &mut flags.commands);
    flags
}
