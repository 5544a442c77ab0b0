//! The default store: one file on the local disk, opened by one process at a time, with the semantics of the shared store.
//!
//! | module | what |
//! |---|---|
//! | `disk` | the file, its errors, and how it is opened again after one |
//! | `state` | transactions, leases and history over the file |
//! | `leases`, `history` | what does not outlive the process |

mod disk;
mod history;
mod leases;
mod state;

use super::watcher::{self, Ended, Listing};
use super::{Found, Store, StoreError, Told, assert_sound};
use disk::Opener;
use evenkeel_core::records::{Changed, Key, LeaseId, Outcome, Revision, Scope, Transaction, Versioned};
use redb::Database;
use state::State;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// redb caches up to 1 GiB unless told otherwise; plans are read once, at a start or by an operator.
const CACHE_BYTES: usize = 8 << 20;
/// How long after a lease could not be ended (the disk is full) it is tried again.
const END_AGAIN: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub struct EmbeddedStore(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
    /// Wakes the task that ends leases: another one may be the next, or the store is closed.
    leases: Arc<Notify>,
    place: String,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("place", &self.place).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens `state_dir/evenkeel.redb`, making it when it is not there. Blocks for the disk; must be called within a tokio
    /// runtime.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join("evenkeel.redb");
        let place = path.display().to_string();
        std::fs::create_dir_all(state_dir).map_err(|e| StoreError::Broken {
            place: place.clone(),
            reason: format!("cannot make the directory {}: {e}", state_dir.display()),
        })?;
        let open = move || Database::builder().set_cache_size(CACHE_BYTES).create(&path);
        Self::open_with(place, Box::new(open))
    }

    fn open_with(place: String, open: Opener) -> Result<Self, StoreError> {
        let state = State::open(place.clone(), open)?;
        let revision = watch::Sender::new(state.revision());
        let leases = Arc::new(Notify::new());
        let shared = Shared { state: Mutex::new(state), revision, leases, place };
        let shared = Arc::new(shared);
        tokio::spawn(end_leases(Arc::downgrade(&shared), Arc::clone(&shared.leases)));
        Ok(Self(shared))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.leases.notify_one();
    }
}

/// Ends leases when their time is over, as long as the store is there.
async fn end_leases(shared: Weak<Shared>, changed: Arc<Notify>) {
    loop {
        let Some(held) = shared.upgrade() else { return };
        let next = run(held, |state, _| Ok(state.next_end())).await;
        let pause = match next {
            Ok(Some(ends)) => ends.saturating_duration_since(Instant::now()),
            Ok(None) => Duration::MAX,
            Err(_) => END_AGAIN,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed.notified() => {}
        }
    }
}

/// Does something with the state on a thread that may block for the disk.
async fn run<T: Send + 'static>(
    shared: Arc<Shared>,
    body: impl FnOnce(&mut State, Instant) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let place = shared.place.clone();
    let done = tokio::task::spawn_blocking(move || {
        let mut state = shared.state.lock().expect("no holder panics");
        let now = Instant::now();
        let done = state.advance(now).and_then(|()| body(&mut state, now));
        let revision = state.revision();
        shared.revision.send_if_modified(|told| std::mem::replace(told, revision) != revision);
        done
    });
    match done.await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Away { place, reason: "the process is stopping".into() }),
    }
}

impl EmbeddedStore {
    async fn run<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut State, Instant) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        run(Arc::clone(&self.0), body).await
    }
}

#[tonic::async_trait]
impl Store for EmbeddedStore {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        let keys = keys.to_vec();
        self.run(move |state, _| state.read(&keys)).await
    }

    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        let scope = scope.clone();
        self.run(move |state, _| state.keys(&scope)).await
    }

    async fn list(&self, scope: &Scope) -> Result<Listing, StoreError> {
        let scope = scope.clone();
        self.run(move |state, _| state.list(&scope)).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        assert_sound(transaction);
        let transaction = transaction.clone();
        self.run(move |state, _| state.transact(&transaction)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = self.run(move |state, now| Ok(state.grant(ttl, now))).await;
        self.0.leases.notify_one();
        lease
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.run(move |state, now| state.keep_alive(lease, now)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.run(move |state, _| state.end(lease)).await
    }

    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        watcher::watch(Watched(Arc::downgrade(&self.0)), scope)
    }

    fn place(&self) -> String {
        self.0.place.clone()
    }
}

/// A watch does not keep the file open.
struct Watched(Weak<Shared>);

#[tonic::async_trait]
impl watcher::Source for Watched {
    type Position = Revision;
    type Changes = watch::Receiver<Revision>;

    async fn list(&self, scope: &Scope) -> Result<(Listing, Revision), Ended> {
        let (shared, scope) = (self.0.upgrade().ok_or(Ended::Gone)?, scope.clone());
        let listing = run(shared, move |state, _| state.list(&scope)).await?;
        let revision = listing.revision;
        Ok((listing, revision))
    }

    async fn open(&self, _: &Scope, _: &mut Revision) -> Result<Self::Changes, Ended> {
        Ok(self.0.upgrade().ok_or(Ended::Gone)?.revision.subscribe())
    }

    async fn next(
        &self,
        scope: &Scope,
        changes: &mut Self::Changes,
        position: &mut Revision,
    ) -> Result<Vec<Changed>, Ended> {
        loop {
            let (shared, scope, after) = (self.0.upgrade().ok_or(Ended::Gone)?, scope.clone(), *position);
            let look = move |state: &mut State, _| Ok((state.changes_after(after, &scope), state.revision()));
            let (found, revision) = run(shared, look).await?;
            let found = found.ok_or(Ended::Lost)?;
            // Up to here the scope is as it was told, whatever is forgotten later.
            *position = revision;
            if !found.is_empty() {
                return Ok(found);
            }
            changes.changed().await.map_err(|_| Ended::Gone)?;
        }
    }
}

#[cfg(test)]
mod tests;
