//! Lines in, decisions out; recordings and what breaks them.

use super::writer::Writer;
use super::*;
use crate::config;
use evenkeel_core::ids::Rank;
use evenkeel_core::routing::{
    BlockHash, DispatchNumber, KvChange, RequestId, Router, RoutingEvent, StepReport, TenantId,
};
use evenkeel_core::topology::Role;
use evenkeel_core::units::{Millis, Tokens};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;

const HEADER: &str = "{\"evenkeel\":\"decisions\",\"version\":1}\n";
const UNIT: &str = "{\"at_ms\":0,\"unit\":\"u\",\"event\":\"unit\",\"role\":\"decode\",\"ranks\":3}\n";

/// The decisions on lines of text, or the error.
fn decide(text: &str) -> (String, Result<(), LogError>) {
    let mut out = Vec::new();
    let done = Replay::default().run(Lines::new("in".to_owned(), text.as_bytes()), &mut out);
    (String::from_utf8(out).unwrap(), done)
}

fn check_recording(bytes: &[u8]) -> Result<Check, LogError> {
    let mut check = Check::default();
    check.run(Lines::new("in".to_owned(), bytes)).map(|()| check)
}

/// A line after header and unit: its code, exit code and words.
#[track_caller]
fn check_refused(line: &str, code: &str, words: &[&str]) {
    let (_, done) = decide(&format!("{HEADER}{UNIT}{line}\n"));
    let error = done.unwrap_err();
    let message = error.to_string();
    assert_eq!((error.code(), error.exit()), (code, 2), "{message}");
    for word in words.iter().chain(&["line 3"]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn arrive(fields: &str) -> String {
    format!(r#"{{"at_ms":5,"unit":"u","event":"arrive",{fields}}}"#)
}

#[test]
fn a_bad_line_is_named_with_its_field() {
    let malformed = "decisions_malformed";
    check_refused("oops", malformed, &["column 1: expected"]);
    check_refused(r#"{"at_ms":5,"unit":"u","event":"arrive""#, malformed, &["column 38: EOF"]);
    check_refused(r#"{"unit":"u","event":"tick"}"#, malformed, &["missing field `at_ms`"]);
    check_refused(r#"{"at_ms":-5,"unit":"u","event":"tick"}"#, malformed, &["at_ms: ", "`-5`"]);
    check_refused(r#"{"at_ms":5,"unit":"U 2","event":"tick"}"#, malformed, &["unit: "]);
    check_refused(r#"{"at_ms":5,"unit":"u"}"#, malformed, &["event is missing", "arrive, first_token"]);
    check_refused(r#"{"at_ms":5,"unit":"u","event":"go"}"#, malformed, &["event is \"go\"", "kv_stored"]);
    check_refused(r#"{"at_ms":5,"unit":"u","event":"tick","x":1}"#, malformed, &["unknown field `x`"]);
    check_refused(&arrive(r#""request":1"#), malformed, &["missing field `prompt_tokens`"]);
    check_refused(
        &arrive(r#""request":1,"prompt_tokens":-9"#),
        malformed,
        &["prompt_tokens: ", "`-9`", "u64"],
    );
    let priority = arrive(r#""request":1,"prompt_tokens":9,"priority":"high""#);
    check_refused(&priority, malformed, &["priority: ", "`interactive` or `batch`"]);
    let batch = |events: &str| format!(r#"{{"at_ms":5,"unit":"u","events":{events}}}"#);
    check_refused(&batch("7"), malformed, &["events: is no list"]);
    check_refused(&batch("[7]"), malformed, &["events[0]: is no object"]);
    check_refused(
        &batch(r#"[{"event":"tick"},{"event":"drain"}]"#),
        malformed,
        &["events[1].missing field `rank`"],
    );
    check_refused(
        r#"{"at_ms":5,"unit":"u","events":[],"event":"tick"}"#,
        malformed,
        &["event: is not taken beside events"],
    );
    check_refused(
        r#"{"at_ms":5,"unit":"v","event":"tick"}"#,
        "decisions_unknown_unit",
        &["\"v\"", "introduces it"],
    );
    check_refused(UNIT.trim(), "decisions_unit_again", &["\"u\" is there already"]);
    let unit = |fields: &str| format!(r#"{{"at_ms":0,"unit":"v","event":"unit",{fields}}}"#);
    check_refused(&unit(r#""role":"mixed","ranks":3"#), malformed, &["role: ", "`prefill` or `decode`"]);
    check_refused(&unit(r#""role":"decode","ranks":0"#), "routing_rank_count", &["ranks is 0"]);
    let policy = unit(r#""role":"decode","ranks":3,"policy":{"held_maxx":1}"#);
    check_refused(&policy, malformed, &["policy", "unknown field `held_maxx`"]);
}

#[test]
fn what_the_router_refuses_is_named_with_its_line() {
    check_refused(
        &arrive(r#""request":1,"prompt_tokens":0"#),
        "routing_tokens_out_of_range",
        &["prompt_tokens is 0"],
    );
    check_refused(&arrive(r#""request":0,"prompt_tokens":9"#), "routing_reserved_request", &["request 0"]);
    let down = r#"{"at_ms":5,"unit":"u","event":"rank_down","rank":3}"#;
    check_refused(down, "routing_unknown_rank", &["rank 3", "0 to 2"]);
    let (out, done) = decide(&format!(
        "{HEADER}{UNIT}{}\n{{\"at_ms\":4,\"unit\":\"u\",\"event\":\"tick\"}}\n",
        arrive(r#""request":1,"prompt_tokens":9"#)
    ));
    let error = done.unwrap_err();
    assert_eq!(error.code(), "routing_time_backwards");
    assert!(error.to_string().starts_with("in, line 4: now is 4 ms but the unit is at 5 ms"), "{error}");
    assert!(out.contains(r#""decision":"dispatch","request":1"#), "what came before is decided: {out}");
}

#[test]
fn an_older_report_is_dropped_and_counted() {
    let report = |sequence: u64| {
        format!(
            "{{\"at_ms\":5,\"unit\":\"u\",\"event\":\"rank_report\",\"rank\":1,\"sequence\":{sequence},\
             \"kv_used_tokens\":0,\"requests\":0}}\n"
        )
    };
    let text = [HEADER, UNIT, &report(7), &report(6), &report(8)].concat();
    let mut replay = Replay::default();
    replay.run(Lines::new("in".to_owned(), text.as_bytes()), &mut Vec::new()).unwrap();
    let (unit, counters) = replay.counters().next().unwrap();
    assert_eq!((unit, counters.stale_reports), ("u", 1));
}

#[test]
fn a_text_of_another_kind_or_version_is_refused() {
    let check = |text: &str, code: &str| {
        let error = decide(text).1.unwrap_err();
        assert_eq!((error.code(), error.exit()), (code, 2), "{error}");
    };
    check("", "decisions_header");
    check(UNIT, "decisions_header");
    check("oops\n", "decisions_header");
    check("{\"evenkeel\":\"plan\",\"version\":1}\n", "decisions_header");
    check("{\"evenkeel\":\"decisions\",\"version\":2}\n", "decisions_version");
    check("{\"evenkeel\":\"decisions\",\"version\":0}\n", "decisions_version");
    check(&format!("{HEADER}{}", UNIT.trim_end()), "decisions_truncated");
}

/// Every event with every field.
fn events() -> Vec<RoutingEvent> {
    let blocks: Arc<[BlockHash]> = [1, u64::MAX].map(BlockHash).into();
    let step = StepReport { tokens: Tokens(1), pairs: 2, requests: 3, kv_tokens: Tokens(4), micros: 5 };
    let kv = |change| RoutingEvent::Kv { rank: Rank(1), sequence: 4, change };
    let report = |as_of, step| RoutingEvent::Report {
        rank: Rank(2),
        sequence: 9,
        as_of,
        kv_used_tokens: Tokens(7),
        requests: 6,
        step,
    };
    vec![
        RoutingEvent::arrive(RequestId(1), Tokens(100), Tokens(0)),
        RoutingEvent::Arrive {
            request: RequestId(2),
            prompt_tokens: Tokens(200),
            cached_tokens: Tokens(64),
            tenant: TenantId(3),
            priority: evenkeel_core::routing::Priority::Batch,
            blocks: Arc::clone(&blocks),
            expected_output: Some(Tokens(50)),
        },
        RoutingEvent::FirstToken { request: RequestId(1) },
        RoutingEvent::Finish { request: RequestId(2) },
        RoutingEvent::Steps { count: 3 },
        report(None, None),
        report(Some(DispatchNumber(8)), Some(step)),
        RoutingEvent::RankDown { rank: Rank(0) },
        RoutingEvent::RankUp { rank: Rank(1) },
        RoutingEvent::Drain { rank: Rank(2) },
        kv(KvChange::Stored { parent: None, blocks: Arc::clone(&blocks) }),
        kv(KvChange::Stored { parent: Some(BlockHash(5)), blocks: Arc::clone(&blocks) }),
        kv(KvChange::Removed { blocks }),
        kv(KvChange::Cleared),
        RoutingEvent::Tick,
    ]
}

#[test]
fn every_event_is_read_as_it_was_written() {
    let mut text = Vec::from(HEADER);
    lines::write_batch(&mut text, Millis(3), "u", &events(), &Ok(Vec::new())).unwrap();
    let mut read = Lines::new("in".to_owned(), &text[..]);
    assert!(matches!(read.next(), Ok(Some(lines::Line::Header))));
    let Ok(Some(lines::Line::Batch { at, unit, events: found })) = read.next() else { panic!("no batch") };
    assert_eq!((at, unit.as_str(), found), (Millis(3), "u", events()));
    // One by one as well, and the document has all of their names.
    let document = document();
    let batch: serde_json::Value = serde_json::from_slice(&text[HEADER.len()..]).unwrap();
    for (line, expected) in batch["events"].as_array().unwrap().iter().zip(events()) {
        let name = format!("| `{}` |", line["event"].as_str().unwrap());
        assert!(document.contains(&name), "{name} is not in docs/decisions.md");
        for field in line.as_object().unwrap().keys() {
            assert!(document.contains(&format!("`{field}`")), "{field} is not in docs/decisions.md");
        }
        let mut object = line.as_object().unwrap().clone();
        let name = event::take_name(&mut object).unwrap();
        assert_eq!(event::read(&name, object), Ok(expected));
    }
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/decisions.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_examples_of_the_document_give_what_it_says() {
    let document = document();
    let block = |name: &str| -> Vec<String> {
        let begin = format!("```{name}\n");
        document.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let (inputs, outputs) = (block("jsonl in"), block("jsonl out"));
    assert!(inputs.len() >= 2 && inputs.len() == outputs.len());
    for (input, output) in inputs.iter().zip(&outputs) {
        let (found, done) = decide(input);
        done.unwrap();
        assert_eq!(&found, output);
    }
}

/// Batches of a busy unit: requests come, run and end; ranks report, drain, die and join; caches change.
fn traffic(seed: u64, ranks: u16, batches: usize) -> Vec<(Millis, Vec<RoutingEvent>)> {
    let mut state = seed;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut request, mut sequence, mut live) = (0, 0, Vec::new());
    let mut batch = |at: usize| {
        let mut events = Vec::new();
        for _ in 0..draw(4) {
            request += 1;
            live.push(request);
            let prompt = 1 + draw(3000);
            let family = draw(5) * 1000;
            let blocks = (0..prompt / 64).map(|block| BlockHash(family + block)).collect();
            let mut event = RoutingEvent::arrive(RequestId(request), Tokens(prompt), Tokens(0));
            if let RoutingEvent::Arrive { blocks: names, tenant, .. } = &mut event {
                (*names, *tenant) = (blocks, TenantId(draw(3) as u32));
            }
            events.push(event);
        }
        for _ in 0..draw(4).min(live.len() as u64) {
            let finished = live.swap_remove(draw(live.len() as u64) as usize);
            events.push(RoutingEvent::Finish { request: RequestId(finished) });
        }
        sequence += 1;
        let rank = Rank(draw(ranks.into()) as u16);
        events.push(match draw(12) {
            0 => RoutingEvent::RankDown { rank },
            1 | 2 => RoutingEvent::RankUp { rank },
            3 => RoutingEvent::Drain { rank },
            4 => RoutingEvent::Report {
                rank,
                sequence,
                as_of: Some(DispatchNumber(draw(request + 1))),
                kv_used_tokens: Tokens(draw(100_000)),
                requests: draw(30) as u32,
                step: None,
            },
            5 => RoutingEvent::Kv { rank, sequence, change: KvChange::Cleared },
            6..9 => RoutingEvent::Steps { count: 1 + draw(3) as u32 },
            _ => RoutingEvent::Tick,
        });
        (Millis(10 * at as u64), events)
    };
    (0..batches).map(&mut batch).collect()
}

fn router(role: Role) -> Router {
    Router::new(role, 4, config::Routing::default().policy()).unwrap()
}

/// Records `batches` of a unit into a directory and returns its files in order, as bytes.
fn record(dir: &Path, role: Role, batches: &[(Millis, Vec<RoutingEvent>)]) -> Vec<Vec<u8>> {
    let routing = config::Routing { record: dir.to_owned(), record_max_mb: 1, ..config::Routing::default() };
    let (recorder, thread) = Recorder::begin(&routing).unwrap();
    let mut router = router(role);
    let mut unit = recorder.unit("u", &router);
    for (at, events) in batches {
        let decided = router.apply(*at, events);
        unit.record(*at, events, &decided, &router);
    }
    thread.stop();
    files(dir).iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    files
}

#[test]
fn every_file_of_a_recording_replays_from_its_beginning() {
    for role in [Role::Prefill, Role::Decode] {
        let dir = tempfile::tempdir().unwrap();
        let recorded = record(dir.path(), role, &traffic(7, 4, 8000));
        assert!(recorded.len() > 2, "it was long enough to go on in other files: {}", recorded.len());
        let total: usize = recorded.iter().map(Vec::len).sum();
        // A file ends with the batch that fills it.
        assert!(total <= (1 << 20) + (1 << 14), "{total} bytes");
        let checks: Vec<Check> = recorded.iter().map(|bytes| check_recording(bytes).unwrap()).collect();
        assert!(checks.iter().all(|check| check.gaps == 0 && check.cut == 0), "{checks:?}");
        let before_last = &checks[..checks.len() - 1];
        assert!(before_last.iter().all(|check| check.batches > 100 && check.decisions > 100), "{checks:?}");
        let replayed: u64 = checks.iter().map(|check| check.batches).sum();
        assert!(replayed < 8000, "the oldest files went");
        let names: Vec<PathBuf> = files(dir.path());
        assert!(!names[0].ends_with("u-00000001.jsonl"));
    }
}

#[test]
fn a_recording_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), Role::Decode, &traffic(1, 4, 10));
    let both = record(dir.path(), Role::Decode, &traffic(2, 4, 10));
    assert_eq!(both.len(), 2);
    for bytes in both {
        assert_eq!(check_recording(&bytes).unwrap().batches, 10);
    }
}

#[test]
fn a_recording_that_was_cut_anywhere_is_readable_up_to_there() {
    let dir = tempfile::tempdir().unwrap();
    let whole = record(dir.path(), Role::Decode, &traffic(3, 4, 12)).remove(0);
    let all = check_recording(&whole).unwrap();
    assert_eq!((all.batches, all.cut), (12, 0));
    let mut batches = 0;
    for end in 1..whole.len() {
        let check = check_recording(&whole[..end]).unwrap();
        assert!((batches..=batches + 1).contains(&check.batches) && check.cut <= 1, "{end}: {check:?}");
        batches = check.batches;
    }
}

#[test]
fn a_refused_batch_is_recorded_and_replays_as_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tick = |at| (Millis(at), vec![RoutingEvent::Tick]);
    let recorded = record(dir.path(), Role::Decode, &[tick(9), tick(3), tick(10)]).remove(0);
    assert!(
        String::from_utf8_lossy(&recorded)
            .contains(r#""decision":"batch_refused","code":"routing_time_backwards""#)
    );
    assert_eq!(check_recording(&recorded).unwrap().batches, 3);
}

#[test]
fn the_first_difference_is_named_with_both_decisions() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = record(dir.path(), Role::Decode, &traffic(4, 4, 30)).remove(0);
    let text = String::from_utf8(recorded).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let place = lines.iter().rposition(|line| line.contains("\"decision\":\"dispatch\"")).unwrap();
    let check = |changed: &[&str], line: usize, words: &[&str]| {
        let error = check_recording((changed.join("\n") + "\n").as_bytes()).unwrap_err();
        assert_eq!((error.code(), error.exit()), ("decisions_differ", 1), "{error}");
        let message = error.to_string();
        for word in words.iter().copied().chain([format!("in, line {line}:").as_str()]) {
            assert!(message.contains(word), "{word:?} is not in {message}");
        }
    };
    let other = lines[place].replace("\"microbatch\":0", "\"microbatch\":1");
    let mut changed = lines.clone();
    changed[place] = &other;
    check(&changed, place + 1, &[&format!("recorded {other}, replayed {}", lines[place])]);
    changed[place] = lines[place];
    changed.insert(place, &other);
    check(&changed, place + 1, &["recorded {", "replayed {"]);
    changed.remove(place);
    changed.remove(place);
    changed.push("{\"at_ms\":99999,\"unit\":\"u\",\"event\":\"tick\"}");
    let missing = changed[place..].iter().position(|line| line.contains("event")).unwrap();
    check(&changed, place + missing + 1, &["recorded nothing, replayed {"]);
    let tail = [&lines[..], &[lines[place]]].concat();
    check(&tail, lines.len() + 1, &["replayed nothing"]);
}

#[test]
fn what_does_not_fit_the_queue_is_a_gap_after_which_the_recording_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, messages) = sync_channel(4);
    let queued = Arc::new(AtomicUsize::new(0));
    let recorder = Recorder::to(queue, Arc::clone(&queued));
    let mut writer = Writer {
        dir: dir.path().to_owned(),
        bytes_max: 1 << 20,
        policy: serde_json::json!({}),
        queued,
        units: BTreeMap::new(),
    };
    let mut router = router(Role::Decode);
    let mut unit = recorder.unit("u", &router);
    // Twice more comes than the queue takes before anything is written.
    for (number, (at, events)) in traffic(5, 4, 60).iter().enumerate() {
        let decided = router.apply(*at, events);
        unit.record(*at, events, &decided, &router);
        if !(0..20).contains(&number) && !(30..40).contains(&number) {
            messages.try_iter().for_each(|message| writer.take(message));
        }
    }
    writer.flush();
    let recorded = std::fs::read(&files(dir.path())[0]).unwrap();
    let check = check_recording(&recorded).unwrap();
    // The unit and three batches fit at first, and four batches the second time. The batch at which there is room again finds
    // the queue still full, and the next is in the state.
    assert_eq!((check.gaps, check.batches), (2, 3 + 8 + 4 + 18));
    let text = String::from_utf8(recorded).unwrap();
    let dropped: u64 = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["dropped"].as_u64())
        .sum();
    assert_eq!(dropped + check.batches, 60, "every batch is recorded or counted");
    // Without its state nobody knows what came of it.
    let stateless: String = text
        .lines()
        .filter(|line| !line.contains("\"event\":\"state\""))
        .fold(String::new(), |text, line| text + line + "\n");
    let error = check_recording(stateless.as_bytes()).unwrap_err();
    assert_eq!((error.code(), error.exit()), ("decisions_state_missing", 2), "{error}");
}

#[test]
fn a_state_is_read_as_it_was_written() {
    for role in [Role::Prefill, Role::Decode] {
        let mut router = router(role);
        for (number, (at, events)) in traffic(9, 4, 300).into_iter().enumerate() {
            // A batch that is refused leaves a state as well.
            let _ = router.apply(at, &events);
            if number % 50 == 49 {
                let mut text = Vec::from(HEADER);
                lines::write_state(&mut text, at, "u", &router).unwrap();
                let mut read = Lines::new("in".to_owned(), &text[..]);
                read.next().unwrap();
                let Ok(Some(lines::Line::State { router: found, .. })) = read.next() else {
                    panic!("no state")
                };
                assert_eq!(*found, router);
            }
        }
        assert!(router.live() > 0);
    }
}

#[test]
fn a_state_that_was_damaged_or_is_of_another_version_is_refused() {
    let mut text = Vec::new();
    lines::write_state(&mut text, Millis(5), "u", &router(Role::Decode)).unwrap();
    let state = String::from_utf8(text).unwrap();
    check_recording(format!("{HEADER}{UNIT}{state}").as_bytes()).unwrap();
    let begin = state.find("\"router\":\"").unwrap() + 12;
    let mut damaged = state.clone();
    let other = if &state[begin..=begin] == "A" { "B" } else { "A" };
    damaged.replace_range(begin..=begin, other);
    check_refused(damaged.trim_end(), "decisions_state_damaged", &["damaged"]);
    let other = state.replace(BUILD, "9.9.9");
    check_refused(other.trim_end(), "decisions_state_build", &["9.9.9", BUILD]);
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let routing = config::Routing { record: file.path().join("below"), ..config::Routing::default() };
    let error = Recorder::begin(&routing).err().unwrap().to_string();
    assert!(error.starts_with("routing.record ") && error.contains("below"), "{error}");
}
