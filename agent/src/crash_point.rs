//! Moments of a plan at which a test has the agent end at once, with nothing cleared up: each lies between two things that must not be
//! thought of as one. Builds without debug assertions, which are those that people run, have none.
//!
//! `EVENKEEL_CRASH_AT=<name>` in the environment arms one; the agent ends when it gets there first.

use std::sync::LazyLock;

/// The variable that names the moment.
pub const VARIABLE: &str = "EVENKEEL_CRASH_AT";

/// A moment in the life of a plan on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// PREPARE is accepted, no byte is copied.
    BeforeStaging,
    /// One expert is staged, others are not.
    Staging,
    /// All is staged, the disk does not know.
    Staged,
    /// The disk knows what is staged, PREPARED is not said.
    StagedPersisted,
    /// COMMIT is here, the tables are not armed.
    BeforeFlip,
    /// The tables are armed, the worker may have flipped.
    Armed,
    /// The worker has flipped, the plan is not on disk.
    Flipped,
    /// The plan is on disk, APPLIED is not said.
    Persisted,
}

impl CrashPoint {
    /// All of them, in the order in which a plan meets them.
    pub const ALL: [Self; 8] = [
        Self::BeforeStaging,
        Self::Staging,
        Self::Staged,
        Self::StagedPersisted,
        Self::BeforeFlip,
        Self::Armed,
        Self::Flipped,
        Self::Persisted,
    ];

    /// Its name in the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeStaging => "before_staging",
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::StagedPersisted => "staged_persisted",
            Self::BeforeFlip => "before_flip",
            Self::Armed => "armed",
            Self::Flipped => "flipped",
            Self::Persisted => "persisted",
        }
    }

    /// The agent is there.
    pub(crate) fn reached(self) {
        static ARMED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(VARIABLE).ok());
        if cfg!(debug_assertions) && ARMED.as_deref() == Some(self.name()) {
            std::process::abort();
        }
    }
}
