//! What the worker is asked to do: boot, stage, flip. Each runs beside the reconciler and ends as an event.
//!
//! A worker can hang, and a call into one that hangs cannot be taken back: its thread stays. So there is at
//! most one call of each kind, and what comes after it waits without a thread, no longer than its own bound.

use crate::apply::{MOVES_MAX, Pacer, StageFault, Staging};
use crate::crash_point::CrashPoint;
use crate::metrics::AgentMetrics;
use crate::transfer::WeightsDigest;
use crate::transfer::client::Cancel;
use crate::watchdog::Watchdog;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{Event, NodeMove, RefusalCode};
use evenkeel_transport::Security;
use evenkeel_worker::{WorkerBackend, WorkerError, WorkerEvent};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};

/// A flip waits for the end of one step, which takes tens of milliseconds; an engine that needs longer than
/// this hangs. Balancers are to hear of it within 5 s.
pub const FLIP_MAX: Duration = Duration::from_secs(4);
/// Copying and reading back one expert takes milliseconds for each of its megabytes; a worker that needs longer
/// than this for one hangs.
const COPY_MAX: Duration = Duration::from_secs(4);
/// How often a worker that is within a step is asked whether it has flipped.
const FLIP_POLL: Duration = Duration::from_millis(1);
/// Loading all weights of a node from a slow disk takes minutes (640 GB at 1 GB/s: 11); longer is a hang.
const BOOT_MAX: Duration = Duration::from_secs(1800);
/// How often what waits for a call to end looks whether it is still wanted.
const WAIT_POLL: Duration = Duration::from_millis(50);

/// What work is done with.
#[derive(Clone)]
pub struct Workplace {
    /// The workers.
    pub worker: Arc<dyn WorkerBackend>,
    /// The node's weights.
    pub weights: WeightsDigest,
    /// Bandwidth for copies.
    pub pacer: Arc<Pacer>,
    /// How other nodes are connected to.
    pub security: Security,
    /// Where progress is counted.
    pub metrics: Arc<AgentMetrics>,
}

/// At most one call into the worker at a time.
#[derive(Debug, Clone)]
struct Turn(Arc<Semaphore>);

impl Turn {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for the call before to end, for as long as `wanted` says.
    async fn take(&self, wanted: impl Fn() -> bool) -> Option<OwnedSemaphorePermit> {
        while wanted() {
            if let Ok(permit) = timeout(WAIT_POLL, self.0.clone().acquire_owned()).await {
                return Some(permit.expect("the semaphore is never closed"));
            }
        }
        None
    }
}

/// See the module's documentation.
pub(crate) struct Work {
    place: Workplace,
    tasks: JoinSet<Event>,
    /// Stops the staging under way.
    cancel: Cancel,
    booting: Turn,
    staging: Turn,
    arming: Turn,
    hangs: Arc<Mutex<VecDeque<WorkerEvent>>>,
}

impl Work {
    pub(crate) fn new(place: Workplace) -> Self {
        Self {
            place,
            tasks: JoinSet::new(),
            cancel: Cancel::default(),
            booting: Turn::new(),
            staging: Turn::new(),
            arming: Turn::new(),
            hangs: Arc::default(),
        }
    }

    /// Waits for a piece of work to end.
    pub(crate) async fn done(&mut self) -> Event {
        match self.tasks.join_next().await {
            Some(event) => event.expect("work does not panic"),
            None => std::future::pending().await,
        }
    }

    /// What was noticed of the worker.
    pub(crate) fn poll_event(&self) -> Option<WorkerEvent> {
        self.hangs.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Stops what can be stopped.
    pub(crate) fn stop(&mut self) {
        self.cancel.cancel();
    }

    pub(crate) fn boot(&mut self, plan: Arc<Plan>) {
        let (worker, turn, hangs) = (self.place.worker.clone(), self.booting.clone(), self.hangs.clone());
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let Some(permit) = turn.take(|| begun.elapsed() < BOOT_MAX).await else {
                return Event::BootFailed { message: hung(&hangs, "an earlier boot does not end") };
            };
            let call = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                worker.boot(&plan, None)
            });
            match timeout(BOOT_MAX, call).await {
                Ok(Ok(Ok(()))) => Event::Booted,
                Ok(Ok(Err(error))) => Event::BootFailed { message: coded(&error) },
                Ok(Err(panicked)) => Event::BootFailed { message: panicked.to_string() },
                Err(_) => Event::BootFailed {
                    message: hung(&hangs, &format!("it did not boot within {BOOT_MAX:?}")),
                },
            }
        });
    }

    pub(crate) fn stage(&mut self, attempt: u64, moves: Vec<NodeMove>, peers: Vec<String>) {
        self.cancel = Cancel::default();
        let (cancel, turn) = (self.cancel.clone(), self.staging.clone());
        let hangs = self.hangs.clone();
        let watchdog = Arc::new(Watchdog::new(MOVES_MAX));
        let Workplace { worker, weights, pacer, security, metrics } = self.place.clone();
        let staging = Staging {
            worker,
            weights,
            moves,
            peers,
            pacer,
            security,
            cancel: cancel.clone(),
            metrics,
            watchdog: watchdog.clone(),
        };
        self.tasks.spawn(async move {
            let failed = |code, message| Event::StageFailed { attempt, code, message };
            // The attempt before must have left the slots alone.
            let Some(permit) = turn.take(|| !cancel.is_cancelled()).await else {
                return failed(RefusalCode::DeadlineExceeded, "staging was stopped".to_owned());
            };
            let call = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                staging.run()
            });
            let copy_hangs = async {
                while watchdog.longest() < COPY_MAX {
                    sleep(WAIT_POLL).await;
                }
                let reason = format!("it did not take an expert within {COPY_MAX:?}");
                cancel.cancel();
                Err((RefusalCode::WorkerFault, hung(&hangs, &reason)))
            };
            let panicked = |panicked: JoinError| Err((RefusalCode::WorkerFault, panicked.to_string()));
            let staged: Result<_, StageFault> = tokio::select! {
                staged = call => staged.unwrap_or_else(panicked),
                hangs = copy_hangs => hangs,
            };
            match staged {
                Ok(tally) => {
                    CrashPoint::Staged.reached();
                    Event::Staged { attempt, tally }
                }
                Err((code, message)) => failed(code, message),
            }
        });
    }

    pub(crate) fn unstage(&mut self) {
        self.cancel.cancel();
    }

    pub(crate) fn flip(&mut self, attempt: u64, plan: Arc<Plan>) {
        let (worker, turn, hangs) = (self.place.worker.clone(), self.arming.clone(), self.hangs.clone());
        self.tasks.spawn(async move {
            let begun = Instant::now();
            match timeout(FLIP_MAX, flip(worker, &turn, plan)).await {
                Ok(Ok(())) => {
                    CrashPoint::Flipped.reached();
                    let elapsed_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    Event::Flipped { attempt, elapsed_us }
                }
                Ok(Err(message)) => Event::FlipFailed { attempt, message },
                Err(_) => Event::FlipFailed {
                    attempt,
                    message: hung(&hangs, &format!("it reached no step boundary within {FLIP_MAX:?}")),
                },
            }
        });
    }
}

/// Arms the tables and waits for the flip. A worker that hung when it was armed before may have flipped since.
async fn flip(worker: Arc<dyn WorkerBackend>, turn: &Turn, plan: Arc<Plan>) -> Result<(), String> {
    let id = (plan.epoch, plan.digest());
    let permit = turn.take(|| worker.active() != Some(id)).await;
    if let Some(permit) = permit {
        let arming = worker.clone();
        let armed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // The call before may have flipped while this one waited.
            if arming.active() == Some(id) { Ok(()) } else { arming.arm(&plan) }
        });
        armed.await.map_err(|panicked| panicked.to_string())?.map_err(|error| coded(&error))?;
        CrashPoint::Armed.reached();
    }
    while worker.active() != Some(id) {
        sleep(FLIP_POLL).await;
    }
    Ok(())
}

/// Notes that the worker hangs; returns the message for who waits.
fn hung(hangs: &Mutex<VecDeque<WorkerEvent>>, reason: &str) -> String {
    let mut hangs = hangs.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken every 100 ms, and made every 4 s at most.
    hangs.push_back(WorkerEvent::Hung { message: reason.to_owned() });
    format!("worker_hung: {reason}")
}

fn coded(error: &WorkerError) -> String {
    format!("{}: {error}", error.code())
}
