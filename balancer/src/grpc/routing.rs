//! The routing service: batches of events in, decisions out, in order, one response per batch.

use crate::metrics as m;
use crate::routing::Routers;
use evenkeel_core::routing::RoutingEvent;
use evenkeel_core::units::Millis;
use evenkeel_proto::ConvertError;
use evenkeel_proto::v1::routing_service_server::RoutingService;
use evenkeel_proto::v1::{Decision, RouteError, RouteRequest, RouteResponse};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Responses a gateway may leave unread before its batches wait.
const RESPONSES_MAX: usize = 64;

/// See the module.
pub struct Routing {
    routers: Arc<Routers>,
}

impl Routing {
    /// Serves these routers.
    pub fn new(routers: Arc<Routers>) -> Self {
        Self { routers }
    }
}

#[tonic::async_trait]
impl RoutingService for Routing {
    type RouteStream = ReceiverStream<Result<RouteResponse, Status>>;

    async fn route(
        &self,
        request: Request<Streaming<RouteRequest>>,
    ) -> Result<Response<Self::RouteStream>, Status> {
        let mut inbound = request.into_inner();
        let (responses, outbound) = mpsc::channel(RESPONSES_MAX);
        let routers = Arc::clone(&self.routers);
        tokio::spawn(async move {
            // Ends with the gateway's side of the stream, or when it no longer reads.
            while let Ok(Some(batch)) = inbound.message().await {
                if responses.send(Ok(answer(&routers, &batch))).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

fn answer(routers: &Routers, batch: &RouteRequest) -> RouteResponse {
    let (sequence, refused) = (batch.sequence, |code: &str, message: String| RouteResponse {
        sequence: batch.sequence,
        decisions: Vec::new(),
        error: Some(RouteError { code: code.to_owned(), message }),
    });
    let events: Result<Vec<RoutingEvent>, ConvertError> =
        batch.events.iter().map(TryInto::try_into).collect();
    let events = match events {
        Ok(events) => events,
        Err(e) => {
            metrics::counter!(m::DECODE_ERRORS, "source" => "route").increment(1);
            return refused(e.code(), e.to_string());
        }
    };
    match routers.route(&batch.unit, Millis(batch.now_ms), &events) {
        Ok(decisions) => {
            RouteResponse { sequence, decisions: decisions.iter().map(Decision::from).collect(), error: None }
        }
        Err(e) => refused(e.code(), e.to_string()),
    }
}
