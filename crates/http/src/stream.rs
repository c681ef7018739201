//! Stream of a connection, plain or TLS, that reports its activity and limits the size of reads.

#![allow(unsafe_code, reason = "part of a read buffer: the safe way writes zeroes to all of it before each read")]

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::connections::Registered;

/// Bytes that all connections together may read at once while they are few, and those of one connection: at least what a request
/// head needs. The protocol's read buffer grows to twice the size of the reads, and up to 417 KB without this limit: of a thousand
/// clients that send large bodies that is more memory than the bodies of those that are admitted.
const READS: usize = 2 * 1024 * 1024;
const LEAST_READ: usize = 8 * 1024;
const MOST_READ: usize = 128 * 1024;

/// Transport of a connection.
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Object-safe union of both stream types.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Transport {
    fn stream(&mut self) -> Pin<&mut dyn Both> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }

    /// Whether received bytes are unread, whatever the runtime knows of them.
    fn has_unread(&self) -> bool {
        let socket = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        let peeked = SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
        !peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// Time for which a request runs on after the client has ended its side of the connection: clients such as `nc -N` do so after the
/// request and wait for the response, and clients that are gone look the same.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// Stream that reports its activity to its [`Connection`](crate::connection::Connection).
pub(crate) struct Monitored {
    pub transport: Transport,
    // Dropped after the socket: a server without registered connections has closed all of them.
    pub registered: Registered,
    /// Maximum bytes before a complete request head.
    pub max_header_bytes: usize,
    /// The end of the time after which a half-closed connection is abandoned.
    pub half_closed: Option<Pin<Box<Sleep>>>,
}

impl Monitored {
    /// Maximum bytes of the next read into a buffer with `room`.
    fn most_read(&self, room: usize) -> usize {
        if room <= LEAST_READ {
            return room;
        }
        (READS / self.registered.all().max(1)).clamp(LEAST_READ, MOST_READ)
    }

    /// Whether a client that has ended its side may still wait for a response. While one is written, an error of writing tells that
    /// the client is gone.
    fn is_awaited(&mut self, cx: &mut Context<'_>) -> bool {
        let connection = &self.registered.connection;
        if connection.is_http2() || !(connection.is_busy() || connection.owes()) {
            return false;
        }
        let end = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED)));
        if end.as_mut().poll(cx).is_pending() {
            return true;
        }
        if connection.owes() {
            end.as_mut().reset(Instant::now() + HALF_CLOSED);
            return end.as_mut().poll(cx).is_pending();
        }
        false
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.registered.connection.wrote(match &written {
            Poll::Ready(written) => Some(*written.as_ref().unwrap_or(&0)),
            Poll::Pending => None,
        });
        written
    }
}

impl AsyncRead for Monitored {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let mut part = buffer.take(self.most_read(buffer.remaining()));
        match self.transport.stream().poll_read(cx, &mut part) {
            // The connection ends as if the client had ended it, unless a request is waiting in the kernel.
            Poll::Pending if self.registered.connection.ends() && !self.transport.has_unread() => {
                return Poll::Ready(Ok(()));
            }
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read?,
        }
        let bytes = part.filled().len();
        if bytes == 0 && self.is_awaited(cx) {
            return Poll::Pending;
        }
        // SAFETY: `part` is the start of the buffer's unfilled part, and the stream has initialised what it filled.
        unsafe { buffer.assume_init(bytes) };
        buffer.advance(bytes);
        let heard = bytes == 0 || self.registered.connection.heard(&buffer.filled()[filled..], self.max_header_bytes);
        Poll::Ready(if heard { Ok(()) } else { Err(ErrorKind::InvalidData.into()) })
    }
}

impl AsyncWrite for Monitored {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.transport.stream().poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.transport.stream().poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        // Both transports support it.
        true
    }
}
