//! Formats into each other and back, and golden files of each.

use super::*;
use evenkeel_core::ids::ExpertId;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const ENGINES: [Format; 5] =
    [Format::Eplb, Format::Vllm, Format::Sglang, Format::TensorrtLlm, Format::VllmAscend];

fn ending(format: Format) -> &'static str {
    if format == Format::TensorrtLlm { "yaml" } else { "json" }
}

fn read_bytes(name: &str, content: &[u8], format: Option<Format>) -> Result<PlanTable, FileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read_plan(&path, format)
}

fn written(table: &PlanTable, format: Format) -> Vec<u8> {
    write_plan(table, format, false, None).unwrap()
}

/// Writes a table and reads it again.
fn through(table: &PlanTable, format: Format) -> PlanTable {
    read_bytes(&format!("x.{}", ending(format)), &written(table, format), Some(format)).unwrap()
}

/// Shares in proportion to `weights`, slot by slot.
fn shares(placement: &[Option<ExpertId>], weights: &[u16]) -> Vec<f64> {
    let of = |expert: Option<ExpertId>, weight: u16| if expert.is_some() { f64::from(weight) } else { 0.0 };
    let sum = |expert: Option<ExpertId>| -> f64 {
        placement
            .iter()
            .zip(weights)
            .filter(|(held, _)| **held == expert)
            .map(|(held, w)| of(*held, *w))
            .sum()
    };
    placement
        .iter()
        .zip(weights)
        .map(|(held, weight)| held.map_or(0.0, |_| of(*held, *weight) / sum(*held)))
        .collect()
}

prop_compose! {
    /// Any plan of GPUs with equal slots; every expert is placed. `empty`: some slots may be empty.
    fn plans(empty: bool)(gpus in 1usize..5, each in 1usize..5, layers in 1usize..4)(
        gpus in Just(gpus),
        each in Just(each),
        experts in 1..=gpus * each,
        picks in prop::collection::vec((any::<u32>(), any::<u16>(), 1u16..100), layers * gpus * each),
        ids in prop::option::of(0usize..5),
        weighted in any::<bool>(),
        layers in Just(layers),
    ) -> PlanTable {
        let slots = gpus * each;
        let row = |layer: usize| {
            let picks = &picks[layer * slots..(layer + 1) * slots];
            // A random order in which the first experts come first, so that each has a slot.
            let mut order: Vec<usize> = (0..slots).collect();
            order.sort_by_key(|slot| picks[*slot].0);
            let mut row = vec![None; slots];
            for (at, slot) in order.into_iter().enumerate() {
                let pick = usize::from(picks[slot].1);
                let expert = if at < experts { at } else { pick % experts };
                let left_empty = empty && at >= experts && pick.is_multiple_of(3);
                row[slot] = (!left_empty).then_some(ExpertId(expert as u16));
            }
            row
        };
        let placement: Vec<Vec<Option<ExpertId>>> = (0..layers).map(row).collect();
        let weights: Vec<u16> = picks.iter().map(|pick| pick.2).collect();
        let share = placement.iter().zip(weights.chunks(slots)).map(|(row, weights)| shares(row, weights)).collect();
        PlanTable {
            physical_to_logical: placement,
            share: weighted.then_some(share),
            layer_ids: ids.map(|first| (first..first + layers).collect()),
            ranks: Some(Ranks::equal(gpus, slots)),
            account: None,
        }
    }
}

proptest! {
    #[test]
    fn an_engines_plan_comes_back_from_evenkeels_as_it_was(table in plans(false)) {
        for format in ENGINES {
            let first = written(&table, format);
            let read = read_bytes(&format!("x.{}", ending(format)), &first, Some(format)).unwrap();
            let back = written(&through(&read, Format::Evenkeel), format);
            prop_assert_eq!(String::from_utf8(back).unwrap(), String::from_utf8(first).unwrap());
        }
    }

    #[test]
    fn evenkeels_plan_comes_back_whole(mut table in plans(true), uneven in any::<bool>()) {
        // Without a split the file has the even one, so that its reader need not know about that.
        table.share = Some(table.effective_share());
        let layer = SolvedLayer { imbalance: 1.25, bound: 1.0, moves: 3, node_moves: Some(1) };
        table.account = Some(Account { layers: vec![layer; table.layers()], solve_ms: 0.5 });
        if let Some(ranks) = table.ranks.as_mut().filter(|ranks| uneven && ranks.slots.len() > 1) {
            ranks.slots[0] += 1;
            let last = ranks.slots.len() - 1;
            ranks.slots[last] -= 1;
            ranks.speeds[0] = 0.5;
            ranks.nodes = ranks.slots.len();
        }
        prop_assert_eq!(through(&table, Format::Evenkeel), table);
    }

    #[test]
    fn every_engine_keeps_the_placement(table in plans(false)) {
        for format in ENGINES {
            let back = through(&table, format);
            let moe = back.layers() - table.layers();
            prop_assert!(moe == 0 || format == Format::Sglang);
            prop_assert_eq!(&back.physical_to_logical[moe..], &table.physical_to_logical[..]);
        }
    }

    #[test]
    fn vllm_keeps_empty_slots(table in plans(true)) {
        prop_assert_eq!(through(&table, Format::Vllm).physical_to_logical, table.physical_to_logical.clone());
        let array = write_plan(&table, Format::Vllm, true, None).unwrap();
        prop_assert_eq!(read_bytes("x.npy", &array, None).unwrap().physical_to_logical, table.physical_to_logical);
    }

    #[test]
    fn a_file_cut_short_or_with_a_changed_byte_never_panics(
        table in plans(false), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        for format in ENGINES.into_iter().chain([Format::Evenkeel]) {
            let whole = written(&table, format);
            let at = at.index(whole.len());
            let name = format!("x.{}", ending(format));
            let _ = read_bytes(&name, &whole[..at], Some(format));
            let mut changed = whole;
            changed[at] = byte;
            let _ = read_bytes(&name, &changed, Some(format));
        }
    }

    #[test]
    fn expanded_tables_give_the_split_back(table in plans(true), entries in 2usize..70) {
        let expanded = expand(&table, entries);
        let wanted = table.effective_share();
        for format in [Format::Vllm, Format::Sglang] {
            let file = write_tables(&table, &expanded, format, None).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tables.json");
            std::fs::write(&path, file).unwrap();
            let tables = read_tables(&path).unwrap();
            let first = tables.len() - table.layers();
            let rows: Vec<usize> = (first..tables.len()).collect();
            let share = shares_of_tables("tables.json", &table, &tables, &rows).unwrap();
            let mut back = table.clone();
            back.set_share("tables.json", share.clone()).unwrap();
            let largest = wanted.iter().flatten().zip(share.iter().flatten())
                .map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            prop_assert!((largest - expanded.error_max).abs() < 1e-9, "{largest} {}", expanded.error_max);
            // A row of all the entries is off by less than one entry.
            prop_assert!(largest < 1.0 / entries as f64 + 1e-9);
        }
    }
}

/// The golden example of EPLB's README: two layers of 12 experts, 16 replicas on 8 GPUs.
fn example() -> PlanTable {
    let rows = [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ];
    let placement: Vec<Vec<Option<ExpertId>>> =
        rows.iter().map(|row| row.iter().map(|&expert| Some(ExpertId(expert))).collect()).collect();
    let weights: Vec<u16> = (0..16).map(|slot| if slot % 3 == 0 { 3 } else { 1 }).collect();
    PlanTable {
        share: Some(placement.iter().map(|row| shares(row, &weights)).collect()),
        physical_to_logical: placement,
        layer_ids: Some(vec![1, 2]),
        ranks: Some(Ranks::equal(8, 16)),
        account: None,
    }
}

/// The file is what a person has looked at. To change it: EVENKEEL_BLESS=1, then look again.
#[track_caller]
fn check_golden(name: &str, found: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/expert_files/golden").join(name);
    if std::env::var_os("EVENKEEL_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    assert!(found == std::fs::read(&path).expect("the golden file"), "{} differs", path.display());
}

#[test]
fn every_format_reads_as_blessed() {
    let table = example();
    check_golden("evenkeel.json", &written(&table, Format::Evenkeel));
    check_golden("eplb.json", &written(&table, Format::Eplb));
    check_golden("vllm.json", &written(&table, Format::Vllm));
    check_golden("sglang.json", &written(&table, Format::Sglang));
    check_golden("tensorrt_llm.yaml", &written(&table, Format::TensorrtLlm));
    check_golden("vllm_ascend.json", &written(&table, Format::VllmAscend));
    let tables = expand(&table, 4);
    check_golden("vllm_tables.json", &write_tables(&table, &tables, Format::Vllm, None).unwrap());
    check_golden("sglang_tables.json", &write_tables(&table, &tables, Format::Sglang, None).unwrap());
}

#[test]
fn a_format_is_told_by_its_keys() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/expert_files/golden");
    for name in ["evenkeel.json", "eplb.json", "vllm.json", "tensorrt_llm.yaml", "vllm_ascend.json"] {
        let plan = read_plan(&folder.join(name), None).unwrap();
        assert_eq!(plan.physical_to_logical, example().physical_to_logical, "{name}");
    }
}

/// Expands one expert of these shares.
#[track_caller]
fn check_expanded(shares: &[f64], row: &[i64]) {
    let table = PlanTable {
        physical_to_logical: vec![vec![Some(ExpertId(0)); shares.len()]],
        share: Some(vec![shares.to_vec()]),
        layer_ids: None,
        ranks: None,
        account: None,
    };
    let expanded = expand(&table, 64);
    assert_eq!(expanded.rows[0][0], row);
    assert!(expanded.error_max < 1e-9);
}

#[test]
fn as_few_entries_as_give_the_shares_are_interleaved() {
    check_expanded(&[1.0], &[0]);
    check_expanded(&[0.75, 0.25], &[0, 0, 1, 0]);
    check_expanded(&[1.0, 0.0], &[0]);
    check_expanded(&[0.5, 0.25, 0.25], &[0, 1, 2, 0]);
    let mostly: Vec<i64> = (0..64).map(|at| i64::from(at == 32)).collect();
    check_expanded(&[63.0 / 64.0, 1.0 / 64.0], &mostly);
}

#[track_caller]
fn check_refused(name: &str, content: &str, format: Option<Format>, code: &str, words: &[&str]) {
    let error = read_bytes(name, content.as_bytes(), format).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    let text = error.to_string();
    assert!(text.contains(name) && words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn plans_that_break_their_format_are_refused_with_the_place() {
    let (file, plan) = ("experts_file_malformed", "experts_plan_file");
    let check = check_refused;
    check("x.json", "{}", None, file, &["physical_to_logical (evenkeel)", "phy2log (eplb)"]);
    check("x.json", "[1]", None, file, &["line 1"]);
    check("x.json", r#"{"phy2log": [[0]], "physical_to_logical": [[0]]}"#, None, file, &["--from"]);
    check("x.json", r#"{"phy2log": [[0]]}"#, Some(Format::Vllm), file, &["physical_to_logical_map", "vllm"]);
    check("x.json", r#"{"physical_to_logical": [[0, 1.5]]}"#, None, file, &["line 1, column"]);
    check("x.json", r#"{"physical_to_logical": [[0, NaN]]}"#, None, file, &["NaN", "line 1, column"]);
    check("x.json", r#"{"physical_to_logical": []}"#, None, plan, &["0 layers"]);
    check(
        "x.json",
        r#"{"physical_to_logical": [[0, -2]]}"#,
        None,
        plan,
        &["layer 0, slot 1", "-2", "-1 is an empty slot"],
    );
    check("x.json", r#"{"physical_to_logical": [[0], [40000]]}"#, None, plan, &["layer 1, slot 0", "4095"]);
    check("x.json", r#"{"physical_to_logical": [[0, 1], [0]]}"#, None, plan, &["layer 1", "needs 2"]);
    let split = |split: &str| format!(r#"{{"physical_to_logical": [[0, 0, 1, -1]], "split": {split}}}"#);
    check("x.json", &split("[[0.5, 0.6, 1, 0]]"), None, plan, &["layer 0, expert 0", "1.1", "sum to 1"]);
    check("x.json", &split("[[0.5, 0.5, -1, 0]]"), None, plan, &["layer 0, slot 2", "0 to 1"]);
    check("x.json", &split("[[0.5, 0.5, 1, 0.1]]"), None, plan, &["layer 0, slot 3", "empty"]);
    check("x.json", &split("[[1]]"), None, plan, &["1 layers of 4 shares"]);
    let with = |more: &str| format!(r#"{{"physical_to_logical": [[0, 1]], {more}}}"#);
    check("x.json", &with(r#""gpus": 3"#), None, plan, &["3 GPUs"]);
    check("x.json", &with(r#""gpus": 0"#), None, plan, &["0 GPUs"]);
    check("x.json", &with(r#""rank_slots": [1, 2]"#), None, plan, &["sum to the 2"]);
    check("x.json", &with(r#""gpus": 2, "nodes": 0"#), None, plan, &["0 nodes"]);
    check("x.json", &with(r#""gpus": 2, "rank_speeds": [1, 0]"#), None, plan, &["above 0"]);
    check("x.json", &with(r#""layer_ids": [1000000000]"#), None, plan, &["below 4096"]);
    check("x.json", r#"{"phy2log": [[0, -1]]}"#, None, plan, &["layer 0, slot 1", "--from vllm"]);
    check("x.json", r#"{"phy2log": [[0, 1]], "logcnt": [[1, 2]]}"#, None, plan, &["logcnt"]);
    check("x.json", r#"{"phy2log": [[0, 1]], "log2phy": [[[1], [0]]]}"#, None, plan, &["log2phy"]);
    let layer = |list: &str| {
        format!(r#"{{"layer_list": [{{"layer_id": 0, "device_count": 2, "device_list": [{list}]}}]}}"#)
    };
    let device = r#"{"device_id": 0, "device_expert": [0, 1]}"#;
    check("x.json", &layer(device), None, plan, &["layer 0", "device_count is 2"]);
    let odd = r#"{"device_id": 1, "device_expert": [0]}"#;
    check("x.json", &layer(&format!("{device}, {odd}")), None, plan, &["layer 0, device 1", "needs 2"]);
    check("x.yaml", "initial_global_assignments:\n  3: [0, 1\n", None, file, &["line"]);
    check("x.yaml", "num_slots: 2\n", None, file, &["initial_global_assignments"]);
    check(
        "x.yaml",
        "initial_global_assignments: {3: [0, 1]}\nnum_slots: 3\n",
        None,
        plan,
        &["num_slots is 3"],
    );
    check("x.yaml", "initial_global_assignments: {3: [0, -1]}\n", None, plan, &["layer 3, slot 1"]);
    // Nesting is bounded by the parsers.
    let deep = "[".repeat(100_000);
    check("x.yaml", &format!("initial_global_assignments: {deep}"), None, file, &["line 1"]);
    check("x.yaml", &format!("unknown: {deep}"), None, file, &["line 1"]);
    check("x.json", &format!("{{\"unknown\": {deep}"), None, file, &["line 1", "EOF"]);
    check("x.npy", "no array", None, file, &["NUMPY"]);
    check("x.npy", "no array", Some(Format::Sglang), file, &["eplb or vllm"]);
}

#[test]
fn the_load_balancer_is_found_within_the_options_of_the_llm_api() {
    let text = "tensor_parallel_size: 2\nmoe_config:\n  backend: CUTLASS\n  load_balancer:\n    num_slots: 2\n    initial_global_assignments:\n      3: [1, 0]\n    layer_updates_per_iter: 2\n";
    let plan = read_bytes("x.yaml", text.as_bytes(), None).unwrap();
    assert_eq!(plan.layer_ids, Some(vec![3]));
    assert_eq!(plan.physical_to_logical, [[Some(ExpertId(1)), Some(ExpertId(0))]]);
}

#[track_caller]
fn check_cannot_hold(table: &PlanTable, format: Format, words: &[&str]) {
    let error = write_plan(table, format, false, None).unwrap_err();
    let text = error.to_string();
    assert!(error.code() == "experts_format" && words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_an_engine_cannot_hold_is_refused() {
    let mut empty = example();
    empty.physical_to_logical[1][3] = None;
    for (format, name) in ENGINES.into_iter().zip(["EPLB", "", "SGLang", "TensorRT-LLM", "vLLM-Ascend"]) {
        if format != Format::Vllm {
            check_cannot_hold(&empty, format, &["layer 1, slot 3", name, "no empty slots"]);
        }
    }
    let mut uneven = example();
    uneven.ranks.as_mut().unwrap().slots[..2].copy_from_slice(&[1, 3]);
    ENGINES.into_iter().for_each(|format| check_cannot_hold(&uneven, format, &["unequal"]));
    let mut unknown = example();
    unknown.ranks = None;
    check_cannot_hold(&unknown, Format::VllmAscend, &["--gpus"]);
    unknown.layer_ids = None;
    let too_few = write_plan(&unknown, Format::Sglang, false, Some(61)).unwrap_err();
    assert!(too_few.to_string().contains("--moe-layers"));
}
