//! A balancer of the simulation: all of it but the ports of operators and metrics.

use super::store::StoreClient;
use super::wire::{Listener, Simulated};
use evenkeel::config::Config;
use evenkeel::control_loop::{ControlLoop, EVENTS_MAX, Event, Query};
use evenkeel::election::{Election, Standing};
use evenkeel::grpc::agents::Agents;
use evenkeel::records::Store;
use evenkeel::routing::Routers;
use evenkeel::serve::serve_agents;
use evenkeel_core::ids::Term;
use evenkeel_proto::v1::agent_service_server::AgentService;
use evenkeel_proto::v1::{self, GetStatusResponse, PlanPhase, SyncRequest, SyncResponse, sync_response};
use evenkeel_transport::authorise::Authorise;
use evenkeel_transport::observer::Unobserved;
use evenkeel_transport::{Dialler, Incoming, Limits, PeerInfo, Port, Security};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// Where agents and other balancers connect.
pub(crate) const PORT: u16 = 7400;
/// How often a balancer is asked for its status.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Connections at once: a few hosts, with those that are not yet known to be dead.
const CONNECTIONS_MAX: usize = 64;

/// An order as it was handed to a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ordered {
    /// The node's address.
    pub(crate) agent: IpAddr,
    pub(crate) term: Term,
    pub(crate) phase: PlanPhase,
    pub(crate) id: Option<v1::PlanId>,
}

/// What tests see of a balancer; outlives its restarts.
#[derive(Default)]
pub(crate) struct Seen {
    status: Mutex<Option<(GetStatusResponse, Standing)>>,
    ordered: Mutex<Vec<Ordered>>,
}

impl Seen {
    /// As it was asked last in this life; `None` while it is down.
    pub(crate) fn status(&self) -> Option<(GetStatusResponse, Standing)> {
        self.status.lock().expect("not poisoned").clone()
    }

    pub(crate) fn down(&self) {
        *self.status.lock().expect("not poisoned") = None;
    }

    /// All orders of all its lives, oldest first.
    pub(crate) fn ordered(&self) -> Vec<Ordered> {
        self.ordered.lock().expect("not poisoned").clone()
    }

    fn note(&self, ordered: Ordered) {
        self.ordered.lock().expect("not poisoned").push(ordered);
    }
}

/// What a balancer is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) address: IpAddr,
    pub(crate) security: Security,
    pub(crate) store: StoreClient,
    pub(crate) seen: Arc<Seen>,
}

/// One life of a balancer.
pub(crate) async fn run(parts: Parts) -> turmoil::Result {
    let Parts { config, address, security, store, seen } = parts;
    let agents_at = SocketAddr::new(address, PORT);
    let incoming = Incoming::over(
        Listener::bind(PORT).await?,
        agents_at,
        Port::Agents,
        security.clone(),
        Limits::new(CONNECTIONS_MAX),
        Arc::new(Unobserved),
    );
    let identity = config.identity(agents_at, SocketAddr::new(address, PORT + 1));
    let store: Arc<dyn Store> = Arc::new(store);
    let dialler = Dialler::new(security, Arc::new(Simulated));
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let routers = Arc::new(Routers::unrecorded(config.routing.policy()));
    let (standing, election) = Election::start(store.clone(), identity, dialler);
    let control =
        ControlLoop::new(config, store, routers, events.clone(), standing.clone(), election.clone());
    tokio::spawn(control.run(queue));
    tokio::spawn(look(events.clone(), standing, seen.clone()));
    let agents = Overheard { agents: Agents::new(events, Arc::new(Unobserved)), seen };
    let (_stop, stopped) = watch::channel(false);
    let gate = Authorise::new(Arc::new(Unobserved));
    serve_agents(incoming, gate, agents, election.peers(), stopped).await?;
    Ok(())
}

async fn look(events: mpsc::Sender<Event>, standing: watch::Receiver<Standing>, seen: Arc<Seen>) {
    loop {
        let (reply, answer) = oneshot::channel();
        let asked = events.send(Event::Query(Query::Status(reply))).await;
        asked.expect("the control loop runs");
        let status = answer.await.expect("the control loop runs");
        let stands = standing.borrow().clone();
        *seen.status.lock().expect("not poisoned") = Some((status, stands));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The service of the balancer, whose orders are written down on their way out.
struct Overheard {
    agents: Agents,
    seen: Arc<Seen>,
}

#[tonic::async_trait]
impl AgentService for Overheard {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let agent = request.extensions().get::<PeerInfo>().expect("told by the transport").address.ip();
        let seen = self.seen.clone();
        let stream = self.agents.sync(request).await?.into_inner().map(move |response| {
            if let Ok(SyncResponse { message: Some(sync_response::Message::Plan(plan)) }) = &response {
                let term = plan.term.expect("every order has a term").into();
                seen.note(Ordered { agent, term, phase: plan.phase(), id: plan.id.clone() });
            }
            response
        });
        Ok(Response::new(Box::pin(stream)))
    }
}
