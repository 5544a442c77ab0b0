//! `evenkeel experts`: files in, files out, and one clear error for what cannot be used.

use evenkeel_tests::process::program;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder of its own with files in it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), content).expect("written");
        self
    }

    /// Runs `evenkeel experts` in the folder; `arguments` are separated by spaces.
    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(program("evenkeel"));
        command.current_dir(&self.0).arg("experts").args(arguments.split_whitespace());
        command.output().expect("runs")
    }

    /// Runs it and expects success; returns stdout.
    #[track_caller]
    fn done(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.done(arguments)).expect("JSON on stdout")
    }

    fn plan(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).expect("a plan")).expect("JSON")
    }

    /// Runs it and expects one error with this exit code and these words, and nothing on stdout.
    #[track_caller]
    fn refused(&self, arguments: &str, exit: i32, words: &[&str]) {
        let before = self.names();
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{arguments}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{word:?} is missing in: {errors}");
        }
        assert_eq!(errors.lines().filter(|l| l.starts_with("error:")).count(), 1, "one error, not {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        assert!(output.stdout.is_empty(), "nothing on stdout");
        assert_eq!(self.names(), before, "no file was made");
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Rows of CSV.
fn csv(rows: &[Vec<u64>]) -> String {
    let line = |row: &Vec<u64>| row.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    rows.iter().map(|row| line(row) + "\n").collect()
}

/// Loads that look like traffic: a few heavy experts, many light ones, another order in each layer.
fn traffic(layers: usize, experts: usize, shift: usize) -> Vec<Vec<u64>> {
    let load = |layer: usize, expert: usize| {
        let place = (expert * 37 + layer * 11 + shift) % experts;
        4_000 / (place as u64 + 1) + 100 + (place * place % 17) as u64
    };
    (0..layers).map(|layer| (0..experts).map(|expert| load(layer, expert)).collect()).collect()
}

fn integers(row: &Value) -> Vec<i64> {
    row.as_array().expect("a row").iter().map(|value| value.as_i64().expect("an integer")).collect()
}

fn floats(row: &Value) -> Vec<f64> {
    row.as_array().expect("a row").iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// Checks a plan against the loads by its own words: shape, every expert placed, never twice on a GPU, shares, and the
/// stated imbalance. Returns the mean imbalance.
#[track_caller]
fn check_plan(plan: &Value, loads: &[Vec<u64>], gpus: usize, slots: usize) -> f64 {
    let (placement, split, layers) = (&plan["physical_to_logical"], &plan["split"], &plan["layers"]);
    assert!(plan["solve_ms"].as_f64().is_some_and(|ms| ms >= 0.0));
    for rows in [placement, split, layers] {
        assert_eq!(rows.as_array().expect("rows").len(), loads.len());
    }
    let mut sum = 0.0;
    for (layer, loads) in loads.iter().enumerate() {
        let (held, share) = (integers(&placement[layer]), floats(&split[layer]));
        assert_eq!((held.len(), share.len()), (slots, slots));
        let mut parts = vec![0.0; loads.len()];
        let mut rank_loads = vec![0.0; gpus];
        for (slot, (&expert, &part)) in held.iter().zip(&share).enumerate() {
            if expert < 0 {
                assert_eq!((expert, part), (-1, 0.0));
                continue;
            }
            parts[expert as usize] += part;
            rank_loads[slot * gpus / slots] += part * loads[expert as usize] as f64;
        }
        assert!(parts.iter().all(|part| (part - 1.0f64).abs() < 1e-9), "layer {layer}: {parts:?}");
        for block in held.chunks(slots / gpus) {
            let mut block: Vec<i64> = block.iter().copied().filter(|expert| *expert >= 0).collect();
            let count = block.len();
            block.sort_unstable();
            block.dedup();
            assert_eq!(block.len(), count, "layer {layer}: an expert twice on a GPU");
        }
        let mean = loads.iter().sum::<u64>() as f64 / gpus as f64;
        let imbalance = if mean > 0.0 { rank_loads.iter().copied().fold(0.0, f64::max) / mean } else { 1.0 };
        let (stated, bound) = (&layers[layer]["imbalance"], &layers[layer]["bound"]);
        let (stated, bound) = (stated.as_f64().expect("a number"), bound.as_f64().expect("a number"));
        assert!((stated - imbalance).abs() < 1e-6, "layer {layer}: {stated} is stated, {imbalance} is true");
        assert!(1.0 <= bound && bound <= stated + 1e-9, "layer {layer}: bound {bound}, imbalance {stated}");
        sum += imbalance;
    }
    sum / loads.len() as f64
}

#[test]
fn a_plan_is_what_it_says_and_balances() {
    let desk = Desk::new();
    let loads = traffic(3, 32, 0);
    desk.put("loads.csv", csv(&loads));
    desk.done("solve --loads loads.csv --gpus 8 --slots 40 --plan-out plan.json");
    assert!(check_plan(&desk.plan("plan.json"), &loads, 8, 40) < 1.01);
    assert_eq!(desk.names(), ["loads.csv", "plan.json"]);
    desk.done("solve --loads loads.csv --gpus 8 --slots 40 --even --plan-out even.json");
    let even = desk.plan("even.json");
    check_plan(&even, &loads, 8, 40);
    let (held, share) = (integers(&even["physical_to_logical"][0]), floats(&even["split"][0]));
    for (expert, part) in held.iter().zip(share).filter(|(expert, _)| **expert >= 0) {
        let count = held.iter().filter(|other| *other == expert).count();
        assert!((part - 1.0 / count as f64).abs() < 1e-9);
    }
}

#[test]
fn the_same_loads_in_every_format_give_the_same_plan() {
    let desk = Desk::new();
    let loads = traffic(2, 16, 3);
    let flat: Vec<u8> = loads.iter().flatten().flat_map(|load| (*load as f32).to_be_bytes()).collect();
    let header = "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 16), }\n";
    let npy =
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &flat].concat();
    desk.put("loads.csv", csv(&loads))
        .put("loads.json", json!(loads).to_string())
        .put("sglang.json", json!({"rank": 0, "logical_count": loads}).to_string())
        .put("loads.npy", npy);
    let mut first = None;
    for name in ["loads.csv", "loads.json", "sglang.json", "loads.npy"] {
        let mut plan =
            desk.json(&format!("solve --loads {name} --gpus 4 --slots 20 --threads 2 --plan-out -"));
        plan["solve_ms"] = Value::Null;
        assert_eq!(first.get_or_insert_with(|| plan.clone()), &plan, "{name}");
    }
}

#[test]
fn without_moves_the_placement_stays_and_the_split_follows_the_loads() {
    let desk = Desk::new();
    let (before, after) = (traffic(2, 32, 0), traffic(2, 32, 1));
    desk.put("before.csv", csv(&before)).put("after.csv", csv(&after));
    desk.done("solve --loads before.csv --gpus 8 --slots 40 --plan-out before.json");
    desk.done(
        "solve --loads after.csv --gpus 8 --slots 40 --current before.json --max-moves 0 --plan-out after.json",
    );
    let (old, new) = (desk.plan("before.json"), desk.plan("after.json"));
    assert_eq!(old["physical_to_logical"], new["physical_to_logical"]);
    assert_ne!(old["split"], new["split"]);
    check_plan(&new, &after, 8, 40);
    let diff = desk.json("diff before.json after.json --output json");
    assert_eq!((&diff["slots_changed"], &diff["fetched"], &diff["bytes"]), (&json!(0), &json!(0), &json!(0)));
}

#[test]
fn a_plan_solved_again_from_itself_moves_nothing() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(2, 32, 0)));
    desk.done("solve --loads loads.csv --gpus 8 --slots 40 --plan-out a.json");
    desk.done("solve --loads loads.csv --gpus 8 --slots 40 --current a.json --plan-out b.json");
    assert_eq!(desk.json("diff a.json b.json --output json")["fetched"], 0);
}

#[test]
fn moves_between_nodes_are_counted_apart() {
    let desk = Desk::new();
    desk.put("before.csv", csv(&traffic(2, 32, 0))).put("after.csv", csv(&traffic(2, 32, 5)));
    desk.done("solve --loads before.csv --gpus 8 --slots 40 --nodes 2 --plan-out a.json");
    desk.done("solve --loads after.csv --gpus 8 --slots 40 --nodes 2 --current a.json --plan-out b.json");
    // The nodes are told by the plans.
    let diff = desk.json("diff a.json b.json --output json");
    let plan = desk.plan("b.json");
    for layer in 0..2 {
        assert_eq!(plan["layers"][layer]["moves"], diff["layers"][layer]["fetched"]);
        assert_eq!(plan["layers"][layer]["node_moves"], diff["layers"][layer]["between_nodes"]);
    }
    let summary = desk.json(
        "solve --loads after.csv --gpus 8 --slots 40 --nodes 2 --current a.json --output json --plan-out c.json",
    );
    assert_eq!(summary["moves"]["total"], diff["fetched"]);
    assert_eq!(summary["moves"]["between_nodes"], diff["between_nodes"]);
    assert!(diff["between_nodes"].as_u64() < diff["fetched"].as_u64(), "{diff}");
}

#[test]
fn gpus_may_join_a_plan_in_service() {
    let desk = Desk::new();
    let loads = traffic(2, 32, 0);
    desk.put("loads.csv", csv(&loads));
    desk.done("solve --loads loads.csv --gpus 8 --slots 40 --plan-out a.json");
    let output = desk.run("solve --loads loads.csv --gpus 9 --slots 45 --current a.json --plan-out b.json");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("note: a.json is for 8 GPUs"), "{said}");
    let plan = desk.plan("b.json");
    check_plan(&plan, &loads, 9, 45);
    // Whatever the new GPU holds, it had to fetch.
    let fetched =
        integers(&plan["physical_to_logical"][0])[40..].iter().filter(|expert| **expert >= 0).count();
    assert!(plan["layers"][0]["moves"].as_u64() >= Some(fetched as u64), "{plan}");
}

#[test]
fn a_budget_of_moves_is_kept_in_every_layer() {
    let desk = Desk::new();
    desk.put("before.csv", csv(&traffic(3, 32, 0))).put("after.csv", csv(&traffic(3, 32, 1)));
    desk.done("solve --loads before.csv --gpus 8 --slots 40 --nodes 2 --plan-out a.json");
    let solve = "solve --loads after.csv --gpus 8 --slots 40 --nodes 2 --current a.json --plan-out b.json";
    for (flags, key, most) in [("--max-moves 3", "moves", 3), ("--max-node-moves 2", "node_moves", 2)] {
        desk.done(&format!("{solve} {flags}"));
        let layers = desk.plan("b.json")["layers"].as_array().expect("layers").clone();
        assert!(layers.iter().all(|layer| layer[key].as_u64() <= Some(most)), "{layers:?}");
        assert!(layers.iter().any(|layer| layer["moves"].as_u64() > Some(0)), "{layers:?}");
    }
}

#[test]
fn a_dead_gpu_gets_nothing_and_a_slow_one_less() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(2, 16, 0)));
    desk.done("solve --loads loads.csv --rank-slots 8x3,0 --rank-speeds 1,1,0.5,1 --plan-out plan.json");
    let plan = desk.plan("plan.json");
    assert_eq!((&plan["gpus"], &plan["rank_slots"]), (&json!(4), &json!([8, 8, 8, 0])));
    assert_eq!(integers(&plan["physical_to_logical"][0]).len(), 24);
    let scores = desk.json("score --loads loads.csv --plan plan.json --output json");
    for (stated, found) in
        plan["layers"].as_array().expect("layers").iter().zip(floats(&scores[0]["own_split"]["layers"]))
    {
        assert!((stated["imbalance"].as_f64().expect("a number") - found).abs() < 1e-9);
        assert!(found < 1.1, "{found}");
    }
    desk.refused("convert --to eplb plan.json x.json", 2, &["experts_format", "unequal"]);
    // The third GPU dies as well: the other two hold what they held.
    desk.done("solve --loads loads.csv --rank-slots 8,8,0,0 --current plan.json --plan-out next.json");
    assert_eq!(desk.plan("next.json")["rank_slots"], json!([8, 8, 0, 0]));
}

/// Solves these loads for the weighted and for the even split, and expects a mean imbalance of at most `most`.
#[track_caller]
fn check_defined(loads: &[Vec<u64>], gpus: usize, slots: usize, most: f64) {
    let desk = Desk::new();
    desk.put("loads.csv", csv(loads));
    for even in ["", "--even"] {
        desk.done(&format!(
            "solve --loads loads.csv --gpus {gpus} --slots {slots} {even} --plan-out plan.json"
        ));
        let mean = check_plan(&desk.plan("plan.json"), loads, gpus, slots);
        assert!(mean <= most, "{mean}");
    }
    desk.done(&format!("score --loads loads.csv --plan plan.json --gpus {gpus}"));
    desk.done("diff plan.json plan.json");
}

#[test]
fn odd_loads_and_sizes_have_defined_results() {
    // Nothing routed; a layer without load between others; one expert with everything.
    check_defined(&[vec![0; 8], vec![0; 8]], 4, 12, 1.0);
    check_defined(&[vec![5; 8], vec![0; 8], vec![5; 8]], 4, 12, 1.5);
    check_defined(&[vec![0, 0, 0, 900, 0, 0, 0, 0]], 4, 12, 1.0);
    // One GPU, also with more slots than experts; one expert on many GPUs; exactly as many slots as experts.
    check_defined(&traffic(2, 8, 0), 1, 8, 1.0);
    check_defined(&traffic(1, 8, 0), 1, 12, 1.0);
    check_defined(&[vec![7]], 4, 4, 1.0);
    check_defined(&traffic(1, 16, 0), 8, 16, 8.0);
}

#[test]
fn large_sizes_have_defined_results() {
    check_defined(&traffic(1, 4096, 0), 64, 4160, 1.3);
    check_defined(&traffic(1, 1024, 0), 1024, 3072, 1024.0);
}

#[test]
fn score_compares_plans_of_any_format() {
    let desk = Desk::new();
    desk.put("loads.csv", "6,2,4,4\n")
        .put("vllm.json", r#"{"physical_to_logical_map": [[0, 1, 2, 3, 0, -1]]}"#)
        .put("eplb.json", r#"{"phy2log": [[0, 2, 1, 3, 3, 1]]}"#);
    let scores = desk.json("score --loads loads.csv --plan vllm.json eplb.json --gpus 2 --output json");
    // vLLM: 3 + 2 + 4 on GPU 0, 4 + 3 on GPU 1; the best split levels them. EPLB: 6 + 4 + 1 against 4 + 1.
    assert_eq!(scores[0]["even_split"]["mean"], 9.0 / 8.0);
    assert!((scores[0]["resolved_split"]["mean"].as_f64().expect("a number") - 1.0).abs() < 1e-3);
    assert_eq!(scores[0]["own_split"], Value::Null);
    assert_eq!(scores[1]["even_split"]["worst"], 11.0 / 8.0);
    let table = desk.done("score --loads loads.csv --plan vllm.json eplb.json --gpus 2");
    assert!(table.contains("vllm.json") && table.contains("1.1250") && table.contains("1.3750"), "{table}");
    let layers = desk.done("score --loads loads.csv --plan vllm.json --gpus 2 --per-layer");
    assert!(layers.contains("LAYER") && layers.contains("1.1250"), "{layers}");
}

#[test]
fn diff_counts_what_is_fetched_and_what_crosses_nodes() {
    let desk = Desk::new();
    desk.put("a.json", r#"{"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 3]]}"#)
        .put("b.json", r#"{"physical_to_logical_map": [[1, 0, 2, 3], [0, 3, 2, 1]]}"#);
    let diff = desk.json("diff a.json b.json --gpus 4 --nodes 2 --expert-bytes 1000 --output json");
    assert_eq!((&diff["slots_changed"], &diff["fetched"]), (&json!(4), &json!(4)));
    assert_eq!((&diff["bytes"], &diff["bytes_between_nodes"]), (&json!(4000), &json!(2000)));
    assert_eq!(diff["fetched_per_gpu"], json!([1, 2, 0, 1]));
    let text = desk.done("diff a.json b.json --gpus 4 --nodes 2 --expert-bytes 1000 --per-layer");
    assert!(text.contains("4 of 8 (50.0 %)") && text.contains("2.00 kB (2 nodes)"), "{text}");
}

#[test]
fn slots_says_what_more_would_buy_and_cost() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(2, 16, 0)));
    let command = "slots --loads loads.csv --gpus 4 --slots 20 --more 1,3 --batches 2";
    let rows = desk.json(&format!("{command} --output json"));
    assert_eq!(rows.as_array().expect("rows").len(), 3);
    assert_eq!(
        (&rows[0]["slots"], &rows[1]["slots"], &rows[2]["slots"]),
        (&json!(20), &json!(24), &json!(32))
    );
    assert_eq!(rows[1]["bytes_per_gpu"], 2 * 44_040_192);
    let noisy = |row: usize| rows[row]["noise"][1]["mean"].as_f64().expect("a number");
    // Splits stop within 5e-5 of the optimum, so figures below 1e-4 do not tell placements apart.
    assert!(noisy(2) <= noisy(0) + 1e-4, "more slots balance noise no worse: {rows}");
    assert_eq!(desk.done(command), desk.done(command), "the same seed gives the same figures");
    assert!(desk.done(command).contains("+88.08 MB"));
}

#[test]
fn plans_go_through_every_engines_format_and_back() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(3, 16, 0)));
    desk.done("solve --loads loads.csv --gpus 4 --slots 20 --moe-layers 1-3 --plan-out plan.json");
    let engines = [
        ("eplb", "x.json"),
        ("eplb", "x.npy"),
        ("vllm", "x.json"),
        ("vllm", "x.npy"),
        ("sglang", "x.json"),
        ("tensorrt-llm", "x.yaml"),
        ("vllm-ascend", "x.json"),
    ];
    for (engine, name) in engines {
        let output = desk.run(&format!("convert --to {engine} plan.json {name}"));
        assert!(String::from_utf8_lossy(&output.stderr).contains("holds no split"), "{engine}");
        desk.done(&format!(
            "convert --from {engine} --to evenkeel --gpus 4 --moe-layers 1-3 {name} back.json"
        ));
        let (plan, back) = (desk.plan("plan.json"), desk.plan("back.json"));
        assert_eq!(plan["physical_to_logical"], back["physical_to_logical"], "{engine}");
        assert_eq!(plan["layer_ids"], back["layer_ids"], "{engine}");
    }
}

#[test]
fn a_sglang_file_has_a_row_for_every_layer_of_the_model() {
    let desk = Desk::new();
    let mut loads = traffic(5, 16, 0);
    loads[0] = vec![0; 16];
    desk.put("loads.csv", csv(&loads));
    desk.done("solve --loads loads.csv --gpus 4 --slots 20 --moe-layers 1-3 --plan-out plan.json");
    assert_eq!(desk.plan("plan.json")["layer_ids"], json!([1, 2, 3]));
    desk.done("convert --to sglang --model-layers 6 plan.json location.json");
    let location = desk.plan("location.json");
    let rows = location["physical_to_logical_map"].as_array().expect("rows");
    assert_eq!((rows.len(), location.as_object().expect("an object").len()), (6, 1));
    let dense: Vec<i64> = (0..20).map(|slot| slot % 16).collect();
    for (layer, row) in rows.iter().enumerate() {
        let wanted = match layer {
            1..=3 => integers(&desk.plan("plan.json")["physical_to_logical"][layer - 1]),
            _ => dense.clone(),
        };
        assert_eq!(integers(row), wanted, "layer {layer}");
    }
    desk.done("score --loads loads.csv --plan location.json --moe-layers 1-3 --gpus 4");
}

#[test]
fn a_weighted_split_becomes_tables_and_a_split_again() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(2, 16, 0)));
    desk.done("solve --loads loads.csv --gpus 4 --slots 20 --plan-out plan.json");
    for engine in ["vllm", "sglang"] {
        let output =
            desk.run(&format!("convert --to {engine} --expand 64 --tables-out tables.json plan.json x.json"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && said.contains("tables of up to 64 entries: shares are off by"),
            "{said}"
        );
        assert!(!said.contains("holds no split"), "{said}");
        desk.done(&format!(
            "convert --from {engine} --to evenkeel --gpus 4 --tables tables.json x.json back.json"
        ));
        let (plan, back) = (desk.plan("plan.json"), desk.plan("back.json"));
        assert_eq!(plan["physical_to_logical"], back["physical_to_logical"]);
        for layer in 0..2 {
            for (wanted, got) in floats(&plan["split"][layer]).iter().zip(floats(&back["split"][layer])) {
                assert!((wanted - got).abs() < 1.0 / 64.0, "{wanted} became {got}");
            }
        }
    }
}

#[test]
fn bad_loads_are_refused_with_file_and_place() {
    let desk = Desk::new();
    desk.put("nan.csv", "1,2\n3,nan\n")
        .put("negative.csv", "# counts\ne0,e1\n1,-2\n")
        .put("infinite.json", "[[1, 2], [Infinity, 4]]")
        .put("ragged.csv", "1,2\n3\n")
        .put("word.csv", "1,2\n3,four\n")
        .put("empty.csv", "")
        .put("loads.txt", "1,2\n")
        .put("short.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr'")
        .put("object.json", r#"{"counts": [[1, 2]]}"#)
        .put("deep.json", "[".repeat(100_000));
    let check = |name: &str, words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        desk.refused(&format!("solve --loads {name} --gpus 2 --slots 2 --plan-out plan.json"), 2, &words);
    };
    check("nan.csv", &["experts_load", "line 2, value 2", "nan", "0 or a number from 1e-30 to 1e30"]);
    check("negative.csv", &["experts_load", "line 3, value 2", "-2"]);
    check("infinite.json", &["experts_load", "layer 1, expert 0", "Infinity"]);
    check("ragged.csv", &["experts_file_malformed", "line 2", "every layer needs 2"]);
    check("word.csv", &["experts_file_malformed", "line 2, value 2", "four"]);
    check("empty.csv", &["experts_file_malformed", "no loads"]);
    check("loads.txt", &["experts_file_extension", ".npy, .csv or .json"]);
    check("short.npy", &["experts_file_malformed", "truncated"]);
    check("object.json", &["experts_file_malformed", "logical_count"]);
    check("deep.json", &["experts_file_malformed"]);
    check("missing.csv", &["experts_file_unreadable"]);
    check(".", &["experts_file_extension"]);
}

#[test]
fn a_file_too_large_is_refused_without_reading_it_all() {
    let desk = Desk::new();
    let file = std::fs::File::create(desk.path("huge.csv")).expect("made");
    file.set_len(1 << 40).expect("a sparse file");
    desk.refused(
        "solve --loads huge.csv --gpus 2 --slots 2 --plan-out plan.json",
        2,
        &["experts_file_too_large", "huge.csv", "268435456"],
    );
}

#[test]
fn flags_that_do_not_fit_are_refused_with_the_smallest_fix() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(2, 16, 0))).put("cut.json", r#"{"physical_to_logical": [[0]]}"#);
    let check = |flags: &str, words: &[&str]| {
        desk.refused(&format!("solve --loads loads.csv {flags} --plan-out plan.json"), 2, words);
    };
    check("--gpus 5 --slots 18", &["experts_slots_not_divisible", "15 or 20"]);
    check("--gpus 4 --slots 12", &["experts_too_few_slots", "at least 16"]);
    check("--gpus 0 --slots 12", &["experts_ranks"]);
    check("--gpus 20000 --slots 20000", &["experts_ranks", "2048"]);
    check("--gpus 4 --slots 20 --nodes 3", &["experts_nodes_not_divisible"]);
    check("--gpus 4 --slots 20 --nodes 0", &["experts_nodes_not_divisible"]);
    check("--gpus 4 --slots 20 --groups 5", &["experts_groups_not_divisible"]);
    check("--gpus 4 --slots 20 --groups 0", &["experts_groups"]);
    check("--gpus 4 --slots 20 --rank-slots 5x4", &["--slots", "--rank-slots"]);
    check("--gpus 4 --rank-slots 5x3", &["experts_list", "--rank-slots", "--gpus says 4"]);
    check("--rank-slots 5,x", &["experts_list", "9x31,0"]);
    check("--gpus 4 --slots 20 --rank-speeds 1,1", &["experts_list", "--rank-speeds"]);
    check("--gpus 4 --slots 20 --rank-speeds 1,1,0,1", &["experts_speed", "rank 2"]);
    check("--gpus 4 --slots 20 --max-moves 3", &["--current"]);
    check("--gpus 4 --slots 20 --tolerance 2", &["experts_flags", "0 to 1"]);
    check("--gpus 4 --slots 20 --tolerance nan", &["experts_flags"]);
    check("--gpus 4 --slots 20 --threads 0", &["--threads", "1..=1024"]);
    check("--gpus 4 --slots 20 --thread 2", &["--threads"]);
    check("--gpus 4 --slots 20 --moe-layers 5-9", &["experts_moe_layers", "5 layers up to 9"]);
    check("--gpus 4 --slots 20 --current cut.json", &["experts_plan_shape", "cut.json", "1 layers"]);
    check("--gpus four --slots 20", &["--gpus", "four"]);
    check("--slots 20", &["--gpus"]);
    desk.refused("solve --loads loads.csv --gpus 4 --slots 20 --output json --plan-out -", 2, &["stdout"]);
    desk.refused(
        "solve --loads loads.csv --gpus 4 --slots 20 --plan-out no/plan.json",
        1,
        &["experts_file_unwritable", "no/plan.json"],
    );
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let desk = Desk::new();
    desk.put("loads.csv", "1,2,3\n")
        .put("lacks.json", r#"{"physical_to_logical_map": [[0, 1, 0, 1]]}"#)
        .put("beyond.json", r#"{"physical_to_logical_map": [[0, 1, 2, 3]]}"#)
        .put("empty.json", r#"{"physical_to_logical_map": [[0, 1, 2, -1]]}"#)
        .put("one.json", r#"{"physical_to_logical_map": [[0, 1, 2]]}"#);
    let check = |arguments: &str, words: &[&str]| desk.refused(arguments, 2, words);
    check(
        "score --loads loads.csv --plan lacks.json --gpus 2",
        &["experts_plan_incomplete", "expert 2 of layer 0"],
    );
    check("score --loads loads.csv --plan beyond.json --gpus 2", &["experts_plan_shape", "4 experts"]);
    check("score --loads loads.csv --plan empty.json", &["experts_gpus_needed", "--gpus"]);
    check("score --loads loads.csv --plan empty.json --gpus 3", &["experts_slots_not_divisible", "3 or 6"]);
    check("diff empty.json one.json --gpus 2", &["experts_plan_shape", "4 slots", "3"]);
    check("convert --to sglang empty.json x.json", &["experts_format", "layer 0, slot 3", "no empty slots"]);
    check("convert --to vllm-ascend one.json x.json", &["experts_format", "--gpus"]);
    check("convert --to evenkeel --gpus 2 one.json x.json", &["experts_plan_shape", "3 slots"]);
    check("convert --to sglang one.json x.npy", &["experts_format", ".npy"]);
    check("convert --to evenkeel --from eplb one.json x.json", &["experts_file_malformed", "phy2log"]);
    check("convert --to vllm --expand 64 one.json x.json", &["--tables-out"]);
    check(
        "convert --to eplb --expand 64 --tables-out t.json one.json x.json",
        &["experts_format", "--expand"],
    );
    check("convert --to nothing one.json x.json", &["nothing", "sglang"]);
    check("slots --loads loads.csv --gpus 2 --slots 2", &["experts_too_few_slots"]);
    check("solves", &["solve"]);
}

#[test]
fn a_plan_that_cannot_be_written_leaves_the_old_one() {
    let desk = Desk::new();
    desk.put("loads.csv", "1,2\n").put("bad.csv", "1,nan\n").put("plan.json", "old");
    desk.run("solve --loads bad.csv --gpus 2 --slots 2 --plan-out plan.json");
    assert_eq!(std::fs::read(desk.path("plan.json")).expect("still there"), b"old");
    desk.done("solve --loads loads.csv --gpus 2 --slots 2 --plan-out plan.json");
    check_plan(&desk.plan("plan.json"), &[vec![1, 2]], 2, 2);
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let desk = Desk::new();
    desk.put("loads.csv", csv(&traffic(40, 64, 0)));
    desk.done("solve --loads loads.csv --gpus 8 --slots 72 --plan-out plan.json");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(program("evenkeel"));
    command.args(["experts", "score", "--loads", "loads.csv", "--plan", "plan.json", "--per-layer"]);
    let output = command.current_dir(desk.0.path()).stdout(writer).output().expect("runs");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_command_explains_itself_with_examples() {
    let desk = Desk::new();
    for command in ["solve", "score", "diff", "slots", "convert"] {
        assert!(desk.done(&format!("{command} --help")).contains("Examples:"), "{command}");
        assert!(desk.done("--help").contains(command));
    }
}
