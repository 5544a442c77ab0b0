//! Inputs and yardsticks: expert loads, and peers' policies to compare with.
#![forbid(unsafe_code)]

pub mod baselines;
pub mod expert_loads;
