//! One seat for every planner of expert placements, so that all run on the same input and are judged by `score`.

mod peers;

pub use peers::Peer;

use crate::baselines::deployment::DeploymentError;
use evenkeel_core::experts::{Deployment, ExpertLoads, InputError, PlanOptions, SplitKind, plan_layers};
use evenkeel_core::ids::ExpertId;
use std::ops::Range;

/// What is planned for.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// The GPUs.
    pub deployment: &'a Deployment,
    /// `[layers][experts]`.
    pub loads: &'a ExpertLoads,
    /// What runs, and the loads that it was planned for; `None` at the start.
    pub running: Option<Running<'a>>,
}

/// The running plan.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// `[layers][slots]`.
    pub slots: &'a [Vec<Option<ExpertId>>],
    /// `[layers][experts]`.
    pub solved_for: &'a ExpertLoads,
}

/// One layer of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedLayer {
    /// `[slots]`.
    pub slots: Vec<Option<ExpertId>>,
    /// `[slots]`: the part of its expert's load that the slot gets; `None`: even parts.
    pub share: Option<Vec<f64>>,
    /// The planner's own lower bound of the imbalance, where it gives one.
    pub bound: Option<f64>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlannerError {
    /// The peer cannot plan for this deployment.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// The core refuses the input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The peer knows equal GPUs only.
    #[error("the ranks differ in slots or speed: this planner knows equal ranks only")]
    UnequalRanks,
    /// The peer knows full slots only.
    #[error("layer {layer} has empty slots in the running placement: this planner knows full ones only")]
    EmptySlots {
        /// The layer.
        layer: usize,
    },
}

/// A planner of expert placements. Layers are independent, but a planner may decide over all that it is given.
pub trait Planner: Sync {
    /// As the tables name it.
    fn name(&self) -> &'static str;

    /// Whether it starts from the running plan and its result depends on it.
    fn repairs(&self) -> bool {
        false
    }

    /// Plans layers one after another, on the caller's thread.
    fn plan_range(
        &self,
        problem: &Problem<'_>,
        layers: Range<usize>,
    ) -> Result<Vec<PlacedLayer>, PlannerError>;

    /// Plans every layer on this many threads.
    fn plan(&self, problem: &Problem<'_>, threads: usize) -> Result<Vec<PlacedLayer>, PlannerError> {
        let layers = problem.loads.layers();
        if threads <= 1 {
            return self.plan_range(problem, 0..layers);
        }
        let of_thread = |thread: usize| layers * thread / threads..layers * (thread + 1) / threads;
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|thread| scope.spawn(move || self.plan_range(problem, of_thread(thread))))
                .collect();
            let mut placed = self.plan_range(problem, of_thread(0))?;
            for other in others {
                placed.extend(other.join().expect("planners do not panic")?);
            }
            Ok(placed)
        })
    }
}

/// Evenkeel's own planner.
#[derive(Debug, Clone, PartialEq)]
pub struct Evenkeel {
    /// As the tables name it.
    pub name: &'static str,
    /// The split and the budgets.
    pub options: PlanOptions,
}

impl Evenkeel {
    /// Plans with shares.
    pub fn weighted() -> Self {
        Self { name: "Evenkeel", options: PlanOptions::default() }
    }

    /// Plans for engines that split evenly.
    pub fn even() -> Self {
        let options = PlanOptions { split: SplitKind::Even, ..PlanOptions::default() };
        Self { name: "Evenkeel --even", options }
    }
}

impl Planner for Evenkeel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn plan_range(
        &self,
        problem: &Problem<'_>,
        layers: Range<usize>,
    ) -> Result<Vec<PlacedLayer>, PlannerError> {
        assert_eq!(layers, 0..problem.loads.layers(), "the core plans all layers at once");
        self.plan(problem, 1)
    }

    /// With the core's own threads.
    fn plan(&self, problem: &Problem<'_>, threads: usize) -> Result<Vec<PlacedLayer>, PlannerError> {
        let options = PlanOptions { threads, ..self.options.clone() };
        let current = problem.running.map(|running| running.slots);
        let planned = plan_layers(problem.deployment, problem.loads, current, &options)?;
        let placed = |layer: evenkeel_core::experts::PlannedLayer| PlacedLayer {
            slots: layer.physical_to_logical,
            share: (options.split == SplitKind::Weighted).then_some(layer.share),
            bound: Some(layer.bound),
        };
        Ok(planned.into_iter().map(placed).collect())
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
