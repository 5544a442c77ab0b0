//! What the rest of the balancer asks and orders.

use super::driver::Input;
use super::roster::{Roster, StandbySeen};
use super::{Peers, Standing};
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::election::{AdoptError, Event, Holder, State};
use evenkeel_core::records::Revision;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A stop waits this long for the store: afterwards the lease ends by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// A hand-over is done within a few round trips; a standby that died meanwhile costs one lease.
const SUCCESSOR_DEADLINE: Duration = Duration::from_secs(6);
/// An adoption is one transaction, made again if its answer is lost.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);

/// What this balancer knows of the lead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Name of this balancer.
    pub name: String,
    /// What it does; `None`: it is starting.
    pub state: Option<State>,
    /// Who holds the leader's key.
    pub leader: Option<Holder>,
    /// The leader's term, if it is known.
    pub leader_term: Option<Term>,
    /// The leader's admin address, if it is known.
    pub leader_admin: Option<String>,
    /// When this balancer's reign began, in Unix milliseconds.
    pub since_ms: Option<u64>,
    /// The highest term that store, balancer and agents are known to have seen.
    pub highest: Term,
    /// It has learned from the store who leads, at least once.
    pub synced: bool,
}

impl View {
    /// The term in which this balancer holds the leader's key.
    pub fn term(&self) -> Option<Term> {
        match self.state? {
            State::Leading { term, .. } | State::Frozen { term } | State::Behind { term } => Some(term),
            _ => None,
        }
    }
}

/// Why the lead was not handed over. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// Another one leads.
    #[error("this balancer does not lead")]
    NotLeader,
    /// Nobody would take over.
    #[error("no standby is connected: start another balancer on the same store")]
    NoStandby,
    /// The one that is meant is not there.
    #[error("no standby {name:?} is connected; connected are: {}", seen.join(", "))]
    UnknownStandby {
        /// The name asked for.
        name: String,
        /// Those that are there.
        seen: Vec<String>,
    },
    /// The lead is free, and nobody has taken it yet.
    #[error("the lead was given up, and nobody took it within {} s: see `evenkeel leader show`", SUCCESSOR_DEADLINE.as_secs())]
    NobodyTook,
    /// The balancer is stopping.
    #[error("the balancer is stopping")]
    Stopping,
}

impl HandOverError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            HandOverError::NotLeader => "not_leader",
            HandOverError::NoStandby => "no_standby",
            HandOverError::UnknownStandby { .. } => "unknown_standby",
            HandOverError::NobodyTook => "nobody_took_over",
            HandOverError::Stopping => "shutting_down",
        }
    }
}

/// Orders to the election, and what it knows. Clones are the same election.
#[derive(Debug, Clone)]
pub struct ElectionHandle {
    inputs: mpsc::Sender<Input>,
    view: watch::Receiver<View>,
    standing: watch::Receiver<Standing>,
    roster: Arc<Roster>,
    written: Arc<AtomicU64>,
}

impl ElectionHandle {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        view: watch::Receiver<View>,
        standing: watch::Receiver<Standing>,
        roster: Arc<Roster>,
        written: Arc<AtomicU64>,
    ) -> Self {
        Self { inputs, view, standing, roster, written }
    }

    /// What this balancer knows of the lead.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What this balancer may do.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// The balancers that stand by, as far as connected to this one.
    pub fn standbys(&self) -> Vec<StandbySeen> {
        self.roster.standbys()
    }

    /// The service for those that stand by.
    pub fn peers(&self) -> Peers {
        Peers::new(Arc::clone(&self.roster))
    }

    /// Makes another balancer lead, this one if it is named, and waits until one does. Answers the name of the new leader.
    pub async fn hand_over(&self, to: Option<String>) -> Result<String, HandOverError> {
        let mut view = self.view.clone();
        let (reply, answer) = oneshot::channel();
        let stopping = HandOverError::Stopping;
        self.inputs.send(Input::HandOver { to, reply }).await.map_err(|_| stopping.clone())?;
        let term = answer.await.map_err(|_| stopping)??;
        let next =
            view.wait_for(|view| view.leader.as_ref().is_some_and(|leader| leader.created.0 > term.revision));
        match tokio::time::timeout(SUCCESSOR_DEADLINE, next).await {
            Ok(Ok(view)) => Ok(view.leader.as_ref().map(|l| l.record.balancer.clone()).unwrap_or_default()),
            _ => Err(HandOverError::NobodyTook),
        }
    }

    /// Raises the generation, so that this leader's term is above all that were seen. `who` stands in the audit.
    pub async fn adopt(&self, who: String) -> Result<Term, AdoptError> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Adopt { who, reply }).await.map_err(|_| AdoptError::NotTaken)?;
        match tokio::time::timeout(ADOPT_DEADLINE, answer).await {
            Ok(Ok(result)) => result,
            _ => Err(AdoptError::NotTaken),
        }
    }

    /// An agent says that it has seen this term.
    pub async fn term_claimed(&self, term: Term) {
        // What is known already needs no turn of the driver: ten thousand agents say the same.
        if term > self.view.borrow().highest {
            let _ = self.inputs.send(Input::Event(Event::TermClaimed(term))).await;
        }
    }

    /// The store made a transaction at this revision: whatever it shows from now on is not older, unless it is a backup.
    pub fn wrote(&self, revision: Revision) {
        self.written.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// The store refused a write in the name of the term: is it over?
    pub fn write_refused(&self) {
        // A driver that is busy hears of it by the watch.
        let _ = self.inputs.try_send(Input::Event(Event::WriteRefused));
    }

    /// Hands over if this balancer leads, gives its lease back, and campaigns no more. Bounded: a store that is away
    /// forgets the lease by itself.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        let stop = async {
            if self.inputs.send(Input::Stop { reply }).await.is_ok() {
                let _ = stopped.await;
            }
        };
        if tokio::time::timeout(STOP_DEADLINE, stop).await.is_err() {
            tracing::warn!("the lease was not given back: the store is away, and it ends by itself");
        }
    }
}
