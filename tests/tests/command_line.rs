//! What a person meets who does something wrong: one clear error, a stable code, a non-zero exit, and nothing
//! half-done.

use evenkeel_tests::process::program;
use std::path::Path;
use std::process::{Command, Output};

fn evenkeel(arguments: &[&str]) -> Output {
    Command::new(program("evenkeel")).args(arguments).output().expect("runs")
}

/// Runs `arguments` and expects this exit code, and these words in the one error that is printed.
#[track_caller]
fn check(arguments: &[&str], exit: i32, words: &[&str]) {
    let output = evenkeel(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word:?} is missing in: {errors}");
    }
    assert_eq!(errors.lines().filter(|l| l.starts_with("error:")).count(), 1, "one error, not {errors}");
    assert!(output.stdout.is_empty(), "nothing on stdout");
}

/// A file with this content.
fn file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("written");
    path.display().to_string()
}

#[test]
fn a_wrong_flag_is_a_usage_error_with_a_suggestion() {
    check(&["serve", "--agents-lisen", "127.0.0.1:0"], 2, &["--agents-lisen", "--agents-listen"]);
    check(&["demo", "--minutes", "0"], 2, &["--minutes", "2..=20"]);
    check(&["serv"], 2, &["serv", "serve"]);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = file(dir.path(), "b.toml", "[control]\nwindow_step = 4\n");
    let state = dir.path().join("state").display().to_string();
    let words = ["config_unknown_key", "control.window_step", "did you mean control.window_steps"];
    check(&["serve", "--config", &config, "--state-dir", &state], 1, &words);
    assert!(!Path::new(&state).exists(), "nothing was made");
}

#[test]
fn a_port_in_use_is_named_with_its_key_and_nothing_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let any = "127.0.0.1:0";
    let arguments = ["serve", "--state-dir", &state, "--agents-listen", any, "--admin-listen", &address];
    let arguments = [&arguments[..], &["--metrics-listen", any]].concat();
    check(&arguments, 1, &["port_unavailable", "admin_listen", &address]);
    assert!(!Path::new(&state).exists(), "nothing was made");
}

#[test]
fn a_damaged_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = file(dir.path(), "evenkeel.redb", "not a store");
    let state = dir.path().display().to_string();
    let any = "127.0.0.1:0";
    let arguments = ["serve", "--state-dir", &state, "--agents-listen", any, "--admin-listen", any];
    let arguments = [&arguments[..], &["--metrics-listen", any]].concat();
    check(&arguments, 1, &["store_broken", "evenkeel.redb"]);
    assert_eq!(std::fs::read(store).expect("still there"), b"not a store");
}

#[test]
fn a_malformed_trace_line_is_named_with_file_and_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = r#"{"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [0]}"#;
    let bad = [
        ("not json", "bad.jsonl, line 2"),
        (r#"{"timestamp": 0, "input_length": -1, "output_length": 5, "hash_ids": [0]}"#, "bad.jsonl, line 2"),
    ];
    for (line, place) in bad {
        let trace = file(dir.path(), "bad.jsonl", &format!("{good}\n{line}\n"));
        check(&["demo", "--trace", &trace], 1, &["trace", place]);
    }
    let empty = file(dir.path(), "empty.jsonl", "");
    check(&["demo", "--trace", &empty], 1, &["trace", "empty.jsonl"]);
    check(&["demo", "--trace", "/nonexistent.jsonl"], 1, &["trace", "/nonexistent.jsonl"]);
}

#[test]
fn slots_below_experts_are_refused_with_the_smallest_fix() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state").display().to_string();
    let arguments = "--balancer 127.0.0.1:1 --cluster c --node n --unit u --role decode --layers 58 --experts 256 --top-k 8 --ranks-total 32 --ranks 0-7 --slots-per-rank 7 --spare-per-rank 1 --expert-bytes 64 --weights-seed 1";
    let output = Command::new(program("evenkeel-agent"))
        .args(arguments.split(' '))
        .args(["--state-dir", &state])
        .output()
        .expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("topology_too_few_slots"), "{errors}");
    assert!(errors.contains("slots_per_rank to at least 8, or use at least 37 ranks"), "{errors}");
    assert!(!Path::new(&state).exists(), "nothing was made");
}

#[test]
fn a_balancer_that_is_not_there_has_its_own_exit_code() {
    check(&["status", "--server", "127.0.0.1:1"], 4, &["unreachable", "127.0.0.1:1"]);
}

#[test]
fn help_says_what_each_command_is_for() {
    let output = evenkeel(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout);
    for command in ["serve", "demo", "experts", "status", "plans", "pause", "resume"] {
        assert!(help.contains(command), "{help}");
    }
}
