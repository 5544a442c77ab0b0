//! The agents' stream. Each stream's messages are handed to the control loop in order.

use crate::control_loop::Event;
use crate::metrics as m;
use crate::push::{AgentLink, COMMANDS_MAX};
use evenkeel_proto::v1::agent_service_server::AgentService;
use evenkeel_proto::v1::{Refusal, SyncRequest, SyncResponse, sync_request, sync_response};
use evenkeel_transport::{Fault, FaultCode, Observer, Principal};
use std::sync::Arc;
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
    observer: Arc<dyn Observer>,
}

impl Agents {
    /// Hands everything to the control loop behind `events`.
    pub fn new(events: mpsc::Sender<Event>, observer: Arc<dyn Observer>) -> Self {
        Self { events, next_stream: AtomicU64::new(1), observer }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SyncStream = ReceiverStream<Result<SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let principal = request.extensions().get::<Principal>().cloned();
        let observer = self.observer.clone();
        let mut inbound = request.into_inner();
        let (commands, outbound) = mpsc::channel(COMMANDS_MAX);
        let (open, closed) = oneshot::channel();
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let events = self.events.clone();
        tokio::spawn(async move {
            let link = AgentLink::new(commands, open);
            let Some(hello) = first_message(&mut inbound).await else {
                metrics::counter!(m::DECODE_ERRORS, "source" => "hello").increment(1);
                return;
            };
            if let Err(fault) = check_node(principal.as_ref(), &hello.node) {
                observer.auth_failure(fault.code.as_str());
                tracing::warn!(
                    node = hello.node,
                    code = fault.code.as_str(),
                    reason = fault.message(),
                    "agent refused"
                );
                let _ = link.send(sync_response::Message::Refusal(refusal(&fault)));
                return;
            }
            if events.send(Event::Hello { stream, hello: Box::new(hello), link }).await.is_ok() {
                forward(stream, inbound, closed, &events).await;
                // The loop is gone only at a shutdown.
                let _ = events.send(Event::Closed(stream)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

/// An agent speaks for the node that its certificate names, and for no other.
fn check_node(principal: Option<&Principal>, node: &str) -> Result<(), Fault> {
    match principal {
        Some(Principal::Loopback | Principal::Plaintext) => Ok(()),
        Some(Principal::Peer(identity)) if identity.node().is_some_and(|own| own.as_str() == node) => Ok(()),
        other => {
            let who = other.map_or_else(|| "nobody".to_owned(), ToString::to_string);
            let text = format!("Hello is of node {node:?}, the certificate of {who}");
            Err(Fault::new(FaultCode::NodeMismatch, text))
        }
    }
}

fn refusal(fault: &Fault) -> Refusal {
    Refusal { code: fault.code.as_str().to_owned(), message: fault.message() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_transport::{PeerIdentity, PeerRole};

    #[track_caller]
    fn check(principal: Option<Principal>, allowed: bool) {
        let found = check_node(principal.as_ref(), "n-1").map_err(|fault| fault.code);
        assert_eq!(found, if allowed { Ok(()) } else { Err(FaultCode::NodeMismatch) }, "{principal:?}");
    }

    #[test]
    fn an_agent_speaks_for_the_node_of_its_certificate() {
        let peer = |role, name| Some(Principal::Peer(PeerIdentity::new("c", role, name).expect("valid")));
        check(peer(PeerRole::Agent, "n-1"), true);
        check(peer(PeerRole::Agent, "n-2"), false);
        check(peer(PeerRole::Admin, "n-1"), false);
        check(Some(Principal::Anonymous), false);
        check(None, false);
        check(Some(Principal::Loopback), true);
        check(Some(Principal::Plaintext), true);
    }
}
