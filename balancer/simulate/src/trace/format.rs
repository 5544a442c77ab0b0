//! Which format a file has.

use super::azure::Azure;
use super::lines::{Lines, open};
use super::{TraceError, servegen};
use serde::Deserialize;
use std::fmt;
use std::path::Path;

/// Where the traces come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// Mooncake's JSON lines.
    Mooncake,
    /// Coding sessions, JSON lines.
    Agentic,
    /// Azure's CSV.
    Azure,
    /// ServeGen's client tables, as a folder or an archive.
    ServeGen,
}

impl TraceFormat {
    /// All of them.
    pub const ALL: [TraceFormat; 4] =
        [TraceFormat::Mooncake, TraceFormat::Agentic, TraceFormat::Azure, TraceFormat::ServeGen];

    /// As options name it.
    pub fn name(self) -> &'static str {
        match self {
            TraceFormat::Mooncake => "mooncake",
            TraceFormat::Agentic => "agentic",
            TraceFormat::Azure => "azure",
            TraceFormat::ServeGen => "servegen",
        }
    }

    /// The format that a file has, by how it begins.
    pub fn detect(path: &Path) -> Result<Self, TraceError> {
        if path.is_dir() {
            return Ok(TraceFormat::ServeGen);
        }
        let mut input = open(path)?;
        if servegen::is_archive(path, &mut input)? {
            return Ok(TraceFormat::ServeGen);
        }
        let mut lines = Lines::new(path, open(path)?);
        let Some((_, line)) = lines.next()? else {
            return Err(TraceError::Empty { path: path.to_owned() });
        };
        of_line(line).ok_or_else(|| {
            let found = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
            TraceError::UnknownFormat { path: path.to_owned(), found }
        })
    }
}

/// The fields by which JSON lines are told apart; a line with either is enough, so that what is missing of it is
/// named by the parser.
#[derive(Deserialize)]
struct Fields {
    timestamp: Option<serde_json::Value>,
    hash_ids: Option<serde_json::Value>,
    s: Option<serde_json::Value>,
    h: Option<serde_json::Value>,
}

fn of_line(line: &[u8]) -> Option<TraceFormat> {
    if Azure::begins(line) {
        return Some(TraceFormat::Azure);
    }
    let fields: Fields = serde_json::from_slice(line).ok()?;
    if fields.timestamp.is_some() || fields.hash_ids.is_some() {
        Some(TraceFormat::Mooncake)
    } else if fields.s.is_some() || fields.h.is_some() {
        Some(TraceFormat::Agentic)
    } else {
        None
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for TraceFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = TraceFormat::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| {
            let names = TraceFormat::ALL.map(TraceFormat::name).join(", ");
            format!("the trace format is {text:?}: accepted are {names}")
        })
    }
}
