//! The admin service. Errors carry a stable code before the first colon of the status message.

use crate::control_loop::{Event, Query};
use crate::metrics as m;
use crate::store::{Store, StoreError};
use evenkeel_core::ids::{Epoch, UnitId};
use evenkeel_proto::v1::admin_service_server::AdminService;
use evenkeel_proto::v1::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

/// The loop answers in microseconds unless the disk hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Default and highest number of plans listed at once.
const PLANS_DEFAULT: u32 = 50;
const PLANS_MAX: u32 = 500;

/// See the module.
#[derive(Clone)]
pub struct Admin {
    events: mpsc::Sender<Event>,
    store: Arc<dyn Store>,
}

impl Admin {
    /// Asks the control loop behind `events` and reads plans from `store`.
    pub fn new(events: mpsc::Sender<Event>, store: Arc<dyn Store>) -> Self {
        Self { events, store }
    }

    async fn ask<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.events.send(Event::Query(query(reply))).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWER_DEADLINE, exchange).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Status::unavailable("shutting_down: the balancer is stopping")),
            Err(_) => Err(Status::deadline_exceeded("control_loop_busy: no answer within 5 s; try again")),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = Arc::clone(&self.store);
        let result = tokio::task::spawn_blocking(move || read(store.as_ref())).await;
        result.expect("store reads do not panic").map_err(|e| Status::internal(format!("{}: {e}", e.code())))
    }

    /// The cluster at a glance.
    pub async fn status(&self) -> Result<GetStatusResponse, Status> {
        self.ask(Query::Status).await
    }

    /// Accounts of a unit's plans, newest first.
    pub async fn plans(&self, unit: &str, limit: u32) -> Result<Vec<PlanSummary>, Status> {
        let unit = unit_id(unit)?;
        let limit = if limit == 0 { PLANS_DEFAULT } else { limit.min(PLANS_MAX) };
        let name = unit.clone();
        let plans = self.read(move |store| store.summaries(&unit, limit as usize)).await?;
        // A formed unit has its boot plan at least.
        if plans.is_empty() { Err(unknown_unit(&name)) } else { Ok(plans) }
    }

    /// Load per layer and rank in a unit's last clean window.
    pub async fn rank_loads(&self, unit: &str) -> Result<GetRankLoadsResponse, Status> {
        let unit = unit_id(unit)?;
        let name = unit.clone();
        self.ask(|reply| Query::RankLoads(unit, reply)).await?.ok_or_else(|| no_window(&name))
    }

    async fn plan(&self, request: GetPlanRequest) -> Result<GetPlanResponse, Status> {
        let unit = unit_id(&request.unit)?;
        let name = unit.clone();
        let stored = self
            .read(move |store| match request.epoch {
                None => store.head(&unit),
                Some(epoch) => store.plan(&unit, Epoch(epoch)),
            })
            .await?;
        let stored = stored.ok_or_else(|| match request.epoch {
            None => unknown_unit(&name),
            Some(epoch) => Status::not_found(format!(
                "unknown_plan: unit {name} has no plan {epoch}, or it is no longer kept; see ListPlans"
            )),
        })?;
        Ok(GetPlanResponse {
            plan: Some((&stored.plan).into()),
            summary: Some(stored.summary),
            loads: stored.loads,
        })
    }

    async fn loads(&self, request: GetLoadsRequest) -> Result<GetLoadsResponse, Status> {
        let unit = unit_id(&request.unit)?;
        let name = unit.clone();
        self.ask(|reply| Query::Loads(unit, reply)).await?.ok_or_else(|| no_window(&name))
    }

    async fn set_paused(&self, unit: &str, paused: bool) -> Result<(), Status> {
        let unit = unit_id(unit)?;
        let name = unit.clone();
        let found = self.ask(|reply| Query::SetPaused(unit, paused, reply)).await?;
        if found { Ok(()) } else { Err(unknown_unit(&name)) }
    }
}

fn unit_id(unit: &str) -> Result<UnitId, Status> {
    UnitId::new(unit).map_err(|e| Status::invalid_argument(format!("invalid_unit: {e}")))
}

fn unknown_unit(unit: &UnitId) -> Status {
    Status::not_found(format!(
        "unknown_unit: no unit {unit} has formed; see GetStatus for the units there are"
    ))
}

fn no_window(unit: &UnitId) -> Status {
    Status::not_found(format!("no_window: unit {unit} is unknown or has no complete load window yet"))
}

/// Counts the request and its outcome.
fn counted<T>(verb: &'static str, result: Result<T, Status>) -> Result<Response<T>, Status> {
    // Codes are the literals of this file and of the store: a bounded set of labels.
    let code = match &result {
        Ok(_) => "ok".to_owned(),
        Err(status) => status.message().split(':').next().unwrap_or("internal").to_owned(),
    };
    metrics::counter!(m::ADMIN_REQUESTS, "verb" => verb, "code" => code).increment(1);
    result.map(Response::new)
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        counted("get_status", self.status().await)
    }

    async fn list_plans(
        &self,
        request: Request<ListPlansRequest>,
    ) -> Result<Response<ListPlansResponse>, Status> {
        let ListPlansRequest { unit, limit } = request.into_inner();
        let plans = self.plans(&unit, limit).await;
        counted("list_plans", plans.map(|plans| ListPlansResponse { plans }))
    }

    async fn get_plan(&self, request: Request<GetPlanRequest>) -> Result<Response<GetPlanResponse>, Status> {
        counted("get_plan", self.plan(request.into_inner()).await)
    }

    async fn get_loads(
        &self,
        request: Request<GetLoadsRequest>,
    ) -> Result<Response<GetLoadsResponse>, Status> {
        counted("get_loads", self.loads(request.into_inner()).await)
    }

    async fn get_rank_loads(
        &self,
        request: Request<GetRankLoadsRequest>,
    ) -> Result<Response<GetRankLoadsResponse>, Status> {
        counted("get_rank_loads", self.rank_loads(&request.into_inner().unit).await)
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        let result = self.set_paused(&request.into_inner().unit, true).await;
        counted("pause", result.map(|()| PauseResponse {}))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let result = self.set_paused(&request.into_inner().unit, false).await;
        counted("resume", result.map(|()| ResumeResponse {}))
    }
}
