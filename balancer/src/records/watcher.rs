//! The watch that every store gives, over the way in which one store tells of changes:
//!
//! ```text
//! list -> Listed -> [ changes -> Changed ]* -> broken: again from where it was
//!   ^                                       -> lost:   list
//! ```

use super::{Found, StoreError, Told};
use crate::metrics as m;
use evenkeel_core::records::{Changed, Key, Scope, Versioned};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Messages that wait for a receiver. One that lets more pile up holds up its own watch, and nothing else.
const TOLD_MAX: usize = 64;
/// First pause after a watch has broken: another member of the store answers at once.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause: a store that comes back is noticed within a second. A handful of balancers need no jitter.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why there are no more changes.
#[derive(Debug)]
pub(super) enum Ended {
    /// Changes after the position are gone, or the position is of another store's past.
    Lost,
    /// The store did not answer; the position is good.
    Broken(StoreError),
    /// The store has been closed.
    Gone,
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Ended::Broken(error)
    }
}

/// How one store tells of changes.
#[tonic::async_trait]
pub(super) trait Source: Send + Sync + 'static {
    /// Up to where a watcher has been told.
    type Position: Send;
    /// Changes that arrive.
    type Changes: Send;

    /// Everything in the scope, and the position that this is.
    async fn list(&self, scope: &Scope) -> Result<(Listing, Self::Position), Ended>;

    /// Begins to receive the changes after a position.
    async fn open(&self, scope: &Scope, position: &mut Self::Position) -> Result<Self::Changes, Ended>;

    /// Waits for changes and moves the position behind them.
    async fn next(
        &self,
        scope: &Scope,
        changes: &mut Self::Changes,
        position: &mut Self::Position,
    ) -> Result<Vec<Changed>, Ended>;
}

/// What stands in a scope.
pub(super) type Listing = Found<Vec<(Key, Versioned)>>;

/// Starts a watch, which lasts as long as its receiver. Must be called within a tokio runtime.
pub(super) fn watch<S: Source>(source: S, scope: Scope) -> mpsc::Receiver<Told> {
    let (told, receiver) = mpsc::channel(TOLD_MAX);
    let watcher = Watcher { source, scope, told };
    tokio::spawn(async move {
        tokio::select! {
            () = watcher.told.closed() => {}
            () = watcher.follow() => {}
        }
    });
    receiver
}

struct Watcher<S> {
    source: S,
    scope: Scope,
    told: mpsc::Sender<Told>,
}

impl<S: Source> Watcher<S> {
    async fn follow(&self) {
        let mut position = None;
        let mut pause = PAUSE_MIN;
        loop {
            let Err(ended) = self.tell(&mut position, &mut pause).await;
            let reason = match ended {
                Ended::Gone => return,
                Ended::Lost => {
                    position = None;
                    "lost"
                }
                Ended::Broken(error) => {
                    // Once for each time the store goes away, not for each try.
                    if pause == PAUSE_MIN {
                        tracing::warn!(scope = ?self.scope, code = error.code(), %error, "a watch of the store broke");
                    }
                    "broken"
                }
            };
            metrics::counter!(m::WATCH_RESTARTS, "reason" => reason).increment(1);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Lists where there is no position, then tells changes for ever. Success brings the pause back to its least.
    async fn tell(
        &self,
        position: &mut Option<S::Position>,
        pause: &mut Duration,
    ) -> Result<Infallible, Ended> {
        let position = match position {
            Some(position) => position,
            None => {
                let (listing, at) = self.source.list(&self.scope).await?;
                self.send(Told::Listed(listing)).await?;
                position.insert(at)
            }
        };
        let mut changes = self.source.open(&self.scope, position).await?;
        let opened = Instant::now();
        loop {
            let changed = self.source.next(&self.scope, &mut changes, position).await;
            if changed.is_ok() || opened.elapsed() > PAUSE_MAX {
                *pause = PAUSE_MIN;
            }
            let changed = changed?;
            if !changed.is_empty() {
                self.send(Told::Changed(changed)).await?;
            }
        }
    }

    async fn send(&self, told: Told) -> Result<(), Ended> {
        self.told.send(told).await.map_err(|_| Ended::Gone)
    }
}
