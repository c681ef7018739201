//! The flags that command lines in messages get.
//!
//! Input: the parsed command line, and what defines it. Output: what [`crate::hints`] needs.

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::hints::Flags;

/// Settings that decide which rows a command reads: store, SQL files, the topic, and how files are written. Those that were chosen are
/// repeated in printed command lines. Single Kafka settings (`-X`) may be secrets and are not.
const CHOSEN: [(&str, &str); 11] = [
    ("store", "--store"),
    ("sql", "--sql"),
    ("bootstrap_servers", "--bootstrap-servers"),
    ("kafka_config", "--kafka-config"),
    ("topic", "--topic"),
    ("input_format", "--input-format"),
    ("delimiter", "--delimiter"),
    ("encoding", "--encoding"),
    ("decimal", "--decimal"),
    ("skip", "--skip"),
    ("header", "--header"),
];

/// The flags that printed command lines get.
pub fn of(matches: &ArgMatches, define: fn() -> clap::Command) -> Flags {
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
    let is_init = matches.subcommand_name() == Some("init");
    while let Some(matches) = level {
        for (id, flag) in CHOSEN {
            let chosen = matches!(matches.try_contains_id(id), Ok(true))
                && matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
            // As it was written: a store's path is canonical after parsing, and a delimiter a byte.
            let written = || matches.try_get_raw(id).ok()??.next_back()?.to_str().map(str::to_owned);
            // `init` makes the directory, and names it itself where it has.
            let is_made = id == "sql" && is_init;
            if chosen
                && !is_made
                && let Some(value) = written()
            {
                flags.values.push((flag, value));
            }
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    // Without a value no command line is completed.
    if !flags.values.is_empty() {
        add(&define(), "", &mut flags.commands);
    }
    flags
}
