//! Seeded simulation of the control protocol: balancers, agents, store, disks, network and clocks in virtual time.
//!
//! Core's machines run as they are; what is around them in production is modelled here: the shells that carry out actions,
//! and everything that can go wrong beneath them. One generator decides all that chance decides, so a seed names a run,
//! and a run that failed fails again. After each step the invariants of the protocol are checked, one by one.

mod agent;
mod balancer;
mod check;
mod clock;
mod disk;
mod faults;
mod network;
mod operator;
mod plans;
mod random;
mod reigning;
mod schedule;
mod store;
#[cfg(test)]
mod tests;
mod trace;
mod worker;
mod world;

pub use check::{Failure, Invariant};

use evenkeel_core::ids::{NodeId, UnitId};
use evenkeel_core::topology::{Role, UnitShape};
use random::Random;
use std::panic::{self, AssertUnwindSafe};
use world::World;

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Names the run.
    pub seed: u64,
    /// Of all lines of its trace: the same seed gives the same.
    pub hash: u64,
    /// Lines of its trace.
    pub lines: u64,
    /// Virtual milliseconds until everything had converged, or broken.
    pub time_ms: u64,
    /// Plans that were committed.
    pub plans: u64,
    /// The invariant that broke, and the last lines of the trace before it.
    pub failure: Option<(Failure, Vec<String>)>,
}

/// Runs one seed. `printed`: the trace goes to standard output. An assertion of a machine that fails is a failure of the
/// run; the caller silences the panic's own message if it likes.
pub fn run(seed: u64, printed: bool) -> Run {
    ended(seed, World::new(seed, printed))
}

/// Runs one seed in which nothing goes wrong but that the store is away for so long.
pub fn run_without_store(seed: u64, time_ms: u64) -> Run {
    let mut world = World::new(seed, false);
    world.only_without_store(time_ms);
    ended(seed, world)
}

fn ended(seed: u64, mut world: World) -> Run {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = outcome.unwrap_or_else(|payload| {
        let message = payload.downcast_ref::<String>().cloned();
        let message = message.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some(Failure { invariant: Invariant::Assertions, message: message.unwrap_or_default() })
    });
    Run {
        seed,
        hash: world.trace.hash(),
        lines: world.trace.lines(),
        time_ms: world.now,
        plans: world.committed(),
        failure: failure.map(|failure| (failure, world.trace.tail())),
    }
}

fn unit_id(unit: usize) -> UnitId {
    UnitId::new(format!("unit-{unit}")).expect("a DNS label")
}

fn node_id(agent: usize) -> NodeId {
    NodeId::new(format!("node-{agent}")).expect("a DNS label")
}

fn unit_of(unit: &UnitId) -> usize {
    number(unit.as_str())
}

fn agent_of(node: &NodeId) -> usize {
    number(node.as_str())
}

fn number(name: &str) -> usize {
    let number = name.rsplit('-').next().and_then(|number| number.parse().ok());
    number.expect("the run's names end with a number")
}

/// A small unit in which every expert has a slot and some have two.
fn shape(random: &mut Random, ranks: u16) -> UnitShape {
    let slots_per_rank = random.within(2, 3) as u16;
    UnitShape {
        role: Role::Decode,
        layers: random.within(1, 2) as u16,
        experts: slots_per_rank * ranks - random.within(1, u64::from(ranks)) as u16,
        top_k: 1,
        ranks,
        slots_per_rank,
        spare_per_rank: 1,
        expert_bytes: 8,
    }
}
