//! Decode: which rank a request joins, and what moves later. See README.md.

mod admit;
mod migrate;

pub use admit::{Admission, RankLoad, admit};
pub use migrate::{Migration, MigrationPolicy, Running, RunningRequests, plan_migrations};
