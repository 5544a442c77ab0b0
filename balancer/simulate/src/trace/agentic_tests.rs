//! Coding sessions.

use super::{Scratch, check_error, gzip, read_all, recorded};
use crate::trace::{TraceOptions, TraceRequest};
use std::collections::BTreeSet;

fn turn(session: &str, depth: u32, t: f64, input: i64, ranges: &str) -> String {
    format!(
        r#"{{"s":"{session}","d":{depth},"t":{t:?},"in":{input},"out":9,"pb":0,"h":[{ranges}],"api":null,"m":"x"}}"#
    ) + "\n"
}

/// A good first line and then `second`, gzipped and not.
#[track_caller]
fn check(second: &str, code: &str, text: &[&str]) {
    let content = turn("a", 0, 5.0, 130, "[1,2]") + second;
    check_error(&Scratch::new("jsonl", content.as_bytes()).0, code, text);
    check_error(&Scratch::new("jsonl.gz", &gzip(content.as_bytes())).0, code, text);
}

#[test]
fn a_bad_line_is_named_with_its_field() {
    let (malformed, range, unsorted) = ("trace_malformed", "trace_out_of_range", "trace_unsorted");
    check("{\"s\":\"a\",\"d\":0", malformed, &["line 2, column 14: EOF", "expected an object with s, d, t"]);
    check("{\"s\":\"a\",\"d\":0,\"t\":6,\"in\":1}\n", malformed, &["line 2, ", "missing field `out`"]);
    check(&turn("a", 0, 6.0, 64, "[-1,1]"), malformed, &["line 2, column ", "integer `-1`"]);
    check(&turn("a", 0, 6.0, -64, ""), range, &["line 2: in is -64", "1 to 4194304"]);
    check(&turn("a", 0, -6.0, 64, "[1,1]"), range, &["line 2: t is -6", "0 to "]);
    check(&turn("a", 0, 6.0, 64, "[1,0]"), range, &["line 2: h is [1,0]", "up to 16777215"]);
    check(&turn("a", 0, 6.0, 64, "[16777215,1]"), range, &["line 2: h is [16777215,1]"]);
    check(
        &turn("a", 0, 6.0, 64, "[1,1],[7,1]"),
        range,
        &["line 2: h is 2 blocks", "accepted are 1, the whole"],
    );
    check(&turn("a", 0, 6.0, 129, "[1,1]"), range, &["line 2: h is 1 blocks", "accepted are 2"]);
    check(&turn("a", 65, 6.0, 64, "[1,1]"), range, &["line 2: d is 65", "0 to 64"]);
    let api = turn("a", 0, 6.0, 64, "[1,1]").replace("null", "-2.0");
    check(&api, range, &["line 2: api is -2", "0 to"]);
    check(&turn("", 0, 6.0, 64, "[1,1]"), range, &["line 2: s is 0 bytes long"]);
    check(&turn("a", 0, 4.0, 64, "[1,1]"), unsorted, &["line 2: t 4 is before 5", "sort"]);
    let again = turn("b", 0, 0.0, 64, "[1,1]") + &turn("a", 0, 9.0, 64, "[1,1]");
    check(&again, unsorted, &["line 3: s is \"a\"", "keep the lines of a session together"]);
    let negative = turn("a", 0, 6.0, 64, "[1,1]").replace("\"out\":9", "\"out\":-1");
    check(&negative, range, &["line 2: out is -1", "0 to"]);
}

/// Times, sessions and turns of a trace, idle times cut to 60 s.
#[track_caller]
fn check_clock(turns: &[(&str, u32, f64)], expected: &[(u64, u32, u32)]) {
    let content: String = turns.iter().map(|&(s, d, t)| turn(s, d, t, 64, "[1,1]")).collect();
    let read = read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap();
    let clocks: Vec<_> = read.iter().map(|r| (r.at_ms, r.session, r.turn)).collect();
    assert_eq!(clocks, expected);
}

#[test]
fn sessions_follow_each_other_and_idle_times_are_cut() {
    check_clock(&[("a", 0, 0.0), ("a", 0, 1.5)], &[(0, 1, 0), (1500, 1, 1)]);
    check_clock(&[("a", 0, 7.0), ("a", 0, 7000.0)], &[(0, 1, 0), (60_000, 1, 1)]);
    check_clock(&[("a", 0, 0.0), ("b", 0, 0.0), ("b", 0, 2.0)], &[(0, 1, 0), (60_000, 2, 0), (62_000, 2, 1)]);
    check_clock(&[("a", 0, 0.0), ("b", 0, 5.0)], &[(0, 1, 0), (60_000, 2, 0)]);
}

#[test]
fn sub_agents_work_in_between_on_clocks_of_their_own() {
    let session = [("a", 0, 9.0), ("a", 1, 0.0), ("a", 1, 3.0)];
    check_clock(&session, &[(0, 1, 0), (0, 2, 0), (3000, 2, 1)]);
    let two = [("a", 0, 9.0), ("a", 1, 2.0), ("a", 1, 3.0), ("a", 1, 0.0), ("a", 0, 59.0)];
    check_clock(&two, &[(0, 1, 0), (0, 2, 0), (1000, 2, 1), (1000, 3, 0), (50_000, 1, 1)]);
    // The session goes on when its sub-agent is done.
    let long = [("a", 0, 0.0), ("a", 1, 0.0), ("a", 1, 30.0), ("a", 1, 80.0), ("a", 0, 70.0)];
    check_clock(&long, &[(0, 1, 0), (0, 2, 0), (30_000, 2, 1), (80_000, 2, 2), (80_000, 1, 1)]);
    let deep = [("a", 0, 0.0), ("a", 1, 0.0), ("a", 2, 0.0), ("a", 2, 5.0), ("a", 1, 9.0), ("a", 2, 1.0)];
    check_clock(&deep, &[(0, 1, 0), (0, 2, 0), (0, 3, 0), (5000, 3, 1), (9000, 2, 1), (9000, 4, 0)]);
}

#[test]
fn a_sub_agent_begins_when_the_request_before_was_answered() {
    let content = turn("a", 0, 0.0, 64, "[1,1]").replace("null", "7.25") + &turn("a", 1, 0.0, 64, "[1,1]");
    let read = read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap();
    assert_eq!(read[1].at_ms, 7250);
}

#[test]
fn ids_are_of_one_session_with_its_sub_agents() {
    let content = turn("a", 0, 0.0, 192, "[1,2],[9,1]")
        + &turn("a", 1, 0.0, 128, "[1,1],[10,1]")
        + &turn("b", 0, 0.0, 128, "[1,2]");
    let read = read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap();
    let ids: Vec<Vec<u64>> = read.iter().map(|request| request.blocks.ids().collect()).collect();
    let (a, b) = (1 << 24, 2 << 24);
    assert_eq!(ids, [vec![a + 1, a + 2, a + 9], vec![a + 1, a + 10], vec![b + 1, b + 2]]);
}

#[test]
fn a_request_that_was_stopped_gives_one_token() {
    let content = turn("a", 0, 0.0, 64, "[1,1]").replace("\"out\":9", "\"out\":0");
    assert_eq!(read_all(&Scratch::new("jsonl", content.as_bytes()).0).unwrap()[0].output_tokens, 1);
}

#[test]
fn the_recorded_sessions_are_one_users_day() {
    let path = recorded("agentic_sessions_first80.jsonl.gz");
    let read = read_all(&path).unwrap();
    let sessions: BTreeSet<u32> = read.iter().map(|request| request.session).collect();
    assert_eq!(sessions.len(), 80 + 11, "80 sessions and 11 sub-agents");
    let last_ms = |idle_max_ms| {
        let options = TraceOptions { idle_max_ms, ..TraceOptions::default() };
        crate::trace::load(&path, &options).unwrap().requests.last().map(|r: &TraceRequest| r.at_ms)
    };
    assert!(last_ms(30_000) < last_ms(60_000));
    let turns = read.iter().filter(|request| request.turn == 0).count();
    assert_eq!(turns, sessions.len());
}
