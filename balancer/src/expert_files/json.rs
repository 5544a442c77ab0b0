//! JSON with the place of what is wrong. Nesting is bounded by the parser, and by the types that are read.

use super::error::{FileError, Place};
use serde::de::DeserializeOwned;

/// Reads a whole file into `T`; `expected` says in words what that is.
pub(super) fn parse<T: DeserializeOwned>(path: &str, bytes: &[u8], expected: &str) -> Result<T, FileError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let place = match error.line() {
            0 => Place::Whole,
            line => Place::LineColumn(line, error.column()),
        };
        let text = error.to_string();
        let what = text.split_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        let hint = match not_json(bytes, &error) {
            Some(word) => format!("{word} is no JSON number: "),
            None => String::new(),
        };
        FileError::malformed(path, place, format!("{hint}{what}; expected {expected}"))
    })
}

/// The byte that an error of the parser points at.
pub(super) fn offset(bytes: &[u8], line: usize, column: usize) -> usize {
    let start = match line {
        0 | 1 => 0,
        _ => bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
    };
    (start + column.saturating_sub(1)).min(bytes.len())
}

/// What Python writes for floats that JSON cannot hold.
pub(super) fn not_json(bytes: &[u8], error: &serde_json::Error) -> Option<&'static str> {
    let at = offset(bytes, error.line(), error.column());
    // In `-Infinity` the parser stops after the sign.
    let from = at - usize::from(at > 0 && bytes[at - 1] == b'-');
    ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| bytes[from..].starts_with(word.as_bytes()))
}

/// A value on one line.
pub(super) fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("numbers and lists become JSON")
}

/// Rows of a table, one row a line, so that a plan can be read and compared line by line.
pub(super) fn rows<T: serde::Serialize>(rows: &[T]) -> String {
    let lines: Vec<String> = rows.iter().map(text).collect();
    if lines.is_empty() { "[]".to_owned() } else { format!("[\n  {}\n ]", lines.join(",\n  ")) }
}

/// An object of members that are JSON already.
pub(super) fn object(members: &[(&str, String)]) -> Vec<u8> {
    let members: Vec<String> = members.iter().map(|(key, value)| format!(" \"{key}\": {value}")).collect();
    format!("{{\n{}\n}}\n", members.join(",\n")).into_bytes()
}
