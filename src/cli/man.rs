//! `tercile man`: manual pages, from the definition of the command line.

use std::io::Write as _;

use clap::{Args, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Done, Usage, completions};

/// Print the manual page of tercile or of a command
///
/// tercile man up | man -l - shows it. The page tercile(1) lists all commands; a package has a file for each of them.
#[derive(Args)]
pub struct ManPage {
    /// The command, and its subcommand: up, or models rollback [default: the page of tercile]
    #[arg(value_name = "COMMAND", add = completions::command())]
    command: Vec<String>,
}

impl ManPage {
    pub fn run(self) -> anyhow::Result<Done> {
        let mut root = Cli::command();
        // Gives each command its full name.
        root.build();
        let mut command = &root;
        for name in &self.command {
            let found = command.find_subcommand(name).filter(|found| !found.is_hide_set());
            command = found.ok_or_else(|| {
                let path = self.command.join(" ");
                Usage(format!("there is no command tercile {path}; tercile --help lists the commands"))
            })?;
        }
        let mut page = Vec::new();
        let version = format!("tercile {}", env!("CARGO_PKG_VERSION"));
        Man::new(command.clone()).source(version).manual("tercile manual").render(&mut page)?;
        std::io::stdout().write_all(&page)?;
        Ok(Done::Well)
    }
}
