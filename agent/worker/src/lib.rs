//! The worker's side of a node: what an agent asks of the process that holds expert weights and serves
//! tokens from them. [`WorkerBackend`] is that contract, [`conformance`] checks it, and [`simulated`] is
//! the backend for machines without a GPU. A CUDA backend is not there yet.

pub mod backend;
pub mod conformance;
pub mod layout;
pub mod simulated;

pub use backend::{RankGauges, Registered, Source, StepCounts, WorkerBackend, WorkerError, WorkerEvent};
pub use layout::{NodeLayout, SlotAddress};
