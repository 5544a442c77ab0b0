//! The flight recorder: what routers take and decide goes to files, without routing ever waiting for it.

use super::writer::Writer;
use crate::config;
use crate::metrics as m;
use evenkeel_core::routing::{Decision, KvChange, Router, RoutingError, RoutingEvent};
use evenkeel_core::units::Millis;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Messages that may wait to be written. Their queue is made whole at the start: 8 MB.
const QUEUE_MAX: usize = 1 << 16;
/// Weight of what may wait to be written, in messages, events and blocks: at most a hundred bytes each.
const WEIGHT_MAX: usize = 1 << 21;
/// After a loss, a unit's recording goes on when no more waits than this, so that its state is copied once and finds room.
const WEIGHT_TO_RESUME: usize = QUEUE_MAX / 2;

/// Why the recorder cannot begin.
#[derive(Debug, thiserror::Error)]
#[error("routing.record {}: {source}; name a directory that can be written to, or leave it empty", dir.display())]
pub struct RecorderError {
    dir: PathBuf,
    source: std::io::Error,
}

pub(super) enum Message {
    Begin {
        unit: Arc<str>,
        router: Box<Router>,
    },
    /// The router as it is after batches that did not fit the queue.
    State {
        unit: Arc<str>,
        at: Millis,
        router: Box<Router>,
        dropped: u64,
    },
    Batch {
        unit: Arc<str>,
        at: Millis,
        weight: usize,
        events: Vec<RoutingEvent>,
        decided: Result<Vec<Decision>, RoutingError>,
    },
    Stop,
}

/// Where recordings go.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: SyncSender<Message>,
    queued: Arc<AtomicUsize>,
}

/// The thread that writes. To be stopped, so that what is queued is written.
pub(crate) struct RecorderThread {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Begins to record into the directory that the configuration names.
    pub(crate) fn begin(routing: &config::Routing) -> Result<(Self, RecorderThread), RecorderError> {
        let dir: &Path = &routing.record;
        std::fs::create_dir_all(dir)
            .and_then(|()| tempfile::tempfile_in(dir).map(drop))
            .map_err(|source| RecorderError { dir: dir.to_owned(), source })?;
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let queued = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            dir: dir.to_owned(),
            bytes_max: u64::from(routing.record_max_mb) << 20,
            policy: policy(routing),
            queued: Arc::clone(&queued),
            units: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || writer.run(&messages))
            .map_err(|source| RecorderError { dir: dir.to_owned(), source })?;
        Ok((Self::to(queue.clone(), queued), RecorderThread { queue, thread }))
    }

    pub(super) fn to(queue: SyncSender<Message>, queued: Arc<AtomicUsize>) -> Self {
        Self { queue, queued }
    }

    /// The recording of a unit that begins to route.
    pub(crate) fn unit(&self, unit: &str, router: &Router) -> UnitRecorder {
        let unit: Arc<str> = unit.into();
        // Units form one by one, when nothing is routed yet: there is room, and else the unit is not recorded.
        let begin = Message::Begin { unit: Arc::clone(&unit), router: Box::new(router.clone()) };
        if self.queue.try_send(begin).is_err() {
            tracing::warn!(%unit, "requests are not recorded: the recorder is busy");
        }
        UnitRecorder { recorder: self.clone(), unit, lost: 0 }
    }
}

impl RecorderThread {
    /// Writes what is queued, and ends.
    pub(crate) fn stop(self) {
        // A thread that is gone has nothing left to write.
        let _ = self.queue.send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the recorder panicked: the last decisions are not recorded");
        }
    }
}

/// The policy of recorded units: the section `routing` without where it is recorded.
fn policy(routing: &config::Routing) -> Value {
    let mut policy = serde_json::to_value(routing).expect("a configuration is JSON");
    let fields = policy.as_object_mut().expect("a section has fields");
    fields.retain(|key, _| !key.starts_with("record"));
    policy
}

/// Records one unit. To be used under the lock of its router, so that the order is that of the decisions.
pub(crate) struct UnitRecorder {
    recorder: Recorder,
    unit: Arc<str>,
    /// Batches since the last one that the queue took.
    lost: u64,
}

impl UnitRecorder {
    /// A batch, and what `router` made of it.
    pub(crate) fn record(
        &mut self,
        at: Millis,
        events: &[RoutingEvent],
        decided: &Result<Vec<Decision>, RoutingError>,
        router: &Router,
    ) {
        if self.lost > 0 {
            self.resume(at, router);
            return;
        }
        let weight = weight(events);
        let queued = &self.recorder.queued;
        let mut sent = queued.fetch_add(weight, Ordering::Relaxed) + weight <= WEIGHT_MAX;
        if sent {
            let (unit, events, decided) = (Arc::clone(&self.unit), events.to_vec(), decided.clone());
            sent = self.recorder.queue.try_send(Message::Batch { unit, at, weight, events, decided }).is_ok();
        }
        if !sent {
            queued.fetch_sub(weight, Ordering::Relaxed);
            self.lose();
        }
    }

    /// After a loss only a copy of the router makes the recording whole again; it has this batch in it.
    fn resume(&mut self, at: Millis, router: &Router) {
        self.lose();
        if self.recorder.queued.load(Ordering::Relaxed) > WEIGHT_TO_RESUME {
            return;
        }
        let (unit, router) = (Arc::clone(&self.unit), Box::new(router.clone()));
        let state = Message::State { unit, at, router, dropped: self.lost };
        if self.recorder.queue.try_send(state).is_ok() {
            self.lost = 0;
        }
    }

    fn lose(&mut self) {
        self.lost += 1;
        metrics::counter!(m::RECORDED_BATCHES, "outcome" => "dropped").increment(1);
    }
}

fn weight(events: &[RoutingEvent]) -> usize {
    let blocks = |event: &RoutingEvent| match event {
        RoutingEvent::Arrive { blocks, .. } => blocks.len(),
        RoutingEvent::Kv {
            change: KvChange::Stored { blocks, .. } | KvChange::Removed { blocks }, ..
        } => blocks.len(),
        _ => 0,
    };
    1 + events.iter().map(|event| 1 + blocks(event)).sum::<usize>()
}
