//! What the reader takes and how it refuses the rest.

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

/// A file of its own for each call; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(ending: &str, content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("evenkeel-trace-{}-{number}.{ending}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that cannot be removed stays in the system's temporary folder.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn line(timestamp: i64, input: i64, output: i64, blocks: &str) -> String {
    format!(
        r#"{{"timestamp": {timestamp}, "input_length": {input}, "output_length": {output}, "hash_ids": [{blocks}]}}"#
    ) + "\n"
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn check_error(path: &Path, code: &str, text: &[&str]) -> TraceError {
    let error = read_all(path).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    let name = path.file_name().unwrap().to_str().unwrap();
    for part in text.iter().chain([&name]) {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains("at line 1 "), "two lines are named: {message}");
    error
}

/// A good first line and then `second`, gzipped and not.
#[track_caller]
fn check(second: &str, code: &str, text: &[&str]) {
    let content = line(5, 100, 10, "0, 1") + second;
    check_error(&Scratch::new("jsonl", content.as_bytes()).0, code, text);
    check_error(&Scratch::new("jsonl.gz", &gzip(content.as_bytes())).0, code, text);
}

#[test]
fn a_bad_line_is_named_with_its_column_or_field() {
    let malformed = "trace_malformed";
    check(
        "{\"timestamp\": 7, oops}\n",
        malformed,
        &["line 2, column 18: ", "expected an object with timestamp"],
    );
    check("{\"timestamp\": 7", malformed, &["line 2, column 15: EOF"]);
    check("{\"timestamp\": 7}\n", malformed, &["line 2, column 16: missing field `input_length`"]);
    check("\n{\"timestamp\": \"7\"}\n", malformed, &["line 3, column ", "invalid type: string"]);
    check(&line(7, 1, 1, "-4"), malformed, &["line 2, column ", "invalid value: integer `-4`"]);
    check("\u{fffd}\n", malformed, &["line 2, column 1"]);
    let range = "trace_out_of_range";
    check(&line(7, -3, 1, ""), range, &["line 2: input_length is -3", "1 to 4194304"]);
    check(&line(7, 0, 1, ""), range, &["line 2: input_length is 0"]);
    check(&line(7, 1, -1, ""), range, &["line 2: output_length is -1", "1 to 4194304"]);
    check(&line(7, 1, 4_194_305, ""), range, &["line 2: output_length is 4194305"]);
    check(&line(-7, 1, 1, ""), range, &["line 2: timestamp is -7", "0 to"]);
    check(&line(7, 1, 1, "0, 4294967296"), range, &["line 2: hash_ids is 4294967296", "0 to 4294967295"]);
    check(&line(4, 1, 1, ""), "trace_unsorted", &["line 2: timestamp 4 is before 5", "sort"]);
    check(&" ".repeat(300_000), "trace_line_too_long", &["line 2", "262144 bytes"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    check_error(Path::new("/nowhere/lost.jsonl"), "trace_open", &["cannot be opened"]);
    check_error(&Scratch::new("jsonl", b"").0, "trace_empty", &["has no requests"]);
    check_error(&Scratch::new("jsonl", b" \n\n").0, "trace_empty", &["has no requests"]);
    check_error(&Scratch::new("gz", &gzip(b"")).0, "trace_empty", &["has no requests"]);
    let plain = line(5, 100, 10, "0").into_bytes();
    check_error(&Scratch::new("gz", &plain).0, "trace_read", &["line 1", "truncated or not gzip"]);
}

#[test]
fn a_truncated_gzip_names_the_line_where_it_breaks() {
    let content: String = (0..50).map(|i| line(i, 100, 10, "0, 1")).collect();
    let packed = gzip(content.as_bytes());
    let file = Scratch::new("jsonl.gz", &packed[..packed.len() - 4]);
    let error = check_error(&file.0, "trace_read", &["truncated"]);
    let TraceError::Read { line, source, .. } = error else { panic!("{error}") };
    assert_eq!((line, source.kind()), (51, io::ErrorKind::UnexpectedEof));
}

#[test]
fn the_reader_ends_after_its_first_error() {
    let file = Scratch::new("jsonl", (line(5, 1, 1, "") + "oops\n" + &line(6, 1, 1, "")).as_bytes());
    let ends: Vec<bool> = TraceReader::open(&file.0).unwrap().map(|request| request.is_ok()).collect();
    assert_eq!(ends, [true, false]);
}

#[test]
fn good_lines_come_out_in_order() {
    let content = line(0, 600, 10, "0, 4294967295") + "\n" + line(9, 1, 4_194_304, "").trim_end();
    let expected = [
        TraceRequest { at_ms: 0, input_tokens: 600, output_tokens: 10, blocks: vec![0, u32::MAX.into()] },
        TraceRequest { at_ms: 9, input_tokens: 1, output_tokens: 4_194_304, blocks: Vec::new() },
    ];
    assert_eq!(read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap(), expected);
    // Archives that were appended to each other are one stream.
    let halves = [gzip(&content.as_bytes()[..40]), gzip(&content.as_bytes()[40..])].concat();
    assert_eq!(read_all(&Scratch::new("gz", &halves).0).unwrap(), expected);
}
