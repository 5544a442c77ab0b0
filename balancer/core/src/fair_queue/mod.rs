//! Held requests: who goes next, and who is turned away when there are too many. See README.md.

mod class;
mod lines;
mod order;
mod queue;

#[cfg(test)]
mod queue_tests;

pub use order::InOrder;
pub use queue::{Admission, FairPolicy, FairQueue, HeldRequest, InvalidFairPolicy, Refusal};

/// Whose request it is. 0 where tenants are not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TenantId(pub u32);

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Nobody waits for it.
    Batch,
}
