//! Connections to others, for tonic: with the certificates in use at that moment, and the name that the other side
//! must have.

use crate::connection::{Connection, PeerInfo};
use crate::credentials::Server;
use crate::fault::{Fault, FaultCode};
use crate::identity::Principal;
use crate::network::{Network, Tcp};
use crate::security::Security;
use crate::verifier::identify;
use http::Uri;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// What went wrong on a channel's connection as far as TLS knows, to be asked after a call has failed: tonic's own
/// errors do not say.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFault(Arc<Mutex<Arc<OnceLock<Fault>>>>);

impl ConnectionFault {
    /// The fault of the last connection, if it had any.
    pub fn get(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get().cloned()
    }

    fn follow(&self, of_connection: Arc<OnceLock<Fault>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = of_connection;
    }
}

/// How others are connected to: over which network, and with which certificates.
#[derive(Debug, Clone)]
pub struct Dialler {
    security: Security,
    network: Arc<dyn Network>,
}

impl From<Security> for Dialler {
    /// Over TCP.
    fn from(security: Security) -> Self {
        Self::new(security, Arc::new(Tcp))
    }
}

/// Opens a channel over TCP: see [`Dialler::connect`].
pub async fn connect(
    security: &Security,
    server: Server,
    address: &str,
    deadline: Duration,
    configure: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<(Channel, ConnectionFault), Fault> {
    Dialler::from(security.clone()).connect(server, address, deadline, configure).await
}

impl Dialler {
    /// Over any network.
    pub fn new(security: Security, network: Arc<dyn Network>) -> Self {
        Self { security, network }
    }

    /// Opens a channel to `address` (`host:port`). `deadline` bounds the whole of it; `configure` sets what else the
    /// endpoint needs.
    pub async fn connect(
        &self,
        server: Server,
        address: &str,
        deadline: Duration,
        configure: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<(Channel, ConnectionFault), Fault> {
        // The scheme says nothing here: the connector decides.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Fault::new(FaultCode::Unreachable, format!("{address:?} is no HOST:PORT: {e}")))?;
        let fault = ConnectionFault::default();
        let connector = Connector { dialler: self.clone(), server, fault: fault.clone() };
        let endpoint = configure(endpoint.connect_timeout(deadline));
        match tokio::time::timeout(deadline, endpoint.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok((channel, fault)),
            Ok(Err(error)) => Err(fault.get().unwrap_or_else(|| of_chain(address, &error))),
            Err(_) => {
                let text = format!("{address}: no connection within {} ms", deadline.as_millis());
                Err(Fault::new(FaultCode::Unreachable, text))
            }
        }
    }

    /// Opens a bare connection to `address` (`host:port`) and closes it: whether anything listens there.
    pub async fn knock(&self, address: &str) -> io::Result<()> {
        let named = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let Some((host, port)) = named else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no HOST:PORT"));
        };
        self.network.connect(bare(host), port).await.map(drop)
    }

    /// Opens one connection.
    pub(crate) async fn open(
        &self,
        server: Server,
        host: &str,
        port: u16,
        alpn: Option<&[u8]>,
    ) -> Result<Connection, Fault> {
        let at = |text: &dyn std::fmt::Display| format!("{host}:{port}: {text}");
        let unreachable = |e: io::Error| Fault::new(FaultCode::Unreachable, at(&e));
        let (wire, address) = self.network.connect(host, port).await.map_err(unreachable)?;
        let Security::Tls(credentials) = &self.security else {
            // A name may lead anywhere.
            self.security.check_target("the address", &address.to_string())?;
            let local = address.ip().is_loopback();
            let principal = if local { Principal::Loopback } else { Principal::Plaintext };
            return Ok(Connection::plain(wire, PeerInfo { address, principal }, None));
        };
        let (config, name) = credentials.client(server, alpn);
        let stream = TlsConnector::from(config).connect(name, wire).await.map_err(|error| {
            let fault = Fault::of_io(&error);
            Fault { text: at(&fault.text), ..fault }
        })?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate =
            certificates.and_then(<[_]>::first).expect("a server without a certificate is refused");
        let principal = Principal::Peer(identify(certificate, credentials.cluster())?);
        Ok(Connection::tls(stream.into(), PeerInfo { address, principal }, None))
    }
}

/// A host without the brackets that IPv6 addresses have before a port.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The fault that our connector met, or the last cause in words.
fn of_chain(address: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut cause = error;
    loop {
        if let Some(fault) = cause.downcast_ref::<Fault>() {
            return fault.clone();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return Fault::new(FaultCode::Unreachable, format!("{address}: {cause}")),
        }
    }
}

#[derive(Debug, Clone)]
struct Connector {
    dialler: Dialler,
    server: Server,
    fault: ConnectionFault,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Connector { dialler, server, fault } = self.clone();
        Box::pin(async move {
            let host = bare(uri.host().unwrap_or_default());
            let connection = dialler.open(server, host, uri.port_u16().unwrap_or(80), Some(b"h2")).await?;
            fault.follow(connection.fault());
            Ok(TokioIo::new(connection))
        })
    }
}
