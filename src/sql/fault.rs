//! Error messages about SQL, with file, line, column and the line itself with a caret.
//!
//! Input: an error of the engine or of tercile, and the text that caused it. Output: one sentence and an excerpt to
//! print below it.

use std::fmt;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use unicode_width::UnicodeWidthStr as _;

use super::engine_errors::{is_correlated, sentence};
use super::other_dialects::equivalent;
use super::piece::{Piece, Place};
use super::{identifier, one_line};

/// Maximum width of an excerpt: a line may be a megabyte long.
const EXCERPT_WIDTH: usize = 110;

/// A text of SQL and its name.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The file's name in error messages; `None` for typed text.
    pub name: Option<&'a str>,
    pub text: &'a str,
}

impl Source<'_> {
    /// A fault at a position in this text.
    pub fn fault(&self, place: Place, why: impl Into<String>) -> Fault {
        let excerpt = excerpt(self.text, place);
        Fault { file: self.name.map(str::to_owned), place: Some(place), why: why.into(), excerpt }
    }

    /// A fault in this text without a position.
    pub fn fault_somewhere(&self, why: impl Into<String>) -> Fault {
        Fault { file: self.name.map(str::to_owned), place: None, why: why.into(), excerpt: None }
    }

    /// The first position of a word outside comments and quotes.
    pub fn place_of(&self, word: &str) -> Option<Place> {
        if word.chars().any(char::is_alphanumeric) {
            return find_word(self.text, word);
        }
        let mut tokens = Vec::new();
        let _ = Tokenizer::new(&GenericDialect {}, self.text).tokenize_with_location_into_buf(&mut tokens);
        let found = tokens.iter().find(|token| !word.is_empty() && token.token.to_string() == word)?;
        Some(Place { line: found.span.start.line as usize, column: found.span.start.column as usize })
    }

    /// The first subquery in an expression: `(SELECT` that is neither a table nor the body of a WITH.
    pub fn place_of_subquery(&self) -> Option<Place> {
        let mut tokens = Vec::new();
        let _ = Tokenizer::new(&GenericDialect {}, self.text).tokenize_with_location_into_buf(&mut tokens);
        tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
        let is = |token: &Token, words: &[&str]| match token {
            Token::Word(word) => words.iter().any(|name| word.value.eq_ignore_ascii_case(name)),
            _ => false,
        };
        let subquery = |three: &&[TokenWithSpan]| {
            let table = is(&three[0].token, &["as", "from", "join", "lateral", "materialized"]);
            !table
                && three[0].token != Token::Comma
                && three[1].token == Token::LParen
                && is(&three[2].token, &["select"])
        };
        let start = tokens.windows(3).find(subquery)?[1].span.start;
        Some(Place { line: start.line as usize, column: start.column as usize })
    }

    /// An engine error in a piece of this text. `tables` are candidates for a misspelt table name.
    pub fn blame(&self, piece: &Piece<'_>, error: &DataFusionError, tables: &[String]) -> Fault {
        let text = Source { name: None, text: piece.text };
        let place = locate(piece.text, error).or_else(|| {
            let message = error.to_string();
            if is_correlated(&message) {
                return text.place_of("lateral").or_else(|| text.place_of_subquery());
            }
            // The text ended too early.
            message.contains("found: EOF").then(|| end(piece.text))
        });
        // An error without a position names its statement.
        let place = place.map_or(piece.place, |place| place.within(piece.place));
        self.fault(place, words(error, tables))
    }
}

/// An error and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: Option<String>,
    pub place: Option<Place>,
    pub why: String,
    /// The line, with a caret below the position.
    pub excerpt: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.place) {
            (Some(file), Some(Place { line, column })) => write!(out, "{file}, line {line}, column {column}: ")?,
            (Some(file), None) => write!(out, "{file}: ")?,
            (None, Some(Place { line, column })) => write!(out, "line {line}, column {column}: ")?,
            (None, None) => {}
        }
        out.write_str(&self.why)
    }
}

impl std::error::Error for Fault {}

fn excerpt(text: &str, place: Place) -> Option<String> {
    let line = text.lines().nth(place.line - 1)?;
    // A long line is cut so that the position is visible.
    let from = if place.column > EXCERPT_WIDTH * 3 / 4 { place.column - EXCERPT_WIDTH / 2 } else { 0 };
    let shown: String = line.chars().skip(from).take(EXCERPT_WIDTH).map(|c| if c == '\t' { ' ' } else { c }).collect();
    let before: String = shown.chars().take((place.column - 1).saturating_sub(from)).collect();
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    let (cut, gap) = if from > 0 { ("…", " ") } else { ("", "") };
    Some(format!("  {number} | {cut}{shown}\n  {margin} | {gap}{}^", " ".repeat(before.width())))
}

/// The position in the piece. The engine reports it in one of two formats, or only quotes a name.
fn locate(text: &str, error: &DataFusionError) -> Option<Place> {
    if let Some(start) = error.diagnostic().and_then(|diagnostic| diagnostic.span).map(|span| span.start) {
        return Some(Place { line: start.line as usize, column: start.column as usize });
    }
    let message = one_line(&error.strip_backtrace());
    let message = without_prefixes(&message);
    stated_place(message).map(|(_, place)| place).or_else(|| find_word(text, named(message)?))
}

/// The position after the last character.
fn end(text: &str) -> Place {
    let line = text.lines().count().max(1);
    Place { line, column: text.lines().last().map_or(1, |line| line.chars().count() + 1) }
}

/// Parses `… at Line: 1, Column: 8`: the index where that text starts, and the position.
fn stated_place(message: &str) -> Option<(usize, Place)> {
    let at = message.rfind(" at Line: ")?;
    let (line, rest) = message[at + " at Line: ".len()..].split_once(", Column: ")?;
    let column = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((at, Place { line: line.parse().ok()?, column: column.parse().ok().filter(|column| *column > 0)? }))
}

/// The first quoted name in a message.
fn named(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once('\'')?;
    rest.split_once('\'').map(|(name, _)| name)
}

fn find_word(text: &str, wanted: &str) -> Option<Place> {
    let name = wanted.rsplit('.').next()?;
    let mut tokens = Vec::new();
    let _ = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location_into_buf(&mut tokens);
    let found = tokens.iter().find(|token| match &token.token {
        Token::Word(word) => word.value.eq_ignore_ascii_case(name),
        // A value of the statement that cannot be converted.
        Token::SingleQuotedString(text) => text == wanted,
        _ => false,
    })?;
    Some(Place { line: found.span.start.line as usize, column: found.span.start.column as usize })
}

/// The engine's message without its prefixes. An unknown name is followed by the most similar known name.
fn words(error: &DataFusionError, tables: &[String]) -> String {
    let root = error.find_root();
    if let DataFusionError::SchemaError(schema, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = schema.as_ref()
    {
        let of = field.relation.as_ref().map(|table| format!(" in {table}")).unwrap_or_default();
        let mut known: Vec<String> = Vec::new();
        for field in valid_fields {
            let name = field.name.clone();
            if !known.contains(&name) {
                known.push(name);
            }
        }
        return format!("there is no column {}{of}; {}", field.name, nearest_of(&field.name, &known, "columns"));
    }
    let text = one_line(&error.strip_backtrace());
    if let Some(rest) = text.split_once("table 'datafusion.public.").map(|(_, rest)| rest)
        && let Some((name, _)) = rest.split_once("' not found")
    {
        return format!("there is no table or view {name}; {}", nearest_of(name, tables, "tables and views"));
    }
    if !text.contains("Union(Sparse")
        && let Some((_, rest)) = text.split_once("No function matches the given name and argument types '")
        && let Some((call, rest)) = rest.split_once('\'')
        && let Some((_, candidates)) = rest.split_once("Candidate functions: ")
    {
        let of_text =
            ["array_element(Utf8", "cardinality(Utf8", "array_length(Utf8"].iter().find(|of| call.starts_with(*of));
        if of_text.is_some() {
            return "a text is no list; of a JSON text write u -> 0 for an element and json_length(u) for their number, or make a list with \
                    json_get_array(u) or string_to_array(u, ',')".to_owned();
        }
        let hint = match call.contains("(Utf8") {
            true => "for numbers in texts write to_number(…); otherwise a CAST may help",
            false => "a CAST may help",
        };
        return format!("there is no {call}; {hint}, for there are {}", candidates.trim());
    }
    if let Some((_, rest)) = text.split_once("Invalid function '")
        && let Some((name, rest)) = rest.split_once("'. Did you mean '")
    {
        return match equivalent(name) {
            Some(equivalent) => format!("there is no function {name}; write {equivalent}"),
            None => match nearest(name, std::iter::once(rest.trim_end_matches("'?"))) {
                Some(near) => format!("there is no function {name}; did you mean {near}?"),
                None => format!("there is no function {name}"),
            },
        };
    }
    let text = plain(&text);
    if let Some(name) =
        text.strip_prefix("Table '").and_then(|rest| rest.split_once("' doesn't exist")).map(|(name, _)| name)
    {
        let table = name.rsplit('.').next().unwrap_or(name);
        return match tables.iter().any(|known| known == table) {
            true => format!(
                "{table} cannot be dropped: DROP TABLE is for tables of CREATE TABLE, and {table} is a file or part of the store"
            ),
            false => format!("there is no table {table}; {}", nearest_of(table, tables, "tables and views")),
        };
    }
    if text.starts_with("Expected: end of statement, found: ?") {
        return "the operator ? is not supported; write json_contains(u, 'field')".to_owned();
    }
    if text.starts_with("Cannot cast string '") {
        if text.contains(" of Date") || text.contains(" of Timestamp") {
            return format!(
                "{text}; TRY_CAST gives NULL for such a text, to_date(text, '%d/%m/%Y') and to_timestamp read other formats"
            );
        }
        return format!(
            "{text}; TRY_CAST gives NULL for such a text, to_number reads ₹1,099 and 12,5 €, and both give DOUBLE for 1.9"
        );
    }
    match stated_place(&text) {
        Some((at, _)) => text[..at].to_owned(),
        None => text,
    }
}

/// `did you mean rating?`, or the known names, at most 20 of them.
fn nearest_of(name: &str, known: &[String], what: &str) -> String {
    // A column is spelled as it has to be written: `"Age"`.
    let spelled: Vec<String> =
        known.iter().map(|name| if what == "columns" { identifier(name) } else { name.clone() }).collect();
    let near = nearest(name, known.iter().map(String::as_str));
    let near = near.and_then(|near| spelled.get(known.iter().position(|known| known == near)?));
    let known = &spelled;
    match near {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => format!("there are no {what} here"),
        None if known.len() <= 20 => format!("there are {}", known.join(", ")),
        None => format!("there are {}, … ({} {what})", known[..20].join(", "), known.len()),
    }
}

/// The known name that is most similar, if it is similar enough.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// One line without the engine's prefixes.
pub fn explain(error: &DataFusionError) -> String {
    plain(&one_line(&error.strip_backtrace()))
}

/// The engine's message without the names of its modules and rules.
fn without_prefixes(text: &str) -> &str {
    const PREFIXES: [&str; 14] = [
        "Error during planning: ",
        "Schema error: ",
        "Execution error: ",
        "External error: ",
        "SQL error: ",
        "sql parser error: ",
        "Arrow error: ",
        "This feature is not implemented: ",
        "type_coercion caused by ",
        "json_values caused by ",
        "External: ",
        "Cast error: ",
        "Parser error: ",
        "Invalid or Unsupported Configuration: ",
    ];
    let mut text = text;
    loop {
        if let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            text = rest;
        } else if let Some((_, rest)) =
            text.strip_prefix("Optimizer rule '").and_then(|rest| rest.split_once("caused by "))
        {
            text = rest;
        } else {
            return text;
        }
    }
}

fn plain(text: &str) -> String {
    let text = without_prefixes(text);
    if let Some(sentence) = sentence(text) {
        return sentence;
    }
    if text.starts_with("Unexpected argument type") && text.contains("expected string or int, got ") {
        return format!("{} A cast binds more closely than a JSON operator: write (a ->> 'b')::int", text.trim_end());
    }
    // Some errors contain their own debug format.
    match text.strip_prefix("ParserError(\"").or_else(|| text.strip_prefix("TokenizerError(\"")) {
        Some(inner) => inner.trim_end_matches("\")").to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_shows_the_place() {
        let text = "SELECT 1;\nSELECT '₹', nope FROM t";
        assert_eq!(
            excerpt(text, Place { line: 2, column: 13 }).unwrap(),
            "  2 | SELECT '₹', nope FROM t\n    |             ^"
        );
        let long = format!("SELECT {}nope", "1, ".repeat(1000));
        let shown = excerpt(&long, Place { line: 1, column: 3008 }).unwrap();
        let (line, caret) = shown.split_once('\n').unwrap();
        assert_eq!(line.chars().nth(caret.chars().count() - 1), Some('n'), "{shown}");
        assert!(line.width() < 130);
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["rating", "rating_count", "discounted_price"];
        assert_eq!(nearest("Ratin", known.into_iter()), Some("rating"));
        assert_eq!(nearest("discount_price", known.into_iter()), Some("discounted_price"));
        assert_eq!(nearest("xyz", known.into_iter()), None);
    }

    #[test]
    fn places_are_found_in_messages() {
        let stated = |text| stated_place(text).map(|(_, place)| place);
        assert_eq!(stated("found: x at Line: 2, Column: 8"), Some(Place { line: 2, column: 8 }));
        assert_eq!(stated("found: EOF"), None);
        assert_eq!(find_word("SELECT a,\n  frob(b)", "FROB"), Some(Place { line: 2, column: 3 }));
    }
}
