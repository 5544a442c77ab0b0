//! The figures for programs. Times in ms; parts from 0 to 1; names as in [`evenkeel_simulate::cluster::Figures`].

use super::heat::ratios;
use super::{Report, Run};
use evenkeel_simulate::cluster::{Fates, PoolFigures, Series, Spread};
use evenkeel_simulate::step_time::calibration::Line;
use serde_json::{Value, json};

/// Of the form. A reader that knows an older one may pass over what it does not know.
const VERSION: u32 = 1;

pub(super) fn report(report: &Report) -> Value {
    let inputs: serde_json::Map<String, Value> =
        report.inputs.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "evenkeel": "simulation",
        "version": VERSION,
        "simulated": true,
        "program": report.version,
        "kind": report.kind,
        "command": report.command,
        "inputs": inputs,
        "notes": report.notes,
        "objectives": {
            "ttft_ms": report.objectives.ttft_us / 1e3,
            "ttft_ms_per_uncached_token": report.objectives.ttft_us_per_uncached_token / 1e3,
            "tpot_ms": report.objectives.tpot_us / 1e3,
        },
        "calibration": {
            "to": report.calibration.name(),
            "lines": report.calibration_lines.iter().map(line).collect::<Vec<_>>(),
        },
        "policies": report.runs.iter().map(run).collect::<Vec<_>>(),
    })
}

/// A line of a calibration's table.
pub(crate) fn line(line: &Line) -> Value {
    json!({
        "what": line.point.name,
        "source": line.point.source,
        "fitted": line.fitted,
        "stated_tokens_per_s_and_node": line.point.stated,
        "modelled_tokens_per_s_and_node": line.modelled,
    })
}

fn run(run: &Run) -> Value {
    let figures = &run.figures;
    json!({
        "policy": run.key,
        "name": run.name,
        "report_interval_s": run.report_interval_s,
        "requests": fates(&figures.fates),
        "measured": fates(&figures.measured),
        "ttft_ms": spread(&figures.ttft_ms),
        "tpot_ms": spread(&figures.tpot_ms),
        "ttft_met": figures.ttft_met,
        "tpot_met": figures.tpot_met,
        "goodput_part": figures.goodput_part,
        "goodput_per_s": figures.goodput_per_s,
        "prompt_tokens": figures.prompt_tokens,
        "hit_tokens": figures.hit_tokens,
        "hit_part": figures.hit_part(),
        "input_tokens_per_s": figures.input_tokens_per_s,
        "output_tokens_per_s": figures.output_tokens_per_s,
        "prefill": figures.prefill.as_ref().map(|pool| self::pool(pool, ["tokens", "attention_pairs"])),
        "decode": figures.decode.as_ref().map(|pool| self::pool(pool, ["kv_tokens", "requests"])),
    })
}

fn fates(fates: &Fates) -> Value {
    json!({
        "arrived": fates.arrived,
        "finished": fates.finished,
        "refused": fates.refused,
        "lost": fates.lost,
        "unfinished": fates.unfinished,
    })
}

fn spread(spread: &Spread) -> Value {
    json!({
        "count": spread.count,
        "mean": spread.mean,
        "p50": spread.p50,
        "p90": spread.p90,
        "p99": spread.p99,
        "max": spread.max,
    })
}

fn pool(pool: &PoolFigures, [first, second]: [&str; 2]) -> Value {
    let mut value = json!({
        "steps": pool.steps,
        "step_ms": spread(&pool.step_ms),
        "step_over_ideal": pool.step_over_ideal,
        "idle_at_barrier": pool.idle_at_barrier,
        "idle_without_work": pool.idle_without_work,
        "held_max": pool.held_max,
        "migrations": pool.migrations,
        "preemptions": pool.preemptions,
        "imbalance_worst_second": pool.second_imbalance_worst_s,
        "series": series(&pool.series, first, second),
    });
    for (name, imbalance, mean) in [
        (first, &pool.tokens_imbalance, pool.tokens_per_rank),
        (second, &pool.second_imbalance, pool.second_per_rank),
    ] {
        value[format!("{name}_imbalance")] = spread(imbalance);
        value[format!("{name}_per_rank")] = json!(mean);
    }
    value
}

/// Loads over time, as the page draws them: mean and largest of the ranks at each moment; and, over fewer moments and ranks, a map
/// `[ranks][moments]` of load over mean, where the largest of those that were joined is kept.
fn series(series: &Series, first: &str, second: &str) -> Value {
    json!({"at_ms": series.at_ms, first: loads(&series.tokens), second: loads(&series.second)})
}

fn loads(series: &[Vec<f32>]) -> Value {
    let mean =
        |loads: &Vec<f32>| loads.iter().map(|&load| f64::from(load)).sum::<f64>() / loads.len().max(1) as f64;
    let largest = |loads: &Vec<f32>| f64::from(loads.iter().copied().fold(0.0, f32::max));
    let thousandths = |value: f64| (value * 1e3).round() / 1e3;
    let map = ratios(series).into_iter().map(|line| line.into_iter().map(thousandths).collect::<Vec<_>>());
    json!({
        "mean": series.iter().map(mean).map(thousandths).collect::<Vec<_>>(),
        "max": series.iter().map(largest).collect::<Vec<_>>(),
        "map": map.collect::<Vec<_>>(),
    })
}
