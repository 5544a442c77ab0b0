//! The modelled store: core's [`Memory`], with leases that end, calls that take time and get lost, and backups.

use super::random::Random;
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::election::{Found, Generation, Holder};
use evenkeel_core::records::memory::Memory;
use evenkeel_core::records::{
    Changed, Key, LeaseId, Outcome, Record, Revision, Scope, Transaction, Versioned,
};
use std::collections::BTreeMap;

/// What a balancer asks of the store.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Grant { ttl_ms: u64 },
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Transact(Transaction),
    ReadLeader,
    Get(Vec<Key>),
    List(Scope),
}

/// What it answers.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Granted(LeaseId),
    /// `false`: there is no such lease.
    Kept(bool),
    Revoked,
    Transacted(Outcome),
    Leader(Found),
    Listed(Vec<(Key, Versioned)>),
}

/// How it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Well.
    Up,
    /// Connections are refused: surely nothing is done.
    Refusing,
    /// Nothing comes back.
    Silent,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) memory: Memory,
    pub(super) reach: Reach,
    /// Time to live and end of each lease.
    leases: BTreeMap<LeaseId, (u64, u64)>,
    backups: Vec<Memory>,
    /// Leases granted in all: names are never given twice, not even after a restore.
    granted: u64,
}

/// Backups kept: an operator restores one of the last few.
const BACKUPS: usize = 4;

impl Store {
    pub(super) fn new() -> Self {
        Self {
            memory: Memory::default(),
            reach: Reach::Up,
            leases: BTreeMap::new(),
            backups: Vec::new(),
            granted: 0,
        }
    }

    /// Carries out a request. What changed can be read from the history.
    pub(super) fn carry_out(&mut self, request: &Request, now: u64) -> Answer {
        match request {
            Request::Grant { ttl_ms } => {
                let lease = self.memory.grant();
                self.granted = self.granted.max(lease.0);
                self.leases.insert(lease, (*ttl_ms, now + ttl_ms));
                Answer::Granted(lease)
            }
            Request::KeepAlive(lease) => {
                let known = self.leases.get_mut(lease);
                let lives = known.map(|(ttl_ms, end)| *end = now + *ttl_ms).is_some();
                Answer::Kept(lives)
            }
            Request::Revoke(lease) => {
                self.leases.remove(lease);
                self.memory.end(*lease);
                Answer::Revoked
            }
            Request::Transact(transaction) => Answer::Transacted(self.memory.transact(transaction)),
            Request::ReadLeader => Answer::Leader(self.found()),
            Request::Get(keys) => {
                let found = keys.iter().filter_map(|k| Some((k.clone(), self.memory.get(k)?.clone())));
                Answer::Listed(found.collect())
            }
            Request::List(scope) => {
                let found = self.memory.list(scope).map(|(key, found)| (key.clone(), found.clone()));
                Answer::Listed(found.collect())
            }
        }
    }

    /// Ends the leases whose time is over.
    pub(super) fn expire(&mut self, now: u64) {
        let over: Vec<LeaseId> =
            self.leases.iter().filter(|(_, (_, end))| *end <= now).map(|(lease, _)| *lease).collect();
        for lease in over {
            self.leases.remove(&lease);
            self.memory.end(lease);
        }
    }

    fn found(&self) -> Found {
        let generation = match self.memory.get(&Key::Generation) {
            Some(Versioned { record: Record::Generation(value), modified, .. }) => {
                Generation { value: *value, modified: Some(*modified) }
            }
            _ => Generation::default(),
        };
        Found { revision: self.memory.revision(), holder: self.holder(), generation }
    }

    /// Who holds the leader's key.
    pub(super) fn holder(&self) -> Option<Holder> {
        self.memory.get(&Key::Leader).and_then(holder)
    }

    /// The reigning term.
    pub(super) fn term(&self) -> Option<Term> {
        let Found { holder, generation, .. } = self.found();
        Some(Term { generation: generation.value, revision: holder?.created.0 })
    }

    /// The leader's key as a watcher that has seen everything up to `seen` is told of it: each change, or what stands there
    /// if the changes are forgotten.
    pub(super) fn watch_leader(&self, seen: Revision) -> Vec<(Revision, Option<Holder>)> {
        match self.memory.changes_after(seen, &Scope::Leader) {
            Ok(changes) => {
                let told = |c: Changed| (c.revision, c.now.as_ref().and_then(holder));
                changes.into_iter().map(told).collect()
            }
            Err(_) => vec![(self.memory.revision(), self.holder())],
        }
    }

    pub(super) fn back_up(&mut self) {
        if self.backups.len() == BACKUPS {
            self.backups.remove(0);
        }
        self.backups.push(self.memory.clone());
    }

    /// Puts a backup in place; `false` when there is none.
    pub(super) fn restore(&mut self, random: &mut Random) -> bool {
        let Some(backup) = random.of(&self.backups) else { return false };
        self.memory = backup.restored();
        self.leases.clear();
        loop {
            let lease = self.memory.grant();
            self.memory.end(lease);
            if lease.0 >= self.granted {
                return true;
            }
        }
    }

    pub(super) fn compact(&mut self) {
        let revision = self.memory.revision();
        self.memory.compact(revision);
    }
}

fn holder(found: &Versioned) -> Option<Holder> {
    match &found.record {
        Record::Leader(record) => Some(Holder { record: record.clone(), created: found.created }),
        _ => None,
    }
}
