//! A server that greets every connection with the name of its other side and echoes what it is told, and its clients.

use super::authority::Authority;
use crate::credentials::Server;
use crate::dial::Dialler;
use crate::fault::{Fault, FaultCode};
use crate::listen::{Incoming, Limits, Port};
use crate::network::Accept;
use crate::observer::Observer;
use crate::security::Security;
use crate::{Connection, TlsFiles};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// All that these tests wait for happens within this time on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const BALANCER: &str = "balancer.c.evenkeel";
pub(super) const AGENT: &str = "n-1.agent.c.evenkeel";
pub(super) const GATEWAY: &str = "gw.gateway.c.evenkeel";

/// What an observer was told, oldest first.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<String>>);

impl Told {
    fn note(&self, what: String) {
        self.0.lock().expect("not poisoned").push(what);
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").clone()
    }

    /// Waits until `what` was told.
    pub(super) async fn wait_for(&self, what: &str) {
        let told = async {
            while !self.all().iter().any(|told| told == what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let heard = tokio::time::timeout(PATIENCE, told).await;
        assert!(heard.is_ok(), "{what} was not told, only {:?}", self.all());
    }
}

impl Observer for Told {
    fn auth_failure(&self, code: &'static str) {
        self.note(code.to_owned());
    }

    fn connection_refused(&self, port: &'static str, code: &'static str) {
        self.note(format!("{port} {code}"));
    }

    fn certificate_expiry(&self, unix_seconds: i64) {
        self.note(format!("ends {unix_seconds}"));
    }

    fn certificate_reload(&self, outcome: &'static str) {
        self.note(outcome.to_owned());
    }
}

/// The first words of a client that says nothing more.
pub(super) fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from("any.example").expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(careless(None)), name).expect("a client");
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).expect("written");
    }
    hello
}

pub(super) struct Stand {
    pub(super) address: SocketAddr,
    pub(super) told: Arc<Told>,
    _tasks: JoinSet<()>,
}

impl Stand {
    pub(super) async fn new(port: Port, security: &Security) -> Self {
        Self::bounded(port, security, Limits::new(64)).await
    }

    pub(super) async fn bounded(port: Port, security: &Security, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Self::over(listener, address, port, security, limits)
    }

    pub(super) fn over(
        source: impl Accept,
        address: SocketAddr,
        port: Port,
        security: &Security,
        limits: Limits,
    ) -> Self {
        let told = Arc::new(Told::default());
        let mut incoming = Incoming::over(source, address, port, security.clone(), limits, told.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            while let Some(connection) = incoming.next_connection().await {
                served.spawn(serve(connection));
            }
        });
        Self { address, told, _tasks: tasks }
    }

    /// What the server calls this client, or how it is refused.
    pub(super) async fn greeting(&self, security: &Security, server: Server) -> Result<String, Fault> {
        Ok(self.connect(security, server).await?.1)
    }

    /// A connection that was greeted.
    pub(super) async fn connect(
        &self,
        security: &Security,
        server: Server,
    ) -> Result<(Connection, String), Fault> {
        let port = self.address.port();
        let mut connection = Dialler::from(security.clone()).open(server, "127.0.0.1", port, None).await?;
        let greeting = line(&mut connection).await.map_err(|e| Fault::of_io(&e))?;
        Ok((connection, greeting))
    }

    /// How a client that does not look at the server's certificate is refused, or greeted.
    pub(super) async fn careless(&self, files: Option<&TlsFiles>) -> Result<String, FaultCode> {
        let mut stream = self.careless_stream(files).await.map_err(|e| Fault::of_io(&e).code)?;
        line(&mut stream).await.map_err(|e| Fault::of_io(&e).code)
    }

    /// What such a client without a certificate is told until the server closes the connection.
    pub(super) async fn careless_until_closed(&self) -> String {
        let mut stream = self.careless_stream(None).await.expect("connected");
        let mut told = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut told)).await;
        // Closed in good order or not: closed.
        let _ = closed.expect("it is closed");
        String::from_utf8(told).expect("text").trim().to_owned()
    }

    async fn careless_stream(&self, files: Option<&TlsFiles>) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from("any.example").expect("a name");
        TlsConnector::from(Arc::new(careless(files))).connect(name, stream).await
    }
}

async fn serve(mut connection: Connection) {
    let greeting = format!("{}\n", connection.peer().principal);
    let mut bytes = [0; 64];
    if connection.write_all(greeting.as_bytes()).await.is_ok() && connection.flush().await.is_ok() {
        while let Ok(count @ 1..) = connection.read(&mut bytes).await {
            if connection.write_all(&bytes[..count]).await.is_err() || connection.flush().await.is_err() {
                return;
            }
        }
    }
}

pub(super) async fn line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let read = async {
        let mut text = String::new();
        loop {
            match stream.read_u8().await? {
                b'\n' => return Ok(text),
                byte => text.push(byte.into()),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("an answer")
}

/// Sends a line and has it back.
pub(super) async fn echo(connection: &mut Connection, text: &str) -> io::Result<String> {
    connection.write_all(format!("{text}\n").as_bytes()).await?;
    connection.flush().await?;
    line(connection).await
}

/// Servers and clients of one cluster.
pub(super) fn cluster() -> (Authority, Security) {
    let authority = Authority::new("one");
    let balancer = authority.security(BALANCER);
    (authority, balancer)
}

fn careless(files: Option<&TlsFiles>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless));
    match files {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(&files.certificate).expect("a file").collect();
            let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
            builder.with_client_auth_cert(chain.expect("certificates"), key).expect("a pair")
        }
    }
}

#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
