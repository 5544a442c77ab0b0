//! The balancer and its command line. The pure decisions live in `evenkeel-core`; this crate is the shell
//! around them: streams, store, clocks, metrics.
#![forbid(unsafe_code)]

pub mod store;
pub mod telemetry;
