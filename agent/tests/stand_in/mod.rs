#![allow(dead_code, unreachable_pub, missing_docs, clippy::new_without_default)]
//! A stand-in for the balancer: it accepts streams and leaves every decision to the test. All waits have a
//! deadline, so a test that would hang fails instead.

use evenkeel_agent::config::{self, Config, Request};
use evenkeel_agent::run::{self, Running};
use evenkeel_core::ids::{NodeId, Rank, Term, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::topology::{Role, UnitShape, UnitTopology};
use evenkeel_proto::v1;
use evenkeel_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use evenkeel_proto::v1::simulated_engine_service_client::SimulatedEngineServiceClient;
use evenkeel_proto::v1::sync_request::Message as In;
use evenkeel_proto::v1::sync_response::Message as Out;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status, Streaming};

/// No step of a test takes a second; the rest is for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

type Outgoing = mpsc::Sender<Result<v1::SyncResponse, Status>>;

struct Accept(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AgentService for Accept {
    type SyncStream = ReceiverStream<Result<v1::SyncResponse, Status>>;

    async fn sync(
        &self,
        request: tonic::Request<Streaming<v1::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (out, outgoing) = mpsc::channel(16);
        let stream = Stream { inbound: request.into_inner(), out };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Accepts streams of agents.
pub struct Balancer {
    pub address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    server: tokio::task::JoinHandle<()>,
}

impl Balancer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(16);
        let server = tokio::spawn(async move {
            let service = AgentServiceServer::new(Accept(sender));
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self { address, streams, server }
    }

    /// The next stream and the Hello on it.
    pub async fn accept(&mut self) -> (Stream, v1::Hello) {
        let mut stream = timeout(PATIENCE, self.streams.recv()).await.expect("an agent connects").unwrap();
        match stream.receive().await {
            In::Hello(hello) => (stream, hello),
            other => panic!("{other:?} before Hello"),
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One agent's stream.
pub struct Stream {
    inbound: Streaming<v1::SyncRequest>,
    out: Outgoing,
}

impl Stream {
    async fn receive(&mut self) -> In {
        let message = timeout(PATIENCE, self.inbound.message()).await.expect("the agent says something");
        message.expect("the stream is up").expect("the stream is open").message.expect("a known message")
    }

    pub async fn send(&self, message: Out) {
        self.out.send(Ok(v1::SyncResponse { message: Some(message) })).await.expect("the stream is open");
    }

    /// Welcome of a leader.
    pub async fn welcome(&self, revision: u64, boot_plan: Option<&Plan>) {
        let boot_plan = boot_plan.map(Into::into);
        let role = v1::BalancerRole::Leader.into();
        self.send(Out::Welcome(v1::Welcome { boot_plan, role, ..welcome(revision) })).await;
    }

    /// Welcome of a balancer that leads or not.
    pub async fn welcome_as(&self, role: v1::BalancerRole, revision: u64) {
        self.send(Out::Welcome(v1::Welcome { role: role.into(), ..welcome(revision) })).await;
    }

    /// Welcome in a version, which says no role in version 1.
    pub async fn welcome_in(&self, protocol: u32) {
        self.send(Out::Welcome(v1::Welcome { protocol, ..welcome(1) })).await;
    }

    /// The next Hello on this stream.
    pub async fn hello(&mut self) -> v1::Hello {
        loop {
            if let In::Hello(hello) = self.receive().await {
                return hello;
            }
        }
    }

    /// The next event.
    pub async fn event(&mut self) -> v1::Event {
        loop {
            if let In::Event(event) = self.receive().await {
                return event;
            }
        }
    }

    /// Orders to stage, with the plan as these chunks.
    pub async fn prepare_chunked(
        &self,
        revision: u64,
        unit: &Unit,
        node: usize,
        base: &Plan,
        plan: &Plan,
        chunks: impl Iterator<Item = v1::PlanChunk>,
    ) {
        let whole = unit.prepare(revision, node, base, plan);
        for chunk in chunks {
            let content = Some(chunk);
            self.send(Out::Plan(v1::PlanCommand { plan: None, content, ..whole.clone() })).await;
        }
    }

    /// The next answer; reports and pings are skipped.
    pub async fn result(&mut self) -> v1::PlanResult {
        loop {
            if let In::Result(result) = self.receive().await {
                return result;
            }
        }
    }

    /// The next answer, which must have this outcome.
    pub async fn expect(&mut self, outcome: v1::PlanOutcome) -> v1::PlanResult {
        let result = self.result().await;
        assert_eq!(result.outcome(), outcome, "{result:?}");
        result
    }

    /// The next report that has segments.
    pub async fn segments(&mut self) -> Vec<v1::LoadSegment> {
        loop {
            if let In::Report(report) = self.receive().await
                && !report.segments.is_empty()
            {
                return report.segments;
            }
        }
    }

    /// The gauges of the next report that has some.
    pub async fn gauges(&mut self) -> Vec<v1::RankGauges> {
        loop {
            if let In::Report(report) = self.receive().await
                && !report.gauges.is_empty()
            {
                return report.gauges;
            }
        }
    }

    /// Waits for the agent to close the stream.
    pub async fn closed(&mut self) {
        let end = async { while let Ok(Some(_)) = self.inbound.message().await {} };
        timeout(PATIENCE, end).await.expect("the agent closes the stream");
    }

    /// Orders to stage within `deadline_ms`.
    pub async fn prepare_within(&self, deadline_ms: u32, unit: &Unit, node: usize, base: &Plan, plan: &Plan) {
        let command = v1::PlanCommand { deadline_ms, ..unit.prepare(1, node, base, plan) };
        self.send(Out::Plan(command)).await;
    }

    pub async fn prepare(&self, revision: u64, unit: &Unit, node: usize, base: &Plan, plan: &Plan) {
        self.send(Out::Plan(unit.prepare(revision, node, base, plan))).await;
    }

    pub async fn commit(&self, revision: u64, plan: &Plan) {
        let mut command = command(revision, plan);
        command.set_phase(v1::PlanPhase::Commit);
        self.send(Out::Plan(command)).await;
    }

    pub async fn abort(&self, revision: u64, plan: &Plan) {
        let mut command = command(revision, plan);
        command.set_phase(v1::PlanPhase::Abort);
        self.send(Out::Plan(command)).await;
    }
}

fn welcome(revision: u64) -> v1::Welcome {
    v1::Welcome {
        term: Some(term(revision)),
        protocol: evenkeel_proto::PROTOCOL_VERSION,
        window_steps: 4,
        report_interval_ms: 20,
        ping_interval_ms: 1000,
        silence_limit_ms: 60_000,
        ..v1::Welcome::default()
    }
}

pub fn term(revision: u64) -> v1::Term {
    Term { generation: 0, revision }.into()
}

fn command(revision: u64, plan: &Plan) -> v1::PlanCommand {
    v1::PlanCommand {
        term: Some(term(revision)),
        id: Some(id(plan)),
        deadline_ms: 20_000,
        ..v1::PlanCommand::default()
    }
}

pub fn id(plan: &Plan) -> v1::PlanId {
    (plan.epoch, plan.digest()).into()
}

/// A unit of two nodes with two ranks each, and its agents' state directories.
pub struct Unit {
    pub topology: UnitTopology,
    pub directories: [tempfile::TempDir; 2],
    pub transfer: [String; 2],
}

impl Unit {
    pub fn new() -> Self {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 6,
            top_k: 2,
            ranks: 4,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 100,
        };
        let claims = BTreeMap::from([
            (NodeId::new("n0").unwrap(), vec![Rank(0), Rank(1)]),
            (NodeId::new("n1").unwrap(), vec![Rank(2), Rank(3)]),
        ]);
        let topology = UnitTopology::new(UnitId::new("u").unwrap(), shape, &claims).unwrap();
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        Self { topology, directories, transfer: Default::default() }
    }

    /// `0 1 - 2 3 - | 4 5 - 0 1 -` in both layers.
    pub fn boot(&self) -> Plan {
        Plan::boot(self.topology.unit().clone(), self.topology.shape())
    }

    /// The child of `base` with this first layer.
    pub fn child(&self, base: &Plan, first: &str) -> Plan {
        let slots = first.split_whitespace().map(|s| s.parse().ok().map(evenkeel_core::ids::ExpertId));
        let mut layers = base.layers.clone();
        layers[0] = LayerPlan::even(slots.collect(), 6);
        base.child(layers)
    }

    fn prepare(&self, revision: u64, node: usize, base: &Plan, plan: &Plan) -> v1::PlanCommand {
        let node_of = |slot: u32| self.topology.node_of(self.topology.shape().rank_of_slot(slot as usize));
        let diff = plan.diff(base, &self.topology);
        let moves = diff.moves.iter().filter(|m| node_of(m.destination) == node).map(|m| v1::SlotMove {
            layer: m.layer.0.into(),
            destination: m.destination,
            expert: m.expert.0.into(),
            source: m.source,
            // The stand-in lists all nodes as peers.
            peer: (node_of(m.source) != node).then_some(node_of(m.source) as u32),
        });
        let mut command = command(revision, plan);
        command.set_phase(v1::PlanPhase::Prepare);
        command.plan = Some(plan.into());
        command.base = Some(id(base));
        command.moves = moves.collect();
        command.peers = self.transfer.to_vec();
        command
    }

    pub fn arguments(&self, node: usize, balancer: SocketAddr) -> String {
        format!(
            "--balancer {balancer} --cluster c --node n{node} --unit u --role decode --layers 2 --experts 6 \
             --top-k 2 --ranks-total 4 --ranks {}-{} --slots-per-rank 2 --spare-per-rank 1 --expert-bytes 100 \
             --weights-seed 5 --state-dir {} --metrics 127.0.0.1:0 --transfer 127.0.0.1:0 --engine 127.0.0.1:0",
            2 * node,
            2 * node + 1,
            self.directories[node].path().display()
        )
    }

    /// Starts an agent in this process.
    pub async fn start(&mut self, node: usize, balancer: SocketAddr) -> Running {
        self.start_paced(node, balancer, 0).await
    }

    /// Starts an agent that stages at most so many bytes a second.
    pub async fn start_paced(&mut self, node: usize, balancer: SocketAddr, pace: u64) -> Running {
        let config = Config { transfer_bytes_per_second: pace, ..self.config(node, balancer) };
        let running = run::start(config).await.expect("the agent starts");
        self.transfer[node] = running.ports().transfer.to_string();
        running
    }

    /// Starts an agent with several balancers.
    pub async fn start_with(&mut self, node: usize, balancers: &[SocketAddr]) -> Running {
        let list: Vec<_> = balancers.iter().map(ToString::to_string).collect();
        self.start_named(node, &list.join(",")).await
    }

    /// Starts an agent with balancers named in this way.
    pub async fn start_named(&mut self, node: usize, balancers: &str) -> Running {
        let list = balancers.split(',').map(str::to_owned).collect();
        let config = Config { balancers: list, ..self.config(node, "127.0.0.1:1".parse().unwrap()) };
        let running = run::start(config).await.expect("the agent starts");
        self.transfer[node] = running.ports().transfer.to_string();
        running
    }

    pub fn config(&self, node: usize, balancer: SocketAddr) -> Config {
        let line = format!("evenkeel-agent {}", self.arguments(node, balancer));
        match config::read(line.split_whitespace().map(OsString::from)).expect("valid flags") {
            Request::Run(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    /// What `verify` says of both directories under `plan`: slots compared and slots wrong.
    pub async fn verify(&self, plan: &Plan) -> (u64, u64) {
        use prost::Message as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), v1::Plan::from(plan).encode_to_vec()).unwrap();
        let states: Vec<_> = self.directories.iter().map(|d| d.path()).collect();
        let report = verify(file.path(), &states).await;
        (report.slots_compared, report.slots_wrong)
    }
}

pub async fn verify(plan: &Path, states: &[&Path]) -> evenkeel_agent::verify::Report {
    let flags = config::VerifyFlags {
        admin: String::new(),
        plan: Some(plan.to_owned()),
        states: states.iter().map(|s| s.to_path_buf()).collect(),
        output: config::Output::Json,
        tls: config::TlsFlags::default(),
    };
    evenkeel_agent::verify::run(&flags).await.expect("verify reads plan and slots")
}

/// Makes the workers hang or tell something.
pub async fn disturb(agent: &Running, hang: Option<bool>, event: Option<v1::Event>) {
    let url = format!("http://{}", agent.ports().engine);
    let mut engine = SimulatedEngineServiceClient::connect(url).await.unwrap();
    engine.disturb(v1::DisturbRequest { hang, event }).await.expect("the engine takes it");
}

/// Runs a step of the engine with 10 tokens for each expert; returns the epoch it was served with.
pub async fn step(agent: &Running, step: u64) -> u64 {
    let mut engine =
        SimulatedEngineServiceClient::connect(format!("http://{}", agent.ports().engine)).await.unwrap();
    let counts = v1::LoadTable { layers: 2, experts: 6, counts: vec![10; 12] };
    let routing = Some(v1::step_request::Routing::Counts(counts));
    let request = v1::StepRequest { step, routing, gauges: Vec::new() };
    engine.step(request).await.expect("the step runs").into_inner().epoch
}

/// An admin port that knows one plan.
struct OnePlan(Plan);

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for OnePlan {
    async fn get_plan(
        &self,
        request: tonic::Request<v1::GetPlanRequest>,
    ) -> Result<Response<v1::GetPlanResponse>, Status> {
        assert_eq!(request.into_inner().unit, self.0.unit.as_str());
        Ok(Response::new(v1::GetPlanResponse { plan: Some((&self.0).into()), summary: None, loads: None }))
    }

    async fn get_status(
        &self,
        _: tonic::Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_plans(
        &self,
        _: tonic::Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_loads(
        &self,
        _: tonic::Request<v1::GetLoadsRequest>,
    ) -> Result<Response<v1::GetLoadsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_rank_loads(
        &self,
        _: tonic::Request<v1::GetRankLoadsRequest>,
    ) -> Result<Response<v1::GetRankLoadsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn pause(
        &self,
        _: tonic::Request<v1::PauseRequest>,
    ) -> Result<Response<v1::PauseResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resume(
        &self,
        _: tonic::Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::ResumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn drain(
        &self,
        _: tonic::Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn undrain(
        &self,
        _: tonic::Request<v1::UndrainRequest>,
    ) -> Result<Response<v1::UndrainResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn pin(&self, _: tonic::Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn unpin(
        &self,
        _: tonic::Request<v1::UnpinRequest>,
    ) -> Result<Response<v1::UnpinResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rollback(
        &self,
        _: tonic::Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn abort_plan(
        &self,
        _: tonic::Request<v1::AbortPlanRequest>,
    ) -> Result<Response<v1::AbortPlanResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_audit(
        &self,
        _: tonic::Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_leader(
        &self,
        _: tonic::Request<v1::GetLeaderRequest>,
    ) -> Result<Response<v1::GetLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn transfer_leader(
        &self,
        _: tonic::Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn adopt_leader(
        &self,
        _: tonic::Request<v1::AdoptLeaderRequest>,
    ) -> Result<Response<v1::AdoptLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Serves one plan as the admin port of a balancer does.
pub async fn serve_plan(plan: Plan) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = v1::admin_service_server::AdminServiceServer::new(OnePlan(plan));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    address
}
