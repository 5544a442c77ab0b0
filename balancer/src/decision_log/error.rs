//! Why a line of events is refused.

use super::{BUILD, LINE_BYTES_MAX, VERSION};
use evenkeel_core::routing::RoutingError;

/// Why a line is refused. Names the line, from 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("{file}: {source}")]
    Open { file: String, source: std::io::Error },
    #[error("{file}, line {line}: cannot be read on: {source}")]
    Read { file: String, line: u64, source: std::io::Error },
    #[error("{file}, line {line}: is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { file: String, line: u64 },
    #[error("{file}, line {line}: is cut off (no end of line); the lines before it are whole")]
    Truncated { file: String, line: u64 },
    #[error(
        "{file}, line {line}: expected {{\"evenkeel\":\"decisions\",\"version\":{VERSION}}} before anything else"
    )]
    Header { file: String, line: u64 },
    #[error(
        "{file}, line {line}: version is {found}: accepted are 1 to {VERSION}; read it with the evenkeel that wrote it"
    )]
    Version { file: String, line: u64, found: u64 },
    #[error("{file}, line {line}: {reason}")]
    Malformed { file: String, line: u64, reason: String },
    #[error("{file}, line {line}: unit {unit:?} is not known here: a line with event \"unit\" introduces it")]
    UnknownUnit { file: String, line: u64, unit: String },
    #[error("{file}, line {line}: unit {unit:?} is there already")]
    UnitAgain { file: String, line: u64, unit: String },
    #[error(
        "{file}, line {line}: what happened to unit {unit:?} before is lost: a line with event \"state\" must come first"
    )]
    StateMissing { file: String, line: u64, unit: String },
    #[error("{file}, line {line}: the state does not have the sum that it says: the file was damaged")]
    StateDamaged { file: String, line: u64 },
    #[error(
        "{file}, line {line}: the state was written by evenkeel {found}, this is {BUILD}: replay it with that version"
    )]
    StateBuild { file: String, line: u64, found: String },
    #[error("{file}, line {line}: {source}")]
    Routing { file: String, line: u64, source: RoutingError },
    #[error("{file}, line {line}: decisions differ: recorded {recorded}, replayed {replayed}")]
    Differ { file: String, line: u64, recorded: String, replayed: String },
}

impl LogError {
    /// The stable code that operators see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            LogError::Open { .. } | LogError::Read { .. } => "decisions_unreadable",
            LogError::LineTooLong { .. } => "decisions_line_too_long",
            LogError::Truncated { .. } => "decisions_truncated",
            LogError::Header { .. } => "decisions_header",
            LogError::Version { .. } => "decisions_version",
            LogError::Malformed { .. } => "decisions_malformed",
            LogError::UnknownUnit { .. } => "decisions_unknown_unit",
            LogError::UnitAgain { .. } => "decisions_unit_again",
            LogError::StateMissing { .. } => "decisions_state_missing",
            LogError::StateDamaged { .. } => "decisions_state_damaged",
            LogError::StateBuild { .. } => "decisions_state_build",
            LogError::Routing { source, .. } => source.code(),
            LogError::Differ { .. } => "decisions_differ",
        }
    }

    /// 1: decisions differ; 2: bad input.
    pub(crate) fn exit(&self) -> u8 {
        if matches!(self, LogError::Differ { .. }) { 1 } else { 2 }
    }
}
