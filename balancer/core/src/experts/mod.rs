#![doc = include_str!("README.md")]

mod place_components;
mod place_connected;
mod problem;
mod regularise;
mod relabel;
mod replicas;
mod schedule;
mod solve;
mod split;
mod swap;

pub use solve::{Solved, Target, place, solve};
