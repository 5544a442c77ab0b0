//! Streaming reader of request traces in the Mooncake format: JSON lines, gzipped or not.

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Prompt tokens of one prefix block.
pub const BLOCK_TOKENS: u64 = 512;
/// Longest line: a prompt of 4M tokens has 8192 blocks of up to 21 digits.
const LINE_BYTES_MAX: u64 = 1 << 18;
/// Longest prompt or output, in tokens: what the router takes.
const TOKENS_MAX: i64 = evenkeel_core::routing::PROMPT_TOKENS_MAX as i64;
/// Latest stamp: a year.
const TIMESTAMP_MS_MAX: i64 = 366 * 24 * 3600 * 1000;
/// Highest block id: copies of the trace put their number above it.
const BLOCK_MAX: u64 = u32::MAX as u64;

/// One recorded request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRequest {
    /// Arrival, ms from the beginning of the trace.
    pub at_ms: u64,
    /// Prompt tokens, at least 1.
    pub input_tokens: u64,
    /// Generated tokens, at least 1.
    pub output_tokens: u64,
    /// Prefix blocks of [`BLOCK_TOKENS`]; equal ids mean equal prefixes up to there.
    pub blocks: Vec<u64>,
}

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
    #[error(
        "trace {}, line {line}, {reason}; expected an object with timestamp, input_length, output_length, hash_ids",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The parser's reason.
        reason: String,
    },
    /// A value out of range.
    #[error("trace {}, line {line}: {field} is {value}: accepted are {min} to {max}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The field.
        field: &'static str,
        /// As given.
        value: i128,
        /// Lowest accepted.
        min: i64,
        /// Highest accepted.
        max: i64,
    },
    /// A request earlier than the one before it.
    #[error("trace {}, line {line}: timestamp {at_ms} is before {last_ms}: sort the trace by time", path.display())]
    Unsorted {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Of this line.
        at_ms: u64,
        /// Of the line before.
        last_ms: u64,
    },
    /// A file without requests.
    #[error("trace {} has no requests", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
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
            TraceError::Unsorted { .. } => "trace_unsorted",
            TraceError::Empty { .. } => "trace_empty",
        }
    }
}

#[derive(Deserialize)]
struct Line {
    timestamp: i64,
    input_length: i64,
    output_length: i64,
    hash_ids: Vec<u64>,
}

/// Reads a trace line by line; holds one line at a time. Ends after its first error.
pub struct TraceReader {
    path: PathBuf,
    input: Box<dyn BufRead>,
    line: u64,
    last_ms: u64,
    requests: u64,
    ended: bool,
}

impl TraceReader {
    /// Opens a `.jsonl` file, or one whose name ends in `.gz`.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let file = File::open(path).map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
        let gzip = path.extension().is_some_and(|ending| ending == "gz");
        let input: Box<dyn BufRead> = if gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Box::new(BufReader::new(file))
        };
        Ok(Self { path: path.to_owned(), input, line: 0, last_ms: 0, requests: 0, ended: false })
    }

    fn read(&mut self) -> Result<Option<TraceRequest>, TraceError> {
        loop {
            self.line += 1;
            let mut text = Vec::new();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
            let read =
                read.map_err(|source| TraceError::Read { path: self.path.clone(), line: self.line, source })?;
            if read == 0 {
                let empty = self.requests == 0;
                return if empty { Err(TraceError::Empty { path: self.path.clone() }) } else { Ok(None) };
            }
            if read as u64 > LINE_BYTES_MAX {
                return Err(TraceError::LineTooLong { path: self.path.clone(), line: self.line });
            }
            if !text.iter().all(u8::is_ascii_whitespace) {
                return self.parse(&text).map(Some);
            }
        }
    }

    fn parse(&mut self, text: &[u8]) -> Result<TraceRequest, TraceError> {
        let line: Line = serde_json::from_slice(text.trim_ascii_end()).map_err(|error| {
            TraceError::Malformed { path: self.path.clone(), line: self.line, reason: reason(&error) }
        })?;
        let at_ms = self.within("timestamp", line.timestamp, 0, TIMESTAMP_MS_MAX)?;
        let input_tokens = self.within("input_length", line.input_length, 1, TOKENS_MAX)?;
        let output_tokens = self.within("output_length", line.output_length, 1, TOKENS_MAX)?;
        if let Some(&block) = line.hash_ids.iter().find(|&&block| block > BLOCK_MAX) {
            return Err(self.out_of_range("hash_ids", block.into(), 0, BLOCK_MAX as i64));
        }
        if at_ms < self.last_ms {
            let (path, last_ms) = (self.path.clone(), self.last_ms);
            return Err(TraceError::Unsorted { path, line: self.line, at_ms, last_ms });
        }
        self.last_ms = at_ms;
        self.requests += 1;
        Ok(TraceRequest { at_ms, input_tokens, output_tokens, blocks: line.hash_ids })
    }

    fn within(&self, field: &'static str, value: i64, min: i64, max: i64) -> Result<u64, TraceError> {
        if (min..=max).contains(&value) {
            Ok(value as u64)
        } else {
            Err(self.out_of_range(field, value.into(), min, max))
        }
    }

    fn out_of_range(&self, field: &'static str, value: i128, min: i64, max: i64) -> TraceError {
        TraceError::OutOfRange { path: self.path.clone(), line: self.line, field, value, min, max }
    }
}

impl Iterator for TraceReader {
    type Item = Result<TraceRequest, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The parser's reason without its own place, which is always line 1, and with the column of this line.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(place.as_str()).unwrap_or(&text);
    if error.column() > 0 { format!("column {}: {text}", error.column()) } else { text.to_owned() }
}

/// Reads a whole trace.
pub fn read_all(path: &Path) -> Result<Vec<TraceRequest>, TraceError> {
    TraceReader::open(path)?.collect()
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
