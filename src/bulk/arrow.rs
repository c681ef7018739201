//! Reader of Arrow's streaming format. Each batch is read into one buffer and not copied again.
//!
//! The lengths in a stream are untrusted: memory is allocated as bytes arrive, up to the limits.

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::reader::StreamDecoder;
use datafusion::arrow::ipc::{CompressionType, Message, MessageHeader, root_as_message};
use lz4_flex::frame::FrameDecoder;

use super::{Error, Limits, Meter};
use crate::panics;

/// Continuation marker before each message of the current IPC format.
const MARK: [u8; 4] = [0xff; 4];
/// End-of-stream message.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// Maximum bytes of a message's metadata.
const MAX_HEAD: usize = 16 * 1024 * 1024;
/// Maximum expansion factors of LZ4 and Zstandard.
const MAX_LZ4: usize = 255;
const MAX_ZSTD: usize = 32 * 1024;

/// Record batches of a stream.
pub struct Batches<R> {
    input: R,
    decoder: StreamDecoder,
    limits: Limits,
    meter: Arc<dyn Meter>,
    /// Total bytes of the dictionaries so far.
    dictionaries: usize,
    ready: VecDeque<RecordBatch>,
    ended: bool,
}

impl<R: Read> Batches<R> {
    pub fn new(input: R, limits: Limits, meter: Arc<dyn Meter>) -> Self {
        let (decoder, ready) = (StreamDecoder::new(), VecDeque::new());
        Self { input, decoder, limits, meter, dictionaries: 0, ready, ended: false }
    }

    /// The next batch; `None` at the end.
    pub fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        while self.ready.is_empty() && !self.ended {
            self.message()?;
        }
        Ok(self.ready.pop_front())
    }

    /// Schema of the stream; `None` before its schema message was read.
    pub fn schema(&self) -> Option<SchemaRef> {
        self.decoder.schema()
    }

    fn message(&mut self) -> Result<(), Error> {
        let mut prefix = self.piece(4)?;
        if prefix == MARK {
            prefix = self.piece(4)?;
        } else if prefix.is_empty() {
            // The end-of-stream message is optional.
            return self.end();
        }
        let length = match <[u8; 4]>::try_from(prefix.as_slice()) {
            Ok(length) => u32::from_le_bytes(length) as usize,
            Err(_) => return Err(cut_off()),
        };
        if length == 0 {
            let after = self.piece(1)?;
            return if after.is_empty() { self.end() } else { Err(damaged("something follows its end")) };
        }
        if length > MAX_HEAD {
            return Err(damaged("a message's description is longer than 16 MiB"));
        }
        let head = self.whole(length)?;
        let message = root_as_message(&head).map_err(|e| damaged(&e.to_string()))?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| damaged("a message has a negative length"))?;
        let dictionary = message.header_type() == MessageHeader::DictionaryBatch;
        self.held(dictionary, body)?;
        let body = self.whole(body)?;
        let unpacked = unpacked(&message, &body, |bytes| self.held(dictionary, bytes).map(drop))?;
        if dictionary {
            let bytes = body.len().max(unpacked);
            self.dictionaries = self.held(dictionary, bytes)?;
            self.meter.keeps(bytes)?;
        } else if unpacked > 0 {
            self.meter.holds(unpacked)?;
        }
        let mut framed = Vec::with_capacity(8 + head.len());
        framed.extend(MARK);
        framed.extend((head.len() as u32).to_le_bytes());
        framed.extend(head);
        self.decode(framed)?;
        self.decode(body)?;
        let fields = self.decoder.schema().map_or(0, |schema: SchemaRef| schema.fields().len());
        if fields > self.limits.fields {
            return Err(Error::TooMuch(format!("rows may have {} columns at most", self.limits.fields)));
        }
        Ok(())
    }

    /// Bytes that would be held with a message of `bytes` bytes.
    ///
    /// # Errors
    /// If that exceeds the limit.
    fn held(&self, dictionary: bool, bytes: usize) -> Result<usize, Error> {
        let held = bytes.saturating_add(if dictionary { self.dictionaries } else { 0 });
        if held > self.limits.piece {
            let what = if dictionary { "the dictionaries of a stream" } else { "a record batch" };
            let limit = self.limits.piece;
            return Err(Error::TooMuch(format!("{what} may have {limit} bytes at most; write smaller batches")));
        }
        Ok(held)
    }

    /// Feeds the end-of-stream message: the decoder processes a message without a body only when more bytes follow.
    fn end(&mut self) -> Result<(), Error> {
        self.ended = true;
        self.decode(END.to_vec())?;
        match self.decoder.schema() {
            Some(_) => Ok(()),
            None => Err(damaged("it has no schema")),
        }
    }

    fn decode(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        let mut buffer = Buffer::from_vec(bytes);
        while !buffer.is_empty() {
            // The decoder panics on unknown types.
            let decoded = panics::decoding("an Arrow stream", || self.decoder.decode(&mut buffer));
            let decoded = decoded.ok_or_else(|| damaged("it has a type that is not known"))?;
            self.ready.extend(decoded.map_err(|e| damaged(&e.to_string()))?);
        }
        Ok(())
    }

    /// Reads `length` bytes, or fewer at the end of the input.
    fn piece(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn whole(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.piece(length)?;
        if bytes.len() < length { Err(cut_off()) } else { Ok(bytes) }
    }
}

/// Sum of the uncompressed lengths of a message's buffers. Each buffer states its own length, and the decoder allocates that
/// much unchecked; for LZ4 it also decompresses beyond it.
fn unpacked(message: &Message<'_>, body: &[u8], allowed: impl Fn(usize) -> Result<(), Error>) -> Result<usize, Error> {
    let dictionary = message.header_as_dictionary_batch().and_then(|batch| batch.data());
    let Some(batch) = message.header_as_record_batch().or(dictionary) else { return Ok(0) };
    let Some(compression) = batch.compression() else { return Ok(0) };
    let lz4 = compression.codec() == CompressionType::LZ4_FRAME;
    let mut sum = 0_usize;
    for buffer in batch.buffers().iter().flatten() {
        let place = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let bytes = place.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
        let bytes = bytes.ok_or_else(|| damaged("a buffer lies outside its message"))?;
        let Some((claim, packed)) = bytes.split_first_chunk::<8>() else { continue };
        // -1 marks an uncompressed buffer.
        let claim = match i64::from_le_bytes(*claim) {
            -1 | 0 => continue,
            claim => usize::try_from(claim).map_err(|_| damaged("a buffer has a negative length"))?,
        };
        sum = sum.saturating_add(claim);
        allowed(sum)?;
        let possible = packed.len().saturating_mul(if lz4 { MAX_LZ4 } else { MAX_ZSTD });
        if claim > possible || (lz4 && !unpacks_to(packed, claim)) {
            return Err(damaged("a compressed buffer is not as long as it says"));
        }
    }
    Ok(sum)
}

/// Whether the LZ4 data decompresses to exactly `claim` bytes. The output is discarded.
fn unpacks_to(lz4: &[u8], claim: usize) -> bool {
    let (mut decoder, mut sum) = (FrameDecoder::new(lz4), 0);
    loop {
        match decoder.fill_buf() {
            Ok([]) => return sum == claim,
            Ok(bytes) => {
                let length = bytes.len();
                sum += length;
                if sum > claim {
                    return false;
                }
                decoder.consume(length);
            }
            Err(_) => return false,
        }
    }
}

fn cut_off() -> Error {
    damaged("it ends in the middle of a message")
}

fn damaged(why: &str) -> Error {
    Error::Read(format!("the Arrow stream is damaged: {}", crate::sql::one_line(why)))
}
