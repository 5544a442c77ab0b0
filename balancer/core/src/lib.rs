//! The functional core of Evenkeel: everything that decides, and nothing that does.
//!
//! The road is `telemetry -> snapshot -> solve -> plan -> commit -> push -> apply -> ack`; the pure steps
//! of it live here. This crate has no I/O, no clock, no log, no unseeded randomness and no serialisation:
//! time arrives as an argument, input as validated values, and what cannot be done is data in a report.
//! The same code runs in production, in the simulator and in the tests.
#![forbid(unsafe_code)]

pub mod cost_fit;
pub mod decode;
pub mod experts;
pub mod fair_queue;
pub mod ids;
pub mod invariants;
pub mod load_history;
pub mod mutants;
pub mod plan;
pub mod policy;
pub mod prefill;
pub mod prefix;
pub mod protocol;
pub mod records;
pub mod report;
pub mod routing;
pub mod snapshot;
pub mod topology;
pub mod unit_choice;
pub mod units;
