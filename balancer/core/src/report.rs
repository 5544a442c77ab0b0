//! Why a plan is as it is: objective before and after, how far from the best it can be, what binds.

use crate::ids::{ExpertId, LayerId};

/// What keeps a layer from being better balanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: every rank carries the mean (within the policy's tolerance).
    Balanced,
    /// Experts whose replicas all live on these few ranks carry more than these ranks' part. Only moving
    /// weights can help: no split can.
    CriticalRanks(Vec<u16>),
    /// The placement is on its way to a better one, one spare slot at a time.
    SpareSlots,
}

impl Binding {
    /// The limit's name, as in tables and the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Binding::Balanced => "balanced",
            Binding::CriticalRanks(_) => "critical_ranks",
            Binding::SpareSlots => "spare_slots",
        }
    }
}

/// What a solve decided, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The running plan stays.
    Keep(KeepReason),
    /// New shares on the same placement.
    Reweight {
        /// Predicted relative gain in imbalance, mean over layers.
        gain: f64,
    },
    /// Weights move.
    Move {
        /// Plans still needed after this one until the target is reached.
        plans_left: u32,
    },
}

/// Why the running plan stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeepReason {
    /// Some rank's counts are missing: its experts would look cold.
    IncompleteSnapshot,
    /// Nothing was routed in the window.
    NoLoad,
    /// Neither shares nor moves gain enough.
    GainTooSmall,
}

impl Decision {
    /// The decision's name, as in metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Keep(KeepReason::IncompleteSnapshot) => "keep_incomplete_snapshot",
            Decision::Keep(KeepReason::NoLoad) => "keep_no_load",
            Decision::Keep(KeepReason::GainTooSmall) => "keep_gain_too_small",
            Decision::Reweight { .. } => "weights",
            Decision::Move { .. } => "moves",
        }
    }
}

/// One layer of a report. Imbalances are max over mean of the predicted rank loads in the solved window.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// Imbalance of the running plan.
    pub before: f64,
    /// Imbalance of the new plan; of the running one when it stays.
    pub after: f64,
    /// What the best split of the running placement reaches: more than that needs moves.
    pub weights_alone: f64,
    /// What the placement reaches that the layer is on its way to; `weights_alone` when it is on none.
    pub aim: f64,
    /// No placement of these experts in these slots can be better than this.
    pub bound: f64,
    /// What keeps `after` above `bound`.
    pub binding: Binding,
    /// Slots that receive an expert.
    pub moves: u32,
}

/// The account of one solve.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SolveReport {
    /// `[layers]`.
    pub layers: Vec<LayerReport>,
    /// Replicas that the target wants and this plan could not place yet, as (layer, expert).
    pub not_placed: Vec<(LayerId, ExpertId)>,
}

impl SolveReport {
    /// Mean over layers of the imbalance before.
    pub fn before_mean(&self) -> f64 {
        mean(self.layers.iter().map(|l| l.before))
    }

    /// Mean over layers of the imbalance after.
    pub fn after_mean(&self) -> f64 {
        mean(self.layers.iter().map(|l| l.after))
    }

    /// Mean over layers of the lower bound.
    pub fn bound_mean(&self) -> f64 {
        mean(self.layers.iter().map(|l| l.bound))
    }

    /// Slots that receive an expert, over all layers.
    pub fn moves(&self) -> u64 {
        self.layers.iter().map(|l| u64::from(l.moves)).sum()
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}
