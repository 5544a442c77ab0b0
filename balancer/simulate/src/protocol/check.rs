//! The invariants of the protocol, each checked by itself after every step of a run.

mod audited;
mod bounded;
mod committed;
mod converges;
mod durable;
mod epochs;
mod fenced;
mod once;
mod replicas;
mod serving;
mod terms;

use super::disk::Record;
use super::world::World;
use evenkeel_core::ids::Term;
use evenkeel_core::protocol::agent::{PlanId, Reply};
use evenkeel_core::protocol::election::State;
use evenkeel_core::records::{Changed, RequestId};
use evenkeel_core::units::Millis;
use std::fmt;

/// What must hold, by the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// One effective leader per term.
    I1,
    /// No agent acts on a term lower than it has seen.
    I2,
    /// Epochs of a unit strictly increase, each committed once.
    I3,
    /// Nodes of a unit serve the same plan, or a plan and its parent.
    I4,
    /// Whatever tables are in service, every slot that they name holds its expert.
    I5,
    /// The last good plan is readable after any crash.
    I6,
    /// An admin request acts at most once.
    I7,
    /// Once trouble stops, everything converges in bounded time.
    I8,
    /// Memory is bounded.
    I9,
    /// The worker never waits for the control plane.
    I10,
    /// Every epoch has an audit entry.
    I11,
    /// No machine breaks its own assertions.
    Assertions,
}

impl Invariant {
    /// All of them, in order.
    pub const ALL: [Invariant; 12] = [
        Invariant::I1,
        Invariant::I2,
        Invariant::I3,
        Invariant::I4,
        Invariant::I5,
        Invariant::I6,
        Invariant::I7,
        Invariant::I8,
        Invariant::I9,
        Invariant::I10,
        Invariant::I11,
        Invariant::Assertions,
    ];
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invariant::Assertions => f.write_str("assertion"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub invariant: Invariant,
    /// How it was broken.
    pub message: String,
}

/// What the checks are shown as it happens.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    /// A starting agent read its ledger; `None`: it is damaged.
    AgentOpened { agent: usize, found: Option<&'a Record> },
    /// An agent's highest term is another.
    AgentAdopted { agent: usize, term: Term },
    /// An agent boots, stages or flips by an order of this term.
    AgentActed { agent: usize, term: Term },
    /// An agent begins to stage a plan.
    Stages { agent: usize, plan: PlanId },
    /// An agent flips its workers to this plan.
    Flips { agent: usize, plan: PlanId },
    /// An agent answers.
    Replied { agent: usize, reply: &'a Reply },
    /// A balancer begins a term.
    Began { balancer: usize, term: Term },
    /// A balancer gives a command.
    Commands {
        balancer: usize,
        term: Term,
        state: Option<State>,
        now: Millis,
        plan: PlanId,
        commit: bool,
        abort: bool,
        unit: Option<usize>,
    },
    /// The store changed; `term` reigns after it.
    Changed { changes: &'a [Changed], term: Option<Term> },
    /// An agent was started without its state.
    Wiped { agent: usize },
    /// A backup took the store's place.
    Restored,
    /// An order was answered that had its answer.
    AnsweredTwice { balancer: usize },
    /// An operator was told how an order ended.
    Answered { request: &'a RequestId, accepted: bool },
}

/// One invariant's check.
trait Check: fmt::Debug {
    /// Something happened.
    fn see(&mut self, _world: &World, _seen: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    /// A step was made.
    fn after_step(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }

    /// Some time has passed.
    fn survey(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// All checks of a run.
#[derive(Debug)]
pub(super) struct Checks {
    checks: Vec<(Invariant, Box<dyn Check>)>,
    converges: converges::Converges,
    /// Trouble is over, and everything is as it should be.
    pub(super) converged: bool,
}

impl Default for Checks {
    fn default() -> Self {
        let checks: Vec<(Invariant, Box<dyn Check>)> = vec![
            (Invariant::I1, Box::new(terms::OneLeader::default())),
            (Invariant::I2, Box::new(fenced::Fenced::default())),
            (Invariant::I3, Box::new(epochs::Epochs::default())),
            (Invariant::I4, Box::new(committed::Committed::default())),
            (Invariant::I5, Box::new(replicas::Replicas::default())),
            (Invariant::I6, Box::new(durable::Durable::default())),
            (Invariant::I7, Box::new(once::Once::default())),
            (Invariant::I9, Box::new(bounded::Bounded)),
            (Invariant::I10, Box::new(serving::Serving)),
            (Invariant::I11, Box::new(audited::Audited)),
        ];
        Self { checks, converges: Default::default(), converged: false }
    }
}

impl Checks {
    pub(super) fn see(&mut self, world: &World, seen: &Seen<'_>) -> Result<(), Failure> {
        self.each(|check| check.see(world, seen))
    }

    pub(super) fn after_step(&mut self, world: &World) -> Result<(), Failure> {
        self.each(|check| check.after_step(world))
    }

    pub(super) fn survey(&mut self, world: &World) -> Result<(), Failure> {
        self.each(|check| check.survey(world))?;
        match self.converges.survey(world) {
            Ok(converged) => self.converged = converged,
            Err(message) => return Err(Failure { invariant: Invariant::I8, message }),
        }
        Ok(())
    }

    fn each(&mut self, mut see: impl FnMut(&mut dyn Check) -> Result<(), String>) -> Result<(), Failure> {
        for (invariant, check) in &mut self.checks {
            let failure = |message| Failure { invariant: *invariant, message };
            see(check.as_mut()).map_err(failure)?;
        }
        Ok(())
    }
}

/// A plan's name, for messages.
fn name(id: PlanId) -> String {
    format!("{} ({})", id.0, id.1.short())
}
