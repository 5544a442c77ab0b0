//! The per-node agent: it keeps a session with each balancer, moves expert bytes between slots and nodes,
//! flips tables, and reports loads. It needs no balancer to keep what is served.
#![forbid(unsafe_code)]

pub mod apply;
pub mod config;
pub mod crash_point;
pub mod failure;
pub mod ledger;
pub mod link;
pub mod loads;
pub mod metrics;
pub mod reconcile;
pub mod run;
pub mod security;
pub mod session;
pub mod sessions;
pub mod simulated_engine;
pub mod start;
pub mod telemetry;
pub mod transfer;
pub mod verify;
pub mod watchdog;
pub mod wire;
pub mod work;
