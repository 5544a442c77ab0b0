//! The agents: one task each, a connection each, over TLS with a certificate each.

use crate::balancer::{Balancer, CLUSTER, node};
use evenkeel_core::ids::{Epoch, Rank, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_proto::v1::agent_service_client::AgentServiceClient;
use evenkeel_proto::v1::{self, sync_request::Message as Out, sync_response::Message as In};
use evenkeel_proto::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION};
use evenkeel_transport::Security;
use evenkeel_transport::credentials::Server;
use prost::Message as _;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// With the ranks' one slot each every expert has two replicas at first.
const REPLICAS: usize = 2;
/// Layers of a unit: so many that a PREPARE has about 4 KB.
const LAYERS: u16 = 3;
/// How often an agent reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Waits before a new attempt: drawn from nothing to a bound that doubles between these, as agents do it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// An attempt may take this long: with all of them at once a handshake waits for its turn.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// Messages waiting to be sent.
const OUT_MAX: usize = 4;
const POLL: Duration = Duration::from_millis(20);

/// How many agents, and how they are parted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FleetShape {
    /// All agents.
    pub(crate) agents: usize,
    /// Agents of a unit, one rank each.
    pub(crate) unit: usize,
}

impl FleetShape {
    fn unit_shape(self, unit: usize) -> UnitShape {
        let ranks = self.unit.min(self.agents - unit * self.unit);
        let narrow = |count: usize| u16::try_from(count).expect("a unit has at most 2048 ranks");
        UnitShape {
            role: Role::Decode,
            layers: LAYERS,
            experts: narrow((ranks / REPLICAS).max(1)),
            top_k: 1,
            ranks: narrow(ranks),
            slots_per_rank: 1,
            spare_per_rank: 1,
            expert_bytes: 64,
        }
    }
}

/// What has been seen of all agents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Agents that have been welcomed and whose stream is open.
    pub(crate) connected: usize,
    /// Agents that serve the boot plan or a later one.
    pub(crate) booted: usize,
    /// Agents that have applied a plan after the boot plan.
    pub(crate) applied_plans: usize,
}

/// How long plans took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanTimes {
    /// Median bytes of a PREPARE.
    pub(crate) bytes: usize,
    /// Median time from the unit's first PREPARE to an agent's APPLIED, in ms.
    pub(crate) p50_ms: f64,
    /// The same, 99th percentile.
    pub(crate) p99_ms: f64,
}

#[derive(Debug, Default)]
struct Shared {
    connected: AtomicUsize,
    booted: AtomicUsize,
    applied_plans: AtomicUsize,
    unbalanced: AtomicBool,
    /// Per unit: when its first PREPARE arrived.
    prepared: Mutex<HashMap<usize, Instant>>,
    /// Bytes of each PREPARE, and milliseconds of each APPLIED.
    times: Mutex<(Vec<usize>, Vec<f64>)>,
}

/// See the module.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    tasks: tokio::task::JoinSet<()>,
}

impl Fleet {
    /// Starts every agent.
    pub(crate) fn start(balancer: &Balancer, shape: FleetShape) -> Result<Self, String> {
        let shared = Arc::new(Shared::default());
        let mut tasks = tokio::task::JoinSet::new();
        let mut boots: HashMap<usize, Arc<Plan>> = HashMap::new();
        for n in 0..shape.agents {
            let unit = n / shape.unit;
            let unit_shape = shape.unit_shape(unit);
            let name = UnitId::new(format!("u-{unit}")).expect("valid");
            let boot = boots.entry(unit).or_insert_with(|| Arc::new(Plan::boot(name, &unit_shape)));
            let agent = Agent {
                number: n,
                unit,
                rank: Rank(u16::try_from(n % shape.unit).expect("fits")),
                shape: unit_shape,
                boot: Arc::clone(boot),
                applied: None,
                security: balancer.agent(n)?,
                address: balancer.address().to_owned(),
                shared: Arc::clone(&shared),
                random: ChaCha8Rng::seed_from_u64(n as u64),
            };
            tasks.spawn(agent.run());
        }
        Ok(Self { shared, tasks })
    }

    /// What has been seen so far.
    pub(crate) fn seen(&self) -> Seen {
        let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let Shared { connected, booted, applied_plans, .. } = &*self.shared;
        Seen { connected: of(connected), booted: of(booted), applied_plans: of(applied_plans) }
    }

    /// Waits until something has been seen.
    pub(crate) async fn wait(
        &self,
        what: &str,
        patience: Duration,
        until: impl Fn(Seen) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !until(self.seen()) {
            if Instant::now() > deadline {
                return Err(format!("waited {} s for {what}: {:?}", patience.as_secs(), self.seen()));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// From now on loads are so uneven that every unit gets a plan.
    pub(crate) fn unbalance(&self) {
        self.shared.unbalanced.store(true, Ordering::Relaxed);
    }

    /// How long the plans so far took.
    pub(crate) fn plan_times(&self) -> PlanTimes {
        let mut times = self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.0.sort_unstable();
        times.1.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| ((times.1.len() as f64 * share) as usize).min(times.1.len() - 1);
        PlanTimes { bytes: times.0[times.0.len() / 2], p50_ms: times.1[at(0.5)], p99_ms: times.1[at(0.99)] }
    }

    /// Ends every agent.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

struct Agent {
    number: usize,
    unit: usize,
    rank: Rank,
    shape: UnitShape,
    boot: Arc<Plan>,
    applied: Option<v1::PlanId>,
    security: Security,
    address: String,
    shared: Arc<Shared>,
    random: ChaCha8Rng,
}

impl Agent {
    async fn run(mut self) {
        let mut failures = 0u32;
        loop {
            let wait = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
            sleep(wait.mul_f64(self.random.random())).await;
            failures += 1;
            if let Some((out, inbound)) = self.open().await {
                failures = 0;
                self.shared.connected.fetch_add(1, Ordering::Relaxed);
                self.talk(out, inbound).await;
                self.shared.connected.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    async fn open(&mut self) -> Option<(mpsc::Sender<v1::SyncRequest>, Streaming<v1::SyncResponse>)> {
        let opened = evenkeel_transport::dial::connect(
            &self.security,
            Server::Balancer,
            &self.address,
            CONNECT_MAX,
            |e| e,
        );
        let (channel, _) = opened.await.ok()?;
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (out, outgoing) = mpsc::channel(OUT_MAX);
        send(&out, Out::Hello(self.hello())).await?;
        let mut inbound = client.sync(ReceiverStream::new(outgoing)).await.ok()?.into_inner();
        let In::Welcome(welcome) = inbound.message().await.ok()??.message? else { return None };
        if self.applied.is_none() {
            let boot = (self.boot.epoch, self.boot.digest()).into();
            let booted = welcome.boot_plan.as_ref().and_then(|plan| Plan::try_from(plan).ok());
            let id: v1::PlanId = booted.map_or(boot, |plan| (plan.epoch, plan.digest()).into());
            self.applied = Some(id);
            let result = v1::PlanResult {
                term: welcome.term,
                id: self.applied.clone(),
                outcome: v1::PlanOutcome::Applied.into(),
                applied: self.applied.clone(),
                ..Default::default()
            };
            send(&out, Out::Result(result)).await?;
            self.shared.booted.fetch_add(1, Ordering::Relaxed);
        }
        Some((out, inbound))
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            cluster: CLUSTER.to_owned(),
            node: node(self.number),
            incarnation: 1,
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            version: "bench".to_owned(),
            unit: format!("u-{}", self.unit),
            shape: Some((&self.shape).into()),
            ranks: vec![self.rank.0.into()],
            weights_digest: vec![7; 32],
            applied: self.applied.clone(),
            transfer_address: "127.0.0.1:7411".to_owned(),
            ..Default::default()
        }
    }

    /// Until the stream ends.
    async fn talk(&mut self, out: mpsc::Sender<v1::SyncRequest>, mut inbound: Streaming<v1::SyncResponse>) {
        // Reports are spread over the second, as those of agents that started at any time are.
        let first = Instant::now() + REPORT_EVERY.mul_f64(self.random.random());
        let mut reports = interval_at(first, REPORT_EVERY);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        loop {
            let sent = tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(v1::SyncResponse { message: Some(In::Plan(command)) })) => self.command(&out, command).await,
                    Ok(Some(_)) => Some(()),
                    Ok(None) | Err(_) => None,
                },
                _ = reports.tick() => {
                    sequence += 1;
                    send(&out, Out::Report(self.report(sequence))).await
                }
            };
            if sent.is_none() {
                return;
            }
        }
    }

    fn report(&self, sequence: u64) -> v1::Report {
        let gauges = v1::RankGauges {
            rank: self.rank.0.into(),
            kv_used_tokens: 500_000,
            kv_total_tokens: 1_000_000,
            requests: 100,
            tokens_in_hit: sequence * 1000,
            tokens_in_miss: sequence * 2000,
            tokens_out: sequence * 3000,
            step_us_p50: 40_000,
            step_us_p99: 50_000,
        };
        let unbalanced = self.shared.unbalanced.load(Ordering::Relaxed);
        // One window, counted under the boot plan: enough for one plan.
        let booted = self.applied.as_ref().is_some_and(|id| Epoch(id.epoch) == Epoch::BOOT);
        let segments = if unbalanced && booted { vec![self.segment()] } else { Vec::new() };
        v1::Report { sequence, segments, gauges: vec![gauges] }
    }

    /// Some experts are asked for 64 times as often as others, and not the same ones in every layer.
    fn segment(&self) -> v1::LoadSegment {
        let per_rank = self.shape.physical_per_rank();
        let first = self.rank.index() * per_rank;
        let count = |layer: usize, slot: usize| match self.boot.layers[layer].physical_to_logical[slot] {
            Some(expert) => 1000 << (scattered(layer, expert.index()) % 7),
            None => 0,
        };
        let of_layer = |layer| (first..first + per_rank).map(move |slot| count(layer, slot));
        v1::LoadSegment {
            window: Some(v1::Window { from_step: 0, to_step: 1 }),
            epoch: 0,
            counts: (0..self.boot.layers.len()).flat_map(of_layer).collect(),
            window_complete: true,
            part: 0,
        }
    }

    async fn command(&mut self, out: &mpsc::Sender<v1::SyncRequest>, command: v1::PlanCommand) -> Option<()> {
        let outcome = match command.phase() {
            v1::PlanPhase::Prepare => {
                let bytes = command.encoded_len();
                self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).0.push(bytes);
                let mut prepared = self.shared.prepared.lock().unwrap_or_else(PoisonError::into_inner);
                prepared.entry(self.unit).or_insert_with(Instant::now);
                v1::PlanOutcome::Prepared
            }
            v1::PlanPhase::Commit => {
                if self.applied != command.id {
                    self.applied = command.id.clone();
                    self.applied_one();
                }
                v1::PlanOutcome::Applied
            }
            v1::PlanPhase::Abort | v1::PlanPhase::Unspecified => v1::PlanOutcome::Aborted,
        };
        let result = v1::PlanResult {
            term: command.term,
            id: command.id,
            outcome: outcome.into(),
            applied: self.applied.clone(),
            ..Default::default()
        };
        send(out, Out::Result(result)).await
    }

    fn applied_one(&self) {
        let began =
            self.shared.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(&self.unit).copied();
        if let Some(began) = began {
            let ms = began.elapsed().as_secs_f64() * 1e3;
            self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).1.push(ms);
        }
        self.shared.applied_plans.fetch_add(1, Ordering::Relaxed);
    }
}

/// The same for the same experts, and without a pattern otherwise.
fn scattered(layer: usize, expert: usize) -> u64 {
    let seed = (layer as u64) << 32 | expert as u64;
    ChaCha8Rng::seed_from_u64(seed).random()
}

async fn send(out: &mpsc::Sender<v1::SyncRequest>, message: Out) -> Option<()> {
    out.send(v1::SyncRequest { message: Some(message) }).await.ok()
}
