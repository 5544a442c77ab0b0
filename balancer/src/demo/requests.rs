//! The request half of the demo: the replicated trace through modelled engines, once routed by the live
//! balancer over gRPC and once by each baseline in this process, all on the same arrivals.

use super::DemoError;
use evenkeel_core::routing::{Decision, RoutingEvent};
use evenkeel_core::units::Millis;
use evenkeel_proto::v1::routing_service_client::RoutingServiceClient;
use evenkeel_proto::{MESSAGE_BYTES_MAX, v1};
use evenkeel_simulate::baselines::requests::{LeastRequests, RoundRobin};
use evenkeel_simulate::cost::{DecodeCost, PrefillCost};
use evenkeel_simulate::decode_engine::{DecodeEngine, DecodeFigures, DecodeUnit};
use evenkeel_simulate::policy::{EngineModel, RequestPolicy, SimulationError};
use evenkeel_simulate::prefill_engine::{PrefillEngine, PrefillFigures, PrefillUnit};
use evenkeel_simulate::replicate::{Replicated, balanced_step_ms, copies_for_decode};
use evenkeel_simulate::trace::TraceRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

/// The balancer decides a batch in well under a millisecond; this bounds a hang.
const DECISION_DEADLINE: Duration = Duration::from_secs(30);
/// Requests that a decode rank is to hold on average.
const REQUESTS_PER_RANK: f64 = 60.0;
/// Copies of the trace whose prompts the prefill unit serves; the decode unit is fed by all copies, the
/// other prompts by prefill units that are not simulated. Two copies load the unit to about four fifths.
const PREFILL_COPIES: u32 = 2;
/// New tokens that a prefill rank runs in one round.
pub(super) const ROUND_TOKENS: u64 = 4096;
/// Blocks of 64 tokens in the shared prefix cache: half a billion tokens, as an on-disk cache has.
const CACHE_BLOCKS: usize = 1 << 23;
/// The units start empty; what comes before this virtual time is not measured.
const WARM_UP_MS: u64 = 90_000;
/// KVCache of a modelled rank, in tokens, for the gauges.
const KV_CAPACITY: u64 = 2_000_000;
/// Batches between two looks at the engines' gauges.
const GAUGES_EVERY: u64 = 32;

/// Figures of one policy.
#[derive(Debug, Clone)]
pub(super) struct PolicyFigures {
    /// Of the decode unit.
    pub decode: DecodeFigures,
    /// Of the prefill unit.
    pub prefill: PrefillFigures,
}

/// The request workload of the demo.
#[derive(Clone)]
pub(super) struct Workload {
    trace: Arc<[TraceRequest]>,
    seed: u64,
    decode: DecodeUnit,
    prefill: PrefillUnit,
    /// Copies of the trace that feed the decode unit.
    pub decode_copies: u32,
}

/// Gauges of every rank of a unit, as the engine models have them.
pub(super) type Gauges = Vec<v1::RankGauges>;

/// Virtual milliseconds that all engines together have run, for the progress bar.
pub(super) type Counter = Arc<AtomicU64>;

impl Workload {
    /// `minutes` of the replicated trace on units of these sizes.
    pub(super) fn new(
        trace: Arc<[TraceRequest]>,
        minutes: u64,
        seed: u64,
        decode_ranks: u16,
        prefill_ranks: u16,
    ) -> Self {
        let end_ms = minutes * 60_000;
        let warm_up_ms = WARM_UP_MS.min(end_ms / 2);
        let cost = DecodeCost::default();
        Self {
            decode_copies: copies_for_decode(&trace, decode_ranks, REQUESTS_PER_RANK, &cost),
            decode: DecodeUnit {
                ranks: decode_ranks,
                cost,
                arrivals_per_step_ms: Some(balanced_step_ms(&trace, REQUESTS_PER_RANK, &cost)),
                warm_up_ms,
                end_ms,
            },
            prefill: PrefillUnit {
                ranks: prefill_ranks,
                round_tokens: ROUND_TOKENS,
                cost: PrefillCost::default(),
                cache_blocks: CACHE_BLOCKS,
                warm_up_ms,
                end_ms,
            },
            trace,
            seed,
        }
    }

    /// Virtual milliseconds of one engine.
    pub(super) fn end_ms(&self) -> u64 {
        self.decode.end_ms
    }

    /// Copies of the trace that feed the prefill unit.
    pub(super) fn prefill_copies(&self) -> u32 {
        PREFILL_COPIES
    }

    fn decode_engine(&self) -> DecodeEngine<Replicated> {
        let arrivals = Replicated::new(self.trace.clone(), self.decode_copies, self.seed);
        DecodeEngine::new(self.decode.clone(), arrivals)
    }

    fn prefill_engine(&self) -> PrefillEngine {
        let arrivals = Replicated::new(self.trace.clone(), PREFILL_COPIES, self.seed);
        PrefillEngine::new(self.prefill.clone(), arrivals)
    }

    /// Both units under round robin.
    pub(super) fn round_robin(&self, progress: &Counter) -> Result<PolicyFigures, SimulationError> {
        let policy = RoundRobin::new;
        self.baseline(policy, progress)
    }

    /// Both units under least requests, with fresh state: its best case.
    pub(super) fn least_requests(&self, progress: &Counter) -> Result<PolicyFigures, SimulationError> {
        let policy = LeastRequests::new;
        self.baseline(policy, progress)
    }

    fn baseline<P: RequestPolicy>(
        &self,
        policy: impl Fn(u16) -> P,
        progress: &Counter,
    ) -> Result<PolicyFigures, SimulationError> {
        let mut decode = self.decode_engine();
        drive(&mut decode, &mut policy(self.decode.ranks), progress, |_| {})?;
        let mut prefill = self.prefill_engine();
        drive(&mut prefill, &mut policy(self.prefill.ranks), progress, |_| {})?;
        Ok(PolicyFigures { decode: decode.figures(), prefill: prefill.figures() })
    }

    /// The decode unit routed by the balancer. Blocks; `gauges` gets the ranks' state as it goes.
    pub(super) fn decode_live(
        &self,
        router: &mut LiveRouter,
        progress: &Counter,
        gauges: &watch::Sender<Gauges>,
    ) -> Result<DecodeFigures, SimulationError> {
        let mut engine = self.decode_engine();
        drive(&mut engine, router, progress, |engine| {
            let ranks = engine.kv_by_rank().iter().zip(engine.requests_by_rank());
            // The slowest rank holds all others up, so every rank's step takes as long.
            let max = |values: &[u64]| values.iter().copied().max().unwrap_or(0) as f64;
            let step_ms = self.decode.cost.step_ms(max(engine.kv_by_rank()), max(engine.requests_by_rank()));
            let step_us = (step_ms * 1e3) as u32;
            let gauge = |(rank, (&kv, &requests)): (usize, (&u64, &u64))| v1::RankGauges {
                rank: rank as u32,
                kv_used_tokens: kv,
                kv_total_tokens: KV_CAPACITY,
                requests: requests as u32,
                step_us_p50: step_us,
                step_us_p99: step_us,
                ..Default::default()
            };
            gauges.send_replace(ranks.enumerate().map(gauge).collect());
        })?;
        Ok(engine.figures())
    }

    /// The prefill unit routed by the balancer. Blocks; `gauges` gets the ranks' state as it goes.
    pub(super) fn prefill_live(
        &self,
        router: &mut LiveRouter,
        progress: &Counter,
        gauges: &watch::Sender<Gauges>,
    ) -> Result<PrefillFigures, SimulationError> {
        let mut engine = self.prefill_engine();
        drive(&mut engine, router, progress, |engine| {
            let round_ms = engine.work_by_rank().iter().map(|work| self.prefill.cost.time_ms(*work));
            let step_us = (round_ms.fold(0.0, f64::max) * 1e3) as u32;
            let gauge = |(rank, (requests, kv)): (usize, (u32, u64))| v1::RankGauges {
                rank: rank as u32,
                kv_used_tokens: kv,
                kv_total_tokens: KV_CAPACITY,
                requests,
                step_us_p50: step_us,
                step_us_p99: step_us,
                ..Default::default()
            };
            gauges.send_replace(engine.backlog_by_rank().into_iter().enumerate().map(gauge).collect());
        })?;
        Ok(engine.figures())
    }
}

/// Runs an engine to its end; `look` sees it every few batches.
fn drive<E: EngineModel, P: RequestPolicy>(
    engine: &mut E,
    policy: &mut P,
    progress: &Counter,
    mut look: impl FnMut(&E),
) -> Result<(), SimulationError> {
    let (mut batches, mut last) = (0u64, 0);
    while let Some(batch) = engine.advance() {
        let decisions = policy
            .decide(batch.now, &batch.events)
            .map_err(|e| SimulationError::Policy { now: batch.now.0, reason: e.to_string() })?;
        engine.dispatch(&decisions)?;
        progress.fetch_add(batch.now.since(Millis(last)), Ordering::Relaxed);
        (batches, last) = (batches + 1, batch.now.0);
        if batches.is_multiple_of(GAUGES_EVERY) {
            look(engine);
        }
    }
    Ok(())
}

/// The balancer's routing service as a policy. Used from a blocking thread.
pub(super) struct LiveRouter {
    unit: &'static str,
    runtime: Handle,
    requests: mpsc::Sender<v1::RouteRequest>,
    responses: tonic::Streaming<v1::RouteResponse>,
    sequence: u64,
    decisions: u64,
}

impl LiveRouter {
    /// Opens a stream for one unit.
    pub(super) async fn open(channel: Channel, unit: &'static str) -> Result<Self, DemoError> {
        let mut client = RoutingServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (requests, queue) = mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
        let responses = client.route(stream).await.map_err(DemoError::Admin)?.into_inner();
        Ok(Self { unit, runtime: Handle::current(), requests, responses, sequence: 0, decisions: 0 })
    }

    /// Decisions received.
    pub(super) fn decisions(&self) -> u64 {
        self.decisions
    }

    async fn exchange(&mut self, request: v1::RouteRequest) -> Result<Vec<Decision>, String> {
        let sequence = request.sequence;
        self.requests.send(request).await.map_err(|_| "the stream is closed".to_owned())?;
        let response = self.responses.message().await.map_err(|e| e.to_string())?;
        let response = response.ok_or("the balancer ended the stream")?;
        if let Some(error) = response.error {
            return Err(format!("{}: {}", error.code, error.message));
        }
        if response.sequence != sequence {
            return Err(format!("response {} to batch {sequence}", response.sequence));
        }
        let decisions = response.decisions.iter().map(Decision::try_from).collect::<Result<Vec<_>, _>>();
        decisions.map_err(|e| e.to_string())
    }
}

impl RequestPolicy for LiveRouter {
    type Error = String;

    fn decide(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, String> {
        self.sequence += 1;
        let request = v1::RouteRequest {
            sequence: self.sequence,
            unit: self.unit.to_owned(),
            now_ms: now.0,
            events: events.iter().map(Into::into).collect(),
        };
        let runtime = self.runtime.clone();
        let decisions = runtime
            .block_on(async { tokio::time::timeout(DECISION_DEADLINE, self.exchange(request)).await })
            .map_err(|_| format!("no decision within {} s", DECISION_DEADLINE.as_secs()))??;
        self.decisions += decisions.len() as u64;
        Ok(decisions)
    }
}
