//! The cluster simulator: real traces, modelled engines, and what users would pick instead as baselines.
//! Everything that comes out of it is modelled and says so; the policies see what a gateway would see.
#![forbid(unsafe_code)]

pub mod baselines;
pub mod cluster;
pub mod cost;
pub mod decode_engine;
pub mod decode_steps;
pub mod dispatch;
pub mod expert_loads;
pub mod overlap;
pub mod planner;
pub mod policy;
pub mod prefill_engine;
pub mod prefix_cache;
pub mod prompts;
pub mod protocol;
pub mod replicate;
pub mod score;
pub mod step_time;
pub mod trace;
