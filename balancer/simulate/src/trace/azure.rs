//! The Azure LLM inference traces: CSV lines of a time stamp and two lengths. They have no prefix information.

use super::lines::Place;
use super::reader::Parse;
use super::{TIMESTAMP_MS_MAX, TOKENS_MAX, TraceError, TraceRequest};
use jiff::civil::DateTime;

const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
const EXPECTED: &str = "a time such as 2023-11-16 18:17:03.9799600, prompt tokens, generated tokens";

/// The parser; times count from the first request.
#[derive(Default)]
pub(super) struct Azure {
    header: bool,
    first: Option<DateTime>,
    last: Option<(DateTime, String)>,
}

impl Azure {
    /// Whether a file that begins so is one of these.
    pub(super) fn begins(line: &[u8]) -> bool {
        line == HEADER.as_bytes()
    }
}

impl Parse for Azure {
    fn parse(&mut self, place: &Place, text: &[u8]) -> Result<Option<TraceRequest>, TraceError> {
        if !self.header {
            if text != HEADER.as_bytes() {
                let found = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
                let (path, line) = (place.path.clone(), place.line);
                return Err(TraceError::Columns { path, line, found, expected: HEADER });
            }
            self.header = true;
            return Ok(None);
        }
        let text = str::from_utf8(text).map_err(|_| place.malformed("is no text".to_owned(), EXPECTED))?;
        let columns: Vec<&str> = text.split(',').collect();
        let [stamp, input, output] = columns[..] else {
            return Err(place.malformed(format!("has {} columns", columns.len()), EXPECTED));
        };
        let input_tokens = tokens(place, "ContextTokens", input)?;
        let output_tokens = tokens(place, "GeneratedTokens", output)?;
        let at_ms = self.at_ms(place, stamp)?;
        Ok(Some(TraceRequest { at_ms, input_tokens, output_tokens, ..TraceRequest::default() }))
    }
}

impl Azure {
    fn at_ms(&mut self, place: &Place, stamp: &str) -> Result<u64, TraceError> {
        let at: DateTime = stamp
            .parse()
            .map_err(|error| place.malformed(format!("TIMESTAMP is {stamp:?}: {error}"), EXPECTED))?;
        if let Some((last, text)) = &self.last
            && at < *last
        {
            return Err(place.unsorted("TIMESTAMP", stamp, text));
        }
        self.last = Some((at, stamp.to_owned()));
        let since = at.duration_since(*self.first.get_or_insert(at));
        let at_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        if at_ms > TIMESTAMP_MS_MAX {
            return Err(place.out_of_range("TIMESTAMP", stamp, "a year from the first".to_owned()));
        }
        Ok(at_ms as u64)
    }
}

fn tokens(place: &Place, field: &'static str, text: &str) -> Result<u64, TraceError> {
    let value: i64 =
        text.parse().map_err(|_| place.malformed(format!("{field} is {text:?}, no number"), EXPECTED))?;
    place.within(field, value, 1, TOKENS_MAX)
}
