//! Connections to one member of etcd: TCP, and TLS 1.3 where its address begins with `https://`.

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// A member in the same region answers in a few ms; one that is gone must not use up the time in which another could be
/// asked.
const CONNECT_MAX: Duration = Duration::from_millis(500);
/// etcd closes connections that ask more often than every 5 s whether it is there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
/// As long as any call may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The port of etcd's clients.
const PORT: u16 = 2379;

/// Opens connections to a member. `None`: plaintext.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Option<Arc<ClientConfig>>);

impl Connector {
    /// A channel that connects when it is used, and again whenever it has to. `endpoint` has been checked.
    pub(super) fn channel(&self, endpoint: &Uri) -> Channel {
        Endpoint::from(endpoint.clone())
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(self.clone())
    }
}

/// A byte stream, encrypted or not.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

pub(super) type Connection = TokioIo<Box<dyn ByteStream>>;

impl tower::Service<Uri> for Connector {
    type Response = Connection;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, endpoint: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move {
            let opened = tokio::time::timeout(CONNECT_MAX, open(tls, &endpoint)).await;
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
            opened.unwrap_or_else(|_| Err(late())).map(TokioIo::new)
        })
    }
}

async fn open(tls: Option<Arc<ClientConfig>>, endpoint: &Uri) -> io::Result<Box<dyn ByteStream>> {
    let host = endpoint.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host.as_str(), endpoint.port_u16().unwrap_or(PORT))).await?;
    // Requests are small and waited for.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    Ok(Box::new(TlsConnector::from(tls).connect(name, stream).await?))
}
