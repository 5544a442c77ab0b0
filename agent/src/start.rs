//! What an agent finds when it starts, and how it goes on from there.
//!
//! A plan is put into service in this order: the worker's control file is replaced (the flip), then the
//! ledger, then APPLIED is said. A kill can fall between any two, so what is found can be:
//!
//! | worker serves | ledger says | because | then |
//! |---|---|---|---|
//! | plan N | plan N | nothing was under way, or it was staged only | attach |
//! | plan N + 1 | plan N | killed between flip and ledger | attach to N + 1, and record it |
//! | plan 0 or more | nothing | killed between boot and ledger | attach, and record it |
//! | nothing | plan N | worker state gone: host restarted, or killed while booting | boot from the ledger |
//! | nothing | nothing | first start, or killed while booting | ask the balancer |
//! | plan N - 1 or a rival of N | plan N | not by any kill: files were put back | boot from the ledger |
//!
//! The terms need no row: the ledger is written before anything is done in a new term's name.

use crate::config::Config;
use crate::failure::Failure;
use crate::ledger::{Ledger, Record};
use crate::transfer::WeightsDigest;
use evenkeel_core::invariants;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{Agent, node_view};
use evenkeel_core::topology::UnitTopology;
use evenkeel_worker::simulated::slots::Header;
use evenkeel_worker::simulated::{Found, SimulatedWorker, weights};
use evenkeel_worker::{NodeLayout, WorkerBackend, WorkerError};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything an agent holds in its state directory.
#[derive(Debug)]
pub struct State {
    /// The protocol's state.
    pub agent: Agent,
    /// What must not be forgotten.
    pub ledger: Ledger,
    /// The workers.
    pub worker: Arc<SimulatedWorker>,
    /// Keeps other agents out.
    pub lock: File,
}

/// Where an agent says on which ports it listens.
pub fn ports_file(directory: &Path) -> PathBuf {
    directory.join("ports.json")
}

/// Names the weights that this configuration derives.
pub fn weights_digest(config: &Config) -> WeightsDigest {
    let shape = &config.shape;
    let identity = weights::identity(config.weights_seed, shape.layers, shape.experts, shape.expert_bytes);
    Sha256::digest(identity).into()
}

/// Opens the state directory, and boots the worker if its weights are gone. Blocks for the disk.
pub fn open(config: &Config) -> Result<State, Failure> {
    let directory = &config.state_dir;
    fs::create_dir_all(directory).map_err(|error| {
        Failure::other("state_unwritable", format!("creating {}: {error}", directory.display()))
    })?;
    let lock = lock(directory)?;
    // The one before is gone, and a starter must not take its ports for ours.
    let _ = fs::remove_file(ports_file(directory));
    let invalid = |error: evenkeel_core::topology::TopologyError| Failure::usage(error.code(), error);
    let topology =
        node_view(config.unit.clone(), config.shape.clone(), &config.node, &config.ranks).map_err(invalid)?;
    let mut ledger = Ledger::open(directory)?;
    if let Some(plan) = &ledger.record().plan {
        invariants::check(plan, None, &topology).map_err(|violation| {
            let message = format!(
                "the plan in {}/ledger.bin does not fit this unit ({violation}); use another --state-dir, or remove slots.bin, control.bin, ledger.bin and ledger.copy from this one",
                directory.display()
            );
            Failure::other("ledger_mismatch", message)
        })?;
    }
    let header = Header {
        layout: NodeLayout::new(config.shape.clone(), config.ranks.clone()),
        weights_seed: config.weights_seed,
        unit: config.unit.to_string(),
        node: config.node.to_string(),
    };
    let (worker, found) = SimulatedWorker::open(directory, header).map_err(|error| failed(&error))?;
    let plan = go_on(&worker, found, &mut ledger, &topology)?;
    let agent = Agent::new(topology, config.ranks.clone(), ledger.record().term, plan);
    Ok(State { agent, ledger, worker: Arc::new(worker), lock })
}

fn failed(error: &WorkerError) -> Failure {
    Failure::other(error.code(), error)
}

fn lock(directory: &Path) -> Result<File, Failure> {
    let path = directory.join("lock");
    let unusable =
        |error: std::io::Error| Failure::other("state_unwritable", format!("{}: {error}", path.display()));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "{} is in use by another agent: stop that one, or give each its own --state-dir",
                directory.display()
            );
            Err(Failure::other("state_locked", message))
        }
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// Carries out the table in the module's documentation; returns the plan in service.
fn go_on(
    worker: &SimulatedWorker,
    found: Found,
    ledger: &mut Ledger,
    topology: &UnitTopology,
) -> Result<Option<Arc<Plan>>, Failure> {
    let recorded = ledger.record().plan.clone();
    match found {
        Found::Attached(plan) => {
            let ahead = recorded.as_ref().is_none_or(|recorded| plan.epoch > recorded.epoch);
            let same = recorded.as_ref() == Some(&plan);
            let fits = invariants::check(&plan, None, topology).is_ok();
            if fits && (ahead || same) {
                tracing::info!(epoch = plan.epoch.0, "attached to the workers");
                if ahead {
                    let record =
                        Record { plan: Some(plan.clone()), beside: recorded, ..ledger.record().clone() };
                    ledger.write(record)?;
                }
                return Ok(Some(plan));
            }
            tracing::warn!(epoch = plan.epoch.0, "the workers serve another plan than the last good one");
        }
        Found::Void(reason) => tracing::warn!(reason, "the worker state is void"),
        Found::Nothing => tracing::info!("the workers hold no weights yet"),
    }
    if let Some(plan) = &recorded {
        tracing::info!(epoch = plan.epoch.0, "booting from the last good plan");
        // Nodes that serve it name slots that the last good plan leaves empty.
        let beside = ledger.record().beside.clone();
        let beside = beside.filter(|beside| invariants::check(beside, None, topology).is_ok());
        worker.boot(plan, beside.as_deref()).map_err(|error| failed(&error))?;
    }
    Ok(recorded)
}
