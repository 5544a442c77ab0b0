//! Requests of a trace, one at a time.

use super::agentic::Agentic;
use super::azure::Azure;
use super::lines::{Lines, Place, open};
use super::mooncake::Mooncake;
use super::servegen::ServeGen;
use super::{TraceError, TraceFormat, TraceOptions, TraceRequest};
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// A format of one request a line.
pub(super) trait Parse {
    /// The request of a line; `None` for a header.
    fn parse(&mut self, place: &Place, text: &[u8]) -> Result<Option<TraceRequest>, TraceError>;
}

enum Requests {
    Lines { lines: Lines<Box<dyn BufRead>>, parser: Box<dyn Parse> },
    Drawn(Box<ServeGen>),
}

/// Reads a trace in the order of time; holds one line at a time, or one window of what is drawn. Ends after its first
/// error.
pub struct TraceReader {
    path: PathBuf,
    format: TraceFormat,
    requests: Requests,
    count: u64,
    ended: bool,
}

impl TraceReader {
    /// Opens a trace of whatever format.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        Self::open_with(path, &TraceOptions::default())
    }

    /// Opens a trace; of the options, it takes the format and what the format needs: seed, copies and times of
    /// what is drawn, idle times of sessions.
    pub fn open_with(path: &Path, options: &TraceOptions) -> Result<Self, TraceError> {
        let format = options.format.map_or_else(|| TraceFormat::detect(path), Ok)?;
        let lines =
            |parser: Box<dyn Parse>| Ok(Requests::Lines { lines: Lines::new(path, open(path)?), parser });
        let requests = match format {
            TraceFormat::Mooncake => lines(Box::<Mooncake>::default())?,
            TraceFormat::Agentic => lines(Box::new(Agentic::new(options.idle_max_ms)))?,
            TraceFormat::Azure => lines(Box::<Azure>::default())?,
            TraceFormat::ServeGen => Requests::Drawn(Box::new(ServeGen::open(path, options)?)),
        };
        Ok(Self { path: path.to_owned(), format, requests, count: 0, ended: false })
    }

    /// The format.
    pub fn format(&self) -> TraceFormat {
        self.format
    }

    /// Lines read; 0 for what is drawn.
    pub(super) fn line(&self) -> u64 {
        match &self.requests {
            Requests::Lines { lines, .. } => lines.place.line,
            Requests::Drawn(_) => 0,
        }
    }

    fn read(&mut self) -> Result<Option<TraceRequest>, TraceError> {
        let next = match &mut self.requests {
            Requests::Lines { lines, parser } => next(lines, parser.as_mut())?,
            Requests::Drawn(drawn) => drawn.next(),
        };
        self.count += u64::from(next.is_some());
        if next.is_none() && self.count == 0 {
            return Err(TraceError::Empty { path: self.path.clone() });
        }
        Ok(next)
    }
}

fn next(
    lines: &mut Lines<Box<dyn BufRead>>,
    parser: &mut dyn Parse,
) -> Result<Option<TraceRequest>, TraceError> {
    while let Some((place, text)) = lines.next()? {
        if let Some(request) = parser.parse(place, text)? {
            return Ok(Some(request));
        }
    }
    Ok(None)
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

/// Reads a whole trace, with the system prompt that its requests share.
pub fn read_all(path: &Path) -> Result<Vec<TraceRequest>, TraceError> {
    let trace = super::load(path, &TraceOptions::default())?;
    Ok(trace.requests.to_vec())
}
