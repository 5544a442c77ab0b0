//! The standby's side of its connection to the leader. It tells the machine what it sees; what that proves is the
//! machine's to say.

use super::ElectionSettings;
use super::driver::{Input, LeaderSays};
use super::roster::HEARTBEAT;
use evenkeel_core::protocol::election::Event;
use evenkeel_core::records::{LeaderRecord, LeaseId};
use evenkeel_proto::v1::peer_service_client::PeerServiceClient;
use evenkeel_proto::v1::{AttendRequest, attend_response};
use evenkeel_transport::Dialler;
use evenkeel_transport::credentials::Server;
use std::error::Error as _;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// A connection within a cluster, TLS included, takes milliseconds.
const DIAL_DEADLINE: Duration = Duration::from_secs(1);
/// Before an attempt that came to nothing is repeated.
const PAUSE: Duration = Duration::from_millis(500);
/// Whether a port is open is said within a round trip.
const PROBE_DEADLINE: Duration = Duration::from_millis(300);
/// Looks at a port whose process is just ending: its sockets close one after the other, within a few milliseconds, or in a
/// tenth of a second if it had ten thousand. The pause after the first look; it doubles.
const PROBES: u32 = 6;
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// How a connection ended.
enum Ended {
    /// It never stood, nothing was heard for long, or the leader ended it in good order: no proof of anything.
    Away,
    /// It stood, and broke.
    Reset,
    /// The process at the address says that it does not reign.
    NotReigning,
}

/// Stays connected to `leader` as well as can be, until it is aborted.
pub(super) fn start(
    settings: &ElectionSettings,
    leader: LeaderRecord,
    dialler: &Dialler,
    inputs: &mpsc::Sender<Input>,
) -> JoinHandle<()> {
    let request = AttendRequest {
        balancer: settings.name.clone(),
        address: settings.address.clone(),
        lease: leader.lease.0,
    };
    let contact = Contact { leader, request, dialler: dialler.clone(), inputs: inputs.clone() };
    tokio::spawn(contact.run())
}

struct Contact {
    leader: LeaderRecord,
    request: AttendRequest,
    dialler: Dialler,
    inputs: mpsc::Sender<Input>,
}

impl Contact {
    fn lease(&self) -> LeaseId {
        self.leader.lease
    }

    async fn tell(&self, event: Event) {
        // The driver is gone only when the balancer has stopped.
        let _ = self.inputs.send(Input::Event(event)).await;
    }

    async fn run(self) {
        loop {
            match self.attend().await {
                Ended::Away => self.tell(Event::PeerAway(self.lease())).await,
                Ended::NotReigning => self.tell(Event::PeerRefused(self.lease())).await,
                Ended::Reset => {
                    tracing::info!(leader = self.leader.balancer, "the connection to the leader broke");
                    self.tell(Event::PeerReset(self.lease())).await;
                    if self.answers().await {
                        // Whether it still reigns is said by the next attempt.
                        continue;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects and listens until it ends.
    async fn attend(&self) -> Ended {
        let address = &self.leader.address;
        let same = |endpoint| endpoint;
        let channel = self.dialler.connect(Server::Balancer, address, DIAL_DEADLINE, same).await;
        let channel = match channel {
            Ok((channel, _)) => channel,
            Err(fault) => {
                tracing::debug!(leader = self.leader.balancer, %fault, "no connection to the leader");
                return Ended::Away;
            }
        };
        let mut client = PeerServiceClient::new(channel);
        let request = client.attend(self.request.clone());
        let mut stream = match tokio::time::timeout(DIAL_DEADLINE, request).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => return Ended::NotReigning,
            _ => return Ended::Away,
        };
        let mut up = false;
        let mut said = None;
        loop {
            let message = match tokio::time::timeout(3 * HEARTBEAT, stream.message()).await {
                Ok(Ok(Some(response))) => response.message,
                Ok(Err(status)) if up && broke(&status) => return Ended::Reset,
                _ => return Ended::Away,
            };
            match message {
                Some(attend_response::Message::Heartbeat(beat)) => {
                    let says = LeaderSays {
                        lease: self.lease(),
                        term: beat.term.map(Into::into),
                        admin_address: beat.admin_address,
                    };
                    if said.as_ref() != Some(&says) {
                        said = Some(says.clone());
                        let _ = self.inputs.send(Input::LeaderSays(says)).await;
                    }
                    if !std::mem::replace(&mut up, true) {
                        self.tell(Event::PeerUp(self.lease())).await;
                    }
                }
                Some(attend_response::Message::Resignation(resignation)) => {
                    let to = (!resignation.to.is_empty()).then_some(resignation.to);
                    self.tell(Event::PeerResigns { lease: self.lease(), to }).await;
                }
                None => {}
            }
        }
    }

    /// Whether anything listens at the leader's address. Tells the machine if its host says that nothing does, or says
    /// nothing.
    async fn answers(&self) -> bool {
        for probe in 0..PROBES {
            let connected = self.dialler.knock(&self.leader.address);
            match tokio::time::timeout(PROBE_DEADLINE, connected).await {
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.tell(Event::PeerRefused(self.lease())).await;
                    return false;
                }
                // A connection that a dying process had in its queue is reset, now or in a moment.
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {}
                Ok(Err(_)) | Err(_) => {
                    self.tell(Event::PeerAway(self.lease())).await;
                    return false;
                }
            }
            tokio::time::sleep(PROBE_PAUSE * (1 << probe)).await;
        }
        true
    }
}

/// Whether the connection broke, in contrast to an answer of the other side or to silence that the system noticed.
fn broke(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let silent = [ErrorKind::TimedOut, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
            return !silent.contains(&io.kind());
        }
        cause = error.source();
    }
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}
