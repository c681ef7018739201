//! Splits a stream of JSON into values: the elements of an array, or concatenated values (NDJSON).
//!
//! The splitter only finds the end of each value; the parser validates it.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use tercile_store::json_text::Text;

/// Upper bound on the length of a value, whatever the configured limit.
const MAX_VALUE: usize = 64 * 1024 * 1024;
/// Bytes of the first read, and of the largest one: short streams do not pay for a large buffer.
const FIRST_CHUNK: usize = 4 * 1024;
const CHUNK: usize = 256 * 1024;

/// Values of a stream.
pub struct Splitter<R> {
    input: R,
    buffer: Vec<u8>,
    /// Buffer position at or before the start of the next value.
    at: usize,
    /// Bytes of the stream before the buffer.
    before: u64,
    /// Line of that position, counted from 1.
    pub line: u64,
    /// In an array: whether a comma must precede the next value. `None` outside an array.
    array: Option<bool>,
    begun: bool,
    ended: bool,
    longest: usize,
    /// Bytes of the next read.
    chunk: usize,
    /// Whether values that follow one on a line of its own must end on their line, too.
    by_lines: bool,
    /// Whether the last value was on a line of its own.
    lines: bool,
}

/// One value.
pub struct Piece<'a> {
    /// Line of its start, counted from 1.
    pub line: u64,
    pub bytes: &'a [u8],
}

impl<R: Read> Splitter<R> {
    pub fn new(input: R, longest: usize) -> Self {
        let longest = longest.min(MAX_VALUE);
        Self {
            input,
            buffer: Vec::new(),
            at: 0,
            before: 0,
            line: 1,
            array: None,
            begun: false,
            ended: false,
            longest,
            chunk: FIRST_CHUNK,
            by_lines: false,
            lines: false,
        }
    }

    /// Rejects a value that spans lines after one that did not. Without it, a value that is cut off in the middle of a pipe is
    /// noticed only at the end of the stream.
    #[must_use]
    pub fn by_lines(mut self) -> Self {
        self.by_lines = true;
        self
    }

    /// The stream, from the first byte on, if no value has been read.
    pub fn into_input(self) -> R {
        self.input
    }

    /// End of the last value: bytes of the stream.
    pub fn position(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Line of the next value, counted from 1.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next_line(&mut self) -> io::Result<u64> {
        self.peek()?;
        Ok(self.line)
    }

    /// Next value; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` if the stream is not a sequence of values, `FileTooLarge` if a value exceeds the limit.
    pub fn value(&mut self) -> io::Result<Option<Piece<'_>>> {
        if !self.begun {
            self.begun = true;
            // A byte-order mark is accepted only at the start of the stream.
            if self.fill_to(3)? && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.at += 3;
            }
            if self.peek()? == Some(b'[') {
                self.at += 1;
                self.array = Some(false);
            }
        }
        if self.ended {
            return Ok(None);
        }
        let Some(mut first) = self.peek()? else {
            return if self.array.is_some() { Err(bad("the array does not end")) } else { Ok(None) };
        };
        if let Some(comma) = self.array {
            if first == b']' {
                self.at += 1;
                self.ended = true;
                return if self.peek()?.is_none() { Ok(None) } else { Err(bad("something follows the array")) };
            }
            if comma {
                if first != b',' {
                    return Err(bad("expected a comma or the array's end"));
                }
                self.at += 1;
                first = self.peek()?.ok_or_else(|| bad("the array does not end"))?;
            }
            self.array = Some(true);
        }
        let end = match first {
            b'{' | b'[' => self.nested()?,
            b'"' => self.string(self.at + 1)?,
            _ => self.word()?,
        };
        let start = std::mem::replace(&mut self.at, end);
        let (line, bytes) = (self.line, &self.buffer[start..end]);
        self.line += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lines = self.by_lines && self.array.is_none() && self.line == line;
        Ok(Some(Piece { line, bytes }))
    }

    /// Next byte that is not white space, without consuming it.
    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.buffer.get(self.at).copied() {
                Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) => {
                    self.at += 1;
                    self.line += u64::from(byte == b'\n');
                }
                Some(byte) => return Ok(Some(byte)),
                None if self.fill_to(1)? => {}
                None => return Ok(None),
            }
        }
    }

    /// Reads until `bytes` bytes are available after the current position; `false` at the end of the input.
    fn fill_to(&mut self, bytes: usize) -> io::Result<bool> {
        while self.buffer.len() < self.at + bytes {
            self.buffer.drain(..self.at);
            self.before += self.at as u64;
            self.at = 0;
            if self.buffer.len() > self.longest {
                let what = format!("a value may have {} bytes at most", self.longest);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
            }
            let before = self.buffer.len();
            self.buffer.resize(before + self.chunk, 0);
            self.chunk = CHUNK.min(4 * self.chunk);
            let read = self.input.read(&mut self.buffer[before..]);
            self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(false),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }

    /// End of the object or array that starts at the current position.
    fn nested(&mut self) -> io::Result<usize> {
        let (mut depth, mut ahead) = (0_usize, 0);
        let (mut quoted, mut escaped) = (false, false);
        loop {
            if !self.fill_to(ahead + 1)? {
                return Err(bad("the last value does not end"));
            }
            for (i, byte) in self.buffer[self.at + ahead..].iter().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'\n' if self.lines => return Err(bad("the object does not end on its line")),
                    b'"' => quoted = !quoted,
                    _ if quoted => {}
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return Ok(self.at + ahead + i + 1);
                        }
                    }
                    _ => {}
                }
            }
            ahead = self.buffer.len() - self.at;
        }
    }

    /// End of the string whose first character is at `start`.
    fn string(&mut self, start: usize) -> io::Result<usize> {
        let mut ahead = start - self.at;
        loop {
            if !self.fill_to(ahead + 1)? {
                return Err(bad("the last string does not end"));
            }
            match self.buffer[self.at + ahead] {
                b'"' => return Ok(self.at + ahead + 1),
                b'\\' => ahead += 2,
                _ => ahead += 1,
            }
        }
    }

    /// End of the number or literal that starts at the current position; any other byte is returned alone, for the parser to
    /// reject.
    fn word(&mut self) -> io::Result<usize> {
        let mut ahead = 1;
        while self.fill_to(ahead + 1)?
            && !matches!(self.buffer[self.at + ahead], b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r')
        {
            ahead += 1;
        }
        Ok(self.at + ahead)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Names the number in a text that JSON does not have, and that Python writes: `NaN` or `Infinity`.
pub fn no_number(text: &str) -> Option<String> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            'N' | 'I' if !quoted => {
                if let Some(name) = ["NaN", "Infinity"].into_iter().find(|name| text[at..].starts_with(name)) {
                    return Some(format!("{name}, which JSON does not have; write null instead"));
                }
            }
            _ => {}
        }
    }
    None
}

/// The fields of a JSON object in order, with their values verbatim.
///
/// # Errors
/// If the text is no JSON object.
pub fn fields(text: &str) -> serde_json::Result<Vec<(Cow<'_, str>, &RawValue)>> {
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Fields).and_then(|fields| json.end().map(|()| fields))
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            fields.push((key.0, map.next_value()?));
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns one byte per read, so that every value is split at every position.
    struct Drops<'t>(&'t [u8]);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(1);
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn values(text: &str) -> Result<Vec<String>, String> {
        let read = |input: Box<dyn Read + '_>| {
            let mut splitter = Splitter::new(input, usize::MAX);
            let mut values = Vec::new();
            while let Some(value) = splitter.value().map_err(|e| e.to_string())? {
                values.push(String::from_utf8(value.bytes.to_vec()).unwrap());
            }
            Ok(values)
        };
        let whole = read(Box::new(text.as_bytes()));
        assert_eq!(whole, read(Box::new(Drops(text.as_bytes()))), "{text}");
        whole
    }

    #[test]
    fn arrays_and_lines_are_cut_into_values() {
        let two = [r#"{"a":"]},{\"","b":[1,{}]}"#, r#"{"a":2}"#];
        let array = format!("\u{feff} [ {} ,\n{} ]\n", two[0], two[1]);
        assert_eq!(values(&array).unwrap(), two);
        let lines = format!("{}\n{}\r\n\n", two[0], two[1]);
        assert_eq!(values(&lines).unwrap(), two);
        assert_eq!(values(&format!("{}{}", two[0], two[1])).unwrap(), two);
        assert_eq!(values("[1, \"x\\\\\",null,[2]]").unwrap(), ["1", "\"x\\\\\"", "null", "[2]"]);
        for empty in ["", " \n", "[]", "[ ]"] {
            assert_eq!(values(empty).unwrap(), Vec::<String>::new(), "{empty:?}");
        }
    }

    #[test]
    fn values_know_the_line_they_begin_at() {
        let text = "\n{\"a\":\n1}\r\n\n {\"b\":\"x\"}{}\n7";
        for input in [&mut text.as_bytes() as &mut dyn Read, &mut Drops(text.as_bytes())] {
            let mut splitter = Splitter::new(input, usize::MAX);
            let mut lines = Vec::new();
            while let Some(value) = splitter.value().unwrap() {
                lines.push(value.line);
            }
            assert_eq!(lines, [2, 5, 5, 6]);
        }
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for text in ["[", "[{}", "[{},", "{", "{\"a", "[{} {}]", "[{}]x", "\"\\"] {
            assert!(values(text).is_err(), "{text}");
        }
    }
}
