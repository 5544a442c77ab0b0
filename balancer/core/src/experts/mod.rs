#![doc = include_str!("README.md")]

mod place_components;
mod place_connected;
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

pub use solve::{Solved, Target, place, solve};
