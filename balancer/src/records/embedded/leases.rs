//! Leases of one process. They end by its clock, and with it.

use evenkeel_core::records::{Key, LeaseId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Lease numbers of one opening of the store: more than any process grants.
const PER_OPENING_BITS: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Leases {
    last: u64,
    live: BTreeMap<LeaseId, Lease>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<Key>,
}

impl Leases {
    /// None yet. `opening` counts the openings of the store, so that no number is ever granted twice.
    pub(super) fn of_opening(opening: u64) -> Self {
        Self { last: opening << PER_OPENING_BITS, live: BTreeMap::new() }
    }

    /// A new lease.
    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.last += 1;
        let lease = LeaseId(self.last);
        self.live.insert(lease, Lease { ttl, ends: now + ttl, keys: BTreeSet::new() });
        lease
    }

    /// Gives a lease its whole time again; `false`: it has ended.
    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> bool {
        let Some(lease) = self.live.get_mut(&lease) else { return false };
        lease.ends = now + lease.ttl;
        true
    }

    /// Whether a lease has not ended.
    pub(super) fn lives(&self, lease: LeaseId) -> bool {
        self.live.contains_key(&lease)
    }

    /// Puts a key under a lease, or under none.
    pub(super) fn attach(&mut self, key: &Key, before: Option<LeaseId>, now: Option<LeaseId>) {
        if let Some(lease) = before.and_then(|lease| self.live.get_mut(&lease)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = now.and_then(|lease| self.live.get_mut(&lease)) {
            lease.keys.insert(key.clone());
        }
    }

    /// Forgets which keys are under which lease.
    pub(super) fn detach_all(&mut self) {
        self.live.values_mut().for_each(|lease| lease.keys.clear());
    }

    /// Keys under a lease.
    pub(super) fn keys(&self, lease: LeaseId) -> Option<&BTreeSet<Key>> {
        self.live.get(&lease).map(|lease| &lease.keys)
    }

    /// Ends a lease. Its keys have been deleted.
    pub(super) fn end(&mut self, lease: LeaseId) {
        self.live.remove(&lease);
    }

    /// A lease whose time is over.
    pub(super) fn due(&self, now: Instant) -> Option<LeaseId> {
        self.live.iter().find(|(_, lease)| lease.ends <= now).map(|(id, _)| *id)
    }

    /// When the next lease ends, unless it is kept alive.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.live.values().map(|lease| lease.ends).min()
    }
}
