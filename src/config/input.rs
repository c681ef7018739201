//! Settings of input files.

use clap::Args;
use encoding_rs::Encoding;

use crate::file_format::Format;
use crate::files::{self, Header, Options, Source};
use crate::produce::Key;

/// Format and dialect of input files. Settings that are not given are detected; a dialect other than plain CSV is reported.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Input files")]
pub struct InputArgs {
    /// The format of the input [default: by its first bytes and its name]
    #[arg(long, env = "TERCILE_INPUT_FORMAT", value_name = "FORMAT")]
    input_format: Option<Format>,
    /// The character between the fields of a CSV file, or tab [default: detected among comma, semicolon, tab and |]
    #[arg(long, env = "TERCILE_DELIMITER", value_name = "CHAR", value_parser = delimiter)]
    delimiter: Option<u8>,
    /// The encoding of text, as in utf-8, cp1252 or utf-16le [default: detected]
    #[arg(long, env = "TERCILE_ENCODING", value_name = "NAME", value_parser = encoding)]
    encoding: Option<&'static Encoding>,
    /// The decimal mark of numbers in a CSV file: . or , [default: detected]
    #[arg(long, env = "TERCILE_DECIMAL", value_name = "CHAR", value_parser = decimal)]
    decimal: Option<char>,
    /// Lines before the header of a CSV file [default: detected]
    #[arg(long, env = "TERCILE_SKIP", value_name = "LINES")]
    skip: Option<u64>,
    /// Whether the first line of a CSV file has the names of the columns
    #[arg(long, env = "TERCILE_HEADER", value_name = "CHOICE", default_value = "auto")]
    header: Header,
}

/// The key of the records that are sent.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyArgs {
    /// Field whose text is the Kafka key of each row; rows with the same key go to the same partition [default: no key]
    #[arg(long, env = "TERCILE_KEY", value_name = "FIELD")]
    pub key: Option<String>,
}

impl KeyArgs {
    /// The key, if a row of the source has a value in its field. Rows of a pipe are checked as they come.
    pub fn of(&self, source: &Source, options: &Options) -> Result<Option<Key>, files::Error> {
        let Some(key) = self.key.as_deref().map(Key::new) else { return Ok(None) };
        Ok(Some(if source.is_pipe() { key } else { key.checked(source, options)? }))
    }
}

impl InputArgs {
    pub fn options(&self) -> Options {
        Options {
            format: self.input_format,
            delimiter: self.delimiter,
            encoding: self.encoding,
            decimal: self.decimal,
            header: self.header,
            skip: self.skip,
        }
    }
}

impl InputArgs {
    /// The flags that were given, for a printed command line.
    pub fn flags(&self) -> Vec<String> {
        let mark =
            |delimiter: u8| if delimiter == b'\t' { "tab".to_owned() } else { char::from(delimiter).to_string() };
        let given = [
            ("--input-format", self.input_format.and_then(|format| value_name(&format))),
            ("--delimiter", self.delimiter.map(mark)),
            ("--encoding", self.encoding.map(|encoding| encoding.name().to_lowercase())),
            ("--decimal", self.decimal.map(String::from)),
            ("--skip", self.skip.map(|skip| skip.to_string())),
            ("--header", value_name(&self.header).filter(|choice| choice != "auto")),
        ];
        given.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten().collect()
    }
}

/// The name of a value on the command line.
fn value_name(value: &impl clap::ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [b'"' | b'\n' | b'\r'] => Err("a quote or a line end cannot separate fields".to_owned()),
        [byte] if byte.is_ascii() => Ok(*byte),
        _ => Err("expected one ASCII character, or tab".to_owned()),
    }
}

fn encoding(text: &str) -> Result<&'static Encoding, String> {
    let label = match text.strip_prefix("cp") {
        Some(page) if Encoding::for_label(text.as_bytes()).is_none() => format!("windows-{page}"),
        _ => text.to_owned(),
    };
    let found = Encoding::for_label(label.as_bytes()).filter(|found| *found != encoding_rs::REPLACEMENT);
    found.ok_or_else(|| {
        "expected the name of an encoding, as in utf-8, cp1252, latin1, utf-16le or shift_jis".to_owned()
    })
}

fn decimal(text: &str) -> Result<char, String> {
    match text {
        "." | "point" => Ok('.'),
        "," | "comma" => Ok(','),
        _ => Err("expected . or ,".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_characters_and_names() {
        assert_eq!([delimiter(";"), delimiter("tab"), delimiter("\\t")], [Ok(b';'), Ok(b'\t'), Ok(b'\t')]);
        assert!(
            delimiter("").is_err() && delimiter(";;").is_err() && delimiter("\"").is_err() && delimiter("§").is_err()
        );
        assert_eq!(encoding("cp1252").unwrap().name(), "windows-1252");
        assert_eq!(encoding("UTF-8").unwrap().name(), "UTF-8");
        assert_eq!(encoding("latin1").unwrap().name(), "windows-1252", "as in browsers");
        assert!(encoding("x").is_err());
        assert_eq!([decimal(","), decimal("point")], [Ok(','), Ok('.')]);
        assert!(decimal(";").is_err());
    }
}
