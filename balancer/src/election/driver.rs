//! The task that drives the machine: one event at a time, in the order in which they arrive.

use super::calls::{self, Call};
use super::handle::{HandOverError, View};
use super::instruments::Instruments;
use super::roster::{Reigning, Roster};
use super::{ElectionSettings, Standing, attend};
use crate::records::{Store, Told};
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::election::{Action, AdoptError, Election, Event, Holder, State};
use evenkeel_core::records::{AuditId, AuditRecord, Change, Changed, Key, LeaseId, Record, Revision, Scope};
use evenkeel_core::units::Millis;
use evenkeel_transport::Dialler;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The audit entry of an adoption: the last of its term, whatever else was written in it.
const ADOPTION_SEQUENCE: u64 = u64::MAX;

/// A leader that names who is to follow frees the key this long after it has told the standbys: otherwise one that is not
/// meant may hear of the free key before it hears of that.
const RESIGNATION_AHEAD: Duration = Duration::from_millis(50);

/// What arrives.
#[derive(Debug)]
pub(super) enum Input {
    /// For the machine.
    Event(Event),
    /// What the leader says of itself.
    LeaderSays(LeaderSays),
    /// An operator wants another leader.
    HandOver { to: Option<String>, reply: oneshot::Sender<Result<Term, HandOverError>> },
    /// An operator adopts the store.
    Adopt { who: String, reply: oneshot::Sender<Result<Term, AdoptError>> },
    /// The balancer stops; answered when nothing of it is left in the store.
    Stop { reply: oneshot::Sender<()> },
}

/// Who reigns under this lease has this term, if it has begun, and is asked there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaderSays {
    pub(super) lease: LeaseId,
    pub(super) term: Option<Term>,
    pub(super) admin_address: String,
}

/// What the driver shares with the handles.
pub(super) struct Shared {
    pub(super) roster: Arc<Roster>,
    /// Revision of the last transaction that the rest of the balancer made.
    pub(super) written: Arc<AtomicU64>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) view: watch::Sender<View>,
}

pub(super) struct Driver {
    machine: Election,
    store: Arc<dyn Store>,
    settings: ElectionSettings,
    dialler: Dialler,
    began: Instant,
    inputs: mpsc::Sender<Input>,
    roster: Arc<Roster>,
    written: Arc<AtomicU64>,
    standing: watch::Sender<Standing>,
    view: watch::Sender<View>,
    instruments: Instruments,
    /// How long the end of a lease that follows a resignation waits.
    ahead: Duration,
    /// The connection to the leader.
    attending: Option<JoinHandle<()>>,
    leader_says: Option<LeaderSays>,
    /// When this reign began, in Unix milliseconds.
    since_ms: Option<u64>,
    adopting: Option<oneshot::Sender<Result<Term, AdoptError>>>,
    adopted: Option<Result<Term, AdoptError>>,
    stopping: Vec<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn new(
        store: Arc<dyn Store>,
        settings: ElectionSettings,
        dialler: Dialler,
        inputs: mpsc::Sender<Input>,
        shared: Shared,
    ) -> Self {
        let Shared { roster, written, standing, view } = shared;
        Self {
            machine: Election::new(settings.core()),
            store,
            settings,
            dialler,
            began: Instant::now(),
            inputs,
            roster,
            written,
            standing,
            view,
            instruments: Instruments::default(),
            ahead: Duration::ZERO,
            attending: None,
            leader_says: None,
            since_ms: None,
            adopting: None,
            adopted: None,
            stopping: Vec::new(),
        }
    }

    /// Until it has been told to stop and nothing of it is left in the store.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Input>) {
        let mut told = self.store.watch(Scope::Leader);
        self.step(Event::Started);
        while self.stopping.is_empty() || !self.machine.is_over() {
            let wake = self.machine.wake().map(|at| self.instant(at));
            let tick = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = queue.recv() => self.take(input.expect("the driver holds a sender itself")),
                // A store that is gone for good only ends with the process.
                Some(news) = told.recv() => self.told(news),
                () = tick => self.step(Event::Tick),
            }
        }
        self.connect(None);
        for reply in self.stopping.drain(..) {
            let _ = reply.send(());
        }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).expect("uptime fits 64 bits"))
    }

    fn instant(&self, at: Millis) -> Instant {
        self.began + Duration::from_millis(at.0)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.step(event),
            Input::LeaderSays(says) => {
                self.leader_says = Some(says);
                self.publish();
            }
            Input::HandOver { to, reply } => {
                let term = self.may_hand_over(to.as_deref());
                if term.is_ok() {
                    self.step(Event::HandOver { to });
                }
                // An asker that has gone away needs no answer.
                let _ = reply.send(term);
            }
            Input::Adopt { who, reply } => self.adopt(&who, reply),
            Input::Stop { reply } => {
                self.stopping.push(reply);
                self.step(Event::Stop);
            }
        }
    }

    /// The term that is handed over.
    fn may_hand_over(&self, to: Option<&str>) -> Result<Term, HandOverError> {
        let (State::Leading { term, .. } | State::Frozen { term } | State::Behind { term }) =
            self.machine.state()
        else {
            return Err(HandOverError::NotLeader);
        };
        let seen = self.roster.standbys();
        match to {
            _ if seen.is_empty() => Err(HandOverError::NoStandby),
            Some(name) if !seen.iter().any(|standby| standby.name == name) => {
                Err(HandOverError::UnknownStandby {
                    name: name.to_owned(),
                    seen: seen.into_iter().map(|standby| standby.name).collect(),
                })
            }
            _ => Ok(term),
        }
    }

    fn adopt(&mut self, who: &str, reply: oneshot::Sender<Result<Term, AdoptError>>) {
        if self.adopting.is_some() {
            let _ = reply.send(Err(AdoptError::Busy));
            return;
        }
        self.adopting = Some(reply);
        let (State::Leading { term, .. } | State::Frozen { term } | State::Behind { term }) =
            self.machine.state()
        else {
            return self.step(Event::Adopt { audit: Vec::new() });
        };
        let record = AuditRecord {
            who: who.to_owned(),
            verb: "leader_adopt".to_owned(),
            unit: None,
            plan: None,
            detail: format!("terms seen up to {}", self.machine.highest()),
        };
        let key = AuditId { at_ms: unix_ms(), term, sequence: ADOPTION_SEQUENCE };
        self.step(Event::Adopt { audit: vec![Change::Put(Key::Audit(key), Record::Audit(record), None)] });
    }

    fn told(&mut self, news: Told) {
        match news {
            Told::Listed(found) => {
                let holder = found.records.first().and_then(|(_, found)| calls::holder(found));
                self.leader_told(found.revision, holder);
            }
            Told::Changed(changes) => {
                for Changed { revision, now, .. } in changes {
                    self.leader_told(revision, now.as_ref().and_then(calls::holder));
                }
            }
        }
    }

    fn leader_told(&mut self, revision: Revision, holder: Option<Holder>) {
        self.step(Event::LeaderTold { revision, holder });
    }

    fn step(&mut self, event: Event) {
        self.instruments.hears(&event, self.machine.leader().is_some());
        self.machine.saw(Revision(self.written.swap(0, Ordering::Relaxed)));
        let actions = self.machine.step(self.now(), event);
        for action in actions {
            self.act(action);
        }
        self.publish();
        // Who hears of the new term finds it wherever they look.
        if let Some(result) = self.adopted.take()
            && let Some(reply) = self.adopting.take()
        {
            let _ = reply.send(result);
        }
    }

    fn act(&mut self, action: Action) {
        self.instruments.does(&action);
        match action {
            Action::Grant => self.call(Call::Grant(self.settings.ttl())),
            Action::KeepAlive(lease) => self.call(Call::KeepAlive(lease)),
            Action::Revoke(lease) => {
                let pause = std::mem::take(&mut self.ahead);
                self.call(Call::Revoke(lease, pause));
            }
            Action::Campaign(transaction) => {
                let lease = self.machine.lease().expect("a campaign has a lease");
                self.call(Call::Campaign(transaction, lease));
            }
            Action::Adopt(transaction) => self.call(Call::Adopt(transaction)),
            Action::ReadLeader => self.call(Call::Read),
            Action::ConnectPeer(leader) => {
                let task = attend::start(&self.settings, leader, &self.dialler, &self.inputs);
                self.connect(Some(task));
            }
            Action::DisconnectPeer => self.connect(None),
            Action::Resign { to } => {
                self.roster.resign(to.as_deref());
                self.ahead = if to.is_some() { RESIGNATION_AHEAD } else { Duration::ZERO };
            }
            Action::Begin { .. } => self.since_ms = Some(unix_ms()),
            Action::Adopted(result) => self.adopted = Some(result),
            // The task of the connection retries by itself, because it is the first to know.
            Action::RetryPeer(_) => {}
            // These are seen in the machine's state.
            Action::Extend { .. }
            | Action::Freeze
            | Action::Thaw { .. }
            | Action::End { .. }
            | Action::Behind { .. } => {}
        }
    }

    fn call(&self, call: Call) {
        calls::start(&self.store, call, self.now(), self.settings.call_deadline(), &self.inputs);
    }

    fn connect(&mut self, task: Option<JoinHandle<()>>) {
        if let Some(old) = std::mem::replace(&mut self.attending, task) {
            old.abort();
        }
    }

    /// Tells everybody what has changed.
    fn publish(&mut self) {
        let state = self.machine.state();
        let leader = self.machine.leader();
        let standing = match state {
            State::Leading { term, until } => Standing::Leading { term, until: self.instant(until) },
            State::Frozen { term } => Standing::Frozen { term },
            _ => Standing::Standby { leader: leader.map(|leader| leader.record.clone()) },
        };
        let term = match state {
            State::Leading { term, .. } | State::Frozen { term } | State::Behind { term } => Some(term),
            _ => None,
        };
        self.roster.reigns(Reigning { lease: self.machine.lease(), term });
        let says = match term {
            Some(_) => self.machine.lease().map(|lease| LeaderSays {
                lease,
                term,
                admin_address: self.settings.admin_address.clone(),
            }),
            None => self.leader_says.clone(),
        };
        let says = says.filter(|says| leader.is_some_and(|leader| leader.record.lease == says.lease));
        let view = View {
            name: self.settings.name.clone(),
            state: Some(state),
            leader: leader.cloned(),
            leader_term: says.as_ref().and_then(|says| says.term),
            leader_admin: says.map(|says| says.admin_address),
            since_ms: self.since_ms.filter(|_| term.is_some()),
            highest: self.machine.highest(),
            synced: self.machine.has_looked(),
        };
        self.instruments.stands(state, self.roster.standbys().len());
        self.view.send_if_modified(|before| {
            let changed = *before != view;
            *before = view;
            changed
        });
        // Last: who acts on it finds the rest in place.
        self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
