//! The recorder's thread: writes what routers took and decided.
//!
//! It keeps a copy of each router and applies the same batches to it, so that a file can begin with a state and
//! routing never waits for one to be copied.

use super::files::Files;
use super::lines::{write_batch, write_gap, write_header, write_state, write_unit};
use super::recorder::Message;
use crate::metrics as m;
use evenkeel_core::routing::Router;
use evenkeel_core::units::Millis;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

/// See the module.
pub(super) struct Writer {
    pub(super) dir: PathBuf,
    pub(super) bytes_max: u64,
    /// The section `routing` of the configuration.
    pub(super) policy: Value,
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) units: BTreeMap<Arc<str>, Recording>,
}

/// What is recorded of one unit.
pub(super) struct Recording {
    files: Files,
    router: Router,
    at: Millis,
    /// Batches since the last one that was written.
    lost: u64,
}

impl Writer {
    /// Runs until it is told to stop.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let message = match queue.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // Nothing else to do: what is buffered goes to the system, where a crash of ours leaves it.
                    self.flush();
                    let Ok(message) = queue.recv() else { break };
                    message
                }
            };
            if matches!(message, Message::Stop) {
                break;
            }
            self.take(message);
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        for (unit, recording) in &mut self.units {
            if let Err(error) = recording.files.flush() {
                tracing::warn!(%unit, %error, "the recording was interrupted");
            }
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Stop => {}
            Message::Begin { unit, router } => match Files::new(&self.dir, &unit, self.bytes_max) {
                Ok(files) => {
                    let mut recording = Recording { files, router: *router, at: Millis(0), lost: 0 };
                    recording.begin_or_warn(&unit, &self.policy, true);
                    self.units.insert(unit, recording);
                }
                Err(error) => tracing::warn!(%unit, %error, "requests are not recorded"),
            },
            Message::State { unit, at, router, dropped } => {
                let Some(recording) = self.units.get_mut(&unit) else { return };
                (recording.router, recording.at) = (*router, at);
                recording.lost += dropped;
                recording.resume(&unit, &self.policy);
            }
            Message::Batch { unit, at, weight, events, decided } => {
                self.queued.fetch_sub(weight, Ordering::Relaxed);
                let Some(recording) = self.units.get_mut(&unit) else { return };
                if !recording.files.is_open() || recording.files.is_full() {
                    recording.begin_or_warn(&unit, &self.policy, false);
                }
                let write = |mut out: &mut dyn io::Write| write_batch(&mut out, at, &unit, &events, &decided);
                let mut written = recording.files.write(write);
                if written.is_err() && recording.begin_or_warn(&unit, &self.policy, false) {
                    written = recording.files.write(write);
                }
                // The copy takes what the router took, written or not.
                recording.at = at;
                let copied = recording.router.apply(at, &events);
                debug_assert_eq!(copied, decided, "a router is deterministic");
                let outcome = if written.is_ok() { "written" } else { "dropped" };
                if written.is_err() {
                    recording.lost += 1;
                }
                metrics::counter!(m::RECORDED_BATCHES, "outcome" => outcome).increment(1);
            }
        }
    }
}

impl Recording {
    /// Begins the next file; whether that could be done.
    fn begin_or_warn(&mut self, unit: &str, policy: &Value, fresh: bool) -> bool {
        let begun = self.begin(unit, policy, fresh);
        if let Err(error) = &begun {
            tracing::warn!(%unit, %error, "the recording is interrupted");
        }
        begun.is_ok()
    }

    fn begin(&mut self, unit: &str, policy: &Value, fresh: bool) -> io::Result<()> {
        self.files.begin()?;
        let (at, router, lost) = (self.at, &self.router, self.lost);
        self.files.write(|mut out| {
            write_header(&mut out)?;
            write_unit(&mut out, unit, router, policy)?;
            if lost > 0 {
                write_gap(&mut out, at, unit, lost)?;
            }
            if fresh { Ok(()) } else { write_state(&mut out, at, unit, router) }
        })?;
        self.lost = 0;
        Ok(())
    }

    /// Goes on after batches that were lost.
    fn resume(&mut self, unit: &str, policy: &Value) {
        if !self.files.is_open() || self.files.is_full() {
            self.begin_or_warn(unit, policy, false);
            return;
        }
        let (at, router, lost) = (self.at, &self.router, self.lost);
        let written = self.files.write(|mut out| {
            write_gap(&mut out, at, unit, lost)?;
            write_state(&mut out, at, unit, router)
        });
        match written {
            Ok(()) => self.lost = 0,
            Err(error) => tracing::warn!(%unit, %error, "the recording is interrupted"),
        }
    }
}
