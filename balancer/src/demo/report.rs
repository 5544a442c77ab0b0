//! The demo's one table, and the same figures as JSON.

use super::figures::{ExpertFigures, Figures, Planners};
use super::requests::PolicyFigures;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The figures for people.
pub(super) fn table(figures: &Figures) -> String {
    let mut text = String::new();
    let mut part = |title: &str, table: Table| {
        let _ = writeln!(text, "{title}\n{table}\n");
    };
    part(
        "EXPERTS  max over mean of the rank loads, mean over layers (1 = balanced); every planner on the same windows",
        experts_table(&figures.experts),
    );
    part(
        &format!(
            "REQUESTS  Mooncake trace x {} copies with jitter, {} virtual minutes; engines and times modelled; the same arrivals in each step",
            figures.workload.decode_copies, figures.workload.minutes
        ),
        requests_table(figures),
    );
    part("PLANS AND BYTES", totals_table(figures));
    text.push_str(&notes(figures));
    text
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    table
}

fn right(text: impl Into<String>) -> Cell {
    Cell::new(text.into()).set_alignment(CellAlignment::Right)
}

fn ratio(value: f64) -> Cell {
    right(format!("{value:.4}"))
}

fn experts_table(rows: &[ExpertFigures]) -> Table {
    let mut table =
        new_table(&["unit, routing", "window", "before", "EPLB", "even split", "Evenkeel", "re-solved"]);
    for row in rows {
        let solved = [
            Cell::new(format!("{}  {}", row.unit, row.size)),
            Cell::new("solved"),
            ratio(row.solved.boot),
            ratio(row.solved.eplb),
            right(""),
            ratio(row.solved.evenkeel),
            right(""),
        ];
        let next = [
            Cell::new(format!("  {}", row.routing)),
            Cell::new("next"),
            ratio(row.next.boot),
            ratio(row.next.eplb),
            ratio(row.next_even_split),
            ratio(row.next.evenkeel),
            ratio(row.next_resolved),
        ];
        table.add_row(solved);
        table.add_row(next);
    }
    table
}

fn requests_table(figures: &Figures) -> Table {
    let mut table = new_table(&["objective", "round robin", "least requests", "Evenkeel"]);
    let policies = [&figures.round_robin, &figures.least_requests, &figures.evenkeel];
    let mut row = |name: &str, digits: usize, value: fn(&PolicyFigures) -> f64| {
        let cells = policies.iter().map(|p| right(format!("{:.digits$}", value(p))));
        table.add_row(std::iter::once(Cell::new(name)).chain(cells));
    };
    row("decode KV per rank, max over mean", 4, |p| p.decode.kv_imbalance);
    row("decode requests per rank, max over mean", 4, |p| p.decode.requests_imbalance);
    // The same for all: each step lets the same requests arrive.
    row("decode requests per rank, mean", 1, |p| p.decode.requests_per_rank);
    row("decode step, modelled ms", 2, |p| p.decode.step_ms);
    row("decode step over its own ideal", 4, |p| p.decode.step_ms / p.decode.ideal_step_ms);
    row("prefill tokens per rank, max over mean", 4, |p| p.prefill.tokens_imbalance);
    row("prefill attention per rank, max over mean", 4, |p| p.prefill.attention_imbalance);
    row("prefill round over its own ideal", 4, |p| p.prefill.time_over_ideal);
    table
}

fn totals_table(figures: &Figures) -> Table {
    let mut table = new_table(&["what", "figure"]);
    let (totals, verified) = (&figures.totals, &figures.verified);
    let mut row = |what: &str, figure: String| {
        table.add_row([Cell::new(what), right(figure)]);
    };
    row("plans committed, weights only", totals.weights_plans.to_string());
    row("plans committed, with moves", totals.moves_plans.to_string());
    row("slots moved", totals.slots_moved.to_string());
    row("bytes copied within nodes", totals.bytes_local.to_string());
    row("bytes fetched from other nodes", totals.bytes_peer.to_string());
    row("slots checked by fingerprint before use", totals.slots_fingerprinted.to_string());
    row("slots compared byte for byte at the end", verified.slots_compared.to_string());
    row("bytes compared", verified.bytes_compared.to_string());
    row("slots with wrong bytes", verified.slots_wrong.to_string());
    row("routing decisions over gRPC", figures.workload.decisions.to_string());
    row("processes", figures.processes.to_string());
    row("balancer, highest resident memory, MB", format!("{:.0}", figures.balancer_peak_memory as f64 / 1e6));
    row("replay, seconds", format!("{:.0}", figures.replay_seconds));
    table
}

fn notes(figures: &Figures) -> String {
    let shift = &figures.shift;
    format!(
        "v2-lite, shift from intent to law: {:.4} under the old plan, {:.4} after {} plans and {} moved slots.\n\
         \n\
         before      the placement that stock engines boot with (slot i holds expert i mod E), even split\n\
         EPLB        DeepSeek's algorithm, global policy, solved on the same window, even split\n\
         even split  Evenkeel's placement, replicas sharing evenly\n\
         Evenkeel    the committed plan, its split fixed; re-solved: a new split on it, no weight moved\n\
         \n\
         Simulated: the engines, their clocks and step times; loads of 58 x 256 experts (no complete table of\n\
         DeepSeek-V3 is public). Recorded: requests ({} in 20 minutes; {} copies feed the prefill unit, all\n\
         {} the decode unit, whose other prompts come from prefill units not simulated) and V2-Lite's routing.\n\
         Real: processes, plans, commits, transfers of experts' bytes, routing decisions.",
        shift.before,
        shift.after,
        shift.plans,
        shift.moves,
        figures.workload.recorded,
        figures.workload.prefill_copies,
        figures.workload.decode_copies,
    )
}

/// The same figures for programs.
pub(super) fn json(figures: &Figures) -> Value {
    let (totals, workload) = (&figures.totals, &figures.workload);
    json!({
        "experts": figures.experts.iter().map(experts_json).collect::<Vec<_>>(),
        "shift": {
            "before": figures.shift.before,
            "after": figures.shift.after,
            "plans": figures.shift.plans,
            "slots_moved": figures.shift.moves,
        },
        "requests": {
            "round_robin": policy_json(&figures.round_robin),
            "least_requests": policy_json(&figures.least_requests),
            "evenkeel": policy_json(&figures.evenkeel),
        },
        "workload": {
            "minutes": workload.minutes,
            "recorded_requests": workload.recorded,
            "decode_copies": workload.decode_copies,
            "prefill_copies": workload.prefill_copies,
            "decisions": workload.decisions,
        },
        "totals": {
            "weights_plans": totals.weights_plans,
            "moves_plans": totals.moves_plans,
            "slots_moved": totals.slots_moved,
            "bytes_local": totals.bytes_local,
            "bytes_peer": totals.bytes_peer,
            "slots_fingerprinted": totals.slots_fingerprinted,
        },
        "verified": figures.verified,
        "balancer_peak_memory_bytes": figures.balancer_peak_memory,
        "processes": figures.processes,
        "replay_seconds": figures.replay_seconds,
        "simulated": ["engines", "clocks and step times", "58 x 256 expert loads"],
        "recorded": ["requests (Mooncake, replicated with jitter)", "V2-Lite routing"],
    })
}

fn experts_json(row: &ExpertFigures) -> Value {
    let planners = |p: &Planners| json!({"before": p.boot, "eplb": p.eplb, "evenkeel": p.evenkeel});
    json!({
        "unit": row.unit,
        "size": row.size,
        "routing": row.routing,
        "epoch": row.epoch,
        "solved": planners(&row.solved),
        "next": planners(&row.next),
        "next_even_split": row.next_even_split,
        "next_resolved": row.next_resolved,
    })
}

fn policy_json(policy: &PolicyFigures) -> Value {
    let (decode, prefill) = (&policy.decode, &policy.prefill);
    json!({
        "decode": {
            "steps": decode.steps,
            "requests_per_rank": decode.requests_per_rank,
            "kv_imbalance": decode.kv_imbalance,
            "requests_imbalance": decode.requests_imbalance,
            "step_ms": decode.step_ms,
            "ideal_step_ms": decode.ideal_step_ms,
        },
        "prefill": {
            "rounds": prefill.rounds,
            "tokens_imbalance": prefill.tokens_imbalance,
            "attention_imbalance": prefill.attention_imbalance,
            "attention_over_bound": prefill.attention_over_bound,
            "time_over_ideal": prefill.time_over_ideal,
            "prompts": prefill.prompts,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::figures::{ShiftFigures, Totals, WorkloadFigures};
    use crate::demo::verify::Verified;
    use evenkeel_simulate::decode_engine::DecodeFigures;
    use evenkeel_simulate::prefill_engine::PrefillFigures;

    fn policy(worse: f64) -> PolicyFigures {
        PolicyFigures {
            decode: DecodeFigures {
                steps: 1000,
                requests_per_rank: 60.0,
                kv_per_rank: 1e6,
                kv_imbalance: 1.0 + worse,
                requests_imbalance: 1.0 + worse / 2.0,
                step_ms: 50.0 * (1.0 + worse),
                ideal_step_ms: 50.0,
            },
            prefill: PrefillFigures {
                rounds: 100,
                tokens: 1_000_000,
                tokens_imbalance: 1.0,
                attention_imbalance: 1.0 + 4.0 * worse,
                attention_over_bound: 1.0 + worse,
                time_over_ideal: 1.0 + worse,
                ..PrefillFigures::default()
            },
        }
    }

    fn figures() -> Figures {
        let planners = |evenkeel| Planners { boot: 1.5, eplb: 1.0084, evenkeel };
        Figures {
            experts: vec![ExpertFigures {
                unit: "prefill".to_owned(),
                size: "32 ranks x 9 slots".to_owned(),
                routing: "synthetic".to_owned(),
                epoch: 9,
                solved: planners(1.0001),
                next: planners(1.02),
                next_even_split: 1.03,
                next_resolved: 1.0002,
            }],
            shift: ShiftFigures { before: 1.4, after: 1.001, plans: 9, moves: 1000 },
            round_robin: policy(0.4),
            least_requests: policy(0.3),
            evenkeel: policy(0.05),
            workload: WorkloadFigures {
                minutes: 20,
                recorded: 3658,
                decode_copies: 174,
                prefill_copies: 2,
                decisions: 123_456,
            },
            totals: Totals {
                weights_plans: 5,
                moves_plans: 20,
                slots_moved: 4000,
                bytes_local: 4096,
                bytes_peer: 8192,
                slots_fingerprinted: 4000,
            },
            verified: Verified {
                agents: 23,
                slots_compared: 35_280,
                bytes_compared: 144_506_880,
                slots_wrong: 0,
            },
            balancer_peak_memory: 42_000_000,
            processes: 24,
            replay_seconds: 41.4,
        }
    }

    /// The file is what a person has looked at. To change it: EVENKEEL_BLESS=1, then look again.
    #[track_caller]
    fn check_golden(name: &str, found: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/golden").join(name);
        if std::env::var_os("EVENKEEL_BLESS").is_some() {
            std::fs::write(&path, found).expect("written");
        }
        assert_eq!(found, std::fs::read_to_string(&path).expect("the golden file"), "{}", path.display());
    }

    #[test]
    fn the_table_reads_as_blessed() {
        check_golden("table.txt", &table(&figures()));
    }

    #[test]
    fn the_json_reads_as_blessed() {
        check_golden("figures.json", &format!("{:#}\n", json(&figures())));
    }
}
