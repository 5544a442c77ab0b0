//! The port through which a driver feeds routing to the simulated workers. It stands for the inference
//! engine, and exists only with simulated workers.

use crate::loads::LoadFeed;
use crate::metrics::AgentMetrics;
use evenkeel_core::ids::Rank;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_proto::v1;
use evenkeel_proto::v1::simulated_engine_service_server::SimulatedEngineService;
use evenkeel_proto::v1::step_request::Routing as WireRouting;
use evenkeel_worker::simulated::tables::StepError;
use evenkeel_worker::simulated::{Routing, SimulatedWorker, StepDone};
use evenkeel_worker::{RankGauges, WorkerEvent};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct SimulatedEngine {
    /// The workers.
    pub worker: Arc<SimulatedWorker>,
    /// Where their counts go.
    pub loads: Arc<LoadFeed>,
    /// Metrics.
    pub metrics: Arc<AgentMetrics>,
}

#[tonic::async_trait]
impl SimulatedEngineService for SimulatedEngine {
    async fn step(&self, request: Request<v1::StepRequest>) -> Result<Response<v1::StepResponse>, Status> {
        let engine = self.clone();
        let run = move || engine.run(request.into_inner());
        let done =
            tokio::task::spawn_blocking(run).await.map_err(|error| Status::internal(error.to_string()))??;
        self.metrics.engine_step.set(done.step as f64);
        Ok(Response::new(v1::StepResponse { step: done.step, epoch: done.epoch.0 }))
    }

    async fn disturb(
        &self,
        request: Request<v1::DisturbRequest>,
    ) -> Result<Response<v1::DisturbResponse>, Status> {
        let v1::DisturbRequest { hang, event } = request.into_inner();
        let event = event.map(told).transpose()?;
        hang.into_iter().for_each(|hang| self.worker.set_hanging(hang));
        event.into_iter().for_each(|event| self.worker.tell(event));
        Ok(Response::new(v1::DisturbResponse {}))
    }
}

fn told(event: v1::Event) -> Result<WorkerEvent, Status> {
    let (kind, message) = (event.kind(), event.message);
    let rank = rank(event.rank.unwrap_or(0))?;
    match kind {
        v1::EventKind::RankDown => Ok(WorkerEvent::RankDown { rank, message }),
        v1::EventKind::OutOfMemory => Ok(WorkerEvent::OutOfMemory { rank, message }),
        v1::EventKind::Drain => Ok(WorkerEvent::Drain { message }),
        v1::EventKind::WorkerHung => Ok(WorkerEvent::Hung { message }),
        v1::EventKind::Unspecified => {
            Err(Status::invalid_argument("disturb_unknown_event: kind is required"))
        }
    }
}

impl SimulatedEngine {
    fn run(&self, request: v1::StepRequest) -> Result<StepDone, Status> {
        let gauges = request.gauges.iter().map(gauges).collect::<Result<_, _>>()?;
        let done = match request.routing {
            None => return Err(Status::invalid_argument("step_no_routing: counts or top_k_ids is required")),
            Some(WireRouting::Counts(counts)) => {
                let loads = LoadTable::try_from(counts)
                    .map_err(|error| Status::invalid_argument(format!("{}: {error}", error.code())))?;
                self.worker.step(request.step, &Routing::Counts(&loads), gauges)
            }
            Some(WireRouting::TopKIds(batch)) => {
                let layers = usize::from(self.worker.header().layout.shape().layers);
                if batch.layers as usize != layers {
                    let error =
                        StepError::WrongShape { what: "layers", have: batch.layers as usize, need: layers };
                    return Err(refused(&error));
                }
                let (top_k, tokens) = (batch.top_k as usize, batch.tokens as usize);
                self.worker.step(request.step, &Routing::TopK { top_k, tokens, ids: &batch.ids }, gauges)
            }
        };
        let done = done.map_err(|error| refused(&error))?;
        self.loads.drain(self.worker.as_ref());
        Ok(done)
    }
}

fn refused(error: &StepError) -> Status {
    let message = format!("{}: {error}", error.code());
    match error {
        StepError::NotBooted => Status::failed_precondition(message),
        _ => Status::invalid_argument(message),
    }
}

fn rank(rank: u32) -> Result<Rank, Status> {
    let unknown = |_| Status::invalid_argument(format!("step_unknown_rank: rank {rank} does not exist"));
    u16::try_from(rank).map(Rank).map_err(unknown)
}

fn gauges(wire: &v1::RankGauges) -> Result<RankGauges, Status> {
    Ok(RankGauges {
        rank: rank(wire.rank)?,
        kv_used_tokens: wire.kv_used_tokens,
        kv_total_tokens: wire.kv_total_tokens,
        requests: wire.requests,
        tokens_in_hit: wire.tokens_in_hit,
        tokens_in_miss: wire.tokens_in_miss,
        tokens_out: wire.tokens_out,
        step_us_p50: wire.step_us_p50,
        step_us_p99: wire.step_us_p99,
    })
}
