//! Puts the agent together: listeners, state, tasks.

use crate::apply::Pacer;
use crate::config::Config;
use crate::failure::Failure;
use crate::ledger::replace;
use crate::loads::LoadFeed;
use crate::metrics::{self, AgentMetrics};
use crate::reconcile::Reconciler;
use crate::security;
use crate::session::Shared;
use crate::sessions::Sessions;
use crate::simulated_engine::SimulatedEngine;
use crate::start::{self, State};
use crate::transfer::{WeightsDigest, server};
use crate::work::Workplace;
use evenkeel_proto::v1::simulated_engine_service_server::SimulatedEngineServiceServer;
use evenkeel_proto::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, v1};
use evenkeel_transport::authorise::Authorise;
use evenkeel_transport::{Incoming, Port, Security, reload};
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where a running agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// /metrics and /healthz.
    pub metrics: SocketAddr,
    /// Expert bytes.
    pub transfer: SocketAddr,
    /// The simulated engine.
    pub engine: SocketAddr,
}

impl Ports {
    /// One line of JSON, with the process id.
    pub fn to_json(&self) -> String {
        serde_json::json!({
            "metrics": self.metrics.to_string(),
            "transfer": self.transfer.to_string(),
            "engine": self.engine.to_string(),
            "pid": std::process::id(),
        })
        .to_string()
    }
}

/// A running agent. Dropping it stops it as a crash would.
#[derive(Debug)]
pub struct Running {
    ports: Ports,
    shutdown: watch::Sender<bool>,
    tasks: JoinSet<Result<(), Failure>>,
    ports_file: PathBuf,
    _lock: File,
}

struct Listeners {
    metrics: TcpListener,
    transfer: TcpListener,
    engine: TcpListener,
}

impl Listeners {
    /// Binds all ports before anything else happens, so that a port in use leaves nothing behind.
    async fn bind(config: &Config) -> Result<(Self, Ports), Failure> {
        let (metrics, metrics_at) = bind("metrics", config.metrics).await?;
        let (transfer, transfer_at) = bind("transfer", config.transfer).await?;
        let (engine, engine_at) = bind("engine", config.engine).await?;
        let ports = Ports { metrics: metrics_at, transfer: transfer_at, engine: engine_at };
        Ok((Self { metrics, transfer, engine }, ports))
    }
}

async fn bind(name: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = |error: std::io::Error| {
        let message = format!("--{name} {address}: {error}; use another port, or port 0 for a free one");
        Failure::other("port_unavailable", message)
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Starts an agent. When this returns, everything listens and `ports.json` says where.
pub async fn start(config: Config) -> Result<Running, Failure> {
    let metrics = Arc::new(AgentMetrics::default());
    let security = security::open(&config, &metrics)?;
    let (listeners, ports) = Listeners::bind(&config).await?;
    let opening = config.clone();
    let State { agent, ledger, worker, lock } = tokio::task::spawn_blocking(move || start::open(&opening))
        .await
        .map_err(|error| Failure::other("bug", error))??;
    let weights = start::weights_digest(&config);
    let loads = Arc::new(LoadFeed::default());
    let pacer = Arc::new(Pacer::new(config.transfer_bytes_per_second));
    let incoming = |listener, port| accept(listener, port, &security, &metrics);
    let (security_of_peers, counted) = (security.clone(), metrics.clone());
    let workplace =
        Workplace { worker: worker.clone(), weights, pacer, security: security_of_peers, metrics: counted };
    let (reconciler, link) = Reconciler::new(agent, ledger, workplace);
    let (shutdown, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(until_done(reconciler.run(stop.clone())));
    tasks.spawn(metrics::serve(incoming(listeners.metrics, Port::Metrics), metrics.clone(), stop.clone()));
    let connections_max = server::CONNECTIONS_MAX;
    let serve = server::Serve { worker: worker.clone(), weights, metrics: metrics.clone(), connections_max };
    let transfer = server::run(incoming(listeners.transfer, Port::Transfer), serve, stop.clone());
    tasks.spawn(until_done(transfer));
    let engine = SimulatedEngine { worker: worker.clone(), loads: loads.clone(), metrics: metrics.clone() };
    let gate = Authorise::new(metrics.clone());
    tasks.spawn(serve_engine(incoming(listeners.engine, Port::Engine), gate, engine, stop.clone()));
    tasks.spawn(watch_certificates(security.clone(), metrics.clone(), stop.clone()));
    let hello = hello(&config, ports.transfer, weights);
    let shared = Shared { dialler: security.into(), hello, link, worker, loads, metrics };
    tasks.spawn(until_done(Sessions::new(shared, &config.balancers).run(stop)));
    let ports_file = start::ports_file(&config.state_dir);
    replace(&ports_file, ports.to_json().as_bytes())
        .map_err(|error| Failure::other("state_unwritable", format!("{}: {error}", ports_file.display())))?;
    Ok(Running { ports, shutdown, tasks, ports_file, _lock: lock })
}

/// What an agent of this configuration says of itself in every Hello, when it serves expert bytes at `transfer`.
pub fn hello(config: &Config, transfer: SocketAddr, weights: WeightsDigest) -> v1::Hello {
    v1::Hello {
        cluster: config.cluster.clone(),
        node: config.node.to_string(),
        // Seeded anew in every process and for every instance.
        incarnation: RandomState::new().build_hasher().finish(),
        protocol_min: PROTOCOL_VERSION_MIN,
        protocol_max: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unit: config.unit.to_string(),
        shape: Some((&config.shape).into()),
        ranks: config.ranks.iter().map(|rank| rank.0.into()).collect(),
        weights_digest: weights.to_vec(),
        applied: None,
        term: None,
        transfer_address: config.advertise.clone().unwrap_or_else(|| transfer.to_string()),
    }
}

async fn until_done(task: impl Future<Output = ()>) -> Result<(), Failure> {
    task.await;
    Ok(())
}

fn accept(listener: TcpListener, port: Port, security: &Security, metrics: &Arc<AgentMetrics>) -> Incoming {
    Incoming::new(listener, port, security.clone(), security::limits(port), metrics.clone())
        .expect("a bound listener has an address")
}

async fn watch_certificates(
    security: Security,
    metrics: Arc<AgentMetrics>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    tokio::select! {
        () = reload::watch(security, metrics) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    Ok(())
}

async fn serve_engine(
    incoming: Incoming,
    gate: Authorise,
    engine: SimulatedEngine,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let service = SimulatedEngineServiceServer::new(engine)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server =
        tonic::transport::Server::builder().layer(gate).add_service(service).serve_with_incoming(incoming);
    tokio::select! {
        // Not graceful: a driver keeps its connection open for good.
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        ended = server => ended.map_err(|error| Failure::other("engine_failed", error)),
    }
}

impl Running {
    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Waits until a part of it fails; never returns while all is well.
    pub async fn failed(&mut self) -> Failure {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(failure))) => return failure,
                Some(Err(error)) => return Failure::other("bug", error),
                None => return Failure::other("bug", "every task of the agent has ended"),
            }
        }
    }

    /// Stops it in good order. What is served stays as it is, for the next start.
    pub async fn stop(mut self) {
        self.shutdown.send_replace(true);
        // The slowest part: an HTTP request under way.
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(3), drained).await;
        // Nobody listens any more; if it cannot be removed, a starter finds the dead process id.
        let _ = std::fs::remove_file(&self.ports_file);
    }
}
