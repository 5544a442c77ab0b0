//! `evenkeel serve`: binds every port before anything starts, runs until told to stop, and stops in order.

use crate::config::Config;
use crate::control_loop::{ControlLoop, EVENTS_MAX, Event, Query};
use crate::decision_log::{Recorder, RecorderError};
use crate::election::{Election, Peers};
use crate::grpc::admin::Admin;
use crate::grpc::agents::Agents;
use crate::grpc::routing::Routing;
use crate::records::settings::OpenError;
use crate::records::{self, Store};
use crate::routing::Routers;
use crate::{grpc, http, metrics, security};
use evenkeel_proto::v1::admin_service_server::AdminServiceServer;
use evenkeel_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use evenkeel_proto::v1::peer_service_server::PeerServiceServer;
use evenkeel_proto::v1::routing_service_server::RoutingServiceServer;
use evenkeel_proto::{DESCRIPTOR_SET, MESSAGE_BYTES_MAX};
use evenkeel_transport::authorise::Authorise;
use evenkeel_transport::{Fault, Incoming, Observer, Port, Security, reload};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::service::Routes;

/// After the order to stop, open streams get this long to end before they are cut.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why the balancer does not run. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port that is taken or may not be used.
    #[error("{key} {address}: {source}; choose another address or stop the program that uses it")]
    Bind {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// Certificates that cannot be used, or a port that others could reach in plaintext.
    #[error("{}", _0.message())]
    Security(#[from] Fault),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Requests cannot be recorded.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// The metrics recorder is there already: two balancers in one process.
    #[error("metrics: {0}")]
    Metrics(String),
    /// A server stopped by itself.
    #[error("the {what} server stopped: {reason}")]
    Server {
        /// Which one.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A bug: the control loop panicked.
    #[error("the control loop stopped: {0}")]
    ControlLoop(String),
}

impl ServeError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            ServeError::Bind { .. } => "port_unavailable",
            ServeError::Security(fault) => fault.code.as_str(),
            ServeError::Store(e) => e.code(),
            ServeError::Recorder(_) => "recorder_unavailable",
            ServeError::Metrics(_) => "metrics_unavailable",
            ServeError::Server { .. } => "server_stopped",
            ServeError::ControlLoop(_) => "control_loop_stopped",
        }
    }
}

/// The addresses really bound, for configurations with port 0.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bound {
    /// Agents' stream.
    pub agents: SocketAddr,
    /// Admin and routing gRPC.
    pub admin: SocketAddr,
    /// Metrics and page.
    pub metrics: SocketAddr,
}

/// Serves until `stop` completes. `ready` is called once, when every port answers.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(&Bound),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let security = security::open(&config)?;
    let agents_port = bind("agents_listen", config.agents_listen)?;
    let admin_port = bind("admin_listen", config.admin_listen)?;
    let metrics_port = bind("metrics_listen", config.metrics_listen)?;
    let local = |l: &TcpListener| l.local_addr().expect("a bound listener has an address");
    let bound =
        Bound { agents: local(&agents_port), admin: local(&admin_port), metrics: local(&metrics_port) };
    let identity = config.identity(bound.agents, bound.admin);
    let recorder = metrics::install().map_err(|e| ServeError::Metrics(e.to_string()))?;
    let observer = security::observe(&security);
    let listen = |listener, port| {
        let limits = security::limits(port, &config);
        Incoming::new(listener, port, security.clone(), limits, observer.clone())
            .expect("a bound listener has an address")
    };
    let agents_port = listen(agents_port, Port::Agents);
    let admin_port = listen(admin_port, Port::Admin);
    let metrics_port = listen(metrics_port, Port::Metrics);
    let store: Arc<dyn Store> =
        records::open(&config.store, &config.state_dir, &config.cluster, config.insecure_plaintext)?;
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let recording = !config.routing.record.as_os_str().is_empty();
    let recording = recording.then(|| Recorder::begin(&config.routing)).transpose()?;
    let (decisions, recorder_thread) = recording.unzip();
    let routers = Arc::new(Routers::new(config.routing.policy(), decisions));
    let (standing, election) = Election::start(Arc::clone(&store), identity, security.clone());
    let prepare_timeout = Duration::from_millis(config.control.prepare_timeout_ms);
    let control = ControlLoop::new(
        config,
        Arc::clone(&store),
        Arc::clone(&routers),
        events.clone(),
        standing,
        election.clone(),
    );
    let admin = Admin::new(events.clone(), store, election.clone(), prepare_timeout);

    let (stopping, stopped) = watch::channel(false);
    let mut loop_task = tokio::spawn(control.run(queue));
    let mut servers = tokio::task::JoinSet::new();
    let (gate, agents) = (Authorise::new(observer.clone()), Agents::new(events.clone(), observer.clone()));
    servers.spawn(serve_agents(agents_port, gate.clone(), agents, election.peers(), stopped.clone()));
    servers.spawn(serve_admin(admin_port, gate, admin.clone(), Routing::new(routers), stopped.clone()));
    servers.spawn(http::serve(
        metrics_port,
        recorder,
        admin,
        election.clone(),
        observer.clone(),
        stopped.clone(),
    ));
    servers.spawn(watch_certificates(security, observer, stopped));
    ready(&bound);

    let outcome = tokio::select! {
        () = stop => Ok(()),
        ended = &mut loop_task => Err(match ended {
            Ok(()) => ServeError::ControlLoop("without being told to".to_owned()),
            Err(panic) => ServeError::ControlLoop(panic.to_string()),
        }),
        Some(ended) = servers.join_next() => Err(server_error(ended)),
    };
    tracing::info!("stopping");
    // First, so that a standby leads while this process still ends its streams.
    election.stop().await;
    if outcome.is_ok() {
        let (done, stopped) = oneshot::channel();
        // The drop of the loop ends the agents' streams, and they keep serving their last plan.
        if events.send(Event::Query(Query::Stop(done))).await.is_ok() {
            let _ = tokio::time::timeout(STOP_DEADLINE, stopped).await;
        }
    }
    let _ = stopping.send(true);
    let ended = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
        tracing::warn!("open streams were cut");
    }
    if let Some(thread) = recorder_thread {
        // A disk that stands still must not keep the balancer from stopping.
        let stopped = tokio::task::spawn_blocking(move || thread.stop());
        if tokio::time::timeout(STOP_DEADLINE, stopped).await.is_err() {
            tracing::warn!("the last decisions are not recorded: the disk does not keep up");
        }
    }
    outcome
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    listen(address).map_err(|source| ServeError::Bind { key, address, source })
}

/// Connections that may wait to be accepted; the kernel takes no more than its `net.core.somaxconn` (4096 as a rule). Ten thousand
/// agents come back at once when a leader is lost: one that finds the queue full tries again after 1, 2, 4, 8 s, by TCP's own clock.
const BACKLOG: u32 = 16_384;

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As a restart needs it: connections of the process before may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn server_error(ended: Result<Result<(), ServeError>, tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(Err(e)) => e,
        Ok(Ok(())) => ServeError::Server { what: "unknown", reason: "without being told to".to_owned() },
        Err(panic) => ServeError::Server { what: "unknown", reason: panic.to_string() },
    }
}

/// Completes when the balancer stops.
pub(crate) async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn watch_certificates(
    security: Security,
    observer: Arc<dyn Observer>,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    tokio::select! {
        () = reload::watch(security, observer) => {}
        () = until_stopped(stopped) => {}
    }
    Ok(())
}

/// Serves the agents' port, which other balancers use too, until `stopped`.
pub async fn serve_agents(
    port: Incoming,
    gate: Authorise,
    agents: impl AgentService,
    peers: Peers,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let service = AgentServiceServer::new(agents)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    grpc::server()
        .layer(gate)
        .add_service(service)
        .add_service(PeerServiceServer::new(peers))
        .serve_with_incoming_shutdown(port, until_stopped(stopped))
        .await
        .map_err(|e| ServeError::Server { what: "agents", reason: e.to_string() })
}

async fn serve_admin(
    port: Incoming,
    gate: Authorise,
    admin: Admin,
    routing: Routing,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AdminServiceServer<Admin>>().await;
    reporter.set_serving::<RoutingServiceServer<Routing>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().expect("our own descriptor set is well-formed");
    let v1alpha = reflection().build_v1alpha().expect("our own descriptor set is well-formed");
    let admin = AdminServiceServer::new(admin).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routing = RoutingServiceServer::new(routing).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let routes = Routes::new(admin).add_service(routing).add_service(health);
    let routes = routes.add_service(v1).add_service(v1alpha);
    grpc::server()
        .layer(gate)
        .add_routes(routes)
        .serve_with_incoming_shutdown(port, until_stopped(stopped))
        .await
        .map_err(|e| ServeError::Server { what: "admin", reason: e.to_string() })
}
