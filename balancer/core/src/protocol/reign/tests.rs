//! A leader or standby over a store in memory, with agents that do as they are told.

mod bench;
mod election;
mod joining;
mod lost;
mod orders;
mod plans;
mod properties;
