//! Azure's CSV.

use super::{Scratch, check_error, gzip, read_all};
use crate::trace::TraceRequest;

const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n";

/// A good first line and then `second`, gzipped and not.
#[track_caller]
fn check(second: &str, code: &str, text: &[&str]) {
    let content = format!("{HEADER}2023-11-16 18:17:03.9799600,4808,10\r\n{second}");
    check_error(&Scratch::new("csv", content.as_bytes()).0, code, text);
    check_error(&Scratch::new("csv.gz", &gzip(content.as_bytes())).0, code, text);
}

#[test]
fn a_bad_line_is_named_with_its_field() {
    let (malformed, range) = ("trace_malformed", "trace_out_of_range");
    check("2023-11-16 18:17:04.1,5", malformed, &["line 3, has 2 columns", "expected a time such as"]);
    check("2023-11-16 18:17:04.1,5,6,7\n", malformed, &["line 3, has 4 columns"]);
    check("2023-11-16 18:17:04.1,five,6\n", malformed, &["line 3, ContextTokens is \"five\""]);
    check("2023-11-16 18:17:04.1,5,\n", malformed, &["line 3, GeneratedTokens is \"\""]);
    check("yesterday,5,6\n", malformed, &["line 3, TIMESTAMP is \"yesterday\""]);
    check("2023-11-16 18:17:04.1,-5,6\n", range, &["line 3: ContextTokens is -5", "1 to 4194304"]);
    check("2023-11-16 18:17:04.1,5,0\n", range, &["line 3: GeneratedTokens is 0"]);
    check("2026-11-16 18:17:04,5,6\n", range, &["line 3: TIMESTAMP is 2026", "a year"]);
    let unsorted = ["line 3: TIMESTAMP 2023-11-16 18:17:03.9 is before 2023-11-16 18:17:03.9799600", "sort"];
    check("2023-11-16 18:17:03.9,5,6\n", "trace_unsorted", &unsorted);
}

#[test]
fn another_header_is_refused() {
    let content = "TIMESTAMP,GeneratedTokens,ContextTokens\n2023-11-16 18:17:03,1,2\n";
    let options =
        crate::trace::TraceOptions { format: Some(crate::trace::TraceFormat::Azure), ..Default::default() };
    let file = Scratch::new("csv", content.as_bytes());
    let error = crate::trace::load(&file.0, &options).unwrap_err();
    assert_eq!(error.code(), "trace_columns");
    assert!(error.to_string().contains("line 1: the columns are \"TIMESTAMP,GeneratedTokens"), "{error}");
    check_error(&Scratch::new("csv", HEADER.as_bytes()).0, "trace_empty", &["has no requests"]);
}

#[test]
fn times_count_from_the_first_request_and_nothing_is_cached() {
    let content = format!("{HEADER}2023-11-16 23:59:59.5,100,7\n2023-11-17 00:00:01.0319600,200,8\n");
    let request = |at_ms, input_tokens, output_tokens| TraceRequest {
        at_ms,
        input_tokens,
        output_tokens,
        ..TraceRequest::default()
    };
    let read = read_all(&Scratch::new("csv", content.as_bytes()).0).unwrap();
    assert_eq!(read, [request(0, 100, 7), request(1531, 200, 8)]);
}
