//! The core's store in memory behind the trait: for tests of what drives a store, and the other side of comparisons.

use super::watcher::{self, Ended, Listing};
use super::{Found, Store, StoreError, Told, assert_sound};
use evenkeel_core::records::memory::Memory;
use evenkeel_core::records::{Changed, Key, LeaseId, Outcome, Revision, Scope, Transaction, Versioned};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// See the module. Leases end by tokio's clock, which tests may hold; clones are the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    memory: Memory,
    leases: BTreeMap<LeaseId, (Duration, Instant)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let revision = watch::Sender::new(Revision::default());
        Self(Arc::new(Shared { state: Mutex::default(), revision }))
    }
}

impl MemoryStore {
    fn with<T>(&self, body: impl FnOnce(&mut State) -> T) -> T {
        let mut state: MutexGuard<'_, State> = self.0.state.lock().expect("no holder panics");
        let now = Instant::now();
        let due = state.leases.iter().filter(|(_, (_, ends))| *ends <= now).map(|(lease, _)| *lease);
        for lease in due.collect::<Vec<_>>() {
            state.leases.remove(&lease);
            state.memory.end(lease);
        }
        let value = body(&mut state);
        // A look that changed nothing wakes nobody: those who watch look too.
        let now = state.memory.revision();
        self.0.revision.send_if_modified(|before| std::mem::replace(before, now) != now);
        value
    }

    /// Forgets the changes up to a revision.
    pub fn compact(&self, upto: Revision) {
        self.with(|state| state.memory.compact(upto));
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        Ok(self.with(|State { memory, .. }| Found {
            revision: memory.revision(),
            records: keys.iter().map(|key| memory.get(key).cloned()).collect(),
        }))
    }

    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        Ok(self.with(|State { memory, .. }| Found {
            revision: memory.revision(),
            records: memory.list(scope).map(|(key, found)| (key.clone(), found.modified)).collect(),
        }))
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        Ok(self.with(|State { memory, .. }| Found {
            revision: memory.revision(),
            records: memory.list(scope).map(|(key, found)| (key.clone(), found.clone())).collect(),
        }))
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        assert_sound(transaction);
        Ok(self.with(|state| state.memory.transact(transaction)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        Ok(self.with(|state| {
            let lease = state.memory.grant();
            state.leases.insert(lease, (ttl, Instant::now() + ttl));
            lease
        }))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with(|state| {
            let (ttl, ends) = state.leases.get_mut(&lease).ok_or(StoreError::LeaseEnded(lease))?;
            *ends = Instant::now() + *ttl;
            Ok(())
        })
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with(|state| {
            state.leases.remove(&lease);
            state.memory.end(lease);
        });
        Ok(())
    }

    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        watcher::watch(self.clone(), scope)
    }

    fn place(&self) -> String {
        "memory".into()
    }
}

#[tonic::async_trait]
impl watcher::Source for MemoryStore {
    type Position = Revision;
    type Changes = watch::Receiver<Revision>;

    async fn list(&self, scope: &Scope) -> Result<(Listing, Revision), Ended> {
        let listing = Store::list(self, scope).await?;
        let revision = listing.revision;
        Ok((listing, revision))
    }

    async fn open(&self, _: &Scope, _: &mut Revision) -> Result<Self::Changes, Ended> {
        Ok(self.0.revision.subscribe())
    }

    async fn next(
        &self,
        scope: &Scope,
        changes: &mut Self::Changes,
        position: &mut Revision,
    ) -> Result<Vec<Changed>, Ended> {
        loop {
            let (found, ends) = self.with(|State { memory, leases }| {
                let ends = leases.values().map(|(_, ends)| *ends).min();
                (memory.changes_after(*position, scope), ends)
            });
            let found = found.map_err(|_| Ended::Lost)?;
            if let Some(last) = found.last() {
                *position = last.revision;
                return Ok(found);
            }
            // Nobody but those who look ends leases: a watcher looks when the first of them is due.
            let due = async {
                match ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| Ended::Gone)?,
                () = due => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_wakes_nobody() {
        let store = MemoryStore::default();
        let changes = store.0.revision.subscribe();
        store.read(&[Key::Leader]).await.expect("memory answers");
        assert!(!changes.has_changed().expect("the store is there"));
    }
}
