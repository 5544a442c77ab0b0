//! End-to-end harness: real balancer and agent processes of one small unit, on loopback, in a temporary
//! directory. Nothing sleeps to wait: everything waited for is polled until a deadline.
#![forbid(unsafe_code)]

pub mod balancers;
pub mod certificates;
pub mod etcd;
pub mod fault_proxy;
pub mod http;
pub mod process;
pub mod rig;

pub use rig::{Rig, Shape};
