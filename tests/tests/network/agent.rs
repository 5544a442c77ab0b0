//! An agent of the simulation, with its worker and engine: all of it but the ports of metrics and engine.
//!
//! Expert bytes between nodes go over the loopback of this machine, from threads that block, and take no simulated time:
//! while such a thread is at work, the simulation's clocks stand still. Faults of the network do not reach them.

use super::engine::Traffic;
use super::wire::Simulated;
use evenkeel_agent::apply::Pacer;
use evenkeel_agent::config::Config;
use evenkeel_agent::loads::LoadFeed;
use evenkeel_agent::metrics::AgentMetrics;
use evenkeel_agent::reconcile::Reconciler;
use evenkeel_agent::run::hello;
use evenkeel_agent::session::Shared;
use evenkeel_agent::sessions::Sessions;
use evenkeel_agent::simulated_engine::SimulatedEngine;
use evenkeel_agent::start::{self, State};
use evenkeel_agent::transfer::server;
use evenkeel_agent::work::Workplace;
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_proto::v1;
use evenkeel_transport::observer::Unobserved;
use evenkeel_transport::{Dialler, Incoming, Limits, Port, Security};
use evenkeel_worker::WorkerBackend as _;
use evenkeel_worker::simulated::SimulatedWorker;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::{self, JoinHandle};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// What tests see of an agent; outlives its restarts.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Life>);

#[derive(Default)]
struct Life {
    lives: u64,
    worker: Weak<SimulatedWorker>,
    metrics: Weak<AgentMetrics>,
}

impl Seen {
    /// The plan that its workers serve; `None` while it is down or holds no weights.
    pub(crate) fn active(&self) -> Option<PlanId> {
        self.worker()?.active()
    }

    /// The last step that its engine has run.
    pub(crate) fn steps(&self) -> Option<u64> {
        Some(self.worker()?.last_step()?.step)
    }

    fn worker(&self) -> Option<Arc<SimulatedWorker>> {
        self.0.lock().expect("not poisoned").worker.upgrade()
    }

    /// Commands that it has refused with this code in this life.
    pub(crate) fn refused(&self, code: &'static str) -> u64 {
        let Some(metrics) = self.0.lock().expect("not poisoned").metrics.upgrade() else { return 0 };
        let label = format!("code=\"{code}\"");
        let counted = metrics.render();
        let mut lines =
            counted.lines().filter(|line| line.contains("results_total") && line.contains(&label));
        lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

/// What an agent is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) address: IpAddr,
    pub(crate) security: Security,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) seen: Arc<Seen>,
}

/// One life of an agent.
pub(crate) async fn run(parts: Parts) -> turmoil::Result {
    let Parts { config, address, security, traffic, seen } = parts;
    let opening = config.clone();
    let State { agent, ledger, worker, lock: _lock } =
        spawn_blocking(move || start::open(&opening)).await??;
    let metrics = Arc::new(AgentMetrics::default());
    let life = {
        let mut seen = seen.0.lock().expect("not poisoned");
        *seen = Life {
            lives: seen.lives + 1,
            worker: Arc::downgrade(&worker),
            metrics: Arc::downgrade(&metrics),
        };
        seen.lives
    };
    let weights = start::weights_digest(&config);
    let connections_max = server::CONNECTIONS_MAX;
    let transfers = Transfers::start(server::Serve {
        worker: worker.clone(),
        weights,
        metrics: metrics.clone(),
        connections_max,
    });
    let workplace = Workplace {
        worker: worker.clone(),
        weights,
        pacer: Arc::new(Pacer::new(0)),
        security: Security::Loopback,
        metrics: metrics.clone(),
    };
    let (reconciler, link) = Reconciler::new(agent, ledger, workplace);
    let (_shutdown, stop) = watch::channel(false);
    tokio::spawn(reconciler.run(stop.clone()));
    let loads = Arc::new(LoadFeed::default());
    let engine = SimulatedEngine { worker: worker.clone(), loads: loads.clone(), metrics: metrics.clone() };
    tokio::spawn(traffic.drive(engine, config.shape.clone()));
    // Drawn from what it is, not from the machine: a run is to be the same again.
    let incarnation = life << 32 | u64::from(address_bits(address));
    let hello = v1::Hello { incarnation, ..hello(&config, transfers.address, weights) };
    let dialler = Dialler::new(security, Arc::new(Simulated));
    let shared = Shared { dialler, hello, link, worker, loads, metrics };
    Sessions::new(shared, &config.balancers).run(stop).await;
    Ok(())
}

fn address_bits(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(_) => unreachable!("hosts of the simulation have IPv4 addresses"),
    }
}

/// Serves expert bytes, on this machine's loopback, until it is dropped.
struct Transfers {
    address: SocketAddr,
    running: Option<watch::Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Transfers {
    fn start(serve: server::Serve) -> Self {
        let (running, stop) = watch::channel(false);
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                tell.send(listener.local_addr().expect("bound")).expect("somebody waits");
                let limits = Limits::new(server::CONNECTIONS_MAX);
                let (security, observer) = (Security::Loopback, Arc::new(Unobserved));
                let incoming = Incoming::new(listener, Port::Transfer, security, limits, observer);
                server::run(incoming.expect("bound"), serve, stop).await;
            });
        });
        let address = told.recv().expect("the thread binds a port");
        Self { address, running: Some(running), thread: Some(thread) }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        drop(self.running.take());
        // Nothing of this life is to be left when the next begins. That it panicked is seen by who fetches.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
