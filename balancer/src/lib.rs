//! The balancer and its command line. The pure decisions live in `evenkeel-core`; this crate is the shell
//! around them: streams, store, clocks, metrics.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod cli;
pub mod config;
pub mod control_loop;
pub mod decision_log;
pub mod demo;
pub mod draft;
pub mod election;
mod expert_files;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod page;
pub mod probes;
pub mod push;
mod rank_instruments;
pub mod records;
pub mod routing;
pub mod security;
pub mod serve;
mod simulation_report;
pub mod status;
pub mod telemetry;
pub mod unit;
