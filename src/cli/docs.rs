//! `tercile docs`: the pages of the manual, which is in the program.

use std::io::Write as _;

use clap::{Args, CommandFactory as _};

use super::{Cli, Done, Usage, completions};
use crate::sql::fault::nearest;

/// Print a page of the manual, or what the manual has about a command
///
/// Without a name: the list of pages. The pages are Markdown.
#[derive(Args)]
pub struct Docs {
    /// A command, as train, or a page, as your-data
    #[arg(value_name = "COMMAND|PAGE", add = completions::command())]
    name: Option<String>,
}

/// The files of `docs/`, by their names without the ending.
macro_rules! pages {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each page of the manual.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../docs/", $name, ".md"))),)*];
    };
}

pages! {
    "README", "another-shop", "api", "benchmarks", "cluster", "commands", "configuration", "dashboard", "descriptions", "drift", "enrich",
    "entities", "environment", "missing-values", "models", "notifications", "operations", "orders", "releasing", "scale", "sql", "start", "store",
    "your-data", "your-file",
}

impl Docs {
    pub fn run(self) -> anyhow::Result<Done> {
        let name = self.name.as_deref().unwrap_or("README");
        let text = match (entry(name), page(name)) {
            (Some(entry), _) => about(&entry),
            (None, Some(page)) => page.to_owned(),
            (None, None) => {
                let commands = entries().flat_map(|entry| entry.names);
                let known: Vec<&str> = commands.chain(PAGES.iter().map(|(name, _)| *name)).collect();
                let near = nearest(name, known.into_iter()).map(|near| format!("did you mean {near}? "));
                let near = near.unwrap_or_default();
                return Err(
                    Usage(format!("there is no command or page {name}; {near}tercile docs lists the pages")).into()
                );
            }
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Done::Well)
    }
}

fn page(name: &str) -> Option<&'static str> {
    PAGES.iter().find(|(page, _)| *page == name).map(|(_, text)| *text)
}

/// A row of the table of commands in `docs/commands.md`.
struct Entry {
    /// The commands: usually one.
    names: Vec<&'static str>,
    task: &'static str,
    /// The page about it.
    page: Option<&'static str>,
}

fn entries() -> impl Iterator<Item = Entry> {
    let rows = page("commands").unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| {
        let row = row.trim_start_matches("| ").trim_end_matches(" |");
        let (command, rest) = row.split_once(" | ")?;
        let (task, page) = rest.rsplit_once(" | ")?;
        // `produce FILE`; `scheduler`, `executor`.
        let names = command.split('`').skip(1).step_by(2).filter_map(|name| name.split(' ').next()).collect();
        let page = page.split_once("](").and_then(|(_, link)| link.split(".md").next());
        Some(Entry { names, task, page })
    })
}

fn entry(name: &str) -> Option<Entry> {
    entries().find(|entry| entry.names.contains(&name))
}

/// What the manual has about the commands of a row: the task, the flags, and the page.
fn about(entry: &Entry) -> String {
    let mut definition = Cli::command();
    definition.build();
    let mut text = String::new();
    for name in &entry.names {
        text += &format!("# tercile {name}\n\n{}\n", entry.task.replace("\\|", "|"));
        if let Some(command) = definition.find_subcommand(name) {
            text += &format!("\n```text\n{}\n```\n", command.clone().render_long_help().to_string().trim_end());
        }
    }
    if let Some(page) = entry.page.and_then(page) {
        text += &format!("\n{page}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_pages_are_those_of_the_directory() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let files = std::fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = files.filter_map(|file| Some(file.strip_suffix(".md")?.to_owned())).collect();
        files.sort();
        let mut pages: Vec<&str> = PAGES.iter().map(|(name, _)| *name).collect();
        pages.sort_unstable();
        assert_eq!(pages, files);
    }

    #[test]
    fn every_command_has_a_row_and_every_row_a_command_and_a_page() {
        let definition = Cli::command();
        let commands = definition.get_subcommands().filter(|command| !command.is_hide_set());
        for command in commands {
            assert!(entry(command.get_name()).is_some(), "docs/commands.md has no row of {}", command.get_name());
        }
        let cluster = ["scheduler", "executor"];
        for entry in entries() {
            for name in &entry.names {
                assert!(
                    definition.find_subcommand(name).is_some() || cluster.contains(name),
                    "there is no command {name}"
                );
            }
            assert!(entry.page.is_some_and(|name| page(name).is_some()), "{:?} has no page", entry.names);
            assert!(!about(&entry).contains("\\|") || entry.page.is_some());
        }
    }

    /// `llms.txt` lists the pages of `docs/README.md`. `TERCILE_REWRITE=1` writes it.
    #[test]
    fn llms_txt_lists_the_manual() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = format!("# tercile\n\n> {}\n\n", env!("CARGO_PKG_DESCRIPTION"));
        text += "`tercile docs NAME` prints a page or what the manual has about a command; `tercile openapi` prints the API's document.\n\n";
        text += "## Manual\n\n";
        for row in page("README").unwrap().lines().filter(|line| line.starts_with("| [")) {
            let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
            let (link, about) = (cells.next().unwrap(), cells.next().unwrap());
            text += &format!("- {}: {about}\n", link.replace("](", "](docs/"));
        }
        text += "\n## Developers\n\n- [Architecture](ARCHITECTURE.md): crates, data flows, invariants, glossary, where to change what\n";
        text += "- [Contributing](CONTRIBUTING.md): build, test, release, changes that have rules\n- [OpenAPI document](openapi/openapi.json)\n";
        let file = root.join("llms.txt");
        if std::env::var_os("TERCILE_REWRITE").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "run this test with TERCILE_REWRITE=1");
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            assert!(root.join(link).exists(), "{link}");
        }
    }
}
