//! Connections on their way in: plain or TLS, counted, watched, and taken to the last one when the server stops.
//!
//! Input: a listener. Output: streams that tell clients.rs what happens on them.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::clients::{Clients, Connection, Patience};
use super::tls::Tls;

/// How long to wait when there is no descriptor or no memory for one more connection.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Where connections come from.
enum Source {
    Open(TcpListener),
    /// The server stops: what stands in the kernel's queue is still taken.
    Draining(StdListener),
    Closed,
}

/// Accepts connections until it is told to stop.
pub struct Gate {
    source: Source,
    local: LocalAddr,
    clients: Clients,
    tls: Option<Arc<Tls>>,
    patience: Patience,
    stop: watch::Receiver<bool>,
}

impl Gate {
    pub fn new(
        listener: TcpListener,
        clients: Clients,
        tls: Option<Arc<Tls>>,
        patience: Patience,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let local = LocalAddr(Addr::SocketAddr(listener.local_addr()?));
        Ok(Self { source: Source::Open(listener), local, clients, tls, patience, stop })
    }

    async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match &self.source {
                Source::Open(listener) => tokio::select! {
                    accepted = listener.accept() => return accepted,
                    _ = self.stop.wait_for(|stop| *stop) => {}
                },
                Source::Draining(listener) => match listener.accept() {
                    Ok((stream, address)) => {
                        stream.set_nonblocking(true)?;
                        return Ok((TcpStream::from_std(stream)?, address));
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(_) => {}
                },
                Source::Closed => std::future::pending().await,
            }
            self.source = match std::mem::replace(&mut self.source, Source::Closed) {
                Source::Open(listener) => Source::Draining(listener.into_std()?),
                // Nobody new is waiting, and nobody can come any more.
                Source::Draining(_) | Source::Closed => Source::Closed,
            };
        }
    }
}

impl Acceptor for Gate {
    type Io = Watched;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![self.local.clone()]
    }

    async fn accept(&mut self) -> io::Result<(Watched, LocalAddr, RemoteAddr, Scheme)> {
        loop {
            let (stream, address) = match self.next().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!("a connection could not be accepted: {error}");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            };
            let Some(connection) = self.clients.add(&stream, address, self.tls.is_some(), &self.patience) else {
                continue;
            };
            // Answers are written whole: waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            let (io, scheme) = match &self.tls {
                Some(tls) => (Io::Shaking(Box::new(tls.accept(stream))), Scheme::HTTPS),
                None => (Io::Plain(stream), Scheme::HTTP),
            };
            let watched = Watched { io, connection, clients: self.clients.clone(), head: self.patience.head_bytes };
            return Ok((watched, self.local.clone(), RemoteAddr(Addr::SocketAddr(address)), scheme));
        }
    }
}

/// What the bytes go through. A handshake goes on where the stream is first read, so that no other connection waits for it.
enum Io {
    Plain(TcpStream),
    Shaking(Box<tokio_rustls::Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

/// A connection that tells what happens on it.
pub struct Watched {
    io: Io,
    connection: Arc<Connection>,
    clients: Clients,
    head: usize,
}

/// Both kinds of stream as one.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Watched {
    /// The stream behind the handshake.
    fn ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Both>>> {
        if let Io::Shaking(shaking) = &mut self.io {
            match ready!(Pin::new(shaking.as_mut()).poll(cx)) {
                Ok(stream) => {
                    self.connection.shaken();
                    self.io = Io::Tls(Box::new(stream));
                }
                Err(error) => {
                    self.io = Io::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.io {
            Io::Plain(stream) => Ok(Pin::new(stream)),
            Io::Tls(stream) => Ok(Pin::new(stream.as_mut())),
            Io::Shaking(_) | Io::Failed => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    fn wrote<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.connection.wrote(written.is_ready());
        written
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.clients.remove(&self.connection);
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (filled, room) = (buffer.filled().len(), buffer.remaining());
        let read = match ready!(self.ready(cx)) {
            Ok(stream) => ready!(stream.poll_read(cx, buffer)),
            Err(error) => Err(error),
        };
        let bytes = buffer.filled().len() - filled;
        if read.is_err() || (room > 0 && bytes == 0) {
            self.connection.ended();
        } else if !self.connection.heard(bytes, self.head) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.ready(cx))?.poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.ready(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.ready(cx))?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.ready(cx))?.poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            Io::Shaking(_) | Io::Failed => false,
        }
    }
}
