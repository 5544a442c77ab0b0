//! What an election hears and what it has done.

use crate::ids::Term;
use crate::records::{Change, LeaderRecord, LeaseId, Revision, Transaction};
use crate::units::Millis;

/// [`crate::records::Key::Leader`] as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who holds it.
    pub record: LeaderRecord,
    /// The transaction that created it: the second half of the term.
    pub created: Revision,
}

/// [`crate::records::Key::Generation`] as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generation {
    /// The first half of every term; 0 while the key is absent.
    pub value: u64,
    /// The transaction that last changed it; `None`: the key is absent.
    pub modified: Option<Revision>,
}

/// Both keys, as they stood at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The store's revision.
    pub revision: Revision,
    /// The leader's key.
    pub holder: Option<Holder>,
    /// The generation.
    pub generation: Generation,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was made, at this revision.
    Done(Revision),
    /// An expectation did not hold.
    Refused,
    /// No answer came: it may have been made, or may be made yet.
    Unknown,
    /// The store could not be reached, and nothing was made.
    Away,
}

/// What happens. Every call that an [`Action`] asks for is answered by one event, in whatever order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The balancer has started: the first event.
    Started,
    /// Time has passed.
    Tick,
    /// The watch of the leader's key tells what stands there at a revision.
    LeaderTold {
        /// The store's revision.
        revision: Revision,
        /// Who holds the key.
        holder: Option<Holder>,
    },
    /// Answer to [`Action::ReadLeader`].
    Found(Found),
    /// [`Action::ReadLeader`] came to nothing.
    ReadFailed,
    /// Answer to [`Action::Grant`].
    Granted {
        /// The new lease.
        lease: LeaseId,
        /// When it was asked for.
        sent_at: Millis,
    },
    /// [`Action::Grant`] came to nothing.
    GrantFailed,
    /// Answer to [`Action::KeepAlive`].
    KeptAlive {
        /// The lease.
        lease: LeaseId,
        /// When it was asked for: the lease lives its whole time from then on, at least.
        sent_at: Millis,
    },
    /// [`Action::KeepAlive`] got no answer, or the store is away.
    KeepAliveFailed {
        /// The lease.
        lease: LeaseId,
    },
    /// The store knows no such lease any more.
    LeaseEnded(LeaseId),
    /// Answer to [`Action::Campaign`].
    CampaignAnswered(Answer),
    /// Answer to [`Action::Revoke`].
    Revoked(LeaseId),
    /// [`Action::Revoke`] came to nothing, as far as known.
    RevokeFailed(LeaseId),
    /// The connection to the leader who reigns under this lease stands.
    PeerUp(LeaseId),
    /// It stood, and has ended. Not by this side, and not for silence.
    PeerReset(LeaseId),
    /// The leader's machine answers that nothing listens there, or the process that does says that it does not reign
    /// under this lease.
    PeerRefused(LeaseId),
    /// The leader cannot be reached, which proves nothing.
    PeerAway(LeaseId),
    /// The leader says that it is about to resign.
    PeerResigns {
        /// Its lease.
        lease: LeaseId,
        /// For whom; `None`: for whoever is first.
        to: Option<String>,
    },
    /// An operator wants another leader.
    HandOver {
        /// Which; `None`: any.
        to: Option<String>,
    },
    /// The balancer stops: it hands over if it leads, and campaigns no more.
    Stop,
    /// The store refused a write in the name of the term: is it over?
    WriteRefused,
    /// An agent says that it has seen this term.
    TermClaimed(Term),
    /// An operator adopts a store whose revisions began again.
    Adopt {
        /// What is written along with it.
        audit: Vec<Change>,
    },
    /// Answer to [`Action::Adopt`].
    AdoptAnswered(Answer),
}

/// What brought a balancer to the lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nobody led.
    Vacant,
    /// The lease of the leader before ended.
    LeaseEnded,
    /// The leader before was seen to die, and this balancer ended its lease.
    Assisted,
    /// The leader before resigned.
    HandedOver,
    /// It led already, and an operator adopted the store.
    Adopted,
}

impl Cause {
    /// For metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Vacant => "vacant",
            Cause::LeaseEnded => "lease_ended",
            Cause::Assisted => "assisted",
            Cause::HandedOver => "handed_over",
            Cause::Adopted => "adopted",
        }
    }
}

/// Why a reign is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its lease ended.
    LeaseEnded,
    /// The key is gone, or another balancer's.
    Lost,
    /// The store went back to a backup.
    StoreRestored,
    /// It resigned for another balancer.
    HandedOver,
    /// The balancer stops.
    Stopped,
    /// The store was adopted: the next term begins at once.
    Adopted,
}

impl Reason {
    /// For metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::LeaseEnded => "lease_ended",
            Reason::Lost => "lost",
            Reason::StoreRestored => "store_restored",
            Reason::HandedOver => "handed_over",
            Reason::Stopped => "stopped",
            Reason::Adopted => "adopted",
        }
    }
}

/// Why a store was not adopted. `code` is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Only who holds the leader's key can.
    #[error("this balancer does not lead; ask the leader")]
    NotLeader,
    /// One at a time.
    #[error("an adoption is under way; ask again in a moment")]
    Busy,
    /// The store did not take it.
    #[error("the store did not take it: the lead was lost meanwhile, or the store is away; ask again")]
    NotTaken,
    /// The highest generation is the last.
    #[error(
        "an agent says that it has seen generation {0}, but the last is {max}: restart it without its state",
        max = Term::GENERATION_MAX
    )]
    NoneAbove(u64),
}

impl AdoptError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            AdoptError::NotLeader => "not_leader",
            AdoptError::Busy => "adopt_busy",
            AdoptError::NotTaken => "adopt_not_taken",
            AdoptError::NoneAbove(_) => "generation_exhausted",
        }
    }
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for a lease of the settings' time.
    Grant,
    /// Give a lease its whole time again.
    KeepAlive(LeaseId),
    /// End a lease.
    Revoke(LeaseId),
    /// Make this transaction.
    Campaign(Transaction),
    /// Read the leader's key and the generation at one revision.
    ReadLeader,
    /// Connect to this leader, instead of any other, and stay connected as well as can be.
    ConnectPeer(LeaderRecord),
    /// The connection broke: look at once whether the leader is still there.
    RetryPeer(LeaderRecord),
    /// No other balancer leads: hold no connection.
    DisconnectPeer,
    /// Tell the standbys that this leader resigns, and for whom.
    Resign {
        /// `None`: for whoever is first.
        to: Option<String>,
    },
    /// This balancer leads, and may command before `until`.
    Begin {
        /// Higher than any before.
        term: Term,
        /// When it must stop.
        until: Millis,
        /// How it came to lead.
        cause: Cause,
    },
    /// It may command until then.
    Extend {
        /// When it must stop.
        until: Millis,
    },
    /// Command nothing.
    Freeze,
    /// Command again, in the same term.
    Thaw {
        /// When it must stop.
        until: Millis,
    },
    /// The term is over.
    End {
        /// Why.
        reason: Reason,
    },
    /// This balancer holds the key in a term that is not above all that were: an operator has to adopt the store.
    Behind {
        /// The term it would have.
        term: Term,
        /// The highest one seen.
        highest: Term,
    },
    /// Make this transaction.
    Adopt(Transaction),
    /// Tell the operator who asked for the adoption: the new term, or why there is none.
    Adopted(Result<Term, AdoptError>),
}
