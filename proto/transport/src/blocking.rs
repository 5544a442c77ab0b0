//! Connections to others for threads that block: expert bytes between agents, and tests.

use crate::credentials::Server;
use crate::fault::{Fault, FaultCode};
use crate::listen::TRANSFER_ALPN;
use crate::security::Security;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Expert bytes.
    Transfer,
    /// HTTP/1.1.
    Http,
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Protocol::Transfer => TRANSFER_ALPN,
            Protocol::Http => b"http/1.1",
        }
    }
}

/// A connection. Reads and writes end with `WouldBlock` or `TimedOut` after the timeouts it was opened with, and may be
/// tried again.
#[derive(Debug)]
pub struct BlockingStream(Stream);

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    // Buffers and keys of TLS are large beside a socket.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Times of a blocking connection.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the connection and the handshake together, to each address of a name.
    pub connect: Duration,
    /// For a read.
    pub read: Duration,
    /// For a write.
    pub write: Duration,
}

/// Connects to `address` (`host:port`), to the first of its addresses that answers. `wanted` is asked between reads of
/// the handshake: when it says no, the attempt ends.
pub fn connect(
    security: &Security,
    server: Server,
    protocol: Protocol,
    address: &str,
    timeouts: Timeouts,
    wanted: &dyn Fn() -> bool,
) -> io::Result<BlockingStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for resolved in address.to_socket_addrs()? {
        match connect_to(security, server, protocol, resolved, timeouts, wanted) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_to(
    security: &Security,
    server: Server,
    protocol: Protocol,
    address: SocketAddr,
    timeouts: Timeouts,
    wanted: &dyn Fn() -> bool,
) -> io::Result<BlockingStream> {
    let deadline = Instant::now() + timeouts.connect;
    security.check_target("the other node's address", &address.to_string()).map_err(Fault::into_io)?;
    let stream = TcpStream::connect_timeout(&address, timeouts.connect)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeouts.read))?;
    stream.set_write_timeout(Some(timeouts.write))?;
    let Security::Tls(credentials) = security else { return Ok(BlockingStream(Stream::Plain(stream))) };
    let (config, name) = credentials.client(server, Some(protocol.alpn()));
    let connection = ClientConnection::new(config, name).map_err(|e| Fault::of_tls(&e).into_io())?;
    let mut stream = Box::new(StreamOwned::new(connection, stream));
    let late = || {
        let text = format!("{address}: no handshake within {} ms", timeouts.connect.as_millis());
        Fault::new(FaultCode::HandshakeTimeout, text).into_io()
    };
    while stream.conn.is_handshaking() {
        if !wanted() || Instant::now() >= deadline {
            return Err(late());
        }
        step(&mut stream)?;
    }
    // The last words of the handshake are ours.
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut stream.sock)?;
    }
    Ok(BlockingStream(Stream::Tls(stream)))
}

/// Writes what there is to write, then reads once: whoever sends a byte at a time does not hold up a thread for longer
/// than the deadline.
fn step(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> io::Result<()> {
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut stream.sock)?;
    }
    if !stream.conn.is_handshaking() {
        return Ok(());
    }
    match stream.conn.read_tls(&mut stream.sock) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
        Err(error) if is_timeout(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    stream.conn.process_new_packets().map(drop).map_err(|error| {
        // The other side is told why, if it still listens.
        let _ = stream.conn.write_tls(&mut stream.sock);
        Fault::of_tls(&error).into_io()
    })
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What rustls reports, with code and remedy.
fn explained(error: io::Error) -> io::Error {
    match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => Fault::of_io(&error).into_io(),
        _ => error,
    }
}

impl Read for BlockingStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Stream::Plain(stream) => stream.read(bytes),
            Stream::Tls(stream) => stream.read(bytes).map_err(explained),
        }
    }
}

impl Write for BlockingStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes).map_err(explained),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush().map_err(explained),
        }
    }
}
