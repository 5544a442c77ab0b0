//! Held requests: who goes next, and who is turned away when there are too many. See README.md.

mod class;
mod order;
mod queue;

#[cfg(test)]
mod queue_tests;

pub use order::InOrder;
pub use queue::{Admission, FairPolicy, FairQueue, HeldRequest, InvalidFairPolicy, Refusal};
