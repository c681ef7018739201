//! Opens a file: decompression, recognition of the format, decoding to UTF-8, and detection of the dialect.

use std::io::{self, BufRead as _, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::concatenated::Concatenated;
use super::{Dialect, Error, Fault, Header, Options, Source, dialect};
use crate::file_format::{self, Format};
use crate::spool::spooled;

/// Number of bytes inspected to recognise format, encoding and dialect. Of a pipe only the first line is awaited, because the
/// rest may arrive much later.
const HEAD: usize = 1 << 16;
/// Number of bytes that tell a compression.
const MAGIC: usize = 4;
/// Size of the buffers between the layers.
const BUFFER: usize = 1 << 18;

/// A file whose format and dialect are known.
pub struct Opened {
    /// The name used in errors.
    pub path: PathBuf,
    pub format: Format,
    pub dialect: Dialect,
    /// UTF-8 from the header line on, without a byte-order mark; for Parquet and Arrow the bytes as they are.
    pub input: Box<dyn Read + Send>,
    /// Bytes before `input`, in a file that is not compressed: a byte-order mark and lines that are skipped.
    pub start: u64,
    pub(super) position: Arc<AtomicU64>,
}

impl Opened {
    /// Rows of a request: UTF-8 with a header line, in a format that the request names.
    pub fn of_request(format: Format, input: Box<dyn Read + Send>) -> Self {
        let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
        let dialect = Dialect { delimiter, header: Header::Yes, advice: false, ..Dialect::default() };
        Self { path: PathBuf::new(), format, dialect, input, start: 0, position: Arc::default() }
    }

    /// Copies the decoded text of a pipe to a temporary file, so that it can be read more than once. Returns the copy, and `options` for it.
    ///
    /// # Errors
    /// If the pipe cannot be read or the copy cannot be written.
    pub fn copied(self, options: Options) -> Result<(Source, Options), Error> {
        let skip = if self.dialect.skip > 0 { Some(0) } else { options.skip };
        let options = Options { encoding: Some(UTF_8), format: Some(self.format), skip, ..options };
        let file = spooled(self.input).map_err(|error| Fault::Io(error).at(&self.path))?;
        Ok((Source::Copied { name: self.path, file: Arc::new(file) }, options))
    }

    /// Bytes of the file read so far, for progress.
    pub fn position(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.position)
    }
}

/// Wraps the bytes of each file before they are interpreted.
pub(super) type Wrap<'a> = &'a dyn Fn(Box<dyn Read + Send>) -> Box<dyn Read + Send>;

/// Opens a source.
///
/// # Errors
/// If the source cannot be read, or if its format, encoding or dialect cannot be determined.
pub fn open(source: &Source, options: &Options) -> Result<Opened, Error> {
    open_wrapped(source, options, &|bytes| bytes)
}

/// Opens a source whose bytes pass through `wrap`.
///
/// # Errors
/// As for [`open`].
pub(super) fn open_wrapped(source: &Source, options: &Options, wrap: Wrap<'_>) -> Result<Opened, Error> {
    let position = Arc::new(AtomicU64::new(0));
    let counted = |source: &Source| -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Counted { inner: wrap(source.bytes()?), position: Arc::clone(&position) }))
    };
    let Source::Many { paths, given } = source else {
        let name = source.name();
        let mut opened = one(&name, source, || counted(source), options).map_err(|fault| fault.at(&name))?;
        opened.position = position;
        return Ok(opened);
    };
    let open = |path: &PathBuf| {
        let source = Source::File(path.clone());
        one(path, &source, || counted(&source), options).map_err(|fault| fault.at(path))
    };
    let files = paths.iter().map(open).collect::<Result<Vec<_>, Error>>()?;
    let mut opened = Concatenated::of(given, files)?;
    opened.position = position;
    Ok(opened)
}

fn one(
    path: &Path,
    source: &Source,
    bytes: impl Fn() -> io::Result<Box<dyn Read + Send>>,
    options: &Options,
) -> Result<Opened, Fault> {
    let (mut input, compression) = decompressed(bytes().map_err(Fault::Io)?)?;
    let pipe = source.is_pipe();
    let head = read_head(&mut input, pipe).map_err(Fault::Io)?;
    let name = if compression.is_some() { path.with_extension("") } else { path.to_owned() };
    let binary = binary_format(&head)?;
    let asked = options.format.or(binary);
    let opened = |format, dialect, input| Opened {
        path: path.to_owned(),
        format,
        dialect,
        input,
        start: 0,
        position: Arc::default(),
    };
    let complete = head.len() < HEAD && !pipe;
    if let Some(format @ (Format::Parquet | Format::Arrow | Format::Feather)) = asked {
        let input = Box::new(Cursor::new(head).chain(input));
        return Ok(opened(format, Dialect { compression, ..Dialect::default() }, input));
    }
    let (encoding, mark) = match options.encoding {
        Some(encoding) => {
            (encoding, Encoding::for_bom(&head).filter(|(found, _)| *found == encoding).map_or(0, |it| it.1))
        }
        None => {
            // The same file again, to find bytes behind the head that are not UTF-8.
            let again = || Ok(decompressed(source.bytes()?).map_err(io::Error::other)?.0);
            encoding_of(&head, (!complete && !pipe).then_some(&again))?
        }
    };
    let sample = sample_text(&head[mark..], encoding, complete);
    let format = asked.unwrap_or_else(|| text_format(&sample, &name));
    let mut dialect = match format {
        Format::Csv | Format::Tsv => dialect::detect(&sample, format, &name, options)?,
        _ => Dialect::default(),
    };
    let format = if format == Format::Csv && dialect.delimiter == b'\t' { Format::Tsv } else { format };
    dialect.encoding = encoding;
    dialect.compression = compression;
    if let Some(decimal) = options.decimal {
        dialect.decimal = decimal;
    }
    let skipped = head.get(mark..).unwrap_or_default().to_vec();
    let text: Box<dyn Read + Send> = Box::new(Cursor::new(skipped).chain(input));
    let text: Box<dyn Read + Send> = if encoding == UTF_8 { text } else { Box::new(Decoding::new(text, encoding)) };
    let mut start = mark as u64;
    if dialect.skip == 0 {
        return Ok(Opened { start, ..opened(format, dialect, text) });
    }
    let mut text = BufReader::with_capacity(BUFFER, text);
    for line in 1..=dialect.skip {
        let mut skipped = Vec::new();
        if text.read_until(b'\n', &mut skipped).map_err(Fault::Io)? == 0 {
            return Err(Fault::whole(format!("--skip leaves nothing: the file has {} lines", line - 1)));
        }
        start += skipped.len() as u64;
    }
    Ok(Opened { start, ..opened(format, dialect, Box::new(text)) })
}

/// Counts the bytes read.
struct Counted<R> {
    inner: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Decompresses gzip and zstd, which are recognised by their first bytes.
fn decompressed(mut bytes: Box<dyn Read + Send>) -> Result<(Box<dyn Read + Send>, Option<&'static str>), Fault> {
    let mut magic = Vec::with_capacity(MAGIC);
    bytes.by_ref().take(MAGIC as u64).read_to_end(&mut magic).map_err(Fault::Io)?;
    let name = match &magic[..] {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
        [b'P', b'K', 3, 4] => {
            return Err(Fault::whole(
                "it is a zip archive or an Excel workbook; save the sheet as CSV, or unpack the archive",
            ));
        }
        [0xd0, 0xcf, 0x11, 0xe0] => return Err(Fault::whole("it is an Excel workbook; save the sheet as CSV")),
        [b'B', b'Z', b'h', _] => {
            return Err(Fault::whole("it is compressed with bzip2; decompress it, or use gzip or zstd"));
        }
        [0xfd, b'7', b'z', b'X'] => {
            return Err(Fault::whole("it is compressed with xz; decompress it, or use gzip or zstd"));
        }
        _ => return Ok((Box::new(Cursor::new(magic).chain(bytes)), None)),
    };
    let whole = Cursor::new(magic).chain(bytes);
    Ok(match name {
        "gzip" => (Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, whole))), Some(name)),
        _ => (Box::new(zstd::stream::read::Decoder::new(whole).map_err(Fault::Io)?), Some(name)),
    })
}

/// The first bytes: up to [`HEAD`] of a file; of a pipe, until the first line or the start of JSON is there.
fn read_head(input: &mut dyn Read, pipe: bool) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = vec![0; HEAD];
    while head.len() < HEAD {
        // The first bytes were read before, to recognise compression: the first line may have just arrived with more.
        if pipe && head.len() > MAGIC {
            let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
            let first = text.iter().position(|byte| !byte.is_ascii_whitespace());
            if first.is_some_and(|at| matches!(text[at], b'{' | b'[') || text[at..].contains(&b'\n')) {
                break;
            }
        }
        let room = HEAD - head.len();
        match input.read(&mut chunk[..room]) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// The format of a file that is not text.
fn binary_format(head: &[u8]) -> Result<Option<Format>, Fault> {
    Ok(match head {
        [b'P', b'A', b'R', b'1', ..] => Some(Format::Parquet),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Some(Format::Feather),
        [0xff, 0xff, 0xff, 0xff, ..] => Some(Format::Arrow),
        [b'O', b'b', b'j', 1, ..] => return Err(Fault::whole("it is an Avro file, which is not supported")),
        [b'O', b'R', b'C', ..] if head.contains(&0) => {
            return Err(Fault::whole("it is an ORC file, which is not supported"));
        }
        _ => None,
    })
}

fn text_format(sample: &str, name: &Path) -> Format {
    match sample.trim_start().as_bytes().first() {
        Some(b'[') => Format::Json,
        Some(b'{') => Format::Ndjson,
        // An empty file, or an object that does not begin yet: its name decides.
        None => file_format::of(name).unwrap_or(Format::Csv),
        _ if matches!(file_format::of(name), Some(Format::Tsv)) => Format::Tsv,
        _ => Format::Csv,
    }
}

/// The encoding and the length of the byte-order mark. `again` opens the file once more.
fn encoding_of(
    head: &[u8],
    again: Option<&dyn Fn() -> io::Result<Box<dyn Read + Send>>>,
) -> Result<(&'static Encoding, usize), Fault> {
    const REMEDY: &str = "name it, as in --encoding cp1252";
    if head.starts_with(&[0xff, 0xfe, 0, 0]) || head.starts_with(&[0, 0, 0xfe, 0xff]) {
        return Err(Fault::whole("it is encoded in UTF-32; convert it to UTF-8"));
    }
    if let Some(found) = Encoding::for_bom(head) {
        return Ok(found);
    }
    // UTF-16 without a mark: in text of most languages every other byte is mostly zero.
    let zeros = |first: usize| head.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    if (even + odd) * 4 > head.len() && head.len() > 3 {
        match (even * 8 < odd, odd * 8 < even) {
            (true, _) => return Ok((UTF_16LE, 0)),
            (_, true) => return Ok((UTF_16BE, 0)),
            _ => {}
        }
    }
    if head.contains(&0) {
        return Err(Fault::whole("it has bytes that are zero, so it is no text; expected CSV, JSON, Parquet or Arrow"));
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    let other = match std::str::from_utf8(head) {
        Ok(_) => None,
        // The head may end within a character.
        Err(error) if error.error_len().is_none() && head.len() == HEAD => None,
        Err(error) => Some(error.valid_up_to()),
    };
    match (other, again) {
        (Some(_), _) if is_damaged_utf8(&[head]) => return Ok((UTF_8, 0)),
        (Some(_), _) => detector.feed(head, true),
        (None, Some(again)) => match first_other(again().map_err(Fault::Io)?).map_err(Fault::Io)? {
            Some(around) if is_damaged_utf8(&[head, &around]) => return Ok((UTF_8, 0)),
            Some(around) => detector.feed(&around, true),
            None => return Ok((UTF_8, 0)),
        },
        (None, None) => return Ok((UTF_8, 0)),
    };
    let guess = detector.guess(None, Utf8Detection::Deny);
    // Bytes that the guess does not allow: it is no text in it.
    let allowed = other.is_none() || guess.decode_without_bom_handling_and_without_replacement(cut(head)).is_some();
    if allowed { Ok((guess, 0)) } else { Err(Fault::whole("its encoding cannot be told").with_remedy(REMEDY)) }
}

/// Whether bytes that are not all UTF-8 are UTF-8 nevertheless, of which some are damaged: ten characters beyond ASCII for each fault, as
/// other encodings do not have by chance, or one if only the end is cut off. Reading such a file fails at the line of the fault;
/// decoding it otherwise would change all of those characters.
fn is_damaged_utf8(parts: &[&[u8]]) -> bool {
    let chunks = || parts.iter().flat_map(|bytes| bytes.utf8_chunks());
    let valid = chunks().flat_map(|chunk| chunk.valid().chars()).filter(|c| !c.is_ascii()).count();
    let faults = chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
    let is_cut = parts.iter().all(|part| std::str::from_utf8(part).is_err_and(|error| error.error_len().is_none()));
    valid >= 10 * faults || (is_cut && valid > 0)
}

/// The bytes up to the last line end, if there is one.
fn cut(head: &[u8]) -> &[u8] {
    head.iter().rposition(|byte| *byte == b'\n').map_or(head, |end| &head[..=end])
}

/// The chunk with the first bytes that are not UTF-8; `None` if there are none.
fn first_other(mut input: Box<dyn Read + Send>) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; BUFFER];
    let mut kept = 0;
    loop {
        let read = match input.read(&mut buffer[kept..]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = &buffer[..kept + read];
        match std::str::from_utf8(bytes) {
            Ok(_) => kept = 0,
            Err(error) if error.error_len().is_none() && read > 0 => {
                let start = error.valid_up_to();
                kept = bytes.len() - start;
                buffer.copy_within(start..start + kept, 0);
            }
            Err(_) => return Ok(Some(bytes.to_vec())),
        }
        if read == 0 {
            return Ok(None);
        }
    }
}

/// The head as text, without its last line if that is incomplete.
fn sample_text(head: &[u8], encoding: &'static Encoding, complete: bool) -> String {
    let (text, _) = encoding.decode_without_bom_handling(head);
    match text.rfind('\n').filter(|_| !complete) {
        Some(end) => text[..=end].to_owned(),
        None => text.into_owned(),
    }
}

/// Decodes text to UTF-8 and fails at bytes that the encoding does not allow.
struct Decoding<R> {
    inner: R,
    encoding: &'static Encoding,
    decoder: Decoder,
    bytes: Vec<u8>,
    /// The part of `bytes` that is not decoded yet.
    start: usize,
    end: usize,
    text: Vec<u8>,
    given: usize,
    line: u64,
    ended: bool,
}

/// Bytes that the encoding does not allow.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: expected {encoding}, found other bytes")]
pub(super) struct DecodeFault {
    pub line: u64,
    pub encoding: &'static str,
}

impl<R: Read> Decoding<R> {
    fn new(inner: R, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_without_bom_handling();
        let (bytes, text) = (vec![0; BUFFER], Vec::with_capacity(BUFFER));
        Self { inner, encoding, decoder, bytes, start: 0, end: 0, text, given: 0, line: 1, ended: false }
    }

    /// Decodes more text.
    fn fill(&mut self) -> io::Result<()> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.inner.read(&mut self.bytes)?;
            self.ended = self.end == 0;
        }
        self.text.resize(BUFFER, 0);
        let source = &self.bytes[self.start..self.end];
        let (result, read, written) =
            self.decoder.decode_to_utf8_without_replacement(source, &mut self.text, self.ended);
        self.start += read;
        self.text.truncate(written);
        self.given = 0;
        self.line += self.text.iter().filter(|byte| **byte == b'\n').count() as u64;
        match result {
            DecoderResult::Malformed(..) => {
                Err(io::Error::other(DecodeFault { line: self.line, encoding: self.encoding.name() }))
            }
            DecoderResult::InputEmpty | DecoderResult::OutputFull => Ok(()),
        }
    }
}

impl<R: Read> Read for Decoding<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() {
            if self.ended {
                return Ok(0);
            }
            self.fill()?;
        }
        let rest = &self.text[self.given..];
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        self.given += read;
        Ok(read)
    }
}
