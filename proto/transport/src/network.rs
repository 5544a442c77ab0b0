//! What connections run over: TCP, or what a test puts in its place.
//!
//! Everything above, TLS and HTTP/2 included, is the same over all of them.

use socket2::{SockRef, TcpKeepalive};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// TCP keep-alive: a host that vanished is noticed within a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// Bytes both ways, in order.
pub trait Wire: AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static> Wire for T {}

/// Any wire. A call through a table for each read and write is nothing beside the system call or the encryption.
pub type AnyWire = Box<dyn Wire>;

/// Where connections to others are opened.
#[tonic::async_trait]
pub trait Network: Debug + Send + Sync + 'static {
    /// Opens a connection to a host, by name or address; returns it with the address that it leads to. `ConnectionReset`:
    /// something listened there, and closed the connection at once.
    async fn connect(&self, host: &str, port: u16) -> io::Result<(AnyWire, SocketAddr)>;
}

/// Where connections of others come from.
pub trait Accept: Send + 'static {
    /// The next connection, with the address of its other side. `ConnectionAborted`: that one went away again, and the
    /// next can be had at once; after other errors the caller pauses.
    fn accept(&mut self) -> impl Future<Output = io::Result<(AnyWire, SocketAddr)>> + Send;
}

/// The network of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

#[tonic::async_trait]
impl Network for Tcp {
    async fn connect(&self, host: &str, port: u16) -> io::Result<(AnyWire, SocketAddr)> {
        let stream = TcpStream::connect((host, port)).await?;
        // Both fail when the connection is closed already.
        let set_up = stream.peer_addr().and_then(|address| configure(&stream).map(|()| address));
        let address = set_up.map_err(|error| io::Error::new(io::ErrorKind::ConnectionReset, error))?;
        Ok((Box::new(stream), address))
    }
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(AnyWire, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // It fails when the connection is closed already.
        configure(&stream).map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
        Ok((Box::new(stream), peer))
    }
}

/// What every connection of a cluster has, on either side.
pub(crate) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_EVERY);
    SockRef::from(stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_wire_writes_several_slices_at_once_if_its_own_kind_does() {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (near, _) = Tcp.connect("127.0.0.1", port).await.expect("connects");
        let (far, _) = Accept::accept(&mut listener).await.expect("accepted");
        assert!(near.is_write_vectored() && far.is_write_vectored());
    }
}
