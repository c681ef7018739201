//! Checksums of a file of records, or of members and samples of a model: CRC-32 of each of its parts, in its footer.
//!
//! The parquet crate writes no page checksums, so the store keeps its own under the footer's key [`KEY`]:
//!
//! ```text
//! crc32 footer=0a1b2c3d index=4e5f6071 chunks=8293a4b5,c6d7e8f9,…
//! ```
//!
//! `chunks` are the column chunks with their page headers, in the order of the row groups and their columns. `index` is the
//! part between the last chunk and the footer, the page indexes. `footer` is the footer to the end of the file, with eight
//! zeros in place of its own value. With the first four bytes, which are constant, that is every byte of the file.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use crc32fast::Hasher;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length as _};

use super::Input;

/// The footer's key.
pub(super) const KEY: &str = "checksums";
/// Prefix of the value.
const LEAD: &str = "crc32 footer=";
/// Placeholder of an unknown value, and of the footer's own while it is computed.
const UNKNOWN: &str = "00000000";
/// Bytes at the end of a file: the length of the footer and the magic number.
const TAIL: u64 = 8;
/// Bytes of the magic number at the start of a file.
const MAGIC: u64 = 4;
/// Bytes per read.
const PIECE: u64 = 1 << 20;

/// A column chunk and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

/// The checksums of a file, from its footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    footer: u32,
    index: u32,
    /// Sorted by start.
    chunks: Vec<Chunk>,
}

/// A destination of a file, parts of which can be read back.
pub(super) trait Output: Write + Send {
    fn length(&self) -> io::Result<u64>;
    fn read_again(&self, start: u64, into: &mut [u8]) -> io::Result<()>;
    fn overwrite(&mut self, start: u64, bytes: &[u8]) -> io::Result<()>;

    fn crc(&self, range: Range<u64>) -> io::Result<u32> {
        let (mut hasher, mut piece) = (Hasher::new(), vec![0; PIECE.min(range.end - range.start) as usize]);
        let mut start = range.start;
        while start < range.end {
            let piece = &mut piece[..PIECE.min(range.end - start) as usize];
            self.read_again(start, piece)?;
            hasher.update(piece);
            start += piece.len() as u64;
        }
        Ok(hasher.finalize())
    }
}

impl Output for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_again(&self, start: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, start)
    }

    fn overwrite(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, start)
    }
}

impl Output for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_again(&self, start: u64, into: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(start).ok().and_then(|start| self.get(start..start.checked_add(into.len())?));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn overwrite(&mut self, start: u64, bytes: &[u8]) -> io::Result<()> {
        let found = usize::try_from(start).ok().and_then(|start| self.get_mut(start..start.checked_add(bytes.len())?));
        found.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Checksums of the column chunks of written row groups.
pub(super) fn chunks(groups: &[RowGroupMetaData], output: &impl Output) -> io::Result<Vec<Chunk>> {
    let columns = groups.iter().flat_map(|group| group.columns());
    columns
        .map(|column| {
            let (start, length) = column.byte_range();
            Ok(Chunk { start, length, crc: output.crc(start..start + length)? })
        })
        .collect()
}

/// The footer entry for these chunks, still without the checksums of the parts after them.
pub(super) fn entry(chunks: &[Chunk]) -> KeyValue {
    let sums: Vec<String> = chunks.iter().map(|chunk| format!("{:08x}", chunk.crc)).collect();
    KeyValue::new(KEY.to_owned(), format!("{LEAD}{UNKNOWN} index={UNKNOWN} chunks={}", sums.join(",")))
}

/// Writes the checksums of the parts after the chunks, which end at `end`, into a finished file.
pub(super) fn complete(output: &mut impl Output, chunks: Vec<Chunk>, end: u64) -> io::Result<Checksums> {
    let length = output.length()?;
    let mut tail = [0; TAIL as usize];
    output.read_again(length.saturating_sub(TAIL), &mut tail)?;
    let footer_length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])) + TAIL;
    let start = length.checked_sub(footer_length).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; footer_length as usize];
    output.read_again(start, &mut bytes)?;
    let placeholder = format!("{LEAD}{UNKNOWN} index={UNKNOWN} ");
    let at = position(&bytes, placeholder.as_bytes()).ok_or(io::ErrorKind::InvalidData)?;
    let index = output.crc(end..start)?;
    let text = format!("{index:08x}");
    let (own, other) = (at + LEAD.len(), at + LEAD.len() + UNKNOWN.len() + " index=".len());
    bytes[other..other + text.len()].copy_from_slice(text.as_bytes());
    output.overwrite(start + other as u64, text.as_bytes())?;
    let footer = crc32fast::hash(&bytes);
    output.overwrite(start + own as u64, format!("{footer:08x}").as_bytes())?;
    Ok(Checksums { footer, index, chunks })
}

/// Last position of `wanted`: the entry is the last one of a footer.
fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).rposition(|window| window == wanted)
}

impl Checksums {
    /// Reads the checksums from a footer, and verifies the footer itself. `None` for a file of an earlier build.
    ///
    /// # Errors
    /// The reason why the footer is damaged.
    pub(super) fn of(metadata: &ParquetMetaData, footer: &[u8]) -> Result<Option<Self>, String> {
        let Some(text) = value(metadata, KEY) else {
            return match position(footer, LEAD.as_bytes()) {
                Some(_) => Err("its footer does not match its checksum".to_owned()),
                None => Ok(None),
            };
        };
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let ranges: Vec<(u64, u64)> = columns
            .map(|column| {
                // `byte_range` panics if one is negative.
                let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                Some((u64::try_from(start).ok()?, u64::try_from(column.compressed_size()).ok()?))
            })
            .collect::<Option<_>>()
            .ok_or("its footer names places before its start")?;
        let sums = Self::parse(text, &ranges).ok_or("its checksums cannot be read")?;
        let at = position(footer, text.as_bytes()).ok_or("its checksums are not where they belong")? + LEAD.len();
        let mut hasher = Hasher::new();
        hasher.update(&footer[..at]);
        hasher.update(UNKNOWN.as_bytes());
        hasher.update(&footer[at + UNKNOWN.len()..]);
        if hasher.finalize() != sums.footer {
            return Err("its footer does not match its checksum".to_owned());
        }
        Ok(Some(sums))
    }

    /// Reads the checksums of an open file whose footer was parsed, and verifies the footer. `None` if it has none.
    ///
    /// # Errors
    /// If the footer is damaged or cannot be read.
    pub fn of_open(metadata: &ParquetMetaData, file: &Input) -> Result<Option<Self>, ParquetError> {
        let short = || ParquetError::EOF("it is too short for a Parquet file".to_owned());
        let end = |bytes: u64| file.get_bytes(file.len().checked_sub(bytes).ok_or_else(short)?, bytes as usize);
        let length = end(TAIL)?.first_chunk().map(|length| u32::from_le_bytes(*length)).unwrap_or_default();
        Self::of(metadata, &end(u64::from(length) + TAIL)?).map_err(ParquetError::General)
    }

    fn parse(text: &str, ranges: &[(u64, u64)]) -> Option<Self> {
        // Only one spelling of a number is valid: another would be an undetected change.
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let hex = |text: &str| {
            let plain = text.len() == 8 && text.bytes().all(digit);
            if plain { u32::from_str_radix(text, 16).ok() } else { None }
        };
        let (footer, rest) = text.strip_prefix(LEAD)?.split_once(" index=")?;
        let (index, chunks) = rest.split_once(" chunks=")?;
        let mut chunks = chunks.split(',').filter(|text| !text.is_empty()).map(hex);
        let mut found = Vec::with_capacity(ranges.len());
        for &(start, length) in ranges {
            found.push(Chunk { start, length, crc: chunks.next()?? });
        }
        found.sort_unstable_by_key(|chunk| chunk.start);
        chunks.next().is_none().then_some(Self { footer: hex(footer)?, index: hex(index)?, chunks: found })
    }

    /// Whether `bytes` differ from the chunk that covers `range`. `false` if the range is not a whole chunk.
    pub fn contradicts(&self, range: &Range<u64>, bytes: &[u8]) -> bool {
        let chunk = self.chunks.binary_search_by_key(&range.start, |chunk| chunk.start).map(|i| self.chunks[i]);
        chunk.is_ok_and(|chunk| chunk.length == range.end - range.start && crc32fast::hash(bytes) != chunk.crc)
    }

    /// Verifies every byte of a file.
    pub(super) fn check(&self, file: &Input, footer: u64) -> Result<(), Fault> {
        let mut end = MAGIC;
        if &file.get_bytes(0, MAGIC as usize)?[..] != b"PAR1" {
            return Err(Fault::Damaged("it does not begin as a Parquet file does".to_owned()));
        }
        for (number, chunk) in self.chunks.iter().enumerate() {
            if chunk.start != end {
                return Err(Fault::Damaged(format!("its column chunk {number} is not where it belongs")));
            }
            end = chunk.start.saturating_add(chunk.length);
            if end > footer {
                return Err(Fault::Damaged(format!("its column chunk {number} reaches into the footer")));
            }
            if crc(file, chunk.start..end)? != chunk.crc {
                return Err(Fault::Damaged(format!(
                    "its column chunk {number}, at byte {}, does not match its checksum",
                    chunk.start
                )));
            }
        }
        if crc(file, end..footer)? != self.index {
            return Err(Fault::Damaged("its page index does not match its checksum".to_owned()));
        }
        Ok(())
    }
}

/// Why a check failed: a mismatch or a read error.
pub(super) enum Fault {
    Damaged(String),
    Unreadable(parquet::errors::ParquetError),
}

impl From<parquet::errors::ParquetError> for Fault {
    fn from(error: parquet::errors::ParquetError) -> Self {
        Self::Unreadable(error)
    }
}

fn crc(file: &Input, range: Range<u64>) -> Result<u32, parquet::errors::ParquetError> {
    let (mut hasher, mut start) = (Hasher::new(), range.start);
    while start < range.end {
        let piece: Bytes = file.get_bytes(start, PIECE.min(range.end - start) as usize)?;
        hasher.update(&piece);
        start += piece.len() as u64;
    }
    Ok(hasher.finalize())
}

pub(super) fn value<'m>(metadata: &'m ParquetMetaData, key: &str) -> Option<&'m str> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

    use super::super::log::tests::records;
    use super::super::{Published, Store};

    #[test]
    fn every_bit_of_a_file_is_covered() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let Published::File(file) = log.publish(&records(0..2000), 0, 2000).unwrap() else { panic!("taken") };
        assert!(file.check().unwrap());
        let whole = std::fs::read(&file.path).unwrap();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let bits = whole.len() as u64 * 8;
        // All bits of the footer's end, and a sample of the rest.
        let flips = (0..4000).map(|_| rng.next_u64() % bits).chain(bits - 8000..bits);
        for bit in flips {
            let mut flipped = whole.clone();
            flipped[(bit / 8) as usize] ^= 1 << (bit % 8);
            std::fs::write(&file.path, flipped).unwrap();
            assert!(file.check().is_err(), "bit {bit} of {bits}");
        }
        for length in [0, 3, 4, 11, 12, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&file.path, &whole[..length]).unwrap();
            assert!(file.check().is_err(), "cut to {length}");
        }
        std::fs::write(&file.path, &whole).unwrap();
        assert!(file.check().unwrap());
    }
}
