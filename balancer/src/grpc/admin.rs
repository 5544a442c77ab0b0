//! The admin service. Errors carry a stable code before the first colon of the status message.

use super::changes::{Change as Ordered, changed, request_of};
use super::reading;
use crate::control_loop::{Event, Query};
use crate::election::{self, ElectionHandle};
use crate::metrics as m;
use crate::records::Store;
use evenkeel_core::ids::{Epoch, NodeId, UnitId};
use evenkeel_core::protocol::reign::{self, Order, OrderError};
use evenkeel_core::records::Pin;
use evenkeel_proto::v1::admin_service_server::AdminService;
use evenkeel_proto::v1::*;
use evenkeel_transport::Principal;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

/// The loop answers questions in microseconds, and orders within four seconds, known or not.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Beyond the time that a plan may take to be prepared: a rollback is answered when its first plan is committed.
const ROLLBACK_MARGIN: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Clone)]
pub struct Admin {
    events: mpsc::Sender<Event>,
    store: Arc<dyn Store>,
    election: ElectionHandle,
    /// How long a plan may take to be prepared.
    prepare_timeout: Duration,
}

impl Admin {
    /// Asks the control loop behind `events` and reads plans from `store`.
    pub fn new(
        events: mpsc::Sender<Event>,
        store: Arc<dyn Store>,
        election: ElectionHandle,
        prepare_timeout: Duration,
    ) -> Self {
        Self { events, store, election, prepare_timeout }
    }

    async fn ask<T>(
        &self,
        within: Duration,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.events.send(Event::Query(query(reply))).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(within, exchange).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Status::unavailable("shutting_down: the balancer is stopping")),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "control_loop_busy: no answer within {} s; repeat it with the same request id",
                within.as_secs()
            ))),
        }
    }

    /// The cluster at a glance.
    pub async fn status(&self) -> Result<GetStatusResponse, Status> {
        self.ask(ANSWER_DEADLINE, Query::Status).await
    }

    /// Accounts of a unit's plans, newest first.
    pub async fn plans(&self, unit: &str, limit: u32) -> Result<Vec<PlanSummary>, Status> {
        reading::plans(self.store.as_ref(), &unit_id(unit)?, limit).await
    }

    /// Load per layer and rank in a unit's last clean window.
    pub async fn rank_loads(&self, unit: &str) -> Result<GetRankLoadsResponse, Status> {
        let unit = unit_id(unit)?;
        let name = unit.clone();
        self.ask(ANSWER_DEADLINE, |reply| Query::RankLoads(unit, reply))
            .await?
            .ok_or_else(|| no_window(&name))
    }

    async fn loads(&self, request: GetLoadsRequest) -> Result<GetLoadsResponse, Status> {
        let unit = unit_id(&request.unit)?;
        let name = unit.clone();
        self.ask(ANSWER_DEADLINE, |reply| Query::Loads(unit, reply)).await?.ok_or_else(|| no_window(&name))
    }

    /// Gives an order in the caller's name.
    async fn order(
        &self,
        who: &str,
        ordered: &Ordered<'_>,
        order: Result<Order, Status>,
    ) -> Result<Option<Change>, Status> {
        let order = order?;
        let within = match order {
            Order::Rollback { .. } => self.prepare_timeout + ROLLBACK_MARGIN,
            _ => ANSWER_DEADLINE,
        };
        let admin = reign::Admin {
            ticket: reign::Ticket(0),
            who: who.to_owned(),
            request: request_of(ordered.request_id)?,
            content: ordered.content(order.verb()),
            order,
            dry_run: ordered.dry_run,
        };
        let answer = self.ask(within, |reply| Query::Order(Box::new(admin), reply)).await?;
        answer.map(|answer| Some(changed(answer))).map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &OrderError) -> Status {
        match error {
            OrderError::NotLeader => election::admin::not_leader(&self.election.view()),
            _ => super::changes::refused(error),
        }
    }

    async fn older_plan(&self, unit: &str, epoch: u64) -> Result<Order, Status> {
        let unit = unit_id(unit)?;
        let content = reading::content(self.store.as_ref(), &unit, Some(epoch)).await?;
        Ok(Order::Rollback { to: Arc::new(content.plan) })
    }
}

/// The caller's name, for the audit.
fn caller<T>(request: &Request<T>) -> String {
    match request.extensions().get::<Principal>() {
        Some(Principal::Loopback | Principal::Plaintext) | None => "local".to_owned(),
        Some(principal) => principal.to_string(),
    }
}

fn unit_id(unit: &str) -> Result<UnitId, Status> {
    UnitId::new(unit).map_err(|e| Status::invalid_argument(format!("invalid_unit: {e}")))
}

fn node_id(node: &str) -> Result<NodeId, Status> {
    NodeId::new(node).map_err(|e| Status::invalid_argument(format!("invalid_node: {e}")))
}

fn pin_of(pin: Option<PinnedExpert>) -> Result<Pin, Status> {
    let pin = pin.ok_or_else(|| Status::invalid_argument("invalid_pin: pin is required"))?;
    Pin::try_from(pin).map_err(|e| Status::invalid_argument(format!("invalid_pin: {e}")))
}

fn no_window(unit: &UnitId) -> Status {
    Status::not_found(format!("no_window: unit {unit} is unknown or has no complete load window yet"))
}

/// Counts the request and its outcome.
fn counted<T>(verb: &'static str, result: Result<T, Status>) -> Result<Response<T>, Status> {
    // Codes are the literals of this crate and of the store: a bounded set of labels.
    let code = match &result {
        Ok(_) => "ok".to_owned(),
        Err(status) => status.message().split(':').next().unwrap_or("internal").to_owned(),
    };
    metrics::counter!(m::ADMIN_REQUESTS, "verb" => verb, "code" => code).increment(1);
    result.map(Response::new)
}

/// A change: its request's message says what is wanted, and is what makes a repeat the same.
macro_rules! change {
    ($self:ident, $request:ident, $verb:literal, $response:ident, |$message:ident| $order:expr) => {{
        let who = caller(&$request);
        let $message = $request.into_inner();
        let ordered = Ordered::of(&$message, &$message.request_id, $message.dry_run);
        let order = $order;
        let change = $self.order(&who, &ordered, order).await;
        counted($verb, change.map(|change| $response { change }))
    }};
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
        let GetPlanRequest { unit, epoch } = request.into_inner();
        let content = async { reading::content(self.store.as_ref(), &unit_id(&unit)?, epoch).await };
        let answer = content.await.map(|content| GetPlanResponse {
            plan: Some((&content.plan).into()),
            summary: Some(content.summary),
            loads: content.loads,
        });
        counted("get_plan", answer)
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
        change!(self, request, "pause", PauseResponse, |message| unit_id(&message.unit)
            .map(|unit| Order::Pause { unit, for_ms: message.for_ms }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        change!(self, request, "resume", ResumeResponse, |message| unit_id(&message.unit).map(Order::Resume))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        change!(self, request, "drain", DrainResponse, |message| node_id(&message.node).map(Order::Drain))
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Result<Response<UndrainResponse>, Status> {
        change!(self, request, "undrain", UndrainResponse, |message| node_id(&message.node)
            .map(Order::Undrain))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        change!(self, request, "pin", PinResponse, |message| unit_id(&message.unit)
            .and_then(|unit| Ok(Order::Pin(unit, pin_of(message.pin)?))))
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<UnpinResponse>, Status> {
        change!(self, request, "unpin", UnpinResponse, |message| unit_id(&message.unit)
            .and_then(|unit| Ok(Order::Unpin(unit, pin_of(message.pin)?))))
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<RollbackResponse>, Status> {
        change!(self, request, "rollback", RollbackResponse, |message| self
            .older_plan(&message.unit, message.epoch)
            .await)
    }

    async fn abort_plan(
        &self,
        request: Request<AbortPlanRequest>,
    ) -> Result<Response<AbortPlanResponse>, Status> {
        change!(self, request, "abort", AbortPlanResponse, |message| unit_id(&message.unit)
            .map(|unit| Order::Abort { unit, epoch: message.epoch.map(Epoch) }))
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let ListAuditRequest { unit, limit } = request.into_inner();
        let entries = reading::audit(self.store.as_ref(), &unit, limit).await;
        counted("list_audit", entries.map(|entries| ListAuditResponse { entries }))
    }

    async fn get_leader(&self, _: Request<GetLeaderRequest>) -> Result<Response<GetLeaderResponse>, Status> {
        counted("get_leader", Ok(election::admin::show(&self.election)))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        counted("transfer_leader", election::admin::transfer(&self.election, request.into_inner()).await)
    }

    async fn adopt_leader(
        &self,
        request: Request<AdoptLeaderRequest>,
    ) -> Result<Response<AdoptLeaderResponse>, Status> {
        let who = caller(&request);
        counted("adopt_leader", election::admin::adopt(&self.election, request.into_inner(), who).await)
    }
}
