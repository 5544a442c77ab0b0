//! `evenkeel simulate`: figures on stdout, a page, pictures; the same call gives the same figures; bad input is one clear error.

use evenkeel_tests::process::program;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(program("evenkeel")).arg("simulate").args(arguments).output().expect("runs")
}

fn trace() -> String {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mooncake_conversation_first20min.jsonl.gz");
    data.display().to_string()
}

/// What a small simulation prints.
#[track_caller]
fn figures(kind: &str, more: &[&str]) -> String {
    let trace = trace();
    let arguments =
        [&[kind, "--trace", &trace, "--until", "60", "--policy", "evenkeel,sglang-round-robin"], more]
            .concat();
    let output = simulate(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_kind_of_unit_gives_the_same_figures_twice() {
    let check = |kind, more: &[&str], pools: &[&str]| {
        let json = [more, &["--json"]].concat();
        let first = figures(kind, &json);
        assert_eq!(first, figures(kind, &json), "{kind}");
        let first: Value = serde_json::from_str(&first).expect("JSON");
        assert_eq!((&first["kind"], &first["simulated"]), (&kind.into(), &true.into()));
        for policy in first["policies"].as_array().expect("policies") {
            let requests = &policy["requests"];
            let count = |of: &str| requests[of].as_u64().expect("a count");
            let ended = count("finished") + count("refused") + count("lost") + count("unfinished");
            assert_eq!(ended, count("arrived"), "{kind}");
            for pool in ["prefill", "decode"] {
                let there = !policy[pool].is_null();
                assert_eq!(there, pools.contains(&pool), "{kind}: {pool}");
            }
        }
    };
    check("prefill", &["--ranks", "4"], &["prefill"]);
    check("decode", &["--ranks", "8"], &["decode"]);
    check("disaggregated", &["--prefill-ranks", "4", "--decode-ranks", "8"], &["prefill", "decode"]);
}

#[test]
fn the_table_names_the_policies_and_the_page_holds_the_figures() {
    let folder = tempfile::tempdir().expect("a directory");
    let (page, json) = (folder.path().join("r.html"), folder.path().join("r.json"));
    let path = |path: &PathBuf| path.display().to_string();
    let table = figures("decode", &["--ranks", "8", "--report", &path(&page), "--out", &path(&json)]);
    for words in ["simulated", "Evenkeel", "SGLang", "GOODPUT", "ticks of"] {
        assert!(table.contains(words), "{words} is missing in {table}");
    }
    let page = std::fs::read_to_string(page).expect("a page");
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(json).expect("a file")).expect("JSON");
    let (_, inside) = page.split_once("id=\"figures\">").expect("figures on the page");
    let (inside, _) = inside.split_once("</script>").expect("an end");
    assert_eq!(serde_json::from_str::<Value>(inside).expect("JSON"), figures);
}

#[test]
fn a_timeline_is_a_picture_and_a_calibration_a_table() {
    let output = simulate(&["timeline", "--overlap", "five-stage"]);
    let picture = String::from_utf8_lossy(&output.stdout);
    assert!(picture.starts_with("<svg") && picture.contains("ATTN-1"), "{picture}");
    let output = simulate(&["calibration"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(table.lines().filter(|line| line.contains("  fitted  ")).count(), 2, "{table}");
}

#[test]
fn bad_input_is_one_error_with_a_code_and_exit_2() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    };
    let request = |at: u64| {
        format!("{{\"timestamp\": {at}, \"input_length\": 10, \"output_length\": 2, \"hash_ids\": [1]}}\n")
    };
    let good = file("good.jsonl", &request(0));
    let unsorted = file("unsorted.jsonl", &(request(5000) + &request(1000)));
    let negative = file("negative.jsonl", &request(0).replace(": 10", ": -10"));
    let empty = file("empty.jsonl", "");
    let check = |arguments: &[&str], words: &[&str]| {
        let output = simulate(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{word:?} is missing in: {errors}");
        }
        assert!(output.stdout.is_empty(), "nothing on stdout");
    };
    check(&["decode", "--trace", "/nowhere"], &["trace_open", "/nowhere"]);
    check(&["decode", "--trace", &unsorted], &["trace_unsorted", "line 2"]);
    check(&["decode", "--trace", &negative], &["trace_out_of_range", "line 1", "-10"]);
    check(&["decode", "--trace", &empty], &["trace_empty"]);
    check(&["decode", "--trace", &good, "--speed", "0"], &["trace_option", "--speed", "0.001 to 1000"]);
    check(&["decode", "--trace", &good, "--ranks", "0"], &["--ranks", "1..=4096"]);
    check(
        &["decode", "--trace", &good, "--policy", "vlm-0.33"],
        &["simulate_policy", "did you mean vllm-0.33?"],
    );
    check(&["prefill", "--trace", &good, "--policy", "bf-io"], &["simulate_policy", "for decode units"]);
    check(
        &["decode", "--trace", &good, "--decode-kv-tokens", "1"],
        &["simulation_setup_out_of_range", "kv_tokens"],
    );
    check(
        &["decode", "--trace", &good, "--report", "/nowhere/r.html"],
        &["simulate_file_unwritable", "/nowhere/r.html"],
    );
    check(&["decode", "--trace", &good, "--json", "--out", "-"], &["simulate_flags", "stdout"]);
    check(&["timeline", "--overlap", "none", "--split", "1"], &["simulate_split", "below 1"]);
}
