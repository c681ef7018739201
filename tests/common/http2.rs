//! HTTP/2 at frame level: clients that do not read the answers they requested, which no library supports.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::Running;
use super::wire::connect;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const HEADER_TABLE_SIZE: u16 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// An HTTP/2 connection.
pub struct Http2 {
    stream: TcpStream,
    next: u32,
    /// Received bytes of an incomplete frame.
    unread: Vec<u8>,
    /// Whether the server has enlarged the window of the connection, as it does at the start: before that, a large body would
    /// violate flow control.
    enlarged: bool,
    /// The server's limit of concurrent streams.
    pub most_streams: Option<u32>,
    /// The status of each stream's response.
    pub statuses: HashMap<u32, u16>,
    /// Streams that ended or were reset.
    pub ended: Vec<u32>,
    /// True if the server has closed the connection.
    pub closed: bool,
}

impl Http2 {
    /// Connects with an initial flow-control window of `window` bytes per stream.
    pub fn connect(running: &Running, window: u32) -> Self {
        let stream = connect(running);
        stream.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let (statuses, ended) = (HashMap::new(), Vec::new());
        let unread = Vec::new();
        let (enlarged, most_streams) = (false, None);
        let mut client = Self { stream, next: 1, unread, enlarged, most_streams, statuses, ended, closed: false };
        client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut settings = Vec::new();
        // Without a dynamic table, the headers of each response can be decoded independently.
        for (setting, value) in [(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, window)] {
            settings.extend(setting.to_be_bytes());
            settings.extend(value.to_be_bytes());
        }
        client.frame(SETTINGS, 0, 0, &settings);
        // The initial window applies only after the server has acknowledged the settings.
        super::eventually("the server's settings", || {
            client.read();
            client.closed || client.most_streams.is_some() && client.enlarged
        });
        client
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // The server may have closed the connection.
        self.closed |= self.stream.write_all(&frame).is_err();
    }

    /// Sends a request, with a JSON body if it is not empty; returns the stream number.
    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let length = body.len().to_string();
        let mut headers = vec![(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path)];
        if !body.is_empty() {
            headers.extend([("content-type", "application/json"), ("content-length", length.as_str())]);
        }
        let mut block = Vec::new();
        for (name, value) in headers {
            block.extend([0, name.len() as u8]);
            block.extend(name.bytes());
            block.push(value.len() as u8);
            block.extend(value.bytes());
        }
        self.frame(HEADERS, END_HEADERS | if body.is_empty() { END_STREAM } else { 0 }, stream, &block);
        let mut pieces = body.chunks(16_384).peekable();
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_STREAM } else { 0 };
            self.frame(DATA, last, stream, piece);
        }
        stream
    }

    pub fn ping(&mut self) {
        self.frame(PING, 0, 0, b"whatever");
    }

    /// Enlarges the flow-control window of a stream; stream 0 is the connection.
    pub fn take(&mut self, stream: u32, bytes: u32) {
        self.frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    }

    /// Reads available frames and sends required acknowledgements.
    pub fn read(&mut self) {
        let mut part = [0; 65_536];
        match self.stream.read(&mut part) {
            Ok(0) => self.closed = true,
            Ok(read) => self.unread.extend(&part[..read]),
            Err(error) => self.closed |= error.kind() != std::io::ErrorKind::WouldBlock,
        }
        while self.unread.len() >= 9 {
            let length = u32::from_be_bytes([0, self.unread[0], self.unread[1], self.unread[2]]) as usize;
            if self.unread.len() < 9 + length {
                return;
            }
            let frame: Vec<u8> = self.unread.drain(..9 + length).collect();
            let (kind, flags) = (frame[3], frame[4]);
            let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
            self.heard(kind, flags, stream, &frame[9..]);
        }
    }

    fn heard(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == MAX_CONCURRENT_STREAMS {
                        let most = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                        self.most_streams = Some(most);
                    }
                }
                self.frame(SETTINGS, ACK, 0, &[]);
            }
            WINDOW_UPDATE => self.enlarged |= stream == 0,
            HEADERS => {
                self.statuses.insert(stream, status(payload));
            }
            _ => {}
        }
        if kind == RESET || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0) {
            self.ended.push(stream);
        }
    }

    /// Reads until every stream has a status or the connection is closed.
    pub fn statuses(&mut self, streams: usize) -> Vec<u16> {
        super::eventually("the heads of all answers", || {
            self.read();
            self.closed || self.statuses.len() >= streams
        });
        let mut statuses: Vec<u16> = self.statuses.values().copied().collect();
        statuses.sort_unstable();
        statuses
    }
}

/// The status, which is the first field of a header block.
fn status(block: &[u8]) -> u16 {
    // A dynamic table size update may precede it.
    let block = &block[block.iter().take_while(|byte| **byte >> 5 == 1).count()..];
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        // Indexed name (entry 8) with a literal value.
        0x08 | 0x18 | 0x48 => {
            let value = &block[2..2 + usize::from(block[1] & 0x7f)];
            if block[1] & 0x80 == 0 { std::str::from_utf8(value).unwrap().parse().unwrap() } else { digits(value) }
        }
        other => panic!("{other:#x} is no status"),
    }
}

/// Three digits in HPACK's Huffman code: 0, 1 and 2 have five bits, all others six.
fn digits(value: &[u8]) -> u16 {
    let bits: Vec<u16> = value.iter().flat_map(|byte| (0..8).rev().map(move |i| u16::from(byte >> i & 1))).collect();
    let number = |from: usize, length: usize| bits[from..from + length].iter().fold(0, |sum, bit| sum * 2 + bit);
    let (mut at, mut digits) = (0, 0);
    for _ in 0..3 {
        let (digit, length) = match number(at, 5) {
            short @ 0..=2 => (short, 5),
            _ => (number(at, 6) - 0b01_1001 + 3, 6),
        };
        digits = digits * 10 + digit;
        at += length;
    }
    digits
}
