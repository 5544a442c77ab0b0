//! What the readers take and how they refuse the rest. Here: files, and Mooncake's lines.

#[path = "trace/agentic_tests.rs"]
mod agentic;
#[path = "trace/azure_tests.rs"]
mod azure;
#[path = "trace/load_tests.rs"]
mod load;
#[path = "trace/servegen_tests.rs"]
mod servegen;

use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
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

/// A recorded trace of the repository's own.
fn recorded(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data")).join(name)
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
    check(
        &line(7, 513, 1, "4"),
        range,
        &["line 2: hash_ids is a list of 1: accepted are 2 ids", "512 tokens"],
    );
    check(&line(4, 1, 1, ""), "trace_unsorted", &["line 2: timestamp 4 is before 5", "sort"]);
    check(&(line(7, 1, 1, "") + "{\"timestamp\": 8, \"in"), malformed, &["line 3, column ", "EOF"]);
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
    let last = 8 + 8 * u64::from(u32::MAX);
    let blocks = (8..16).chain([last]).collect();
    let expected = [
        TraceRequest { at_ms: 0, input_tokens: 600, output_tokens: 10, blocks, ..TraceRequest::default() },
        TraceRequest { at_ms: 9, input_tokens: 1, output_tokens: 4_194_304, ..TraceRequest::default() },
    ];
    assert_eq!(read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap(), expected);
    // Archives that were appended to each other are one stream.
    let halves = [gzip(&content.as_bytes()[..40]), gzip(&content.as_bytes()[40..])].concat();
    assert_eq!(read_all(&Scratch::new("gz", &halves).0).unwrap(), expected);
}

/// Blocks of each request of a Mooncake trace, from its prompt tokens and recorded ids.
#[track_caller]
fn check_blocks(requests: &[(i64, &str)], expected: &[&[u64]]) {
    let content: String = requests.iter().map(|&(input, ids)| line(0, input, 1, ids)).collect();
    let read = read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap();
    let blocks: Vec<Vec<u64>> = read.iter().map(|request| request.blocks.ids().collect()).collect();
    assert_eq!(blocks, expected);
}

#[test]
fn a_recorded_block_is_eight_and_only_whole_ones_count() {
    check_blocks(&[(512, "5")], &[&[48, 49, 50, 51, 52, 53, 54, 55]]);
    check_blocks(&[(64, "5")], &[&[48]]);
    check_blocks(&[(63, "5")], &[&[]]);
    check_blocks(&[(641, "5, 9")], &[&[48, 49, 50, 51, 52, 53, 54, 55, 80, 81]]);
    check_blocks(&[(512, "")], &[&[]]);
    check_blocks(&[(130, "5, 6, 7")], &[&[48, 49]]);
}

#[test]
fn what_most_prompts_begin_with_is_the_system_prompt() {
    check_blocks(&[(64, "5"), (128, "5")], &[&[0], &[0, 1]]);
    check_blocks(&[(64, "5"), (64, "6"), (64, "5"), (64, "7")], &[&[0], &[56], &[0], &[64]]);
    check_blocks(
        &[(64, "5"), (64, "6"), (64, "5"), (64, "7"), (64, "8")],
        &[&[48], &[56], &[48], &[64], &[72]],
    );
    let long: Vec<u64> = (0..8).chain([56]).collect();
    check_blocks(&[(576, "5, 6"), (576, "5, 6")], &[&long, &long]);
}

/// Requests, prompt tokens, output tokens, whole blocks, and blocks that were seen before as a prefix.
#[track_caller]
fn check_recorded(name: &str, expected: [u64; 5]) {
    let requests = read_all(&recorded(name)).unwrap();
    assert!(requests.is_sorted_by_key(|request| request.at_ms));
    let sum = |of: &dyn Fn(&TraceRequest) -> u64| requests.iter().map(of).sum::<u64>();
    let mut seen = std::collections::HashSet::new();
    let mut hits = 0;
    for request in &requests {
        hits += request.blocks.ids().take_while(|id| seen.contains(id)).count() as u64;
        seen.extend(request.blocks.ids());
    }
    let read = [
        requests.len() as u64,
        sum(&|request| request.input_tokens),
        sum(&|request| request.output_tokens),
        sum(&|request| request.blocks.len() as u64),
        hits,
    ];
    assert_eq!(read, expected);
}

#[test]
fn recorded_traces_are_read_whole() {
    // Counted with another program (Python's json and csv) from the same files.
    let mooncake = [3658, 49_028_610, 1_274_811, 764_326, 247_874];
    check_recorded("mooncake_conversation_first20min.jsonl.gz", mooncake);
    let agentic = [5163, 657_833_221, 2_097_743, 10_276_092, 9_784_676];
    check_recorded("agentic_sessions_first80.jsonl.gz", agentic);
    check_recorded("azure2023_code.csv.gz", [8819, 18_059_974, 245_896, 0, 0]);
}

#[test]
fn the_format_is_found_by_how_a_file_begins() {
    let format = |name| TraceFormat::detect(&recorded(name)).unwrap();
    assert_eq!(format("mooncake_conversation_first20min.jsonl.gz"), TraceFormat::Mooncake);
    assert_eq!(format("agentic_sessions_first80.jsonl.gz"), TraceFormat::Agentic);
    assert_eq!(format("azure2023_code.csv.gz"), TraceFormat::Azure);
    assert_eq!(format("servegen_deepseek_r1_clients.tar.gz"), TraceFormat::ServeGen);
    for format in TraceFormat::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    let unknown = "csv".parse::<TraceFormat>().unwrap_err();
    assert!(unknown.contains("\"csv\": accepted are mooncake, agentic, azure, servegen"), "{unknown}");
}

#[test]
fn a_file_of_no_known_format_is_refused_with_how_it_begins() {
    let check = |content: &str, text: &str| {
        check_error(&Scratch::new("txt", content.as_bytes()).0, "trace_format", &[text, "Azure CSV"]);
    };
    check("time,in,out\n1,2,3\n", "begins with \"time,in,out\"");
    check("{\"arrival\": 3}\n", "begins with \"{\\\"arrival");
    check("oops\n", "\"oops\"");
}

#[test]
fn a_gzipped_file_may_have_any_name() {
    let packed = gzip(line(3, 64, 1, "1").as_bytes());
    assert_eq!(read_all(&Scratch::new("trace", &packed).0).unwrap().len(), 1);
}

#[test]
fn a_named_format_is_not_looked_for() {
    let options = TraceOptions { format: Some(TraceFormat::Azure), ..TraceOptions::default() };
    let file = Scratch::new("jsonl", line(3, 64, 1, "1").as_bytes());
    let error = super::load(&file.0, &options).unwrap_err();
    assert_eq!(error.code(), "trace_columns", "{error}");
}
