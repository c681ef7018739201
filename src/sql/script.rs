//! Splits a text of SQL into statements and dot commands.
//!
//! Input: text from a file, a pipe or a prompt. Output: pieces with their positions, and whether the last one is
//! incomplete. The splitter handles quotes and comments, but no other SQL syntax.

use super::fault::{Fault, Source};
use super::piece::{Piece, Place};

/// The result of splitting a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Script<'a> {
    pub pieces: Vec<Piece<'a>>,
    /// True if the last statement has no semicolon yet, or if a quote or comment is open.
    pub open: bool,
    /// Where a comment begins that has no end.
    pub open_comment: Option<Place>,
}

/// Splits a text to which nothing will be added.
///
/// # Errors
/// If a comment has no end: what follows its start would be ignored.
pub fn complete<'a>(source: &Source<'a>) -> Result<Script<'a>, Fault> {
    let script = split(source.text);
    match script.open_comment {
        Some(place) => Err(source.fault(place, "the comment that begins here has no end; close it with */")),
        None => Ok(script),
    }
}

/// Splits a text at the semicolons that end statements. A dot command is a line that starts with a dot and a letter
/// while no statement is open. Blanks and comments alone are not a piece.
pub fn split(text: &str) -> Script<'_> {
    let mut script = Script { pieces: Vec::new(), open: false, open_comment: None };
    let mut scan = Scan { text, at: 0, place: Place::START };
    // The start of the open statement.
    let mut began: Option<(usize, Place)> = None;
    while let Some(next) = scan.peek() {
        if began.is_none() && scan.place.column == 1 && scan.is_dot_command() {
            let (from, place) = (scan.at, scan.place);
            while scan.peek().is_some_and(|c| c != '\n') {
                scan.step();
            }
            script.pieces.push(Piece { text: text[from..scan.at].trim_end(), place, dot: true });
            continue;
        }
        let (from, place) = (scan.at, scan.place);
        match next {
            ';' => {
                if let Some((from, place)) = began.take() {
                    script.pieces.push(Piece { text: text[from..scan.at].trim_end(), place, dot: false });
                }
                scan.step();
            }
            c if c.is_whitespace() => scan.step(),
            '-' if scan.starts_with("--") => scan.skip_to("\n"),
            '/' if scan.starts_with("/*") => {
                if !scan.skip_comment() {
                    (script.open, script.open_comment) = (true, Some(place));
                }
            }
            quote @ ('\'' | '"' | '`') => {
                began.get_or_insert((from, place));
                scan.step();
                script.open |= !scan.skip_quoted(quote);
            }
            _ => {
                began.get_or_insert((from, place));
                scan.step();
            }
        }
    }
    if let Some((from, place)) = began {
        script.open = true;
        script.pieces.push(Piece { text: text[from..].trim_end(), place, dot: false });
    }
    script
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    place: Place,
}

impl Scan<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn starts_with(&self, text: &str) -> bool {
        self.rest().starts_with(text)
    }

    fn step(&mut self) {
        let Some(c) = self.peek() else { return };
        self.at += c.len_utf8();
        self.place = match c {
            '\n' => Place { line: self.place.line + 1, column: 1 },
            _ => Place { column: self.place.column + 1, ..self.place },
        };
    }

    fn is_dot_command(&self) -> bool {
        let mut chars = self.rest().chars();
        chars.next() == Some('.') && chars.next().is_some_and(|c| c.is_ascii_alphabetic())
    }

    fn skip_to(&mut self, end: &str) {
        while !self.rest().is_empty() && !self.starts_with(end) {
            self.step();
        }
    }

    /// Skips a comment, which may be nested; `false` if it is not closed.
    fn skip_comment(&mut self) -> bool {
        let mut depth = 0;
        while !self.rest().is_empty() {
            let (opens, closes) = (self.starts_with("/*"), self.starts_with("*/"));
            if opens || closes {
                self.step();
                depth += if opens { 1 } else { -1 };
            }
            self.step();
            if depth == 0 {
                return true;
            }
        }
        false
    }

    /// Skips a quoted text. A doubled quote is parsed as two adjacent quoted texts, with the same result.
    fn skip_quoted(&mut self, quote: char) -> bool {
        while let Some(c) = self.peek() {
            self.step();
            if c == quote {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> (Vec<&str>, bool) {
        let script = split(text);
        (script.pieces.iter().map(|piece| piece.text).collect(), script.open)
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(texts("SELECT 1; SELECT ';' -- ;\n;"), (vec!["SELECT 1", "SELECT ';' -- ;"], false));
        assert_eq!(texts("SELECT /* ; /* ; */ */ 1"), (vec!["SELECT /* ; /* ; */ */ 1"], true));
        assert_eq!(texts("SELECT 'it''s'; -- done"), (vec!["SELECT 'it''s'"], false));
        assert_eq!(texts(" ;; -- nothing\n/* at all */"), (vec![], false));
        assert!(texts("SELECT 1; /* open").1);
        let wrong = |text| complete(&Source { name: None, text }).map(drop).map_err(|fault| fault.place.unwrap());
        assert_eq!(wrong("SELECT 1; /* open; SELECT 2"), Err(Place { line: 1, column: 11 }));
        assert_eq!(wrong("/* a /* b */\nSELECT 1"), Err(Place { line: 1, column: 1 }));
        assert_eq!(wrong("SELECT '/*' -- /*"), Ok(()));
        assert!(texts("SELECT 'a;").1);
        assert_eq!(texts("SELECT \"₹;\";"), (vec!["SELECT \"₹;\""], false));
    }

    #[test]
    fn dot_commands_are_lines_between_statements() {
        let text = ".timer on\nSELECT\n.5;\n.read 'x y.sql'\n;.tables";
        let pieces: Vec<_> = split(text).pieces.iter().map(|p| (p.text, p.dot, p.place.line)).collect();
        let expected =
            [(".timer on", true, 1), ("SELECT\n.5", false, 2), (".read 'x y.sql'", true, 4), (".tables", false, 5)];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn places_are_those_of_the_whole_text() {
        let piece = split("SELECT 1;\n  SELECT ₹, b\nFROM c").pieces[1];
        assert_eq!(piece.place, Place { line: 2, column: 3 });
        assert_eq!(Place { line: 1, column: 8 }.within(piece.place), Place { line: 2, column: 10 });
        assert_eq!(Place { line: 2, column: 6 }.within(piece.place), Place { line: 3, column: 6 });
    }
}
