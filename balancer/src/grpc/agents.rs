//! The agents' stream. Each stream's messages are handed to the control loop in order.

use crate::control_loop::Event;
use crate::metrics as m;
use crate::push::{AgentLink, COMMANDS_MAX};
use evenkeel_proto::v1::agent_service_server::AgentService;
use evenkeel_proto::v1::{SyncRequest, SyncResponse, sync_request};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A peer that opens a stream and says nothing is cut off after this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Agents {
    events: mpsc::Sender<Event>,
    next_stream: AtomicU64,
}

impl Agents {
    /// Hands everything to the control loop behind `events`.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, next_stream: AtomicU64::new(1) }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SyncStream = ReceiverStream<Result<SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut inbound = request.into_inner();
        let (commands, outbound) = mpsc::channel(COMMANDS_MAX);
        let (open, closed) = oneshot::channel();
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let events = self.events.clone();
        tokio::spawn(async move {
            let link = AgentLink { commands, open };
            let Some(hello) = first_message(&mut inbound).await else {
                metrics::counter!(m::DECODE_ERRORS, "source" => "hello").increment(1);
                return;
            };
            if events.send(Event::Hello { stream, hello: Box::new(hello), link }).await.is_ok() {
                forward(stream, inbound, closed, &events).await;
                // The loop is gone only at a shutdown.
                let _ = events.send(Event::Closed(stream)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

async fn first_message(inbound: &mut Streaming<SyncRequest>) -> Option<evenkeel_proto::v1::Hello> {
    match tokio::time::timeout(HELLO_DEADLINE, inbound.message()).await {
        Ok(Ok(Some(SyncRequest { message: Some(sync_request::Message::Hello(hello)) }))) => Some(hello),
        _ => None,
    }
}

/// Until the agent ends the stream, breaks it, or the control loop drops the link.
async fn forward(
    stream: u64,
    mut inbound: Streaming<SyncRequest>,
    mut closed: oneshot::Receiver<()>,
    events: &mpsc::Sender<Event>,
) {
    loop {
        let received = tokio::select! {
            received = inbound.message() => received,
            _ = &mut closed => return,
        };
        match received {
            Ok(Some(SyncRequest { message: Some(message) })) => {
                if events.send(Event::Message { stream, message: Box::new(message) }).await.is_err() {
                    return;
                }
            }
            Ok(Some(SyncRequest { message: None })) => {
                metrics::counter!(m::DECODE_ERRORS, "source" => "sync").increment(1);
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(stream, %status, "agent stream broke");
                return;
            }
        }
    }
}
