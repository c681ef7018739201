//! Several files as one: the header line of each but the first is left out.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use csv::{ReaderBuilder, StringRecord};

use super::{Error, Fault, Opened};
use crate::file_format::Format;

pub(super) struct Concatenated {
    /// The files that are not read yet, each from its first row on.
    files: VecDeque<Box<dyn Read + Send>>,
    /// The last byte that was read.
    last: u8,
}

impl Concatenated {
    /// One input of all files, which have the same format, dialect and columns.
    ///
    /// # Errors
    /// If they have not, or if one of them cannot be read.
    pub fn of(given: &Path, files: Vec<Opened>) -> Result<Opened, Error> {
        let mut inputs = VecDeque::new();
        let mut first: Option<(Opened, StringRecord)> = None;
        for mut file in files {
            let csv = matches!(file.format, Format::Csv | Format::Tsv);
            if !csv && file.format != Format::Ndjson {
                let what = "several files as one must be CSV or NDJSON; name this one alone";
                return Err(Fault::whole(what).at(&file.path));
            }
            let input = std::mem::replace(&mut file.input, Box::new(io::empty()));
            let mut input = BufReader::new(input);
            let (line, header) = match csv {
                true => header(&mut input, file.dialect.delimiter).map_err(|e| Fault::Io(e).at(&file.path))?,
                false => (Vec::new(), StringRecord::new()),
            };
            let Some((of, names)) = &first else {
                inputs.push_back(Box::new(io::Cursor::new(line).chain(input)) as Box<dyn Read + Send>);
                first = Some((file, header));
                continue;
            };
            let same = of.format == file.format && of.dialect.delimiter == file.dialect.delimiter;
            if !same || *names != header {
                let what = format!("its columns or its dialect differ from those of {}", of.path.display());
                return Err(Fault::whole(what).at(&file.path));
            }
            if of.dialect.decimal != file.dialect.decimal {
                let what = format!("its decimal mark differs from that of {}", of.path.display());
                return Err(Fault::whole(what).with_remedy("give --decimal").at(&file.path));
            }
            inputs.push_back(Box::new(input));
        }
        let Some((first, _)) = first else { return Err(Fault::whole("no file").at(given)) };
        let input = Box::new(Self { files: inputs, last: b'\n' });
        Ok(Opened { path: given.to_owned(), input, ..first })
    }
}

impl Read for Concatenated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(file) = self.files.front_mut() else { return Ok(0) };
            let read = file.read(buffer)?;
            if read > 0 {
                self.last = buffer[read - 1];
                return Ok(read);
            }
            if buffer.is_empty() {
                return Ok(0);
            }
            self.files.pop_front();
            if self.last != b'\n' && !self.files.is_empty() {
                (self.last, buffer[0]) = (b'\n', b'\n');
                return Ok(1);
            }
        }
    }
}

/// Reads the header: its bytes and its names. Line ends within quotes belong to it.
fn header(input: &mut impl BufRead, delimiter: u8) -> io::Result<(Vec<u8>, StringRecord)> {
    let mut bytes = Vec::new();
    let mut start = 0;
    while input.read_until(b'\n', &mut bytes)? > 0 {
        if bytes[start..].iter().all(u8::is_ascii_whitespace) {
            start = bytes.len();
        } else if bytes.iter().filter(|byte| **byte == b'"').count().is_multiple_of(2) {
            break;
        }
    }
    let mut reader = ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(&bytes[..]);
    let mut names = StringRecord::new();
    reader.read_record(&mut names).map_err(io::Error::other)?;
    names.trim();
    Ok((bytes, names))
}
