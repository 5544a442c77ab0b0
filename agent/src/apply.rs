//! Stages a plan: executes its moves by real copies, verifies each, and says what it took. Blocking, on a few
//! threads of its own.

use crate::crash_point::CrashPoint;
use crate::ledger;
use crate::metrics::AgentMetrics;
use crate::transfer::client::{Cancel, Peer};
use crate::transfer::{Request, WeightsDigest};
use crate::watchdog::Watchdog;
use evenkeel_core::ids::ExpertId;
use evenkeel_core::protocol::agent::{NodeMove, RefusalCode, Tally};
use evenkeel_core::units::Bytes;
use evenkeel_transport::Security;
use evenkeel_worker::{SlotAddress, Source, WorkerBackend, WorkerError};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Moves under way at a time: enough to fill a link from several peers, few enough to leave the node's
/// other traffic alone.
pub const MOVES_MAX: usize = 4;
/// Attempts to reach a peer, which may be restarting; waits of 0.1, 0.2, 0.4, 0.8 s lie between them.
const ATTEMPTS_MAX: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// How often a wait looks whether the work is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// Hands out bandwidth: each taker reserves the time its bytes need after those before it.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Pacer {
    /// Paces to so many bytes a second; 0 does not pace.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may have been moved.
    fn take(&self, bytes: u64, cancel: &Cancel) {
        if self.bytes_per_second == 0 {
            return;
        }
        let needed = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now()) + needed;
            *free_at
        };
        wait_until(until, cancel);
    }
}

fn wait_until(until: Instant, cancel: &Cancel) {
    while !cancel.is_cancelled() {
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => thread::sleep(left.min(POLL)),
            _ => return,
        }
    }
}

/// One attempt to stage a plan.
pub struct Staging {
    /// Whose slots receive.
    pub worker: Arc<dyn WorkerBackend>,
    /// The node's weights.
    pub weights: WeightsDigest,
    /// What the slots receive.
    pub moves: Vec<NodeMove>,
    /// Transfer addresses that the moves index.
    pub peers: Vec<String>,
    /// Bandwidth.
    pub pacer: Arc<Pacer>,
    /// How other nodes are connected to.
    pub security: Security,
    /// Set when the attempt is not wanted any more.
    pub cancel: Cancel,
    /// Where progress is counted.
    pub metrics: Arc<AgentMetrics>,
    /// Sees calls that do not end; of [`MOVES_MAX`] lanes.
    pub watchdog: Arc<Watchdog>,
}

/// Why an attempt came to nothing.
pub type StageFault = (RefusalCode, String);

impl Staging {
    /// Stages every move. On the first fault the others stop, and what was staged stays unreferenced.
    pub fn run(&self) -> Result<Tally, StageFault> {
        let begun = Instant::now();
        let mut queue = self.moves.clone();
        // Moves from one peer follow each other, so that a connection serves many.
        queue.sort_by_key(|m| m.peer);
        let threads = MOVES_MAX.min(queue.len());
        let queue = Mutex::new(VecDeque::from(queue));
        let results: Vec<_> = thread::scope(|scope| {
            let queue = &queue;
            let lanes: Vec<_> =
                (0..threads).map(|lane| scope.spawn(move || self.lane(lane, queue))).collect();
            lanes.into_iter().map(|lane| lane.join().expect("staging does not panic")).collect()
        });
        let mut tally = Tally::default();
        for result in results {
            let lane = result?;
            tally.bytes_local += lane.bytes_local;
            tally.bytes_from_peers += lane.bytes_from_peers;
            tally.slots_verified += lane.slots_verified;
        }
        tally.elapsed_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(tally)
    }

    /// Takes moves until there are none.
    fn lane(&self, lane: usize, queue: &Mutex<VecDeque<NodeMove>>) -> Result<Tally, StageFault> {
        let mut tally = Tally::default();
        let mut peer = None;
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(next) = next else { return Ok(tally) };
            let moved = self.execute(lane, next, &mut peer, &mut tally);
            if let Err(fault) = moved {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                return Err(fault);
            }
        }
    }

    fn execute(
        &self,
        lane: usize,
        next: NodeMove,
        connection: &mut Option<(usize, Peer)>,
        tally: &mut Tally,
    ) -> Result<(), StageFault> {
        let layer = next.slot.layer;
        let destination = SlotAddress { layer, slot: next.slot.destination };
        let there = self.holds(lane, destination, next.slot.expert);
        let size = self.worker.layout().shape().expert_bytes;
        self.pacer.take(if there { 0 } else { size }, &self.cancel);
        if self.cancel.is_cancelled() {
            return Err((RefusalCode::DeadlineExceeded, "staging was stopped".to_owned()));
        }
        let source = SlotAddress { layer, slot: next.slot.source };
        match next.peer {
            _ if there => {}
            None => {
                let expert = next.slot.expert;
                let staged = self
                    .watchdog
                    .call(lane, |_| self.worker.stage(destination, expert, Source::Slot(source)));
                staged.map_err(|error| fault(&error))?;
                tally.bytes_local += Bytes(size);
                self.metrics.bytes_local.increment(size);
            }
            Some(peer) => {
                self.fetch(lane, next, peer, connection)?;
                tally.bytes_from_peers += Bytes(size);
                self.metrics.bytes_peer.increment(size);
            }
        }
        tally.slots_verified += 1;
        self.metrics.slots_verified.increment(1);
        self.metrics.staged_slots.increment(1.0);
        CrashPoint::Staging.reached();
        Ok(())
    }

    /// Whether the slot's bytes are the expert's already: staged before the agent was restarted, or still there since
    /// the plan before released them. They are not touched then. A committed plan is prepared again on a node that
    /// has lost it, while others serve tables that name this slot: a copy that fails must not ruin what is right.
    fn holds(&self, lane: usize, slot: SlotAddress, expert: ExpertId) -> bool {
        let Some(registered) = self.worker.registered(slot).filter(|found| found.expert == expert) else {
            return false;
        };
        let found = self.watchdog.call(lane, |_| self.worker.fingerprint(slot));
        found.is_ok_and(|fingerprint| fingerprint == registered.fingerprint)
    }

    fn fetch(
        &self,
        lane: usize,
        next: NodeMove,
        peer: usize,
        connection: &mut Option<(usize, Peer)>,
    ) -> Result<(), StageFault> {
        let address = &self.peers[peer];
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            match self.fetch_once(lane, next, peer, connection) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // Whatever is left in the connection belongs to the failed request.
                    *connection = None;
                    let again = matches!(error, WorkerError::SourceFailed { .. });
                    if !again || attempt == ATTEMPTS_MAX || self.cancel.is_cancelled() {
                        let (code, message) = fault(&error);
                        return Err((code, format!("{message} (from {address}, attempt {attempt})")));
                    }
                }
            }
            wait_until(Instant::now() + wait, &self.cancel);
            wait *= 2;
            attempt += 1;
        }
    }

    fn fetch_once(
        &self,
        lane: usize,
        next: NodeMove,
        peer: usize,
        connection: &mut Option<(usize, Peer)>,
    ) -> Result<(), WorkerError> {
        let (layer, expert) = (next.slot.layer, next.slot.expert);
        let destination = SlotAddress { layer, slot: next.slot.destination };
        let failed = |error| WorkerError::SourceFailed { address: destination, expert, error };
        if connection.as_ref().is_none_or(|(to, _)| *to != peer) {
            let opened = Peer::connect(&self.peers[peer], &self.security, self.cancel.clone());
            let opened = opened.map_err(failed)?;
            *connection = Some((peer, opened));
        }
        let (_, stream) = connection.as_mut().expect("just opened");
        let request = Request {
            weights: self.weights,
            slot: SlotAddress { layer, slot: next.slot.source },
            expert,
            length: self.worker.layout().shape().expert_bytes,
        };
        let (fingerprint, body) = stream.fetch(&request).map_err(failed)?;
        self.watchdog.call(lane, |lane| {
            let source = Source::Bytes(&mut lane.outside(body), fingerprint);
            self.worker.stage(destination, expert, source).map(|_| ())
        })
    }
}

fn fault(error: &WorkerError) -> StageFault {
    let code = match error {
        WorkerError::Io { error, .. } if ledger::is_full(error) => RefusalCode::DiskFull,
        WorkerError::SourceFailed { .. } => RefusalCode::SourceUnreachable,
        WorkerError::FingerprintMismatch { .. } => RefusalCode::FingerprintMismatch,
        _ => RefusalCode::WorkerFault,
    };
    (code, format!("{}: {error}", error.code()))
}
