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

/// One layer of a report. Imbalances are max over mean of the predicted rank loads in the solved window.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// Imbalance of the running plan.
    pub before: f64,
    /// Imbalance of the new plan.
    pub after: f64,
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
