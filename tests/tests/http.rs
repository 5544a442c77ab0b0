//! What Prometheus and the page read, from processes that have done some work.

use evenkeel_tests::http::get;
use evenkeel_tests::process::wait_for;
use evenkeel_tests::{Rig, Shape};
use serde_json::Value;
use std::collections::BTreeSet;

const LOADS: [u64; 16] = [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10];

/// Every series has a TYPE, and every TYPE a HELP with words in it.
#[track_caller]
fn check_metrics(address: &str, prefix: &str, expected: &[&str]) {
    // Gauges of the loop's state follow it by a tick.
    let text = wait_for("the metrics expected", || {
        let (code, text) = get(address, "/metrics");
        assert_eq!(code, 200);
        expected.iter().all(|name| text.contains(&format!("# TYPE {name} "))).then_some(text)
    });
    let names = |kind: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
        lines
            .filter(|line| line.trim().contains(' '))
            .map(|l| l.split(' ').next().unwrap().to_owned())
            .collect()
    };
    let (helped, typed) = (names("# HELP "), names("# TYPE "));
    assert_eq!(typed.difference(&helped).collect::<Vec<_>>(), Vec::<&String>::new(), "without help");
    for name in &typed {
        assert!(name.starts_with(prefix), "{name}");
    }
    // Prometheus keeps this label for summaries, and we export none.
    assert!(!text.contains("quantile=\""), "a label named quantile");
}

#[test]
fn every_metric_has_help_text() {
    let mut rig = Rig::start(Shape::default());
    rig.feed_until_settled(&LOADS);
    let expected = [
        "evenkeel_build_info",
        "evenkeel_imbalance_ratio",
        "evenkeel_plan_epoch",
        "evenkeel_plan_phase_seconds",
        "evenkeel_plans_committed_total",
        "evenkeel_moved_bytes_total",
        "evenkeel_solve_seconds",
        "evenkeel_load_windows_total",
        "evenkeel_agents",
        "evenkeel_leader",
        "evenkeel_step_seconds",
    ];
    check_metrics(&rig.ports.metrics, "evenkeel_", &expected);
    let expected =
        ["evenkeel_agent_connected", "evenkeel_agent_applied_epoch", "evenkeel_agent_reports_total"];
    check_metrics(rig.agent_metrics(0), "evenkeel_agent_", &expected);
}

/// The page reads these keys; its own test runs against a stand-in with the same ones.
#[track_caller]
fn check_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some_and(|v| !v.is_null()), "{key} is missing in {value:#}");
    }
}

#[test]
fn the_page_finds_what_it_reads() {
    let mut rig = Rig::start(Shape::default());
    let json = |path: &str| -> (u16, Value) {
        let (code, body) = get(&rig.ports.metrics, path);
        (code, serde_json::from_str(&body).expect("JSON"))
    };
    assert_eq!(json("/api/v1/units/u/heat").0, 404, "no window yet");
    assert_eq!(json("/api/v1/units/nowhere/plans").0, 404);
    assert_eq!(json("/api/v1/units/A%20b/plans").0, 400);
    rig.feed_until_settled(&LOADS);
    let json =
        |path: &str| -> Value { serde_json::from_str(&get(&rig.ports.metrics, path).1).expect("JSON") };

    let status = json("/api/v1/status");
    check_keys(&status, &["version", "cluster", "term", "units", "agents"]);
    let unit =
        ["unit", "role", "state", "layers", "experts", "ranks", "slots_per_rank", "spare_per_rank", "head"];
    check_keys(&status["units"][0], &unit);
    check_keys(&status["units"][0], &["ranks_connected", "windows_complete", "last_decision", "imbalance"]);
    check_keys(&status["units"][0]["imbalance"], &["expert"]);
    assert_eq!(status["units"][0]["rank_gauges"].as_array().map(Vec::len), Some(6));
    check_keys(&status["units"][0]["rank_gauges"][0], &["rank", "node", "kv_used_tokens", "kv_total_tokens"]);
    check_keys(&status["units"][0]["rank_gauges"][0], &["requests", "step_us_p50", "step_us_p99"]);
    check_keys(&status["agents"][0], &["node", "unit", "ranks", "connected", "applied_epoch"]);

    let plans = json("/api/v1/units/u/plans?limit=2");
    assert_eq!(plans["plans"].as_array().map(Vec::len), Some(2));
    let plan = ["epoch", "digest", "kind", "committed_ms", "moves", "bytes", "layers_reweighted"];
    check_keys(&plans["plans"][0], &plan);
    check_keys(&plans["plans"][0], &["imbalance_before", "imbalance_after", "imbalance_bound", "limits"]);
    check_keys(&plans["plans"][0], &["from_step", "to_step"]);

    let heat = json("/api/v1/units/u/heat");
    check_keys(&heat, &["epoch", "from_step", "to_step", "layers", "ranks"]);
    for table in ["measured", "boot"] {
        assert_eq!(heat[table].as_array().map(Vec::len), Some(4), "layers of {table}");
        assert_eq!(heat[table][0].as_array().map(Vec::len), Some(6), "ranks of {table}");
    }
}

#[test]
fn probes_answer_and_unknown_paths_do_not() {
    let rig = Rig::start(Shape::default());
    let check = |path: &str, code| assert_eq!(get(&rig.ports.metrics, path).0, code, "{path}");
    for (path, code) in [("/healthz", 200), ("/readyz", 200), ("/nothing", 404)] {
        check(path, code);
    }
    for (path, ..) in evenkeel::page::FILES {
        check(path, 200);
    }
}
