//! Who is still there: whether the client of a request has closed its connection.
//!
//! Input: connections as they are accepted. Output: for an address, a wait for its end. The framework goes on with a
//! request whose client is gone; where an answer is dear, its handler asks here.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener::{Acceptor, TcpAcceptor};
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// All connections that are open.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<SocketAddr, watch::Sender<bool>>>>);

impl Clients {
    fn all(&self) -> MutexGuard<'_, HashMap<SocketAddr, watch::Sender<bool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Done when a client has closed its connection. One that is not known never does.
    pub async fn gone(&self, client: &RemoteAddr) {
        let Addr::SocketAddr(address) = &client.0 else { return std::future::pending().await };
        let heard = self.all().get(address).map(watch::Sender::subscribe);
        match heard {
            // A sender that is dropped went with its connection.
            Some(mut heard) => drop(heard.wait_for(|gone| *gone).await),
            None => std::future::pending().await,
        }
    }

    /// Connections from this acceptor are watched.
    pub fn watch(&self, acceptor: TcpAcceptor) -> Watching {
        Watching { acceptor, clients: self.clone() }
    }
}

/// An acceptor whose connections are watched.
pub struct Watching {
    acceptor: TcpAcceptor,
    clients: Clients,
}

impl Acceptor for Watching {
    type Io = Watched;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.acceptor.local_addr()
    }

    async fn accept(&mut self) -> io::Result<(Watched, LocalAddr, RemoteAddr, Scheme)> {
        let (stream, local, remote, scheme) = self.acceptor.accept().await?;
        let address = match &remote.0 {
            Addr::SocketAddr(address) => Some(*address),
            _ => None,
        };
        if let Some(address) = address {
            self.clients.all().insert(address, watch::Sender::new(false));
        }
        Ok((Watched { stream, address, clients: self.clients.clone() }, local, remote, scheme))
    }
}

/// A connection that tells when the other side has closed it.
pub struct Watched {
    stream: TcpStream,
    address: Option<SocketAddr>,
    clients: Clients,
}

impl Watched {
    fn ended(&mut self) {
        if let Some(address) = self.address.take()
            && let Some(gone) = self.clients.all().remove(&address)
        {
            gone.send_replace(true);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ended();
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (filled, room) = (buffer.filled().len(), buffer.remaining());
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &read {
            Poll::Ready(Ok(())) if room > 0 && buffer.filled().len() == filled => self.ended(),
            Poll::Ready(Err(_)) => self.ended(),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
