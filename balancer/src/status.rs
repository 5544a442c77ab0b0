//! Answers to operators' questions, made from the control loop's state.

use crate::control_loop::ControlLoop;
use crate::unit::{Unit, rank_loads_under};
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::reign;
use evenkeel_core::protocol::unit::Activity;
use evenkeel_core::topology::UnitShape;
use evenkeel_proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// Everything about the cluster at a glance. A standby tells what it has read and hears.
pub fn status(cluster: &ControlLoop) -> v1::GetStatusResponse {
    let ids: BTreeSet<&UnitId> = cluster.units.keys().chain(cluster.reign.units().keys()).collect();
    let units: Vec<Shown<'_>> = ids.into_iter().filter_map(|id| Shown::of(cluster, id)).collect();
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: cluster.config.cluster.clone(),
        term: Some(cluster.reign.term().unwrap_or_else(|| cluster.reign.last_term()).into()),
        units: units.iter().map(Shown::unit).collect(),
        agents: units.iter().flat_map(Shown::agents).collect(),
    }
}

/// A unit as a leader decides for it, or as a standby knows it.
struct Shown<'a> {
    cluster: &'a ControlLoop,
    id: &'a UnitId,
    led: Option<&'a reign::Unit>,
    known: Option<&'a Unit>,
    shape: UnitShape,
    /// Who has the ranks.
    claims: BTreeMap<NodeId, Vec<Rank>>,
}

impl<'a> Shown<'a> {
    fn of(cluster: &'a ControlLoop, id: &'a UnitId) -> Option<Self> {
        let (led, known) = (cluster.reign.units().get(id), cluster.units.get(id));
        let formed = known.and_then(|unit| unit.formed.as_ref());
        let (shape, claims) = match (led, formed) {
            (Some(unit), _) => (unit.membership().shape().clone(), unit.membership().claims().clone()),
            (None, Some(formed)) => {
                let topology = &formed.topology;
                let of = |(at, node): (usize, &NodeId)| (node.clone(), topology.ranks_of(at).collect());
                (topology.shape().clone(), topology.nodes().iter().enumerate().map(of).collect())
            }
            (None, None) => return None,
        };
        Some(Self { cluster, id, led, known, shape, claims })
    }

    fn stream(&self, node: &NodeId) -> Option<(reign::StreamId, &reign::Stream)> {
        let stream = self.cluster.reign.stream_of(node)?;
        let found = &self.cluster.reign.streams()[&stream];
        (found.unit() == self.id).then_some((stream, found))
    }

    fn unit(&self) -> v1::UnitStatus {
        let now = self.cluster.now();
        let formed = self.known.and_then(|unit| unit.formed.as_ref());
        let connected = self.claims.iter().filter(|(node, _)| self.stream(node).is_some());
        let connected: usize = connected.map(|(_, ranks)| ranks.len()).sum();
        let control = self.led.and_then(|unit| unit.formed()).map(|formed| formed.control());
        let steady = control.is_some_and(|control| control.can_propose());
        let holds = self.led.map(|unit| unit.holds());
        let pause = holds.and_then(|holds| holds.pause.as_ref());
        let pause = pause.filter(|_| self.led.is_some_and(|unit| unit.is_paused(now.unix_ms)));
        let held = self.cluster.reign.may_plan(now, self.id).err();
        v1::UnitStatus {
            unit: self.id.to_string(),
            shape: Some((&self.shape).into()),
            state: self.state(pause.is_some()).into(),
            head: formed.map(|formed| formed.plans.head_id.into()),
            ranks_connected: u32::try_from(connected).expect("ranks fit 32 bits"),
            imbalance: Some(v1::Imbalance {
                expert: self.known.and_then(Unit::expert_imbalance),
                ..self.cluster.routers.imbalance(self.id)
            }),
            windows_complete: formed.map_or(0, |formed| formed.clean_windows),
            last_decision: self.known.map(|unit| unit.last_decision.clone()).unwrap_or_default(),
            ranks: self.ranks(),
            settled: formed.and_then(|formed| formed.settled(steady)).map(Into::into),
            held: held.map(|held| held.as_str().to_owned()).unwrap_or_default(),
            paused_by: pause.map(|pause| pause.by.clone()).unwrap_or_default(),
            paused_until_ms: pause.and_then(|pause| pause.until_ms),
            pins: holds.into_iter().flat_map(|holds| &holds.pins).map(|&pin| pin.into()).collect(),
        }
    }

    fn state(&self, paused: bool) -> v1::UnitState {
        let control = self.led.and_then(|unit| unit.formed()).map(|formed| formed.control());
        match control.map(|control| control.activity()) {
            None | Some(Activity::Incomplete) => v1::UnitState::Forming,
            Some(Activity::Preparing) => v1::UnitState::Preparing,
            Some(Activity::Committing) => v1::UnitState::Committing,
            Some(Activity::Steady) if paused => v1::UnitState::Paused,
            Some(Activity::Steady) => v1::UnitState::Steady,
        }
    }

    fn ranks(&self) -> Vec<v1::RankStatus> {
        let node_of =
            |rank| self.claims.iter().find(|(_, ranks)| ranks.contains(rank)).map(|(n, _)| n.to_string());
        let row = |(rank, gauges): (_, &v1::RankGauges)| v1::RankStatus {
            node: node_of(rank).unwrap_or_default(),
            gauges: Some(*gauges),
        };
        self.known.into_iter().flat_map(|unit| &unit.gauges).map(row).collect()
    }

    fn agents(&self) -> Vec<v1::AgentStatus> {
        let row = |(node, ranks): (&NodeId, &Vec<Rank>)| {
            let stream = self.stream(node);
            let address = stream.and_then(|(id, _)| self.cluster.transfer_address(id));
            v1::AgentStatus {
                node: node.to_string(),
                unit: self.id.to_string(),
                ranks: ranks.iter().map(|r| r.0.into()).collect(),
                connected: stream.is_some(),
                applied: stream.and_then(|(_, stream)| stream.applied()).map(Into::into),
                transfer_address: address.unwrap_or_default().to_owned(),
                drain: self.drain(node, ranks).into(),
            }
        };
        self.claims.iter().map(row).collect()
    }

    /// Whether a node is emptied, and is empty.
    fn drain(&self, node: &NodeId, ranks: &[Rank]) -> v1::DrainState {
        let Some(unit) = self.led.filter(|unit| unit.holds().drains.contains(node)) else {
            return v1::DrainState::Unspecified;
        };
        let applied = unit.formed().is_some_and(|formed| formed.control().is_applied());
        let empty = unit.head().is_some_and(|head| {
            head.layers.iter().all(|layer| {
                ranks.iter().all(|&rank| {
                    let slots = self.shape.slots_of_rank(rank);
                    layer.physical_to_logical[slots].iter().all(Option::is_none)
                })
            })
        });
        if empty && applied { v1::DrainState::Empty } else { v1::DrainState::Draining }
    }
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
