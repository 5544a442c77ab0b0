//! What options take of a trace.

use super::{Scratch, line, recorded};
use crate::replicate::blocks_of_copy;
use crate::trace::{Jitter, Trace, TraceError, TraceOptions, load};
use std::collections::BTreeSet;

const MOONCAKE: &str = "mooncake_conversation_first20min.jsonl.gz";

/// Requests at these times.
fn load_times(times: &[i64], options: &TraceOptions) -> Result<Trace, TraceError> {
    let content: String = times.iter().map(|&at| line(at, 64, 1, "3")).collect();
    load(&Scratch::new("jsonl", content.as_bytes()).0, options)
}

/// Times of the requests that are left.
#[track_caller]
fn check(times: &[i64], options: TraceOptions, expected: &[u64]) {
    let trace = load_times(times, &options).unwrap();
    let left: Vec<u64> = trace.requests.iter().map(|request| request.at_ms).collect();
    assert_eq!(left, expected);
    let arrivals: Vec<u64> = trace.arrivals().map(|arrival| arrival.at_ms).collect();
    assert_eq!(arrivals, expected, "one copy without jitter arrives as it is");
}

#[test]
fn a_part_is_taken_and_replayed_faster_or_slower() {
    let take =
        |from_ms, until_ms, speed| TraceOptions { from_ms, until_ms, speed, ..TraceOptions::default() };
    check(&[0, 10, 20, 30], take(0, None, 1.0), &[0, 10, 20, 30]);
    check(&[0, 10, 20, 30], take(10, Some(30), 1.0), &[0, 10]);
    check(&[0, 10, 20, 30], take(15, None, 1.0), &[5, 15]);
    check(&[0, 10, 20, 30], take(0, None, 4.0), &[0, 3, 5, 8]);
    check(&[0, 10, 20, 30], take(10, None, 0.5), &[0, 20, 40]);
}

#[track_caller]
fn check_refused(options: TraceOptions, code: &str, text: &[&str]) {
    let error = load_times(&[0, 10], &options).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for part in text {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let all = TraceOptions::default;
    let option = "trace_option";
    check_refused(TraceOptions { speed: 0.0, ..all() }, option, &["--speed is 0", "0.001 to 1000"]);
    check_refused(TraceOptions { speed: f64::NAN, ..all() }, option, &["--speed is NaN"]);
    check_refused(TraceOptions { copies: 0, ..all() }, option, &["--scale is 0", "1 to 1048576"]);
    check_refused(TraceOptions { copies: 1 << 21, ..all() }, option, &["--scale is 2097152"]);
    check_refused(TraceOptions { jitter: Jitter::Ms(u64::MAX), ..all() }, option, &["--jitter is 1844"]);
    check_refused(
        TraceOptions { from_ms: 9, until_ms: Some(9), ..all() },
        option,
        &["--until is 9 ms", "after --from"],
    );
    check_refused(TraceOptions { idle_max_ms: 0, ..all() }, option, &["--idle-max is 0 ms"]);
    check_refused(
        TraceOptions { from_ms: 11, ..all() },
        "trace_empty",
        &["from 11 ms until its end", "ends at 10 ms"],
    );
}

#[test]
fn stamps_in_ticks_are_moved_within_them_and_others_are_left() {
    let ticks: Vec<i64> = (0..40).map(|i| 3000 * (i / 2)).collect();
    let jitter = |times: &[i64], options| load_times(times, &options).unwrap().jitter_ms;
    let auto = TraceOptions::default;
    assert_eq!(jitter(&ticks, auto()), 3000);
    assert_eq!(jitter(&ticks, TraceOptions { speed: 2.0, ..auto() }), 1500);
    assert_eq!(jitter(&ticks, TraceOptions { jitter: Jitter::Ms(0), ..auto() }), 0);
    assert_eq!(jitter(&ticks, TraceOptions { jitter: Jitter::Ms(70), ..auto() }), 70);
    assert_eq!(jitter(&ticks[..16], auto()), 0, "eight stamps do not show it");
    let squares: Vec<i64> = (0..40).map(|i| 300 * i * i).collect();
    assert_eq!(jitter(&squares, auto()), 0);
    let tens: Vec<i64> = (0..40).map(|i| 10 * i).collect();
    assert_eq!(jitter(&tens, auto()), 0);
}

#[test]
fn the_mooncake_trace_is_known_for_its_ticks_and_its_system_prompt() {
    let options = TraceOptions { copies: 3, ..TraceOptions::default() };
    let trace = load(&recorded(MOONCAKE), &options).unwrap();
    assert_eq!((trace.jitter_ms, trace.drawn), (3000, false));
    for part in ["a system prompt that all copies share", "ticks of 3000 ms", "3 copies"] {
        assert!(trace.notes.iter().any(|note| note.contains(part)), "{part:?} is not in {:?}", trace.notes);
    }
    let mut arrivals = trace.arrivals();
    let all: Vec<_> = arrivals.by_ref().collect();
    assert_eq!(all.len(), 3 * 3658);
    let blocks = |copy: u32| -> BTreeSet<u64> {
        trace.requests.iter().flat_map(|request| blocks_of_copy(request, copy)).collect()
    };
    assert_eq!(blocks(0).intersection(&blocks(1)).count(), 8, "512 tokens of system prompt");
}

#[test]
fn sessions_and_tables_say_what_they_are() {
    let check = |name, parts: &[&str]| {
        let options = TraceOptions { until_ms: Some(600_000), copies: 2, ..TraceOptions::default() };
        let notes = load(&recorded(name), &options).unwrap().notes.join("\n");
        for part in parts {
            assert!(notes.contains(part), "{part:?} is not in {notes}");
        }
    };
    check("agentic_sessions_first80.jsonl.gz", &["one user", "cut to 60 s", "2 copies"]);
    check("azure2023_code.csv.gz", &["no prefix information"]);
    check(
        "servegen_deepseek_r1_clients.tar.gz",
        &["synthetic from distributions", "2 times what was recorded"],
    );
}
