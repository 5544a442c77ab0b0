//! A connection, plain or encrypted, for tonic, axum and plain tokio alike. It names its other side, and says in its
//! errors what is wrong with certificates.

use crate::fault::{Fault, FaultCode};
use crate::identity::Principal;
use crate::network::AnyWire;
use crate::slots::Slot;
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::TlsStream;

/// Who is on the other side of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address.
    pub address: SocketAddr,
    /// Its name.
    pub principal: Principal,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    peer: PeerInfo,
    /// The first fault of TLS that a read met: in TLS 1.3 a server refuses a client only after the client is done.
    fault: Arc<OnceLock<Fault>>,
    /// Whether anything was read yet.
    fresh: bool,
    /// When reads come to an end.
    ends: Option<Pin<Box<Sleep>>>,
    _slot: Option<Slot>,
}

#[derive(Debug)]
enum Stream {
    Plain(AnyWire),
    // Buffers and keys of TLS are large beside a socket.
    Tls(Box<TlsStream<AnyWire>>),
}

impl Connection {
    pub(crate) fn plain(wire: AnyWire, peer: PeerInfo, slot: Option<Slot>) -> Self {
        Self::new(Stream::Plain(wire), peer, slot)
    }

    pub(crate) fn tls(stream: TlsStream<AnyWire>, peer: PeerInfo, slot: Option<Slot>) -> Self {
        Self::new(Stream::Tls(Box::new(stream)), peer, slot)
    }

    fn new(stream: Stream, peer: PeerInfo, slot: Option<Slot>) -> Self {
        Self { stream, peer, fault: Arc::default(), fresh: true, ends: None, _slot: slot }
    }

    /// Reads end at this time, and the connection with them.
    pub(crate) fn until(self, time: Instant) -> Self {
        Self { ends: Some(Box::pin(sleep_until(time))), ..self }
    }

    /// The other side.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Where the first fault of this connection will stand.
    pub(crate) fn fault(&self) -> Arc<OnceLock<Fault>> {
        self.fault.clone()
    }

    fn noted(&self, error: io::Error) -> io::Error {
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            let fault = self.fault.get_or_init(|| Fault::of_io(&error));
            return fault.clone().into_io();
        }
        error
    }
}

/// The first byte of a TLS alert, which is what a TLS port answers to plaintext; no protocol of ours begins with it.
fn is_tls_alert(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x15)
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(wire) => ready!(Pin::new(wire).poll_read(cx, buf)),
            Stream::Tls(stream) => ready!(Pin::new(stream).poll_read(cx, buf)),
        };
        if let Err(error) = read {
            return Poll::Ready(Err(self.noted(error)));
        }
        let plain = matches!(self.stream, Stream::Plain(_));
        if std::mem::take(&mut self.fresh) && plain && is_tls_alert(&buf.filled()[before..]) {
            let fault = Fault::new(FaultCode::NotTls, "the other side speaks TLS, this side plaintext");
            let _ = self.fault.set(fault.clone());
            return Poll::Ready(Err(fault.into_io()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(wire) => Pin::new(wire).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(wire) => Pin::new(wire).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(wire) => wire.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(wire) => Pin::new(wire).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, crate::listen::Incoming>>
    for PeerInfo
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, crate::listen::Incoming>) -> Self {
        stream.io().peer().clone()
    }
}
