//! Accepted connections. Handshakes run beside each other, each until a deadline; connections and handshakes are
//! bounded; a peer that is slow or silent holds up nobody, and an accept that fails is tried again after a pause.
//!
//! A connection waits for its client's whole ClientHello before it takes one of the handshakes. Whoever only opens
//! connections, or says a byte now and then, holds a place among the connections and nothing else.

use crate::connection::{Connection, PeerInfo};
use crate::credentials::Credentials;
use crate::fault::{Fault, FaultCode};
use crate::identity::{PeerRole, Principal};
use crate::network::{Accept, AnyWire};
use crate::observer::Observer;
use crate::security::Security;
use crate::slots::{Slot, Slots};
use crate::verifier::identify;
use rustls::server::Acceptor as Acceptance;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

/// The ports of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Agents' stream.
    Agents,
    /// Admin and routing gRPC.
    Admin,
    /// Metrics, probes and page, of balancers and agents.
    Metrics,
    /// Expert bytes between agents.
    Transfer,
    /// An agent's simulated engine.
    Engine,
}

impl Port {
    /// All of them.
    pub const ALL: [Port; 5] = [Port::Agents, Port::Admin, Port::Metrics, Port::Transfer, Port::Engine];

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Port::Agents => "agents",
            Port::Admin => "admin",
            Port::Metrics => "metrics",
            Port::Transfer => "transfer",
            Port::Engine => "engine",
        }
    }

    /// The protocol inside TLS: a client that means another port is told so.
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Port::Agents | Port::Admin | Port::Engine => b"h2",
            Port::Metrics => b"http/1.1",
            Port::Transfer => TRANSFER_ALPN,
        }
    }

    /// A kubelet that probes shows no certificate. All that it may see are the probes: see [`crate::http`].
    pub(crate) fn certificate_is_optional(self) -> bool {
        self == Port::Metrics
    }

    /// Calls of gRPC and HTTP are authorised one by one; transfers are for agents as a whole.
    pub(crate) fn admits(self) -> fn(PeerRole) -> bool {
        match self {
            Port::Transfer => |role| role == PeerRole::Agent,
            _ => |_| true,
        }
    }
}

/// The protocol of transfers inside TLS.
pub(crate) const TRANSFER_ALPN: &[u8] = b"evenkeel-transfer/1";

/// Bounds of a port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all, handshakes under way included.
    pub connections_max: usize,
    /// Connections of one peer address that is not loopback.
    pub per_peer_max: usize,
    /// How long a client may take to say its ClientHello.
    pub hello_max: Duration,
    /// Handshakes under way whose ClientHello has been read.
    pub handshakes_max: usize,
    /// How long a handshake may take from there.
    pub handshake_max: Duration,
    /// How long a connection may last whose client has shown no certificate.
    pub anonymous_max: Duration,
}

impl Limits {
    /// For a port that is meant for so many connections.
    pub fn new(connections_max: usize) -> Self {
        Self {
            connections_max,
            // Nodes behind one address translation, or a gateway with its pools; never the whole port.
            per_peer_max: (connections_max / 4).clamp(16, 256),
            // The first words of a connection: one round trip, and a lost packet or two.
            hello_max: Duration::from_secs(5),
            // A handshake holds about 30 kB: 30 MB. On two cores these are done in half a second.
            handshakes_max: 1024,
            // A round trip, a lost packet, and half a millisecond of arithmetic after those of all others.
            handshake_max: Duration::from_secs(5),
            // Ten times what a kubelet waits for its probe. Nobody holds a place here for longer who is not known.
            anonymous_max: Duration::from_secs(10),
        }
    }
}

/// Who waits longer for one of the handshakes is let go: clients give up before.
const TURN_MAX: Duration = Duration::from_secs(30);
/// A client that speaks no TLS gets this long to read that it should, and so many reads for what it says meanwhile.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_READS_MAX: u32 = 64;
/// Connections that are ready and wait for the server to take them.
const READY_MAX: usize = 64;
/// Waits after an accept that failed, most likely for want of descriptors: from the first, doubling to the last.
const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE_LAST: Duration = Duration::from_secs(1);
/// A refused connection is logged at most this often: whoever scans ports must not fill the disk.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Connections to serve, as a stream for tonic and a listener for axum. Dropping it closes the port.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
    _acceptor: JoinSet<()>,
}

impl Incoming {
    /// Serves `listener` from now on.
    pub fn new(
        listener: TcpListener,
        port: Port,
        security: Security,
        limits: Limits,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self::over(listener, address, port, security, limits, observer))
    }

    /// Serves what `source` accepts at `address` from now on.
    pub fn over(
        source: impl Accept,
        address: SocketAddr,
        port: Port,
        security: Security,
        limits: Limits,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let (sender, ready) = mpsc::channel(READY_MAX);
        let slots = Slots::new(limits.connections_max, limits.per_peer_max);
        let turns = Arc::new(Semaphore::new(limits.handshakes_max));
        let last_logged = None;
        let acceptor =
            Acceptor { port, security, limits, observer, slots, turns, ready: sender, last_logged };
        let mut tasks = JoinSet::new();
        tasks.spawn(acceptor.run(source));
        Self { ready, address, _acceptor: tasks }
    }

    /// The next connection; `None` only when the acceptor panicked.
    pub async fn next_connection(&mut self) -> Option<Connection> {
        self.ready.recv().await
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connection = self.ready.recv().await.expect("the acceptor runs as long as this exists");
        let address = connection.peer().address;
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

struct Acceptor {
    port: Port,
    security: Security,
    limits: Limits,
    observer: Arc<dyn Observer>,
    slots: Arc<Slots>,
    turns: Arc<Semaphore>,
    ready: mpsc::Sender<Connection>,
    last_logged: Option<Instant>,
}

/// What became of a handshake.
type Outcome = (SocketAddr, Result<(), Fault>);

impl Acceptor {
    async fn run(mut self, mut source: impl Accept) {
        // Bounded by the connections.
        let mut handshakes = JoinSet::new();
        let mut pause = ACCEPT_PAUSE_FIRST;
        loop {
            let accepted = tokio::select! {
                accepted = source.accept() => accepted,
                Some(ended) = handshakes.join_next() => {
                    self.ended(ended);
                    continue;
                }
            };
            match accepted {
                Ok((wire, peer)) => {
                    pause = ACCEPT_PAUSE_FIRST;
                    self.accepted(wire, peer, &mut handshakes).await;
                }
                // The peer's own doing: it went away again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.refuse("accept_failed", &error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE_LAST);
                }
            }
        }
    }

    async fn accepted(&mut self, wire: AnyWire, peer: SocketAddr, handshakes: &mut JoinSet<Outcome>) {
        let slot = match self.slots.take(peer.ip()) {
            Ok(slot) => slot,
            Err(full) => return self.refuse(full.code(), &peer),
        };
        match &self.security {
            Security::Tls(credentials) => {
                let credentials = credentials.clone();
                let (port, limits) = (self.port, self.limits);
                let (turns, ready) = (Arc::clone(&self.turns), self.ready.clone());
                let handshake = Handshake { credentials, port, limits, turns, ready };
                handshakes.spawn(handshake.run(wire, peer, slot));
            }
            plaintext => {
                let local = peer.ip().to_canonical().is_loopback();
                debug_assert!(local || matches!(plaintext, Security::Plaintext), "refused at start");
                let principal = if local { Principal::Loopback } else { Principal::Plaintext };
                let peer = PeerInfo { address: peer, principal };
                let _ = self.ready.send(Connection::plain(wire, peer, Some(slot))).await;
            }
        }
    }

    fn ended(&mut self, ended: Result<Outcome, tokio::task::JoinError>) {
        match ended {
            Ok((_, Ok(()))) => {}
            Ok((peer, Err(fault))) => {
                self.observer.auth_failure(fault.code.as_str());
                let (port, code, reason) = (self.port.as_str(), fault.code.as_str(), fault.message());
                if self.may_log() {
                    tracing::warn!(port, %peer, code, reason, "connection refused");
                }
            }
            Err(error) => tracing::error!(%error, "a handshake panicked"),
        }
    }

    fn refuse(&mut self, code: &'static str, what: &dyn std::fmt::Display) {
        self.observer.connection_refused(self.port.as_str(), code);
        if self.may_log() {
            tracing::warn!(port = self.port.as_str(), code, %what, "connection refused");
        }
    }

    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.last_logged.is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        if may {
            self.last_logged = Some(now);
        }
        may
    }
}

/// One handshake.
struct Handshake {
    credentials: Arc<Credentials>,
    port: Port,
    limits: Limits,
    turns: Arc<Semaphore>,
    ready: mpsc::Sender<Connection>,
}

impl Handshake {
    /// Up to the server's taking the connection.
    async fn run(self, wire: AnyWire, peer: SocketAddr, slot: Slot) -> Outcome {
        let outcome = match self.shake(wire).await {
            Ok((stream, principal)) => {
                let anonymous = principal == Principal::Anonymous;
                let connection = Connection::tls(stream, PeerInfo { address: peer, principal }, Some(slot));
                let ends = || Instant::now() + self.limits.anonymous_max;
                let connection = if anonymous { connection.until(ends()) } else { connection };
                // Fails when the server is gone, and so is this task then.
                let _ = self.ready.send(connection).await;
                Ok(())
            }
            Err(fault) => Err(fault),
        };
        (peer, outcome)
    }

    async fn shake(&self, wire: AnyWire) -> Result<(TlsStream<AnyWire>, Principal), Fault> {
        let mut opening = LazyConfigAcceptor::new(Acceptance::default(), wire);
        let hello = match within(self.limits.hello_max, "no ClientHello", &mut opening).await? {
            Ok(hello) => hello,
            Err(error) => {
                if let Some(stream) = opening.take_io() {
                    let _ = tokio::time::timeout(LINGER_MAX, linger(stream)).await;
                }
                return Err(Fault::of_io(&error));
            }
        };
        let turn = within(TURN_MAX, "no turn for the handshake", self.turns.acquire()).await?;
        let _turn = turn.expect("it is never closed");
        let rest = hello.into_stream(self.credentials.server(self.port));
        let stream = within(self.limits.handshake_max, "no end of the handshake", rest).await?;
        let stream = stream.map_err(|e| Fault::of_io(&e))?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let principal = match certificate {
            Some(certificate) => Principal::Peer(identify(certificate, self.credentials.cluster())?),
            None => Principal::Anonymous,
        };
        Ok((stream.into(), principal))
    }
}

/// Ends a connection so that the other side reads the alert: what it still sends to a closed socket would be answered with a
/// reset, and its next write would fail before it has read anything.
async fn linger(mut stream: AnyWire) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = [0; 1024];
    for _ in 0..LINGER_READS_MAX {
        if stream.read(&mut unread).await? == 0 {
            break;
        }
    }
    Ok(())
}

async fn within<T>(limit: Duration, what: &str, step: impl Future<Output = T>) -> Result<T, Fault> {
    let late = |_| Fault::new(FaultCode::HandshakeTimeout, format!("{what} within {} ms", limit.as_millis()));
    tokio::time::timeout(limit, step).await.map_err(late)
}
