//! Completes the command lines in messages.
//!
//! A module that suggests a command knows neither the store nor the SQL files that the user has chosen: `run tercile
//! train` would train in the default store. The command line states its `--store`, `--sql` and others here once, and every
//! message of the process gets them where the suggested command takes them.

use std::borrow::Cow;
use std::sync::OnceLock;

use crate::printable::shell_word;

/// The flags of this process, and which commands take them.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// A flag with its dashes, and its value.
    pub values: Vec<(&'static str, String)>,
    /// Each command (with its subcommand, if any, separated by a space), and the long flags that it takes.
    pub commands: Vec<(String, Vec<String>)>,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();

/// States the flags of this process.
pub fn set(flags: Flags) {
    let _ = FLAGS.set(flags);
}

/// The message with complete command lines.
pub fn complete(message: &str) -> Cow<'_, str> {
    match FLAGS.get() {
        Some(flags) if !flags.values.is_empty() && message.contains("tercile ") => Cow::Owned(flags.complete(message)),
        _ => Cow::Borrowed(message),
    }
}

impl Flags {
    fn complete(&self, message: &str) -> String {
        const NAME: &str = "tercile ";
        let mut done = String::with_capacity(message.len() + 40);
        let mut rest = message;
        while let Some(at) = rest.find(NAME) {
            let begins = rest[..at].chars().next_back().or(done.chars().next_back()).is_none_or(|c| !is_name(c));
            let (before, after) = rest.split_at(at + NAME.len());
            done.push_str(before);
            rest = after;
            let Some((command, flags)) = self.command(rest).filter(|_| begins) else { continue };
            done.push_str(command);
            rest = &rest[command.len()..];
            // The rest of the command line: what follows may be another one.
            let line = rest.split([';', '`', ',']).next().unwrap_or_default();
            let line = line.split(NAME).next().unwrap_or_default();
            for (flag, value) in &self.values {
                let takes = flags.iter().any(|taken| taken == flag);
                if takes && !line.split([' ', '=']).any(|word| word == *flag) {
                    done.push_str(&format!(" {flag} {}", shell_word(value)));
                }
            }
        }
        done + rest
    }

    /// The longest command at the start of a text, and its flags.
    fn command<'t>(&self, text: &'t str) -> Option<(&'t str, &[String])> {
        let starts = |command: &str| text.strip_prefix(command).is_some_and(|rest| !rest.starts_with(is_name));
        let found =
            self.commands.iter().filter(|(command, _)| starts(command)).max_by_key(|(command, _)| command.len());
        found.map(|(command, flags)| (&text[..command.len()], flags.as_slice()))
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_get_the_flags_that_they_take() {
        let taken = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
        let flags = Flags {
            values: vec![("--store", "our store".to_owned()), ("--sql", "shop".to_owned())],
            commands: vec![
                ("train".to_owned(), taken(&["--store", "--sql"])),
                ("models".to_owned(), taken(&["--store"])),
                ("models unpin".to_owned(), taken(&["--store"])),
                ("fit".to_owned(), Vec::new()),
            ],
        };
        let complete = |text: &str| flags.complete(text);
        assert_eq!(complete("run tercile train"), "run tercile train --store 'our store' --sql shop");
        assert_eq!(complete("`tercile models unpin a 3` lets"), "`tercile models unpin --store 'our store' a 3` lets");
        assert_eq!(
            complete("tercile models --store x; tercile models"),
            "tercile models --store x; tercile models --store 'our store'"
        );
        assert_eq!(
            complete("run tercile train, or check --store"),
            "run tercile train --store 'our store' --sql shop, or check --store"
        );
        for same in ["this tercile trains", "tercile fit a.csv", "my-tercile train", "tercile training", "", "tercile "]
        {
            assert_eq!(complete(same), same);
        }
        assert_eq!(complete(&complete("run tercile train")), complete("run tercile train"));
    }
}
