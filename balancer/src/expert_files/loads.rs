//! Expert loads: `[layers][experts]` as `.npy`, `.csv` or `.json`.

use super::csv::{LAYERS_MAX, is_load};
use super::error::{FileError, Place};
use super::{csv, disk, json, npy};
use serde::Deserialize;
use std::path::Path;

const EXPECTED: &str = "[layers][experts] numbers, or an object with them under \"logical_count\"";
const KEY: &str = "\"logical_count\"";

type Rows = Vec<Vec<f64>>;

/// Reads loads by the ending of the file's name. All rows are equally long, all loads finite and at least 0.
pub(crate) fn read_loads(path: &Path) -> Result<Rows, FileError> {
    let name = path.display().to_string();
    let parse: fn(&str, &[u8]) -> Result<Rows, FileError> = match ending(path).as_str() {
        "npy" => |name, bytes| Ok(npy::parse(name, bytes)?.rows),
        "csv" => csv::parse,
        "json" => parse_json,
        _ => return Err(FileError::Extension { path: name, accepted: ".npy, .csv or .json" }),
    };
    let rows = parse(&name, &disk::read(path)?)?;
    check(&name, &rows)?;
    Ok(rows)
}

/// The ending of a file's name in small letters, without its dot.
pub(super) fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn check(path: &str, rows: &[Vec<f64>]) -> Result<(), FileError> {
    let need = rows.first().map_or(0, Vec::len);
    if need == 0 {
        let problem = "there are no loads: a row per layer and a number per expert are needed";
        return Err(FileError::malformed(path, Place::Whole, problem));
    }
    if rows.len() > LAYERS_MAX {
        let problem = format!("{} layers: at most {LAYERS_MAX} are read", rows.len());
        return Err(FileError::malformed(path, Place::Whole, problem));
    }
    for (layer, row) in rows.iter().enumerate() {
        if row.len() != need {
            let problem = format!("{} loads, and layer 0 has {need}: every layer needs {need}", row.len());
            return Err(FileError::malformed(path, Place::Layer(layer), problem));
        }
        if let Some(expert) = row.iter().position(|load| !is_load(*load)) {
            let place = Place::LayerExpert(layer, expert);
            return Err(FileError::Load { path: path.to_owned(), place, value: row[expert].to_string() });
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct LogicalCount<T> {
    logical_count: T,
}

/// SGLang's recordings have `[steps][layers][experts]` when they were taken step by step.
fn parse_json(path: &str, bytes: &[u8]) -> Result<Rows, FileError> {
    let begins = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let inside = begins == Some(&b'{');
    let start = if inside { find(bytes, KEY.as_bytes()).unwrap_or(0) + KEY.len() } else { 0 };
    let head = bytes.get(start..).unwrap_or_default();
    let brackets = head.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b':');
    let result = if brackets.take_while(|byte| **byte == b'[').count() >= 3 {
        let steps: Result<Vec<Rows>, _> =
            if inside { under_key(bytes) } else { serde_json::from_slice(bytes) };
        steps.map(|steps| sum(path, steps))
    } else {
        let rows: Result<Rows, _> = if inside { under_key(bytes) } else { serde_json::from_slice(bytes) };
        rows.map(Ok)
    };
    match result {
        Ok(rows) => rows,
        Err(error) => match json::not_json(bytes, &error) {
            Some(word) => {
                let end = json::offset(bytes, error.line(), error.column());
                let place = layer_expert(&bytes[start.min(end)..end]);
                Err(FileError::Load { path: path.to_owned(), place, value: word.to_owned() })
            }
            // Read once more only to say it in the words of all JSON files.
            None if inside => {
                json::parse::<LogicalCount<Rows>>(path, bytes, EXPECTED).map(|l| l.logical_count)
            }
            None => json::parse(path, bytes, EXPECTED),
        },
    }
}

fn under_key<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice::<LogicalCount<T>>(bytes).map(|found| found.logical_count)
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

/// The layer and expert that the text before a value leads to.
fn layer_expert(before: &[u8]) -> Place {
    let layer = before.iter().filter(|byte| **byte == b']').count();
    let row = before.iter().rposition(|byte| *byte == b'[').map_or(0, |at| at + 1);
    Place::LayerExpert(layer, before[row..].iter().filter(|byte| **byte == b',').count())
}

fn sum(path: &str, steps: Vec<Rows>) -> Result<Rows, FileError> {
    let mut steps = steps.into_iter();
    let mut total = steps.next().unwrap_or_default();
    for (at, step) in (1..).zip(steps) {
        let alike = step.len() == total.len() && step.iter().zip(&total).all(|(a, b)| a.len() == b.len());
        if !alike {
            let problem = format!("step {at} has another number of layers or experts than step 0");
            return Err(FileError::malformed(path, Place::Whole, problem));
        }
        for (sum, load) in total.iter_mut().flatten().zip(step.iter().flatten()) {
            *sum += load;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(name: &str, content: &[u8]) -> Result<Rows, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read_loads(&path)
    }

    #[track_caller]
    fn check(content: &str, expected: &[&[f64]]) {
        assert_eq!(read("x.json", content.as_bytes()).unwrap(), expected);
    }

    #[track_caller]
    fn check_refused(name: &str, content: &str, words: &[&str]) {
        let error = read(name, content.as_bytes()).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is missing in: {error}"));
    }

    #[test]
    fn rows_and_the_counts_of_sglang_are_read() {
        check("[[1, 2.5], [0, 1e3]]", &[&[1.0, 2.5], &[0.0, 1000.0]]);
        check(r#"{"rank": 0, "logical_count": [[1, 2], [3, 4]]}"#, &[&[1.0, 2.0], &[3.0, 4.0]]);
        check(r#"{"logical_count": [[[1, 2]], [[3, 4]]], "x": 1}"#, &[&[4.0, 6.0]]);
        check("[ [\n[1]], [[2]] ]", &[&[3.0]]);
    }

    #[test]
    fn the_place_of_what_is_wrong_is_named() {
        check_refused("x.json", "[[1, 2], [3, NaN]]", &["layer 1, expert 1", "NaN", "to 1e30"]);
        check_refused(
            "x.json",
            r#"{"logical_count": [[1, -Infinity]]}"#,
            &["layer 0, expert 1", "-Infinity"],
        );
        check_refused("x.json", "[[1, 2],\n [3, -4]]", &["layer 1, expert 1", "-4", "to 1e30"]);
        check_refused("x.json", "[[1, 2e31]]", &["layer 0, expert 1", "to 1e30"]);
        check_refused("x.json", "[[1, 2],\n [3]]", &["layer 1", "every layer needs 2"]);
        check_refused("x.json", "[[1, 2],\n [3, \"a\"]]", &["line 2, column", "logical_count"]);
        check_refused("x.json", "[[1, 2], [3, 1e999]]", &["line 1, column", "number out of range"]);
        check_refused("x.json", "[[1, 2], [3, 4", &["line 1, column", "EOF"]);
        check_refused("x.json", "{\"counts\": [[1]]}", &["logical_count"]);
        check_refused("x.json", "[]", &["no loads"]);
        check_refused("x.json", "[[], []]", &["no loads"]);
        check_refused("x.json", "[[[1]], [[1, 2]]]", &["step 1"]);
        check_refused("x.json", &"[".repeat(100_000), &["x.json"]);
        check_refused("x.csv", "", &["no loads"]);
        check_refused("x.npz", "", &[".npy, .csv or .json"]);
        check_refused("x", "", &[".npy, .csv or .json"]);
        let long = format!("[{}[1]]", "[1],".repeat(LAYERS_MAX));
        check_refused("x.json", &long, &["4097 layers", "at most 4096"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"[\[\]{},: "a-zA-Z0-9.\-]{0,60}"#) {
            let _ = parse_json("x", text.as_bytes());
            let _ = parse_json("x", format!("{{\"logical_count\":{text}").as_bytes());
            let _ = csv::parse("x", text.as_bytes());
        }
    }
}
