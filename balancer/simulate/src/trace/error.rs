//! Why a trace cannot be read.

use super::lines::LINE_BYTES_MAX;
use super::load::REQUESTS_MAX;
use std::io;
use std::path::PathBuf;

/// Why a trace cannot be read. Names the file and, from 1, the line.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened.
    #[error("trace {} cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file ends or breaks in the middle.
    #[error("trace {}, line {line}: cannot be read on; is the file truncated or not gzip?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A line that does not end.
    #[error("trace {}, line {line}: is longer than {LINE_BYTES_MAX} bytes; is it one request a line?", path.display())]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// A line that is not a request.
    #[error("trace {}, line {line}, {reason}; expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The parser's reason.
        reason: String,
        /// What a line of this format is.
        expected: &'static str,
    },
    /// A value out of range.
    #[error("trace {}, line {line}: {field} is {value}: accepted are {accepted}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The field.
        field: &'static str,
        /// As given.
        value: String,
        /// What is accepted.
        accepted: String,
    },
    /// A request earlier than the one before it.
    #[error("trace {}, line {line}: {field} {value} is before {last}: sort the trace by time", path.display())]
    Unsorted {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The field that has the time.
        field: &'static str,
        /// Of this line.
        value: String,
        /// Of the line before.
        last: String,
    },
    /// A session whose lines do not stand together.
    #[error(
        "trace {}, line {line}: s is {session:?}, whose requests ended before: keep the lines of a session together",
        path.display()
    )]
    SessionAgain {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The session.
        session: String,
    },
    /// The first line is none that a format begins with.
    #[error(
        "trace {} begins with {found:?}: no format that is known; accepted are Mooncake and agentic JSON lines, Azure CSV \
         (TIMESTAMP,ContextTokens,GeneratedTokens) and ServeGen client tables (.tar, .tar.gz or a folder); name the format if \
         it is one of them",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// How it begins.
        found: String,
    },
    /// A table without the columns that its format has.
    #[error("trace {}, line {line}: the columns are {found:?}; expected {expected}", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The line as it is.
        found: String,
        /// The columns that the format has.
        expected: &'static str,
    },
    /// A client of ServeGen with only one of its two tables, or none at all.
    #[error("trace {}: {missing} is missing; expected chunk-N-trace.csv and chunk-N-dataset.json of every client N", path.display())]
    Incomplete {
        /// The archive or folder.
        path: PathBuf,
        /// The table.
        missing: String,
    },
    /// More requests than are held.
    #[error("trace {}, line {line}: has more than {REQUESTS_MAX} requests; take a part of it with --from and --until", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The first line that is too many.
        line: u64,
    },
    /// A file without requests.
    #[error("trace {} has no requests", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No request between --from and --until.
    #[error("trace {} has no requests from {from_ms} ms until {}; it ends at {end_ms} ms", path.display(), until(*until_ms))]
    NoneLeft {
        /// The file.
        path: PathBuf,
        /// As given.
        from_ms: u64,
        /// As given.
        until_ms: Option<u64>,
        /// The last request that was read.
        end_ms: u64,
    },
    /// An option out of range.
    #[error("{option} is {value}: accepted are {accepted}")]
    Option {
        /// The option.
        option: &'static str,
        /// As given.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
}

fn until(until_ms: Option<u64>) -> String {
    until_ms.map_or("its end".to_owned(), |ms| format!("{ms} ms"))
}

impl TraceError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            TraceError::Open { .. } => "trace_open",
            TraceError::Read { .. } => "trace_read",
            TraceError::LineTooLong { .. } => "trace_line_too_long",
            TraceError::Malformed { .. } => "trace_malformed",
            TraceError::OutOfRange { .. } => "trace_out_of_range",
            TraceError::Unsorted { .. } | TraceError::SessionAgain { .. } => "trace_unsorted",
            TraceError::UnknownFormat { .. } => "trace_format",
            TraceError::Columns { .. } => "trace_columns",
            TraceError::Incomplete { .. } => "trace_incomplete",
            TraceError::TooMany { .. } => "trace_too_many",
            TraceError::Empty { .. } | TraceError::NoneLeft { .. } => "trace_empty",
            TraceError::Option { .. } => "trace_option",
        }
    }
}
