//! The leader's side of the connections that standbys hold to it.

use evenkeel_core::ids::{NAME_LENGTH_MAX, Term};
use evenkeel_core::records::LeaseId;
use evenkeel_proto::v1::peer_service_server::PeerService;
use evenkeel_proto::v1::{AttendRequest, AttendResponse, Heartbeat, Resignation, attend_response};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Standbys of one store: a handful, with room for those that come back before they are seen to have gone.
const STANDBYS_MAX: usize = 32;
/// Messages waiting for a standby: a heartbeat, a resignation, and room for a slow moment.
const MESSAGES_MAX: usize = 4;
/// A standby that hears nothing for three of these looks for another connection.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A DNS name with a port.
const ADDRESS_LENGTH_MAX: usize = 253 + 6;

/// A balancer that stands by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySeen {
    /// Its name.
    pub name: String,
    /// host:port at which it is reached.
    pub address: String,
}

/// Under what this balancer reigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reigning {
    pub(super) lease: Option<LeaseId>,
    pub(super) term: Option<Term>,
}

#[derive(Debug)]
struct Attending {
    standby: StandbySeen,
    messages: mpsc::Sender<Result<AttendResponse, Status>>,
}

/// Who is connected.
#[derive(Debug)]
pub struct Roster {
    admin_address: String,
    reigning: watch::Sender<Reigning>,
    attending: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    rows: BTreeMap<u64, Attending>,
}

impl Roster {
    pub(super) fn new(admin_address: String) -> Self {
        Self { admin_address, reigning: watch::Sender::default(), attending: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.attending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By name, each once.
    pub fn standbys(&self) -> Vec<StandbySeen> {
        let mut seen: Vec<StandbySeen> = self.table().rows.values().map(|row| row.standby.clone()).collect();
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        seen.dedup_by(|a, b| a.name == b.name);
        seen
    }

    pub(super) fn reigns(&self, reigning: Reigning) {
        self.reigning.send_if_modified(|before| std::mem::replace(before, reigning) != reigning);
    }

    pub(super) fn resign(&self, to: Option<&str>) {
        let resignation = Resignation { to: to.unwrap_or_default().to_owned() };
        let message = attend_response::Message::Resignation(resignation);
        for row in self.table().rows.values() {
            // Who does not keep up learns it from the store.
            let _ = row.messages.try_send(Ok(AttendResponse { message: Some(message.clone()) }));
        }
    }

    fn heartbeat(&self, reigning: Reigning) -> AttendResponse {
        let heartbeat =
            Heartbeat { term: reigning.term.map(Into::into), admin_address: self.admin_address.clone() };
        AttendResponse { message: Some(attend_response::Message::Heartbeat(heartbeat)) }
    }

    fn enter(&self, row: Attending) -> Result<u64, Status> {
        let mut table = self.table();
        if table.rows.len() >= STANDBYS_MAX {
            let text = format!("too_many_standbys: {STANDBYS_MAX} are connected");
            return Err(Status::resource_exhausted(text));
        }
        table.next += 1;
        let id = table.next;
        table.rows.insert(id, row);
        Ok(id)
    }

    /// Until the standby goes or the reign is over.
    async fn attend(
        self: Arc<Self>,
        id: u64,
        lease: LeaseId,
        messages: mpsc::Sender<Result<AttendResponse, Status>>,
    ) {
        let mut reigning = self.reigning.subscribe();
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                _ = reigning.changed() => {}
                () = messages.closed() => break,
            }
            let now = *reigning.borrow_and_update();
            // A queue that is full has a heartbeat in it.
            if now.lease != Some(lease)
                || matches!(
                    messages.try_send(Ok(self.heartbeat(now))),
                    Err(mpsc::error::TrySendError::Closed(_))
                )
            {
                break;
            }
        }
        self.table().rows.remove(&id);
    }
}

/// The service, on the agents' port.
#[derive(Debug, Clone)]
pub struct Peers(Arc<Roster>);

impl Peers {
    pub(super) fn new(roster: Arc<Roster>) -> Self {
        Self(roster)
    }
}

fn check(request: &AttendRequest) -> Result<(), Status> {
    let named = (1..=NAME_LENGTH_MAX).contains(&request.balancer.len());
    let reached = (1..=ADDRESS_LENGTH_MAX).contains(&request.address.len());
    if named && reached {
        return Ok(());
    }
    let text = format!(
        "invalid_standby: balancer has {} characters and address {}: accepted are 1 to {NAME_LENGTH_MAX} and 1 to {ADDRESS_LENGTH_MAX}",
        request.balancer.len(),
        request.address.len()
    );
    Err(Status::invalid_argument(text))
}

#[tonic::async_trait]
impl PeerService for Peers {
    type AttendStream = ReceiverStream<Result<AttendResponse, Status>>;

    async fn attend(&self, request: Request<AttendRequest>) -> Result<Response<Self::AttendStream>, Status> {
        let request = request.into_inner();
        check(&request)?;
        let lease = LeaseId(request.lease);
        if self.0.reigning.borrow().lease != Some(lease) {
            let text = "not_reigning: this balancer does not hold that lease; the leader's key in the store says who does";
            return Err(Status::failed_precondition(text));
        }
        let (messages, outbound) = mpsc::channel(MESSAGES_MAX);
        let standby = StandbySeen { name: request.balancer, address: request.address };
        let id = self.0.enter(Attending { standby, messages: messages.clone() })?;
        tokio::spawn(Arc::clone(&self.0).attend(id, lease, messages));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}
