//! What a live balancer decided, decided again from its recording.

use evenkeel_proto::v1::route_event::Event;
use evenkeel_proto::v1::{Arrive, Drain, Finish, RankDown, RankUp, RouteEvent, RouteRequest, Steps};
use evenkeel_tests::process::{program, wait_for};
use evenkeel_tests::{Rig, Shape};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn batch(sequence: u64, events: Vec<Event>) -> RouteRequest {
    let events = events.into_iter().map(|event| RouteEvent { event: Some(event) }).collect();
    RouteRequest { sequence, unit: "u".to_owned(), now_ms: 10 * sequence, events }
}

/// Batches in which requests come, run and end, and ranks come and go.
fn batches(first: u64) -> Vec<RouteRequest> {
    let events = |number: u64| {
        let mut events = Vec::new();
        for request in 2 * number..2 * number + 2 {
            events.push(Event::Arrive(Arrive {
                request,
                prompt_tokens: 500 + request * 37 % 900,
                tenant: (request % 3) as u32,
                blocks: (0..request % 7).collect(),
                ..Arrive::default()
            }));
        }
        events.push(Event::Steps(Steps { count: 1 }));
        let rank = (number % 6) as u32;
        match number % 10 {
            3 => events.push(Event::Drain(Drain { rank })),
            5 => events.push(Event::RankDown(RankDown { rank })),
            7 => events.push(Event::RankUp(RankUp { rank: ((number + 4) % 6) as u32 })),
            _ => events.push(Event::Finish(Finish { request: number })),
        }
        events
    };
    (first..first + 40).map(|number| batch(number, events(number))).collect()
}

fn replay(files: &[PathBuf]) -> Output {
    let mut command = Command::new(program("evenkeel"));
    command.args(["route", "--replay"]).args(files).output().expect("runs")
}

fn route(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(program("evenkeel"));
    command.arg("route").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("is read");
    child.wait_with_output().expect("ends")
}

/// Replays, and returns the figures.
#[track_caller]
fn check_equal(files: &[PathBuf]) -> Value {
    let output = replay(files);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!(found["equal"], true);
    found["figures"].clone()
}

fn wait_for_request(file: &Path, request: u64) -> String {
    let words = format!("\"request\":{request},\"prompt_tokens\"");
    wait_for("a recording", || fs::read_to_string(file).ok().filter(|text| text.contains(&words)))
}

#[test]
fn what_a_killed_balancer_recorded_replays_with_equal_decisions() {
    let mut rig = Rig::start(Shape::default());
    let responses = rig.route(batches(1));
    let errors: Vec<_> = responses.iter().filter_map(|response| response.error.as_ref()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let decided: usize = responses.iter().map(|response| response.decisions.len()).sum();
    let file = rig.recordings().remove(0);
    wait_for_request(&file, 81);
    rig.kill_balancer();
    let figures = check_equal(std::slice::from_ref(&file));
    assert_eq!((&figures["batches"], &figures["gaps"]), (&Value::from(40), &Value::from(0)));
    assert_eq!(figures["decisions"], decided, "what the gateway was told, and nothing else");

    // The balancer that follows records into the next file, and the first is left as it was.
    let before = fs::read(&file).expect("is there");
    rig.restart_balancer();
    wait_for("the unit to form again", || (rig.recordings().len() == 2).then_some(()));
    rig.route(batches(50));
    let files = rig.recordings();
    wait_for_request(&files[1], 179);
    assert_eq!(fs::read(&file).expect("is there"), before);
    rig.kill_balancer();
    assert_eq!(check_equal(&files)["batches"], 80);

    // A pipe does as well, and one changed decision is found.
    let text = fs::read_to_string(&file).expect("is there");
    assert_eq!(route(&["--stdin", "--check"], &text).status.code(), Some(0));
    let (line, dispatch) = text
        .lines()
        .enumerate()
        .filter(|(_, l)| l.contains("\"decision\":\"dispatch\""))
        .last()
        .expect("one");
    let other = dispatch.replace("\"microbatch\":0", "\"microbatch\":1");
    let output = route(&["--stdin", "--check"], &text.replace(dispatch, &other));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for words in ["decisions_differ", &format!("line {}", line + 1), &other, dispatch] {
        assert!(errors.contains(words), "{words:?} is missing in: {errors}");
    }
    // Decided once more, they are the recorded ones.
    let again = String::from_utf8(route(&["--stdin"], &text).stdout).expect("text");
    let decisions = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains("\"decision\"")).map(str::to_owned).collect()
    };
    assert_eq!(decisions(&again), decisions(&text));
}

#[test]
fn bad_lines_have_a_code_and_exit_code_2() {
    let header = "{\"evenkeel\":\"decisions\",\"version\":1}\n";
    let check = |input: &str, words: &[&str]| {
        let output = route(&["--stdin"], input);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        for word in words {
            assert!(errors.contains(word), "{word:?} is missing in: {errors}");
        }
    };
    check("", &["error: decisions_header: standard input, line 1"]);
    check(&header.replace('1', "2"), &["error: decisions_version: standard input, line 1: version is 2"]);
    check(&format!("{header}oops\n"), &["error: decisions_malformed: standard input, line 2"]);
    let output = replay(&[PathBuf::from("/nowhere/u-00000001.jsonl")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: decisions_unreadable: /nowhere/u-"));
    let none = Command::new(program("evenkeel")).arg("route").output().expect("runs");
    assert_eq!(none.status.code(), Some(2), "neither --stdin nor --replay");
}
