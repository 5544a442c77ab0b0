//! Lines of a file, gzipped or not, one at a time; and the place that errors name.

use super::TraceError;
use flate2::read::MultiGzDecoder;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line: a Mooncake prompt of 4M tokens has 8192 blocks of up to 21 digits.
pub(super) const LINE_BYTES_MAX: u64 = 1 << 18;
/// How gzip begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Opens a file; what is gzipped, or is named so, is unpacked on the way.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>, TraceError> {
    let file = File::open(path).map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
    let mut input = BufReader::new(file);
    let named = path.extension().is_some_and(|ending| ending == "gz");
    let begins =
        input.fill_buf().map_err(|source| TraceError::Read { path: path.to_owned(), line: 1, source })?;
    if named || begins.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::new(MultiGzDecoder::new(input))));
    }
    Ok(Box::new(input))
}

/// A line of a file, for errors.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// From 1; 0 before the first.
    pub(super) line: u64,
}

impl Place {
    /// A whole number within its range.
    pub(super) fn within(
        &self,
        field: &'static str,
        value: i64,
        min: i64,
        max: i64,
    ) -> Result<u64, TraceError> {
        if (min..=max).contains(&value) {
            Ok(value as u64)
        } else {
            Err(self.out_of_range(field, value, format!("{min} to {max}")))
        }
    }

    pub(super) fn out_of_range(
        &self,
        field: &'static str,
        value: impl Display,
        accepted: String,
    ) -> TraceError {
        let value = value.to_string();
        TraceError::OutOfRange { path: self.path.clone(), line: self.line, field, value, accepted }
    }

    pub(super) fn malformed(&self, reason: String, expected: &'static str) -> TraceError {
        TraceError::Malformed { path: self.path.clone(), line: self.line, reason, expected }
    }

    /// The parser's reason without its own place, which is always line 1, and with the column of this line.
    pub(super) fn not_json(&self, error: &serde_json::Error, expected: &'static str) -> TraceError {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = text.strip_suffix(place.as_str()).unwrap_or(&text);
        let column = error.column();
        let reason = if column > 0 { format!("column {column}: {text}") } else { text.to_owned() };
        self.malformed(reason, expected)
    }

    pub(super) fn unsorted(
        &self,
        field: &'static str,
        value: impl Display,
        last: impl Display,
    ) -> TraceError {
        let (value, last) = (value.to_string(), last.to_string());
        TraceError::Unsorted { path: self.path.clone(), line: self.line, field, value, last }
    }
}

/// The lines of a text, blank ones left out; holds one at a time.
pub(super) struct Lines<R> {
    input: R,
    pub(super) place: Place,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(path: &Path, input: R) -> Self {
        Self { input, place: Place { path: path.to_owned(), line: 0 }, text: Vec::new() }
    }

    /// The next line without its end; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<(&Place, &[u8])>, TraceError> {
        loop {
            self.place.line += 1;
            self.text.clear();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.text);
            let (path, line) = (&self.place.path, self.place.line);
            let read = read.map_err(|source| TraceError::Read { path: path.clone(), line, source })?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 > LINE_BYTES_MAX {
                return Err(TraceError::LineTooLong { path: path.clone(), line });
            }
            if !self.text.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some((&self.place, self.text.trim_ascii_end())));
            }
        }
    }
}
