#![doc = include_str!("README.md")]

mod deployment;
mod place_components;
mod place_connected;
mod plan_layers;
mod problem;
mod regularise;
mod relabel;
mod replicas;
mod schedule;
mod solve;
#[cfg(test)]
mod solve_tests;
mod split;
mod swap;

pub use deployment::{
    Deployment, EXPERTS_MAX, ExpertLoads, InputError, RANKS_MAX, RankSpec, SLOTS_PER_RANK_MAX,
};
pub use plan_layers::{CurrentSlots, PlanOptions, PlannedLayer, SplitKind, plan_layers, resplit_layers};
pub use solve::{Solved, Target, place, solve};
