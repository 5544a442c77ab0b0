//! Routing events and decisions as JSON lines: what `evenkeel route` reads and prints, and what the flight
//! recorder keeps of a running balancer. The schema is described in docs/decisions.md; one schema for both, so
//! that a recorded incident replays.

mod error;
mod event;
mod files;
mod lines;
mod outcome;
mod recorder;
mod replay;
mod writer;

pub(crate) use error::LogError;
pub(crate) use lines::Lines;
pub use recorder::RecorderError;
pub(crate) use recorder::{Recorder, UnitRecorder};
pub(crate) use replay::{Check, Replay};

/// Version of the schema. A field that is added with a default keeps it; whatever else changes raises it.
pub(crate) const VERSION: u32 = 1;
/// Longest line: the state of a unit with as many requests and prefix blocks as it may have.
const LINE_BYTES_MAX: u64 = 1 << 30;
/// A state is read by the version that wrote it: what it holds is that version's own.
const BUILD: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests;
