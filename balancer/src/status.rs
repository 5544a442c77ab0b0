//! Answers to operators' questions, made from the control loop's state.

use crate::control_loop::ControlLoop;
use crate::unit::{Formed, Unit, rank_loads_under};
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1;

/// Everything about the cluster at a glance.
pub fn status(cluster: &ControlLoop) -> v1::GetStatusResponse {
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: cluster.config.cluster.clone(),
        term: Some(cluster.term.into()),
        units: cluster.units.values().map(|unit| unit_status(cluster, unit)).collect(),
        agents: cluster.units.values().flat_map(agents).collect(),
    }
}

fn unit_status(cluster: &ControlLoop, unit: &Unit) -> v1::UnitStatus {
    let claims = unit.membership.claims();
    let connected = claims.iter().filter(|(n, _)| unit.present.contains_key(*n)).map(|(_, r)| r.len());
    let routed = cluster.routers.imbalance(&unit.id);
    v1::UnitStatus {
        unit: unit.id.to_string(),
        shape: Some(unit.membership.shape().into()),
        state: unit.state().into(),
        head: unit.formed.as_ref().map(|f| f.control.head_id().into()),
        ranks_connected: u32::try_from(connected.sum::<usize>()).expect("ranks fit 32 bits"),
        imbalance: Some(v1::Imbalance { expert: unit.expert_imbalance(), ..routed }),
        windows_complete: unit.formed.as_ref().map_or(0, |f| f.clean_windows),
        last_decision: unit.last_decision.clone(),
        ranks: ranks(unit),
        settled: unit.formed.as_ref().and_then(Formed::settled).map(Into::into),
    }
}

fn ranks(unit: &Unit) -> Vec<v1::RankStatus> {
    let node_of = |rank| {
        unit.membership.claims().iter().find(|(_, ranks)| ranks.contains(rank)).map(|(n, _)| n.to_string())
    };
    let row = |(rank, gauges): (_, &v1::RankGauges)| v1::RankStatus {
        node: node_of(rank).unwrap_or_default(),
        gauges: Some(*gauges),
    };
    unit.gauges.iter().map(row).collect()
}

fn agents(unit: &Unit) -> Vec<v1::AgentStatus> {
    let row = |(node, ranks): (_, &Vec<evenkeel_core::ids::Rank>)| {
        let presence = unit.present.get(node);
        v1::AgentStatus {
            node: format!("{node}"),
            unit: unit.id.to_string(),
            ranks: ranks.iter().map(|r| r.0.into()).collect(),
            connected: presence.is_some(),
            applied: presence.and_then(|p| p.applied).map(Into::into),
            transfer_address: presence.map(|p| p.transfer_address.clone()).unwrap_or_default(),
        }
    };
    unit.membership.claims().iter().map(row).collect()
}

/// The counts of the last clean window.
pub fn loads(unit: &Unit) -> Option<v1::GetLoadsResponse> {
    let window = unit.formed.as_ref()?.last_clean.as_ref()?;
    Some(v1::GetLoadsResponse { window: Some(window.window.into()), loads: Some((&window.loads).into()) })
}

/// Load per layer and rank in the last clean window: measured, and as the boot placement would have had it.
pub fn rank_loads(unit: &Unit) -> Option<v1::GetRankLoadsResponse> {
    let formed = unit.formed.as_ref()?;
    let window = formed.last_clean.as_ref()?;
    let shape = formed.topology.shape();
    let boot = Plan::boot(unit.id.clone(), shape);
    Some(v1::GetRankLoadsResponse {
        window: Some(window.window.into()),
        epoch: window.epoch.0,
        layers: shape.layers.into(),
        ranks: shape.ranks.into(),
        measured: window.rank_loads.clone(),
        boot: rank_loads_under(&boot.layers, window, &formed.topology),
    })
}
