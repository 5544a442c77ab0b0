//! The simulated worker: a backend without a GPU. Its slots hold real bytes in a file that stands for GPU
//! memory, so that copies, transfers and fingerprints are real work; what is simulated is the engine, whose
//! routing it is fed step by step.
//!
//! Files in the state directory:
//! - `slots.bin` ([`slots`]): the memory. Like GPU memory it outlives a crash of the sidecar, and like GPU
//!   memory it is void after a restart of the host.
//! - `control.bin` ([`control`]): the control page: the tables in service. It is replaced as a whole (write
//!   aside, rename), so after a kill at any moment it names either the old or the new plan.
//!
//! What is on disk is never behind what was promised: a slot's directory entry is cleared before its bytes
//! change and set after they were verified; `control.bin` is replaced only when every slot of its plan is
//! registered; and it is removed before a boot touches the slots, so an interrupted boot leaves no worker
//! state rather than half of one. Staged slots are not remembered across a restart: the plan in service
//! leaves them empty.

pub mod control;
pub mod slots;
pub mod tables;
pub mod weights;

use crate::backend::{RankGauges, Registered, Source, StepCounts, WorkerBackend, WorkerError, WorkerEvent};
use crate::layout::{NodeLayout, SlotAddress};
use evenkeel_core::ids::{Epoch, ExpertId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_kernels::{Fingerprint, FingerprintStream, fingerprint};
use slots::{Header, SlotsFile};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use tables::{StepError, Tables};

/// Bytes copied at a time: the frame of the transfer protocol, a multiple of eight for fingerprints.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Finished steps whose counts were not taken. The agent takes them after every step; more than this means
/// that it is stuck, and old counts are worth less than new ones.
const UNTAKEN_STEPS_MAX: usize = 64;

/// Events that were not taken. The agent takes them ten times a second.
const EVENTS_MAX: usize = 64;

/// What was found in the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A worker that serves this plan.
    Attached(Arc<Plan>),
    /// No worker state.
    Nothing,
    /// State that cannot be used any more, and why.
    Void(String),
}

/// What a step routed.
pub enum Routing<'a> {
    /// Tokens by logical expert, over the whole unit.
    Counts(&'a LoadTable),
    /// Logical ids, `[layers][tokens][top_k]`, over the whole unit.
    TopK {
        /// Choices per token.
        top_k: usize,
        /// Tokens.
        tokens: usize,
        /// The ids.
        ids: &'a [u8],
    },
}

/// The last step run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepDone {
    /// Its number.
    pub step: u64,
    /// Epoch of the tables it was served with.
    pub epoch: Epoch,
}

/// Its lock is held while a step runs, so whoever holds it is at a boundary.
#[derive(Debug, Default)]
struct Engine {
    last: Option<StepDone>,
}

/// What steps have left for the agent: to be had while a step runs, however long that takes.
#[derive(Debug, Default)]
struct Left {
    gauges: Vec<RankGauges>,
    untaken: VecDeque<StepCounts>,
    events: VecDeque<WorkerEvent>,
}

/// A step that does not end, for tests of what happens then.
#[derive(Debug, Default)]
struct Hang {
    hangs: Mutex<bool>,
    cleared: Condvar,
}

impl Hang {
    fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap_or_else(PoisonError::into_inner) = hangs;
        self.cleared.notify_all();
    }

    fn wait(&self) {
        let hangs = self.hangs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.cleared.wait_while(hangs, |hangs| *hangs));
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SimulatedWorker {
    directory: PathBuf,
    header: Header,
    slots: RwLock<Option<Arc<SlotsFile>>>,
    tables: RwLock<Option<Arc<Tables>>>,
    engine: Mutex<Engine>,
    left: Mutex<Left>,
    hang: Hang,
}

impl SimulatedWorker {
    /// Attaches to the worker state in `directory`, if there is any. State of another unit, node, shape or
    /// seed is an error: it belongs to someone else.
    pub fn open(directory: &Path, header: Header) -> Result<(Self, Found), WorkerError> {
        let worker = Self {
            directory: directory.to_owned(),
            header,
            slots: RwLock::new(None),
            tables: RwLock::new(None),
            engine: Mutex::default(),
            left: Mutex::default(),
            hang: Hang::default(),
        };
        let found = worker.attach()?;
        Ok((worker, found))
    }

    /// Path of the file that holds the slots in a state directory.
    pub fn slots_path(directory: &Path) -> PathBuf {
        directory.join("slots.bin")
    }

    /// Whose slots this worker holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn control_path(&self) -> PathBuf {
        self.directory.join("control.bin")
    }

    fn attach(&self) -> Result<Found, WorkerError> {
        let plan = match control::read(&self.control_path()) {
            Ok(Some(plan)) => Arc::new(plan),
            Ok(None) => return Ok(Found::Nothing),
            Err(reason) => return Ok(Found::Void(reason)),
        };
        let slots = match SlotsFile::open(&Self::slots_path(&self.directory)) {
            Ok(slots) => slots,
            Err(error) => return Ok(Found::Void(error.to_string())),
        };
        self.header.check_same(slots.header())?;
        let tables = Tables::new(plan.clone(), &self.header.layout)?;
        if let Some(address) = not_held(&tables, &slots) {
            return Ok(Found::Void(format!("{address} does not hold the expert of the plan in service")));
        }
        *write(&self.slots) = Some(Arc::new(slots));
        *write(&self.tables) = Some(Arc::new(tables));
        Ok(Found::Attached(plan))
    }

    fn slots(&self) -> Result<Arc<SlotsFile>, WorkerError> {
        read(&self.slots).clone().ok_or(WorkerError::NotBooted)
    }

    fn tables(&self) -> Option<Arc<Tables>> {
        read(&self.tables).clone()
    }

    fn local(&self, address: SlotAddress) -> Result<usize, WorkerError> {
        self.header.layout.local(address).ok_or(WorkerError::UnknownSlot { address })
    }

    /// Waits for a step boundary.
    fn boundary(&self) -> MutexGuard<'_, Engine> {
        self.hang.wait();
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker hang or go on: while it hangs it reaches no step boundary and takes no expert.
    pub fn set_hanging(&self, hangs: bool) {
        self.hang.set(hangs);
    }

    /// Makes the worker tell something; what comes after [`EVENTS_MAX`] that nobody took is lost.
    pub fn tell(&self, event: WorkerEvent) {
        let mut left = self.left();
        if left.events.len() < EVENTS_MAX {
            left.events.push_back(event);
        }
    }

    /// The last step run.
    pub fn last_step(&self) -> Option<StepDone> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Runs one step on every rank of the node. A step at or below the last one is not run again.
    pub fn step(
        &self,
        step: u64,
        routing: &Routing<'_>,
        gauges: Vec<RankGauges>,
    ) -> Result<StepDone, StepError> {
        let mut engine = self.boundary();
        if let Some(last) = engine.last
            && step <= last.step
        {
            return Ok(last);
        }
        let tables = self.tables().ok_or(StepError::NotBooted)?;
        let ranks = self.header.layout.ranks();
        if let Some(stray) = gauges.iter().find(|g| ranks.binary_search(&g.rank).is_err()) {
            return Err(StepError::UnknownRank { rank: stray.rank });
        }
        let counts = match *routing {
            Routing::Counts(loads) => tables.split(step, loads, &self.header.layout)?,
            Routing::TopK { top_k, tokens, ids } => {
                tables.map(step, top_k, tokens, ids, &self.header.layout)?
            }
        };
        let done = StepDone { step, epoch: tables.plan().epoch };
        engine.last = Some(done);
        let mut left = self.left();
        if left.untaken.len() == UNTAKEN_STEPS_MAX {
            left.untaken.pop_front();
        }
        left.untaken.push_back(StepCounts { step, epoch: done.epoch, counts });
        if !gauges.is_empty() {
            left.gauges = gauges;
            left.gauges.sort_unstable_by_key(|g| g.rank);
        }
        Ok(done)
    }

    fn copy_in(
        &self,
        slots: &SlotsFile,
        local: usize,
        mut next: impl FnMut(u64, &mut [u8]) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        let size = slots.header().layout.shape().expert_bytes;
        let mut buffer = vec![0; chunk_bytes(size)];
        let mut offset = 0;
        while offset < size {
            let length = chunk_bytes(size - offset);
            next(offset, &mut buffer[..length])?;
            slots.write(local, offset, &buffer[..length])?;
            offset += length as u64;
        }
        Ok(())
    }
}

fn chunk_bytes(remaining: u64) -> usize {
    usize::try_from(remaining).map_or(CHUNK_BYTES, |remaining| remaining.min(CHUNK_BYTES))
}

/// The first local slot that does not hold the expert of its plan.
fn not_held(tables: &Tables, slots: &SlotsFile) -> Option<SlotAddress> {
    let layout = &slots.header().layout;
    let held = |address: &SlotAddress| {
        let expert = tables.expert_of(*address);
        let local = layout.local(*address).expect("a layout lists its own slots");
        expert.is_none() || slots.registered(local).map(|r| r.expert) == expert
    };
    layout.addresses().find(|address| !held(address))
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerBackend for SimulatedWorker {
    fn layout(&self) -> &NodeLayout {
        &self.header.layout
    }

    fn active(&self) -> Option<PlanId> {
        self.tables().map(|tables| tables.id())
    }

    fn boot(&self, plan: &Arc<Plan>, beside: Option<&Plan>) -> Result<(), WorkerError> {
        let _boundary = self.boundary();
        let tables = Tables::new(plan.clone(), &self.header.layout)?;
        *write(&self.tables) = None;
        *write(&self.slots) = None;
        control::remove(&self.control_path())?;
        let slots = SlotsFile::create(&Self::slots_path(&self.directory), self.header.clone())?;
        let size = self.header.layout.shape().expert_bytes;
        for (local, address) in self.header.layout.addresses().enumerate() {
            let at_once = tables.expert_of(address);
            let later = || {
                beside.and_then(|plan| {
                    plan.layers[address.layer.index()].physical_to_logical[address.slot as usize]
                })
            };
            let Some(expert) = at_once.or_else(later) else { continue };
            let mut stream = FingerprintStream::default();
            self.copy_in(&slots, local, |offset, bytes| {
                weights::fill(self.header.weights_seed, address.layer, expert, offset, bytes);
                stream.update(bytes);
                Ok(())
            })?;
            slots.register(local, Some(Registered { expert, fingerprint: stream.finish() }))?;
        }
        debug_assert!(size > 0, "a valid shape has bytes");
        control::write(&self.control_path(), plan)?;
        *write(&self.slots) = Some(Arc::new(slots));
        *write(&self.tables) = Some(Arc::new(tables));
        Ok(())
    }

    fn stage(
        &self,
        destination: SlotAddress,
        expert: ExpertId,
        source: Source<'_>,
    ) -> Result<Registered, WorkerError> {
        self.hang.wait();
        let (slots, local) = (self.slots()?, self.local(destination)?);
        let tables = self.tables().ok_or(WorkerError::NotBooted)?;
        if let Some(live) = tables.expert_of(destination) {
            return Err(WorkerError::SlotLive { address: destination, live });
        }
        slots.register(local, None)?;
        let expected = match source {
            Source::Slot(from) => {
                let held = self.registered(from).filter(|r| r.expert == expert);
                let held = held.ok_or(WorkerError::NotHeld { address: from, expert })?;
                self.copy_in(&slots, local, |offset, bytes| self.read(from, expert, offset, bytes))?;
                held.fingerprint
            }
            Source::Bytes(reader, fingerprint) => {
                let failed = |error| WorkerError::SourceFailed { address: destination, expert, error };
                self.copy_in(&slots, local, |_, bytes| reader.read_exact(bytes).map_err(failed))?;
                fingerprint
            }
        };
        let found = self.fingerprint(destination)?;
        if found != expected {
            return Err(WorkerError::FingerprintMismatch { address: destination, expert, found, expected });
        }
        let registered = Registered { expert, fingerprint: found };
        slots.register(local, Some(registered))?;
        Ok(registered)
    }

    fn registered(&self, slot: SlotAddress) -> Option<Registered> {
        self.slots().ok()?.registered(self.header.layout.local(slot)?)
    }

    fn fingerprint(&self, slot: SlotAddress) -> Result<Fingerprint, WorkerError> {
        let (slots, local) = (self.slots()?, self.local(slot)?);
        let size = self.header.layout.shape().expert_bytes;
        let mut buffer = vec![0; chunk_bytes(size)];
        if buffer.len() as u64 == size {
            slots.read(local, 0, &mut buffer)?;
            return Ok(fingerprint(&buffer));
        }
        let (mut stream, mut offset) = (FingerprintStream::default(), 0);
        while offset < size {
            let length = chunk_bytes(size - offset);
            slots.read(local, offset, &mut buffer[..length])?;
            stream.update(&buffer[..length]);
            offset += length as u64;
        }
        Ok(stream.finish())
    }

    fn read(
        &self,
        slot: SlotAddress,
        expert: ExpertId,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), WorkerError> {
        let (slots, local) = (self.slots()?, self.local(slot)?);
        if slots.registered(local).map(|r| r.expert) != Some(expert) {
            return Err(WorkerError::NotHeld { address: slot, expert });
        }
        slots.read(local, offset, bytes)
    }

    fn arm(&self, plan: &Arc<Plan>) -> Result<(), WorkerError> {
        let tables = Tables::new(plan.clone(), &self.header.layout)?;
        let _boundary = self.boundary();
        let slots = self.slots()?;
        if let Some(address) = not_held(&tables, &slots) {
            let expert = tables.expert_of(address).expect("only filled slots are compared");
            return Err(WorkerError::NotHeld { address, expert });
        }
        control::write(&self.control_path(), plan)?;
        *write(&self.tables) = Some(Arc::new(tables));
        Ok(())
    }

    fn poll_counts(&self) -> Option<StepCounts> {
        self.left().untaken.pop_front()
    }

    fn poll_event(&self) -> Option<WorkerEvent> {
        self.left().events.pop_front()
    }

    fn gauges(&self) -> Vec<RankGauges> {
        self.left().gauges.clone()
    }
}
