#![doc = include_str!("README.md")]

mod arrange;
mod components;
mod deployment;
mod fresh;
mod groups;
mod level;
mod place_components;
mod place_connected;
mod place_even;
mod plan_layers;
#[cfg(test)]
mod plan_tests;
mod problem;
mod regularise;
mod relabel;
mod repair;
mod replicas;
mod schedule;
mod solve;
#[cfg(test)]
mod solve_tests;
mod split;
mod swap;
mod towards;
mod without;

pub use arrange::{arrange_step, is_arranged};
pub use deployment::{Deployment, ExpertLoads, InputError, RankSpec};
pub use plan_layers::{CurrentSlots, PlanOptions, PlannedLayer, plan_layers, resplit_layers};
pub use problem::SplitKind;
pub use solve::{Solved, Target, place, solve};
pub use towards::{Step, step_towards};
pub use without::Without;
