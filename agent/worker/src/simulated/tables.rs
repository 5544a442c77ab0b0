//! The tables of one plan on one node, and the two ways to feed a step through them.

use crate::backend::WorkerError;
use crate::layout::{NodeLayout, SlotAddress};
use evenkeel_core::ids::{ExpertId, Rank};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_kernels::mix::{GAMMA, mix64};
use evenkeel_kernels::{DispatchTable, MapError, map_record};
use std::sync::Arc;

/// Most tokens that one step may route to one expert: 16 Mi is above any batch, and 256 such steps still
/// fit the 32-bit counts of a load segment.
pub const STEP_TOKENS_MAX: u64 = 1 << 24;

/// Why a step was refused; nothing was counted. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The worker holds no weights yet.
    #[error("the worker holds no weights yet: it boots when the agent has spoken with a balancer")]
    NotBooted,
    /// Gauges of a rank that another node runs.
    #[error("gauges of rank {rank}: this node does not run it")]
    UnknownRank {
        /// The rank.
        rank: Rank,
    },
    /// A table or batch of another shape than the unit has.
    #[error("{what} is {have}: the unit has {need}")]
    WrongShape {
        /// Name of the field.
        what: &'static str,
        /// Value given.
        have: usize,
        /// Value needed.
        need: usize,
    },
    /// A count beyond any batch.
    #[error("layer {layer}, expert {expert}: {value} tokens in one step, at most {STEP_TOKENS_MAX} may be")]
    TooManyTokens {
        /// Layer.
        layer: usize,
        /// Expert.
        expert: usize,
        /// Tokens given.
        value: u64,
    },
    /// Ids that the model does not have.
    #[error("layer {layer}: {error}")]
    BadIds {
        /// Layer.
        layer: usize,
        /// What is wrong.
        error: MapError,
    },
}

impl StepError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            StepError::NotBooted => "worker_not_booted",
            StepError::UnknownRank { .. } => "step_unknown_rank",
            StepError::WrongShape { .. } => "step_wrong_shape",
            StepError::TooManyTokens { .. } => "step_too_many_tokens",
            StepError::BadIds { .. } => "step_bad_ids",
        }
    }
}

/// One local slot: its expert, and the part of the cumulative share that is its own.
#[derive(Debug, Clone, Copy)]
struct Quota {
    local: usize,
    expert: ExpertId,
    from: u32,
    to: u32,
}

#[derive(Debug)]
struct LayerTables {
    quotas: Vec<Quota>,
    dispatch: DispatchTable,
}

/// Tables of a plan, seen from one node.
#[derive(Debug)]
pub struct Tables {
    plan: Arc<Plan>,
    id: PlanId,
    layers: Vec<LayerTables>,
}

impl Tables {
    /// Derives the tables. The plan must have the unit's shape and passed `invariants::check`.
    pub fn new(plan: Arc<Plan>, layout: &NodeLayout) -> Result<Self, WorkerError> {
        let (shape, have) = (layout.shape(), plan.layers.len());
        if have != usize::from(shape.layers) {
            return Err(WorkerError::WrongShape(format!("{have} layers instead of {}", shape.layers)));
        }
        let layers = (0..have)
            .map(|layer| LayerTables::new(layer, &plan.layers[layer], layout))
            .collect::<Result<_, _>>()?;
        let id = (plan.epoch, plan.digest());
        Ok(Self { plan, id, layers })
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Its name.
    pub fn id(&self) -> PlanId {
        self.id
    }

    /// The expert of a slot.
    pub fn expert_of(&self, address: SlotAddress) -> Option<ExpertId> {
        *self.plan.layers.get(address.layer.index())?.physical_to_logical.get(address.slot as usize)?
    }

    /// Splits `loads`, the unit's tokens by expert, by integer quota: token `i` of an expert goes to the
    /// replica into whose part of the cumulative share it falls. Replica `[from, to)` of 65536 gets
    ///
    /// ```text
    /// floor((count * to + u) / 65536) - floor((count * from + u) / 65536)
    /// ```
    ///
    /// These differences telescope, so the parts of an expert sum to exactly its count over all nodes. The
    /// offset `u` in `0..65536` is a hash of (step, layer, expert), the same on every node: without it the
    /// rounding would favour the same replica in every step.
    pub(super) fn split(
        &self,
        step: u64,
        loads: &LoadTable,
        layout: &NodeLayout,
    ) -> Result<Vec<u32>, StepError> {
        let experts = usize::from(layout.shape().experts);
        check_shape("layers", loads.layers(), self.layers.len())?;
        check_shape("experts", loads.experts(), experts)?;
        if let Some(at) = loads.counts().iter().position(|&count| count > STEP_TOKENS_MAX) {
            let (layer, expert, value) = (at / experts, at % experts, loads.counts()[at]);
            return Err(StepError::TooManyTokens { layer, expert, value });
        }
        let mut counts = vec![0; layout.slots()];
        for (layer, tables) in self.layers.iter().enumerate() {
            let loads = loads.layer(layer);
            for quota in &tables.quotas {
                let (count, offset) = (loads[quota.expert.index()], dither(step, layer, quota.expert));
                let below = |share: u32| (count * u64::from(share) + offset) >> 16;
                let tokens = below(quota.to) - below(quota.from);
                counts[quota.local] = u32::try_from(tokens).expect("a step's tokens fit 32 bits");
            }
        }
        Ok(counts)
    }

    /// Maps the unit's `[layers][tokens][top_k]` ids by [`map_record`], and keeps the counts of this node.
    pub(super) fn map(
        &self,
        step: u64,
        top_k: usize,
        tokens: usize,
        ids: &[u8],
        layout: &NodeLayout,
    ) -> Result<Vec<u32>, StepError> {
        check_shape("top_k", top_k, layout.shape().top_k.into())?;
        let per_layer = tokens.saturating_mul(top_k);
        check_shape("length of ids", ids.len(), per_layer.saturating_mul(self.layers.len()))?;
        let mut counts = vec![0; layout.slots()];
        let (mut logical, mut physical) = (vec![0; per_layer], vec![0; per_layer]);
        for (layer, tables) in self.layers.iter().enumerate() {
            for (wide, id) in logical.iter_mut().zip(&ids[layer * per_layer..]) {
                *wide = i32::from(*id);
            }
            let mut by_slot = vec![0; tables.dispatch.slots()];
            // Low bits suffice: the salt only has to differ between near steps and layers.
            let salt = (step as u32).wrapping_mul(0x85EB_CA6B).wrapping_add(layer as u32);
            map_record(&tables.dispatch, &logical, top_k, salt, &mut physical, &mut by_slot)
                .map_err(|error| StepError::BadIds { layer, error })?;
            for quota in &tables.quotas {
                counts[quota.local] = by_slot[layout.address(quota.local).slot as usize];
            }
        }
        Ok(counts)
    }
}

fn check_shape(what: &'static str, have: usize, need: usize) -> Result<(), StepError> {
    if have == need { Ok(()) } else { Err(StepError::WrongShape { what, have, need }) }
}

/// The rounding offset of an expert in one step, in `0..65536`.
fn dither(step: u64, layer: usize, expert: ExpertId) -> u64 {
    let place = ((layer as u64) << 16) | u64::from(expert.0);
    mix64(step.wrapping_mul(GAMMA) ^ mix64(place)) & 0xFFFF
}

impl LayerTables {
    fn new(layer: usize, plan: &LayerPlan, layout: &NodeLayout) -> Result<Self, WorkerError> {
        let shape = layout.shape();
        let (have, need) = (plan.physical_to_logical.len(), shape.physical_per_layer());
        if have != need || plan.share.len() != need {
            return Err(WorkerError::WrongShape(format!("layer {layer} has {have} slots instead of {need}")));
        }
        let slots: Vec<_> = plan
            .physical_to_logical
            .iter()
            .map(|e| e.map(ExpertId::index))
            .zip(plan.share.iter().copied())
            .collect();
        let dispatch = DispatchTable::new(shape.experts.into(), &slots)
            .map_err(|error| WorkerError::WrongShape(format!("layer {layer}: {error}")))?;
        let mut upper = vec![0; shape.experts.into()];
        let mut quotas = Vec::new();
        for (slot, (expert, share)) in plan.physical_to_logical.iter().zip(&plan.share).enumerate() {
            let Some(expert) = *expert else { continue };
            let from: u32 = upper[expert.index()];
            upper[expert.index()] = from + share;
            let address = SlotAddress {
                layer: evenkeel_core::ids::LayerId(u16::try_from(layer).expect("layers fit 16 bits")),
                slot: u32::try_from(slot).expect("slots fit 32 bits"),
            };
            if let Some(local) = layout.local(address) {
                quotas.push(Quota { local, expert, from, to: from + share });
            }
        }
        Ok(Self { quotas, dispatch })
    }
}
