//! Every environment variable belongs to one flag, and is in `docs/environment.md`. `TERCILE_REWRITE=1` writes the page.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::Cli;

const INTRO: &str = "# Environment variables

Each flag has a variable, which stands for it in every command that has the flag. A flag on the command line precedes its variable, and
a variable precedes `tercile.toml` ([Configuration](configuration.md)). Flags that may be repeated, or that take a list, have one value
in a variable, or several separated by commas where the flag takes them so. Flags without a value are set by `true` and unset by `false`.

";

/// What one flag means in a command.
struct Meaning {
    flag: String,
    command: String,
    help: String,
}

fn collect(command: &Command, path: &str, found: &mut BTreeMap<String, Vec<Meaning>>) {
    for arg in command.get_arguments() {
        let (Some(env), Some(long)) = (arg.get_env().and_then(|env| env.to_str()), arg.get_long()) else { continue };
        let help = arg.get_help().map(|help| help.to_string().replace('\n', " ")).unwrap_or_default();
        let meaning = Meaning { flag: format!("--{long}"), command: path.to_owned(), help };
        found.entry(env.to_owned()).or_default().push(meaning);
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        collect(inner, format!("{path} {}", inner.get_name()).trim(), found);
    }
}

#[test]
fn each_variable_has_one_flag_and_is_documented() {
    let mut found = BTreeMap::new();
    collect(&Cli::command(), "", &mut found);
    assert!(found.len() > 90, "{}", found.len());
    let mut text = INTRO.to_owned() + "| variable | flag | meaning, and in which commands |\n|---|---|---|\n";
    for (variable, meanings) in &found {
        let flags: BTreeSet<&str> = meanings.iter().map(|meaning| meaning.flag.as_str()).collect();
        assert_eq!(flags.len(), 1, "{variable} stands for {flags:?}: each variable has one meaning");
        let mut helps: Vec<(&str, Vec<&str>)> = Vec::new();
        for Meaning { help, command, .. } in meanings {
            let command = if command.is_empty() { "all" } else { command };
            match helps.iter_mut().find(|(known, _)| known == help) {
                Some((_, commands)) => commands.push(command),
                None => helps.push((help, vec![command])),
            }
        }
        let cell = |(help, commands): &(&str, Vec<&str>)| format!("{help} ({})", commands.join(", "));
        let cells: Vec<String> = helps.iter().map(cell).collect();
        let flag = flags.first().unwrap();
        text += &format!("| `{variable}` | `{flag}` | {} |\n", cells.join("<br>").replace('|', "\\|"));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/environment.md");
    if std::env::var_os("TERCILE_REWRITE").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    // With the feature `distributed` there are more commands.
    if !cfg!(feature = "distributed") {
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "run this test with TERCILE_REWRITE=1");
    }
}

/// Variables that pages name are those of flags.
#[test]
fn pages_name_no_other_variables() {
    let mut found = BTreeMap::new();
    collect(&Cli::command(), "", &mut found);
    // Of tests and of the benchmarks.
    let others = ["TERCILE_TEST_", "TERCILE_REWRITE"];
    // Of all variables.
    let prefix = "TERCILE_";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in
        pages.filter(|page| page.extension().is_some_and(|ending| ending == "md")).chain([root.join("README.md")])
    {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.match_indices(prefix).map(|(at, _)| &text[at..]) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            let known =
                name == prefix || found.contains_key(&name) || others.iter().any(|other| name.starts_with(other));
            assert!(known, "{} names {name}, which no flag has", page.display());
        }
    }
}
