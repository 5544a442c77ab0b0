//! A store in memory: what the simulator runs on, and what the other stores are compared with.

use super::{
    Change, Changed, Expect, Key, LeaseId, Outcome, Record, Revision, Scope, Transaction, Versioned,
};
use crate::ids::Term;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A watcher asked for changes that are no longer kept: it must list, compare, and watch from the list's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// The oldest revision after which changes are still kept.
    pub oldest: Revision,
}

/// See the module. Time is not its business: whoever drives it ends leases.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    revision: Revision,
    records: BTreeMap<Key, Versioned>,
    leases: BTreeMap<LeaseId, BTreeSet<Key>>,
    last_lease: u64,
    history: VecDeque<Changed>,
    compacted: Revision,
}

impl Memory {
    /// The last transaction that changed something.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What stands under a key.
    pub fn get(&self, key: &Key) -> Option<&Versioned> {
        self.records.get(key)
    }

    /// What stands under the keys of a scope, in order.
    pub fn list<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = (&'a Key, &'a Versioned)> {
        self.records.iter().filter(move |(key, _)| scope.contains(key))
    }

    /// Whether an expectation holds.
    pub fn holds(&self, expect: &Expect) -> bool {
        match expect {
            Expect::Absent(key) => !self.records.contains_key(key),
            Expect::Modified(key, revision) => {
                self.records.get(key).is_some_and(|found| found.modified == *revision)
            }
            Expect::Reigns(term) => self.reigns(*term),
        }
    }

    fn reigns(&self, term: Term) -> bool {
        let generation = match self.records.get(&Key::Generation).map(|found| &found.record) {
            Some(Record::Generation(generation)) => *generation,
            _ => 0,
        };
        let leader = self.records.get(&Key::Leader).map(|found| found.created.0);
        generation == term.generation && leader == Some(term.revision)
    }

    /// Makes a transaction. A lease that has ended refuses it, as etcd does.
    pub fn transact(&mut self, transaction: &Transaction) -> Outcome {
        debug_assert!(transaction.changes.len() <= Transaction::CHANGES_MAX, "the transaction is too large");
        let lease_lives = |change: &Change| match change {
            Change::Put(_, _, Some(lease)) => self.leases.contains_key(lease),
            _ => true,
        };
        let holds = transaction.expects.iter().all(|expect| self.holds(expect));
        if !holds || !transaction.changes.iter().all(lease_lives) {
            return Outcome::Refused;
        }
        let revision = Revision(self.revision.0 + 1);
        let mut changed = false;
        for change in &transaction.changes {
            changed |= match change {
                Change::Put(key, record, lease) => self.put(revision, key, record, *lease),
                Change::Delete(key) => self.delete(revision, key),
            };
        }
        if changed {
            self.revision = revision;
        }
        Outcome::Done(self.revision)
    }

    fn put(&mut self, revision: Revision, key: &Key, record: &Record, lease: Option<LeaseId>) -> bool {
        assert!(record.fits(key), "a record of another kind under {key:?}");
        let before = self.records.get(key);
        let created = before.map_or(revision, |found| found.created);
        if let Some(old) = before.and_then(|found| found.lease)
            && let Some(keys) = self.leases.get_mut(&old)
        {
            keys.remove(key);
        }
        if let Some(lease) = lease {
            self.leases.get_mut(&lease).expect("checked by the caller").insert(key.clone());
        }
        let now = Versioned { record: record.clone(), created, modified: revision, lease };
        self.records.insert(key.clone(), now.clone());
        self.history.push_back(Changed { revision, key: key.clone(), now: Some(now) });
        true
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> bool {
        let Some(before) = self.records.remove(key) else { return false };
        if let Some(keys) = before.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            keys.remove(key);
        }
        self.history.push_back(Changed { revision, key: key.clone(), now: None });
        true
    }

    /// A new lease.
    pub fn grant(&mut self) -> LeaseId {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, BTreeSet::new());
        lease
    }

    /// Whether a lease has not ended.
    pub fn lives(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease)
    }

    /// Ends a lease, and the keys under it at one revision. `false` when it had ended before.
    pub fn end(&mut self, lease: LeaseId) -> bool {
        let Some(keys) = self.leases.remove(&lease) else { return false };
        let revision = Revision(self.revision.0 + 1);
        let mut changed = false;
        for key in keys {
            changed |= self.delete(revision, &key);
        }
        if changed {
            self.revision = revision;
        }
        true
    }

    /// Changes of a scope after a revision, in order.
    pub fn changes_after(&self, after: Revision, scope: &Scope) -> Result<Vec<Changed>, Compacted> {
        if after < self.compacted {
            return Err(Compacted { oldest: self.compacted });
        }
        let wanted = |changed: &&Changed| changed.revision > after && scope.contains(&changed.key);
        Ok(self.history.iter().filter(wanted).cloned().collect())
    }

    /// Forgets the changes up to a revision.
    pub fn compact(&mut self, upto: Revision) {
        self.compacted = self.compacted.max(upto.min(self.revision));
        while self.history.front().is_some_and(|changed| changed.revision <= self.compacted) {
            self.history.pop_front();
        }
    }

    /// The store as a backup taken now would restore it: leases and history are gone, and the keys under leases with them.
    pub fn restored(&self) -> Self {
        let records = self.records.iter().filter(|(_, found)| found.lease.is_none());
        let records = records.map(|(key, found)| (key.clone(), found.clone())).collect();
        Self { revision: self.revision, records, compacted: self.revision, ..Self::default() }
    }
}
