//! Counts on their way from the engine to the balancers: one queue, and a number for each session that reads.

use crate::telemetry::{Cursor, Read, Telemetry};
use evenkeel_worker::WorkerBackend;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Shared by the engine's side and all sessions.
#[derive(Debug)]
pub struct LoadFeed {
    telemetry: Mutex<Telemetry>,
    windows_complete: watch::Sender<u64>,
}

impl Default for LoadFeed {
    fn default() -> Self {
        Self { telemetry: Mutex::default(), windows_complete: watch::Sender::new(0) }
    }
}

impl LoadFeed {
    /// Takes every finished step of the worker.
    pub fn drain(&self, worker: &dyn WorkerBackend) {
        let mut telemetry = self.telemetry();
        let mut complete = 0;
        while let Some(step) = worker.poll_counts() {
            complete += u64::from(telemetry.record(step));
        }
        if complete > 0 {
            self.windows_complete.send_modify(|windows| *windows += complete);
        }
    }

    /// Cuts windows of so many steps from now on; returns whether an open one was dropped.
    pub fn set_window(&self, steps: u64) -> bool {
        self.telemetry().set_window(steps)
    }

    /// Whether windows are cut.
    pub fn has_window(&self) -> bool {
        self.telemetry().has_window()
    }

    /// A reader that begins with the oldest segment kept, and is told of complete windows.
    pub fn reader(&self) -> Reader {
        Reader { cursor: self.telemetry().reader(), windows_complete: self.windows_complete.subscribe() }
    }

    /// Reads on.
    pub fn read(&self, reader: &mut Reader) -> Read {
        self.telemetry().read(&mut reader.cursor)
    }

    fn telemetry(&self) -> MutexGuard<'_, Telemetry> {
        self.telemetry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's place in the queue.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    windows_complete: watch::Receiver<u64>,
}

impl Reader {
    /// Waits until a window is complete that was not when this was last asked.
    pub async fn window_complete(&mut self) {
        if self.windows_complete.changed().await.is_err() {
            // The feed is gone, so the agent is going down: nothing will complete any more.
            std::future::pending::<()>().await;
        }
    }
}
