//! Numbers for every GPU, on the command line or in a file.

use super::{Failure, refused};
use crate::expert_files;
use evenkeel_core::topology::RANKS_MAX;
use std::path::Path;
use std::str::FromStr;

/// Reads `9,9,8`, `9x31,0` (31 times 9) or the name of a file of such numbers, separated by commas or white space.
pub(super) fn numbers<T: FromStr + Copy>(flag: &str, text: &str) -> Result<Vec<T>, Failure> {
    let bad = |problem: String| refused("experts_list", format!("{flag} {text}: {problem}"));
    if let Some(numbers) = parse(text.split(',')) {
        return numbers.map_err(bad);
    }
    let path = Path::new(text);
    if !path.exists() {
        let accepted =
            "no list of numbers, and no file of this name: give 9,9,8 or 9x31,0 (31 times 9) or a file";
        return Err(bad(accepted.to_owned()));
    }
    let bytes = expert_files::read(path)?;
    let content = String::from_utf8_lossy(&bytes);
    let fields = content.split(|c: char| c == ',' || c.is_whitespace()).filter(|field| !field.is_empty());
    match parse(fields) {
        Some(numbers) => numbers.map_err(bad),
        None => {
            Err(bad("the file holds something else than numbers, separated by commas or lines".to_owned()))
        }
    }
}

/// `None`: something is no number.
fn parse<'a, T: FromStr + Copy>(fields: impl Iterator<Item = &'a str>) -> Option<Result<Vec<T>, String>> {
    let mut numbers = Vec::new();
    for field in fields {
        let (value, times) = match field.trim().split_once('x') {
            Some((value, times)) => (value, times.parse().ok()?),
            None => (field.trim(), 1),
        };
        let value = value.parse().ok()?;
        if times > usize::from(RANKS_MAX) - numbers.len() {
            return Some(Err(format!("more than {RANKS_MAX} GPUs")));
        }
        numbers.resize(numbers.len() + times, value);
    }
    (!numbers.is_empty()).then_some(Ok(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[u16]) {
        assert_eq!(numbers::<u16>("--rank-slots", text).unwrap(), expected);
    }

    #[test]
    fn lists_repetitions_and_files_are_read() {
        check("9,9,8", &[9, 9, 8]);
        check("9x3, 0", &[9, 9, 9, 0]);
        check("7", &[7]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slots");
        std::fs::write(&path, "9x2\n8 7,6\n").unwrap();
        check(&path.display().to_string(), &[9, 9, 8, 7, 6]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "9,,8", "9x", "-1", "70000", "9;8", "no-such-file", "9x100000"] {
            let failure = numbers::<u16>("--rank-slots", text).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.exit), ("experts_list", 2), "{text}");
            assert!(failure.message.starts_with("--rank-slots"), "{}", failure.message);
        }
    }
}
