//! The live page: its files, and the JSON that it polls. The JSON serves the page of the same build and is
//! no external format; programs use the admin service.

use evenkeel_proto::v1;
use serde_json::{Map, Value, json};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's files: path, media type, text.
pub const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("index.html")),
    ("/page.css", CSS, include_str!("page.css")),
    ("/page.js", SCRIPT, include_str!("page.js")),
    ("/words.js", SCRIPT, include_str!("words.js")),
    ("/heat.js", SCRIPT, include_str!("heat.js")),
    ("/charts.js", SCRIPT, include_str!("charts.js")),
    ("/tables.js", SCRIPT, include_str!("tables.js")),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn id_json(id: Option<&v1::PlanId>) -> Value {
    id.map_or(Value::Null, |id| json!({"epoch": id.epoch, "digest": hex(&id.digest)}))
}

fn imbalance_json(imbalance: Option<&v1::Imbalance>) -> Value {
    let Some(of) = imbalance else { return json!({}) };
    let kinds = [
        ("expert", of.expert),
        ("prefill_tokens", of.prefill_tokens),
        ("prefill_attention", of.prefill_attention),
        ("decode_kv", of.decode_kv),
        ("decode_requests", of.decode_requests),
    ];
    let measured = kinds.into_iter().filter_map(|(kind, value)| Some((kind.to_owned(), json!(value?))));
    Value::Object(measured.collect::<Map<_, _>>())
}

fn rank_json(rank: &v1::RankStatus) -> Value {
    let gauges = rank.gauges.unwrap_or_default();
    json!({
        "rank": gauges.rank,
        "node": rank.node,
        "kv_used_tokens": gauges.kv_used_tokens,
        "kv_total_tokens": gauges.kv_total_tokens,
        "requests": gauges.requests,
        "step_us_p50": gauges.step_us_p50,
        "step_us_p99": gauges.step_us_p99,
    })
}

fn unit_json(unit: &v1::UnitStatus) -> Value {
    let shape = unit.shape.unwrap_or_default();
    let word = |name: &'static str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    json!({
        "unit": unit.unit,
        "role": word(shape.role().as_str_name(), "ROLE_"),
        "state": word(unit.state().as_str_name(), "UNIT_STATE_"),
        "layers": shape.layers,
        "experts": shape.experts,
        "ranks": shape.ranks,
        "slots_per_rank": shape.slots_per_rank,
        "spare_per_rank": shape.spare_per_rank,
        "head": id_json(unit.head.as_ref()),
        "ranks_connected": unit.ranks_connected,
        "windows_complete": unit.windows_complete,
        "last_decision": unit.last_decision,
        "imbalance": imbalance_json(unit.imbalance.as_ref()),
        "rank_gauges": unit.ranks.iter().map(rank_json).collect::<Vec<_>>(),
    })
}

fn agent_json(agent: &v1::AgentStatus) -> Value {
    json!({
        "node": agent.node,
        "unit": agent.unit,
        "ranks": agent.ranks,
        "connected": agent.connected,
        "applied_epoch": agent.applied.as_ref().map(|a| a.epoch),
    })
}

/// `/api/v1/status`.
pub fn status_json(status: &v1::GetStatusResponse) -> Value {
    let term = status.term.unwrap_or_default();
    json!({
        "version": status.version,
        "cluster": status.cluster,
        "term": format!("{}.{}", term.generation, term.revision),
        "units": status.units.iter().map(unit_json).collect::<Vec<_>>(),
        "agents": status.agents.iter().map(agent_json).collect::<Vec<_>>(),
    })
}

/// `/api/v1/units/{unit}/plans`.
pub fn plans_json(plans: &[v1::PlanSummary]) -> Value {
    let plan = |p: &v1::PlanSummary| {
        let (id, window) = (p.id.clone().unwrap_or_default(), p.window.unwrap_or_default());
        json!({
            "epoch": id.epoch,
            "digest": hex(&id.digest),
            "kind": p.kind().as_str_name().trim_start_matches("PLAN_KIND_").to_lowercase().replace("_only", ""),
            "committed_ms": p.committed_ms,
            "moves": p.moves,
            "bytes": p.bytes,
            "layers_reweighted": p.layers_reweighted,
            "imbalance_before": p.imbalance_before,
            "imbalance_after": p.imbalance_after,
            "imbalance_bound": p.imbalance_bound,
            "from_step": window.from_step,
            "to_step": window.to_step,
            "limits": p.limits,
            "not_placed": p.not_placed,
        })
    };
    json!({"plans": plans.iter().map(plan).collect::<Vec<_>>()})
}

/// `/api/v1/units/{unit}/heat`: every load over its layer's mean.
pub fn heat_json(loads: &v1::GetRankLoadsResponse) -> Value {
    let window = loads.window.unwrap_or_default();
    let ranks = loads.ranks as usize;
    let measured: Vec<f64> = loads.measured.iter().map(|&l| l as f64).collect();
    json!({
        "epoch": loads.epoch,
        "from_step": window.from_step,
        "to_step": window.to_step,
        "layers": loads.layers,
        "ranks": loads.ranks,
        "measured": over_mean(&measured, ranks),
        "boot": over_mean(&loads.boot, ranks),
    })
}

fn over_mean(loads: &[f64], ranks: usize) -> Vec<Vec<f64>> {
    /// Three decimals: the page shows two, and 58 x 144 values are sent every second.
    const STEPS: f64 = 1000.0;
    let row = |layer: &[f64]| {
        let mean = layer.iter().sum::<f64>() / layer.len() as f64;
        let over = |l: &f64| if mean > 0.0 { (l / mean * STEPS).round() / STEPS } else { 1.0 };
        layer.iter().map(over).collect()
    };
    loads.chunks_exact(ranks.max(1)).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_shown_over_their_layers_mean() {
        assert_eq!(over_mean(&[1.0, 3.0, 0.0, 0.0], 2), [[0.5, 1.5], [1.0, 1.0]]);
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let imbalance = v1::Imbalance { expert: Some(1.5), ..Default::default() };
        assert_eq!(imbalance_json(Some(&imbalance)), json!({"expert": 1.5}));
    }

    #[test]
    fn the_page_names_no_outside_resource() {
        for (_, _, file) in FILES {
            let outside = file.split(['"', '\'', '(']).find(|part| {
                part.starts_with("http") && !part.starts_with("http://www.w3.org/")
                    || part.starts_with("//cdn")
            });
            assert_eq!(outside, None);
        }
    }
}
