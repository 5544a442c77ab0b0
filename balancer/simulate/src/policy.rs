//! The seat of a routing policy in the simulator: the same events and decisions as on the wire.

use evenkeel_core::routing::{Decision, Router, RoutingEvent};
use evenkeel_core::units::Millis;

/// Something that answers batches of events: a baseline, the router of the core, or a live balancer.
pub trait RequestPolicy {
    /// What went wrong when no answer comes.
    type Error: std::fmt::Display;

    /// Answers one batch. Batches come in the order of their time.
    fn decide(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, Self::Error>;
}

impl RequestPolicy for Router {
    type Error = evenkeel_core::routing::RoutingError;

    fn decide(&mut self, now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, Self::Error> {
        self.apply(now, events)
    }
}

/// Why a simulation stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// The policy gave no answer.
    #[error("no decision at {now} ms: {reason}")]
    Policy {
        /// Virtual time of the batch.
        now: u64,
        /// The policy's words.
        reason: String,
    },
    /// The policy answered with something no engine can do.
    #[error("decision about request {request} at {now} ms cannot be followed: {reason}")]
    Decision {
        /// Virtual time of the batch.
        now: u64,
        /// The request.
        request: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl SimulationError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            SimulationError::Policy { .. } => "simulation_no_decision",
            SimulationError::Decision { .. } => "simulation_wrong_decision",
        }
    }
}

/// A batch of events that an engine model wants answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Virtual time.
    pub now: Millis,
    /// In order.
    pub events: Vec<RoutingEvent>,
}

/// An engine model: makes batches of events, and follows the decisions about them.
pub trait EngineModel {
    /// Runs to the next point where decisions are needed: the end of a step or round, or the next arrival
    /// when nothing runs. `None` when the simulated time is over.
    fn advance(&mut self) -> Option<Batch>;

    /// Follows the decisions about the last batch.
    fn dispatch(&mut self, decisions: &[Decision]) -> Result<(), SimulationError>;
}

/// Runs an engine model to its end with `policy`.
pub fn run<P: RequestPolicy>(engine: &mut impl EngineModel, policy: &mut P) -> Result<(), SimulationError> {
    while let Some(batch) = engine.advance() {
        let decisions = policy
            .decide(batch.now, &batch.events)
            .map_err(|error| SimulationError::Policy { now: batch.now.0, reason: error.to_string() })?;
        engine.dispatch(&decisions)?;
    }
    Ok(())
}
