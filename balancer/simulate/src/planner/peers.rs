//! The baselines in the seat.

use super::{PlacedLayer, Planner, PlannerError, Problem};
use crate::baselines::deployment;
use crate::baselines::eplb::Eplb;
use crate::baselines::flashlb::FlashLb;
use crate::baselines::sglang_zigzag::SglangZigzag;
use crate::baselines::swift::Swift;
use crate::baselines::tensorrt_llm::TensorRtLlm;
use crate::score;
use evenkeel_core::experts::{Deployment, ExpertLoads};
use evenkeel_core::ids::ExpertId;
use std::ops::Range;

/// The planners that others run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// DeepSeek's EPLB, by groups and nodes where they divide; vLLM and SGLang `deepseek` give the same balance.
    Eplb,
    /// The same as one node and one group.
    EplbGlobal,
    /// SGLang's `deepseek_vec`.
    SglangZigzag,
    /// TensorRT-LLM's heaps.
    TensorRtLlm,
    /// vLLM-Ascend's FlashLB, for one window.
    FlashLb,
    /// vLLM-Ascend's Swift, when a change is made only as the policy's own verdict says.
    Swift,
    /// The same as vLLM-Ascend's worker runs it: the verdict is dropped.
    SwiftAlways,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 7] = [
        Peer::Eplb,
        Peer::EplbGlobal,
        Peer::SglangZigzag,
        Peer::TensorRtLlm,
        Peer::FlashLb,
        Peer::Swift,
        Peer::SwiftAlways,
    ];
}

impl Planner for Peer {
    fn name(&self) -> &'static str {
        match self {
            Peer::Eplb => "EPLB (DeepSeek)",
            Peer::EplbGlobal => "EPLB, global",
            Peer::SglangZigzag => "SGLang deepseek_vec",
            Peer::TensorRtLlm => "TensorRT-LLM",
            Peer::FlashLb => "FlashLB-like",
            Peer::Swift => "Swift-like",
            Peer::SwiftAlways => "Swift-like, verdict dropped",
        }
    }

    fn repairs(&self) -> bool {
        matches!(self, Peer::FlashLb | Peer::Swift | Peer::SwiftAlways)
    }

    fn plan_range(
        &self,
        problem: &Problem<'_>,
        layers: Range<usize>,
    ) -> Result<Vec<PlacedLayer>, PlannerError> {
        let (deployment, loads) = (uniform(problem.deployment)?, problem.loads);
        let (experts, replicas) = (loads.experts(), deployment.replicas);
        let rows = layers.clone().map(|layer| loads.layer(layer));
        let mut slots = vec![0; replicas];
        let mut narrow = Vec::with_capacity(experts);
        Ok(match self {
            Peer::Eplb | Peer::EplbGlobal => {
                let global = if *self == Peer::Eplb { deployment } else { deployment.global() };
                let mut eplb = Eplb::new(experts, global)?;
                let place = |row| {
                    round_to_f32(row, &mut narrow);
                    eplb.place(&narrow, &mut slots);
                    placed(&slots)
                };
                rows.map(place).collect()
            }
            Peer::SglangZigzag => {
                let mut zigzag = SglangZigzag::new(experts, deployment)?;
                let place = |row| {
                    round_to_f32(row, &mut narrow);
                    zigzag.place(&narrow, &mut slots);
                    placed(&slots)
                };
                rows.map(place).collect()
            }
            Peer::TensorRtLlm => {
                let mut heaps = TensorRtLlm::new(experts, deployment)?;
                let place = |row| {
                    heaps.place(row, &mut slots);
                    placed(&slots)
                };
                rows.map(place).collect()
            }
            Peer::FlashLb => {
                let flash = FlashLb::new(experts, deployment)?;
                let mut plan = Vec::with_capacity(layers.len());
                for layer in layers {
                    let running = running(problem, layer, replicas)?;
                    let due = is_due(&flash, problem, layer);
                    let new = due.then(|| flash.place(loads.layer(layer), &running)).flatten();
                    plan.push(placed(new.as_deref().unwrap_or(&running)));
                }
                plan
            }
            Peer::Swift | Peer::SwiftAlways => {
                let running: Vec<Vec<u16>> = layers
                    .clone()
                    .map(|layer| running(problem, layer, replicas))
                    .collect::<Result<_, _>>()?;
                let rows: Vec<&[f64]> = rows.collect();
                let rebalanced = Swift::new(experts, deployment)?.rebalance(&rows, &running);
                let take = rebalanced.worth || *self == Peer::SwiftAlways;
                let slots = if take { &rebalanced.slots } else { &running };
                slots.iter().map(|slots| placed(slots)).collect()
            }
        })
    }
}

fn round_to_f32(row: &[f64], narrow: &mut Vec<f32>) {
    narrow.clear();
    narrow.extend(row.iter().map(|&load| load as f32));
}

fn placed(slots: &[u16]) -> PlacedLayer {
    let slots = slots.iter().map(|&expert| Some(ExpertId(expert))).collect();
    PlacedLayer { slots, share: None, bound: None }
}

fn uniform(of: &Deployment) -> Result<deployment::Deployment, PlannerError> {
    if !of.is_uniform() {
        return Err(PlannerError::UnequalRanks);
    }
    Ok(deployment::Deployment {
        replicas: of.slots(),
        groups: of.groups(),
        nodes: of.nodes(),
        gpus: of.ranks().len(),
    })
}

/// Without a running plan the peers repair what their engine boots with.
fn running(problem: &Problem<'_>, layer: usize, replicas: usize) -> Result<Vec<u16>, PlannerError> {
    let experts = problem.loads.experts();
    match problem.running {
        None => Ok(boot(experts, replicas, problem.deployment.ranks().len())),
        Some(running) => running.slots[layer]
            .iter()
            .map(|held| held.map(|expert| expert.0).ok_or(PlannerError::EmptySlots { layer }))
            .collect(),
    }
}

/// Experts in order, an equal part on each rank, and in the redundant slots the experts that follow that part: of
/// vLLM-Ascend's two first placements the one from which its repairs get further.
fn boot(experts: usize, replicas: usize, ranks: usize) -> Vec<u16> {
    let per_rank = replicas / ranks;
    let held = |rank: usize| {
        // The first ranks have one expert more when they do not divide.
        let first = rank * (experts / ranks) + rank.min(experts % ranks);
        (first..first + per_rank).map(|expert| (expert % experts) as u16)
    };
    (0..ranks).flat_map(held).collect()
}

fn is_due(flash: &FlashLb, problem: &Problem<'_>, layer: usize) -> bool {
    // The first plan is always made.
    problem.running.is_none_or(|running| {
        let even = |loads: &ExpertLoads| {
            score::even_imbalance(problem.deployment, &running.slots[layer], loads.layer(layer))
        };
        flash.is_due(even(running.solved_for), even(problem.loads))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_placement_has_every_expert_and_spreads_the_redundant_ones() {
        assert_eq!(boot(6, 9, 3), [0, 1, 2, 2, 3, 4, 4, 5, 0]);
        assert_eq!(boot(5, 6, 3), [0, 1, 2, 3, 4, 0]);
    }
}
