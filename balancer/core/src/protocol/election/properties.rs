//! Random orders of events on a modelled store: what must hold after each.

use super::*;
use crate::records::memory::Memory;
use crate::records::{Key, Outcome, Record, Scope, Transaction};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const BALANCERS: usize = 3;

/// A call on its way: what it asks, and when it was sent.
#[derive(Debug, Clone)]
struct Call {
    of: usize,
    action: Action,
    sent_at: Millis,
    /// The answer, once the store has taken it.
    answer: Option<Event>,
}

struct Balancer {
    election: Election,
    told: Revision,
    reigns: Option<Term>,
    frozen: bool,
    until: Millis,
    proofs: BTreeSet<LeaseId>,
    resets: BTreeSet<LeaseId>,
}

struct World {
    now: Millis,
    store: Memory,
    /// When a lease ends unless it is kept alive.
    leases: BTreeMap<LeaseId, Millis>,
    /// The last successful call that gave a lease its whole time, by when it was sent.
    alive: BTreeMap<LeaseId, Millis>,
    owners: BTreeMap<LeaseId, usize>,
    balancers: Vec<Balancer>,
    calls: Vec<Call>,
    begun: BTreeSet<Term>,
}

impl World {
    fn new() -> Self {
        let balancer = |i: usize| Balancer {
            election: Election::new(Settings::new(format!("b-{i}"), format!("host-{i}:1"))),
            told: Revision(0),
            reigns: None,
            frozen: false,
            until: Millis(0),
            proofs: BTreeSet::new(),
            resets: BTreeSet::new(),
        };
        let mut world = Self {
            now: Millis(0),
            store: Memory::default(),
            leases: BTreeMap::new(),
            alive: BTreeMap::new(),
            owners: BTreeMap::new(),
            balancers: (0..BALANCERS).map(balancer).collect(),
            calls: Vec::new(),
            begun: BTreeSet::new(),
        };
        for i in 0..BALANCERS {
            world.step(i, Event::Started);
        }
        world
    }

    fn step(&mut self, of: usize, event: Event) {
        let actions = self.balancers[of].election.step(self.now, event);
        for action in actions {
            self.act(of, action);
        }
        self.check_commanders();
    }

    fn act(&mut self, of: usize, action: Action) {
        let own = self.balancers[of].election.lease();
        let balancer = &mut self.balancers[of];
        match &action {
            Action::Begin { term, until, .. } => {
                assert!(self.begun.insert(*term), "{term} began twice");
                assert_eq!(balancer.reigns, None, "a term begins after the one before has ended");
                (balancer.reigns, balancer.frozen, balancer.until) = (Some(*term), false, *until);
                self.check_until(own, *until);
            }
            Action::Extend { until } => {
                assert!(balancer.reigns.is_some() && !balancer.frozen);
                assert!(*until > balancer.until);
                balancer.until = *until;
                self.check_until(own, *until);
            }
            Action::Freeze => {
                assert!(balancer.reigns.is_some() && !balancer.frozen);
                balancer.frozen = true;
            }
            Action::Thaw { until } => {
                assert!(balancer.reigns.is_some() && balancer.frozen);
                assert!(*until > self.now);
                (balancer.frozen, balancer.until) = (false, *until);
                self.check_until(own, *until);
            }
            Action::End { .. } => assert!(balancer.reigns.take().is_some(), "ends and begins take turns"),
            Action::Revoke(lease) => {
                let allowed = self.owners.get(lease) == Some(&of) || balancer.proofs.contains(lease);
                assert!(allowed, "another's lease is ended only after a reset and a refusal");
                self.call(of, action);
            }
            Action::Grant
            | Action::KeepAlive(_)
            | Action::Campaign(_)
            | Action::ReadLeader
            | Action::Adopt(_) => self.call(of, action),
            Action::ConnectPeer(_)
            | Action::RetryPeer(_)
            | Action::DisconnectPeer
            | Action::Resign { .. }
            | Action::Behind { .. }
            | Action::Adopted(_) => {}
        }
    }

    fn check_until(&self, lease: Option<LeaseId>, until: Millis) {
        let sent = self.alive[&lease.expect("a leader has a lease")];
        assert!(until <= sent.after(Settings::TTL_MS - Settings::SAFETY_MS));
    }

    /// Nobody commands under a lease that has ended by itself. (One that was ended for a leader that seemed dead leaves
    /// the fence alone to stop it.)
    fn check_commanders(&self) {
        for balancer in &self.balancers {
            let commands = balancer.reigns.is_some() && !balancer.frozen && self.now < balancer.until;
            if let (true, Some(lease)) = (commands, balancer.election.lease()) {
                let proved = self.balancers.iter().any(|b| b.proofs.contains(&lease));
                assert!(self.store.lives(lease) || proved);
            }
        }
        let terms: Vec<Term> = self.balancers.iter().filter_map(|b| b.reigns).collect();
        let distinct: BTreeSet<&Term> = terms.iter().collect();
        assert_eq!(terms.len(), distinct.len(), "one leader a term");
    }

    fn call(&mut self, of: usize, action: Action) {
        assert!(self.calls.len() < 16 * BALANCERS, "calls are bounded");
        self.calls.push(Call { of, action, sent_at: self.now, answer: None });
    }

    fn transact(&mut self, transaction: &Transaction) -> Answer {
        match self.store.transact(transaction) {
            Outcome::Done(revision) => Answer::Done(revision),
            Outcome::Refused => Answer::Refused,
        }
    }

    fn holder(&self) -> Option<Holder> {
        let found = self.store.get(&Key::Leader)?;
        let Record::Leader(record) = &found.record else { unreachable!("fits its key") };
        Some(Holder { record: record.clone(), created: found.created })
    }

    /// The store takes a call.
    fn serve(&mut self, index: usize) {
        let Call { of, action, sent_at, .. } = self.calls[index].clone();
        let ends = self.now.after(Settings::TTL_MS);
        let answer = match action {
            Action::Grant => {
                let lease = self.store.grant();
                self.leases.insert(lease, ends);
                self.alive.insert(lease, sent_at);
                self.owners.insert(lease, of);
                Event::Granted { lease, sent_at }
            }
            Action::KeepAlive(lease) if self.store.lives(lease) => {
                self.leases.insert(lease, ends);
                let alive = self.alive.entry(lease).or_default();
                *alive = (*alive).max(sent_at);
                Event::KeptAlive { lease, sent_at }
            }
            Action::KeepAlive(lease) => Event::LeaseEnded(lease),
            Action::Revoke(lease) => {
                self.store.end(lease);
                Event::Revoked(lease)
            }
            Action::Campaign(transaction) => Event::CampaignAnswered(self.transact(&transaction)),
            Action::Adopt(transaction) => Event::AdoptAnswered(self.transact(&transaction)),
            Action::ReadLeader => {
                let generation = self.store.get(&Key::Generation).map_or(Generation::default(), |found| {
                    let Record::Generation(value) = found.record else { unreachable!("fits its key") };
                    Generation { value, modified: Some(found.modified) }
                });
                let (revision, holder) = (self.store.revision(), self.holder());
                Event::Found(Found { revision, holder, generation })
            }
            other => unreachable!("{other:?} is no call"),
        };
        self.calls[index].answer = Some(answer);
    }

    /// No answer comes.
    fn lose(&mut self, index: usize) {
        let Call { of, action, answer, .. } = self.calls.remove(index);
        let lost = match action {
            Action::Grant => Event::GrantFailed,
            Action::KeepAlive(lease) => Event::KeepAliveFailed { lease },
            Action::Revoke(lease) => Event::RevokeFailed(lease),
            Action::Campaign(ref transaction) => {
                self.later(of, transaction, answer);
                Event::CampaignAnswered(Answer::Unknown)
            }
            Action::Adopt(ref transaction) => {
                self.later(of, transaction, answer);
                Event::AdoptAnswered(Answer::Unknown)
            }
            _ => Event::ReadFailed,
        };
        self.step(of, lost);
    }

    /// A transaction that nobody waits for any more is made all the same.
    fn later(&mut self, of: usize, transaction: &Transaction, answer: Option<Event>) {
        if answer.is_none() && of.is_multiple_of(2) {
            self.transact(transaction);
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        let ended: Vec<LeaseId> = self.leases.iter().filter(|(_, at)| **at <= now).map(|(l, _)| *l).collect();
        for lease in ended {
            self.leases.remove(&lease);
            self.store.end(lease);
        }
    }

    fn tell(&mut self, of: usize) {
        let told = self.balancers[of].told;
        let changes = self.store.changes_after(told, &Scope::Leader).expect("nothing is compacted");
        let Some(change) = changes.into_iter().next() else { return };
        self.balancers[of].told = change.revision;
        let holder = change.now.map(|found| {
            let Record::Leader(record) = found.record else { unreachable!("fits its key") };
            Holder { record, created: found.created }
        });
        self.step(of, Event::LeaderTold { revision: change.revision, holder });
    }

    /// What the connection to the leader that a balancer looks at does.
    fn contact(&mut self, of: usize, what: u8) {
        let Some(lease) = self.balancers[of].election.leader().map(|leader| leader.record.lease) else {
            return;
        };
        let balancer = &mut self.balancers[of];
        let event = match what % 4 {
            0 => Event::PeerUp(lease),
            1 => {
                balancer.resets.insert(lease);
                Event::PeerReset(lease)
            }
            2 => {
                if balancer.resets.contains(&lease) {
                    balancer.proofs.insert(lease);
                }
                Event::PeerRefused(lease)
            }
            _ => {
                balancer.resets.remove(&lease);
                Event::PeerAway(lease)
            }
        };
        self.step(of, event);
    }

    fn random(&mut self, what: u8, which: u8) {
        let of = usize::from(which) % BALANCERS;
        let call = (!self.calls.is_empty()).then(|| usize::from(which) % self.calls.len().max(1));
        match (what % 32, call) {
            (0..=9, Some(call)) => {
                if self.calls[call].answer.is_none() {
                    self.serve(call);
                }
            }
            (10..=17, Some(call)) if self.calls[call].answer.is_some() => {
                let Call { of, answer, .. } = self.calls.remove(call);
                self.step(of, answer.expect("just looked"));
            }
            (18, Some(call)) => self.lose(call),
            (19..=21, _) => self.tell(of),
            (22, _) => self.contact(of, which / 3),
            (23, _) if which < 8 => self.step(of, Event::HandOver { to: None }),
            (24, _) if which < 8 => self.step(of, Event::Adopt { audit: vec![] }),
            (25, _) => self.step(of, Event::WriteRefused),
            (26..=27, _) => self.pass(u64::from(which)),
            (28, _) => self.pass(8 * u64::from(which)),
            _ => self.step(of, Event::Tick),
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.after(ms);
        self.expire();
        // A timer does not fire late for ever, and the shell asks for the next one.
        for of in 0..BALANCERS {
            if self.balancers[of].election.wake().is_some_and(|at| at <= self.now) {
                self.step(of, Event::Tick);
            }
        }
    }

    /// Without faults somebody leads soon, however things stood.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.pass(50);
            while !self.calls.is_empty() {
                self.serve(0);
                let Call { of, answer, .. } = self.calls.remove(0);
                self.step(of, answer.expect("served"));
            }
            for of in 0..BALANCERS {
                while self.balancers[of].told < self.store.revision() {
                    let before = self.balancers[of].told;
                    self.tell(of);
                    if self.balancers[of].told == before {
                        break;
                    }
                }
            }
        }
        let commands =
            |b: &&Balancer| matches!(b.election.state(), State::Leading { until, .. } if until > self.now);
        assert_eq!(self.balancers.iter().filter(commands).count(), 1, "one leads");
        let holder = self.holder().expect("one leads");
        let leads = |b: &&Balancer| b.reigns.map(|term| term.revision) == Some(holder.created.0);
        assert_eq!(self.balancers.iter().filter(leads).count(), 1, "who leads holds the key");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn elections_hold_what_they_promise(steps in proptest::collection::vec(any::<(u8, u8)>(), 0..600)) {
        let mut world = World::new();
        for (what, which) in steps {
            world.random(what, which);
        }
        world.settle();
    }
}
