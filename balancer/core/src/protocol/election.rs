//! Who leads: one balancer's side of the election.
//!
//! ```text
//!            nobody leads            won                    term above all known
//!   STANDBY -------------> CAMPAIGNING ----> HOLDING: LEADING <------------------ BEHIND (waits for `leader adopt`)
//!      ^  ^                    |                       |   ^
//!      |  +--------------------+               deadline|   |lease and key still ours
//!      |        refused                                v   |
//!      +---------------------------------------------- FROZEN
//!        lease ended, another leads, handed over
//! ```
//!
//! The store decides: whoever creates [`Key::Leader`] under its lease leads, in the term (generation, revision of the
//! creation). The lease is granted before it is needed and kept alive while standing by, so that a campaign costs one
//! transaction. A lease serves one reign: after it a new one is granted, so a lease names a reign.
//!
//! A leader commands only before `until`: its last successful keep-alive, counted from when it was *sent*, plus the
//! lease's time, less a margin for clocks that run apart. After that it is frozen until a keep-alive succeeds and the key
//! is seen to be the same.
//!
//! With each keep-alive the key is read, by leader and standbys alike: a store that shows less than before was restored from
//! a backup, and whoever leads must not go on as if what was committed since were there.
//!
//! A standby holds a connection to the leader. When it breaks and the one retry is *refused*, the process is gone: the
//! standby ends the leader's lease and campaigns at once. Silence proves nothing and never leads to that. Even if the
//! proof were wrong nothing would break, because every write and every command is fenced by the term.

mod events;
mod lease;
mod peer;
#[cfg(test)]
mod properties;
mod reign;
#[cfg(test)]
mod tests;

pub use events::{Action, AdoptError, Answer, Cause, Event, Found, Generation, Holder, Reason};

use crate::ids::Term;
use crate::planted;
use crate::records::{self, LeaderRecord, LeaseId, Revision};
use crate::units::Millis;
use lease::Lease;
use peer::Peer;
use reign::{Adoption, Phase, Reign};

/// The balancer that hands over, and those that are not meant, leave the key alone for this long: the one that is meant
/// needs two round trips to the store; if it takes longer it has died meanwhile.
pub const HOLD_MS: u64 = 1_000;
/// Before a store that did not answer is asked again: four times a second finds it soon and costs it nothing.
pub const RETRY_MS: u64 = 250;
/// Between a campaign that came to nothing and the next: a few round trips, so that a refusal that does not end makes no
/// busy loop.
pub const PACE_MS: u64 = 50;

/// What a balancer is called and how its lease is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name, unique among those that share the store.
    pub name: String,
    /// host:port at which other balancers and agents reach it.
    pub address: String,
    /// Time of the lease, in milliseconds. At least four times `safety_ms`.
    pub ttl_ms: u64,
    /// The leader stops commanding this long before the lease can end, in milliseconds.
    pub safety_ms: u64,
}

impl Settings {
    /// Shorter leases end in a long pause of a healthy process; with longer ones a leader that is cut off is missed for
    /// longer.
    pub const TTL_MS: u64 = 4_000;
    /// Monotonic clocks of two machines differ by far less within a lease; the rest is for a command on its way.
    pub const SAFETY_MS: u64 = 500;

    /// With the usual times.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        let (ttl_ms, safety_ms) = (Self::TTL_MS, Self::SAFETY_MS);
        Self { name: name.into(), address: address.into(), ttl_ms, safety_ms }
    }

    /// Until when a lease that was given its whole time by a call sent at `sent_at` lets its holder command.
    fn until(&self, sent_at: Millis) -> Millis {
        if planted!(SafetyMarginForgotten) {
            return sent_at.after(self.ttl_ms);
        }
        if planted!(DeadlineDoubled) {
            return sent_at.after(2 * self.ttl_ms);
        }
        sent_at.after(self.ttl_ms - self.safety_ms)
    }
}

/// What this balancer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It stands by.
    Standby,
    /// Its campaign is under way.
    Campaigning,
    /// It leads, and may command before `until`.
    Leading {
        /// The term.
        term: Term,
        /// When it stops commanding.
        until: Millis,
    },
    /// It leads, but may not command until the store has confirmed that it still does.
    Frozen {
        /// The term.
        term: Term,
    },
    /// It holds the key, but in a term that is not above all that were: the store was restored. It commands nothing
    /// until an operator adopts the store.
    Behind {
        /// The term.
        term: Term,
    },
    /// It gives up its lease.
    Resigning,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Standby,
    Campaigning,
    Holding(Reign),
    Resigning(LeaseId),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Election {
    settings: Settings,
    stage: Stage,
    lease: Lease,
    peer: Peer,
    /// As last read. A campaign expects it unchanged.
    generation: Option<Generation>,
    bid: Option<Bid>,
    /// Who holds the key, as last heard; the outer `None`: not known.
    leader: Option<Option<Holder>>,
    /// What made the key free, as far as seen.
    cause: Cause,
    read: Read,
    /// The store's highest revision that reads and news have shown.
    seen: Revision,
    /// No campaign before.
    campaign_at: Millis,
    /// The highest term that the store was seen in, and the highest that this balancer held.
    known: Term,
    /// The highest term that an agent says it has seen.
    claimed: Term,
    adopting: Option<Adoption>,
    /// The reign that was there when this balancer first looked, if it was of its name and address.
    predecessor: Option<LeaseId>,
    looked: bool,
    stopped: bool,
}

/// The last campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bid {
    lease: LeaseId,
    /// It is won in this generation or not at all.
    generation: u64,
}

/// The reading of the leader's key and the generation: one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Idle,
    Wanted(Millis),
    /// What had been seen when it was asked: a store that answers with less has gone back.
    Asked(Revision),
}

impl Election {
    /// A balancer that has not started: the first event is [`Event::Started`].
    pub fn new(settings: Settings) -> Self {
        assert!(settings.ttl_ms >= 4 * settings.safety_ms, "a lease leaves time to command");
        Self {
            settings,
            stage: Stage::Standby,
            lease: Lease::default(),
            peer: Peer::default(),
            generation: None,
            bid: None,
            leader: None,
            cause: Cause::Vacant,
            read: Read::Idle,
            seen: Revision(0),
            campaign_at: Millis(0),
            known: Term::default(),
            claimed: Term::default(),
            adopting: None,
            predecessor: None,
            looked: false,
            stopped: false,
        }
    }

    /// What it does.
    pub fn state(&self) -> State {
        match self.stage {
            Stage::Standby => State::Standby,
            Stage::Campaigning => State::Campaigning,
            Stage::Resigning(_) => State::Resigning,
            Stage::Holding(Reign { term, phase, .. }) => match phase {
                Phase::Leading { until } => State::Leading { term, until },
                Phase::Frozen => State::Frozen { term },
                Phase::Behind => State::Behind { term },
            },
        }
    }

    /// The lease that it holds: whoever is asked about another one does not reign under it.
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease.held()
    }

    /// Who holds the leader's key, as last heard.
    pub fn leader(&self) -> Option<&Holder> {
        self.leader.as_ref()?.as_ref()
    }

    /// Whether it has ever learned from the store who leads.
    pub fn has_looked(&self) -> bool {
        self.looked
    }

    /// The highest term that the store, this balancer or an agent is known to have seen.
    pub fn highest(&self) -> Term {
        self.known.max(self.claimed)
    }

    /// Whether it has stopped and nothing of it is left in the store, as far as it can know.
    pub fn is_over(&self) -> bool {
        self.stopped && self.stage == Stage::Standby && matches!(self.lease, Lease::None(_))
    }

    /// When [`Event::Tick`] is needed at the latest.
    pub fn wake(&self) -> Option<Millis> {
        if self.stopped {
            return None;
        }
        let reign = match self.stage {
            Stage::Holding(Reign { phase: Phase::Leading { until }, .. }) => Some(until),
            _ => None,
        };
        let read = match self.read {
            Read::Wanted(at) => Some(at),
            _ => None,
        };
        let campaign = self.may_campaign().then_some(self.campaign_at);
        let adoption = self.adopting.as_ref().and_then(|adoption| adoption.again_at);
        let others = [self.lease.wake(), self.peer.wake(self.leader()), adoption];
        [reign, read, campaign].into_iter().chain(others).flatten().min()
    }

    /// A transaction of this balancer was made at this revision: a read that is asked for from now on shows no older store,
    /// unless it was restored.
    pub fn saw(&mut self, revision: Revision) {
        self.seen = self.seen.max(revision);
    }

    /// Takes an event, and says what is to be done, in order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.freeze_when_due(now, &mut out);
        match event {
            Event::Started => self.read = Read::Wanted(now),
            Event::Tick => {}
            Event::LeaderTold { revision, holder } => self.told(now, revision, holder, &mut out),
            Event::Found(found) => self.found(now, found, &mut out),
            Event::ReadFailed if planted!(FailedReadForgotten) => {}
            Event::ReadFailed => self.read = Read::Wanted(now.after(RETRY_MS)),
            Event::Granted { lease, sent_at } => self.granted(lease, sent_at, &mut out),
            Event::GrantFailed => self.lease.not_granted(now.after(RETRY_MS)),
            Event::KeptAlive { lease, sent_at } => self.kept_alive(now, lease, sent_at, &mut out),
            Event::KeepAliveFailed { lease } => self.lease.not_kept(lease, now.after(RETRY_MS)),
            Event::LeaseEnded(lease) => self.lease_ended(now, lease, &mut out),
            Event::CampaignAnswered(answer) => self.campaign_answered(now, answer, &mut out),
            Event::Revoked(lease) => self.revoked(now, lease, true),
            Event::RevokeFailed(lease) => self.revoked(now, lease, false),
            Event::PeerUp(lease) => self.peer.up(lease),
            Event::PeerReset(lease) => self.peer_reset(lease, &mut out),
            Event::PeerRefused(lease) => self.peer.refused(lease, now),
            Event::PeerAway(lease) => self.peer.away(lease),
            Event::PeerResigns { lease, to } => self.peer_resigns(now, lease, to.as_deref()),
            Event::HandOver { to } => self.hand_over(now, to, &mut out),
            Event::Stop => self.stop(&mut out),
            Event::WriteRefused => self.doubt(now),
            Event::TermClaimed(term) => self.claimed = self.claimed.max(term),
            Event::Adopt { audit } => self.adopt(audit, &mut out),
            Event::AdoptAnswered(answer) => self.adopt_answered(now, answer, &mut out),
        }
        self.proceed(now, &mut out);
        out
    }

    /// Asks for whatever is due. What an event means for the state is written where the event is taken; what follows
    /// from the state is written here once.
    fn proceed(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        self.lease.proceed(now, out);
        if matches!(self.read, Read::Wanted(at) if at <= now) {
            self.read = Read::Asked(self.seen);
            out.push(Action::ReadLeader);
        }
        let other = match &self.leader {
            Some(Some(holder)) if !self.is_ours(holder) => Some(&holder.record),
            _ => None,
        };
        self.peer.proceed(now, other, self.predecessor, out);
        if let Some(adoption) = &mut self.adopting {
            adoption.proceed(now, out);
        }
        if self.may_campaign() && self.campaign_at <= now {
            self.campaign(out);
        }
    }

    fn may_campaign(&self) -> bool {
        let ready = self.lease.held().is_some() && self.generation.is_some();
        ready && !self.stopped && self.stage == Stage::Standby && self.leader == Some(None)
    }

    fn campaign(&mut self, out: &mut Vec<Action>) {
        let lease = self.lease.held().expect("checked by the caller");
        let generation = self.generation.expect("checked by the caller");
        let record = self.record(lease);
        self.bid = Some(Bid { lease, generation: generation.value });
        self.stage = Stage::Campaigning;
        out.push(Action::Campaign(records::campaign_in(record, generation.modified)));
    }

    /// What stands under the key while this balancer holds it.
    fn record(&self, lease: LeaseId) -> LeaderRecord {
        let Settings { name, address, .. } = &self.settings;
        LeaderRecord { balancer: name.clone(), address: address.clone(), lease }
    }

    fn is_ours(&self, holder: &Holder) -> bool {
        self.lease.held() == Some(holder.record.lease)
    }

    /// The watch told who holds the key at a revision.
    fn told(&mut self, now: Millis, revision: Revision, holder: Option<Holder>, out: &mut Vec<Action>) {
        if let Stage::Holding(reign) = self.stage {
            // What was before this reign is no news.
            if revision >= reign.as_of {
                self.compare(now, reign, holder, out);
            }
        } else if revision >= self.seen {
            self.learn(now, holder, out);
        }
        self.seen = self.seen.max(revision);
    }

    /// The key as it was read.
    fn found(&mut self, now: Millis, found: Found, out: &mut Vec<Action>) {
        let asked = std::mem::replace(&mut self.read, Read::Idle);
        if matches!(asked, Read::Asked(seen) if found.revision < seen) {
            let reigned = matches!(self.stage, Stage::Holding(_));
            self.store_went_back(now, out);
            if reigned {
                // The key is given back first.
                return;
            }
        }
        // The watch was faster.
        let fresh = found.revision >= self.seen;
        self.seen = self.seen.max(found.revision);
        match self.stage {
            Stage::Holding(reign) if found.revision < reign.as_of => {}
            Stage::Holding(_) => self.verify(now, found, out),
            _ => {
                self.generation = Some(found.generation);
                if fresh {
                    self.learn(now, found.holder, out);
                }
            }
        }
    }

    /// The store is a backup: what was committed since is lost, and its revisions are given out a second time. Any of them
    /// may have been a term.
    fn store_went_back(&mut self, now: Millis, out: &mut Vec<Action>) {
        let generation = self.generation.map_or(0, |generation| generation.value);
        self.known = self.known.max(Term { generation, revision: self.seen.0 });
        self.seen = Revision(0);
        self.end(now, Reason::StoreRestored, out);
    }

    /// What is heard of the key while this balancer does not hold it, as far as it knows.
    fn learn(&mut self, now: Millis, holder: Option<Holder>, out: &mut Vec<Action>) {
        let first = !std::mem::replace(&mut self.looked, true);
        let heard = self.leader.replace(holder);
        let Some(holder) = self.leader() else { return };
        let created = holder.created;
        // A campaign whose answer was lost, or has yet to come.
        if self.is_ours(holder) {
            self.won(now, created, out);
            return;
        }
        if first
            && holder.record.balancer == self.settings.name
            && holder.record.address == self.settings.address
        {
            self.predecessor = Some(holder.record.lease);
        }
        if heard.flatten().as_ref() != self.leader() {
            self.cause = Cause::LeaseEnded;
            self.campaign_at = now;
        }
        let generation = self.generation.map_or(0, |generation| generation.value);
        self.known = self.known.max(Term { generation, revision: created.0 });
    }

    fn campaign_answered(&mut self, now: Millis, answer: Answer, out: &mut Vec<Action>) {
        match answer {
            // Whoever leads already has heard of it from the watch.
            Answer::Done(created) if self.stage == Stage::Campaigning => self.won(now, created, out),
            Answer::Done(_) => {}
            Answer::Refused | Answer::Unknown | Answer::Away if self.stage == Stage::Campaigning => {
                self.stage = Stage::Standby;
                if self.stopped {
                    // Should it be made yet, it fails without its lease.
                    out.extend(self.lease.shed().map(Action::Revoke));
                    return;
                }
                self.campaign_at = self.campaign_at.max(now.after(PACE_MS));
                // Who was it? Perhaps this balancer, by a campaign whose answer was lost.
                self.leader = None;
                self.read_soon(now);
            }
            Answer::Refused | Answer::Unknown | Answer::Away => {}
        }
    }

    fn revoked(&mut self, now: Millis, lease: LeaseId, done: bool) {
        if self.stage == Stage::Resigning(lease) {
            // Not done: it ends by itself.
            self.stage = Stage::Standby;
            self.read_soon(now);
            return;
        }
        if !done {
            self.peer.not_revoked(lease, now.after(RETRY_MS));
        } else if self.leader().is_some_and(|holder| holder.record.lease == lease) {
            self.leader = Some(None);
            self.cause = Cause::Assisted;
        }
    }

    fn peer_reset(&mut self, lease: LeaseId, out: &mut Vec<Action>) {
        if self.peer.reset(lease)
            && let Some(holder) = self.leader().filter(|holder| holder.record.lease == lease)
        {
            out.push(Action::RetryPeer(holder.record.clone()));
        }
    }

    /// The leader says that it resigns, and for whom.
    fn peer_resigns(&mut self, now: Millis, lease: LeaseId, to: Option<&str>) {
        if self.leader().is_some_and(|holder| holder.record.lease == lease) {
            self.cause = Cause::HandedOver;
            if to.is_some_and(|name| name != self.settings.name) {
                self.campaign_at = self.campaign_at.max(now.after(HOLD_MS));
            }
        }
    }
}
