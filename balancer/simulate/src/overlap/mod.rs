//! Hiding communication behind computation: in which order the stages of two microbatches run on a rank, and how long a
//! layer takes then. The orders are those that the primary source draws (deepseek-ai/profile-data, `assets/prefill.jpg` and
//! `assets/decode.jpg`; the same pictures stand in open-infra-index, day 6).

mod order;
mod schedule;

pub use schedule::{Schedule, Span, layers_us, schedule};

/// Part of a layer of one microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// ATTN-0: projections of MLA and what else comes after the combine and before core attention.
    AttentionBefore,
    /// ATTN-1: core attention, its output projection and the gate. In prefill both are one stage, run without a gap.
    AttentionCore,
    /// Tokens go to their experts: all-to-all.
    Dispatch,
    /// The shared expert. It needs nothing of the dispatch.
    Shared,
    /// The routed experts of this rank.
    Experts,
    /// Results come back from the experts: all-to-all.
    Combine,
}

impl Stage {
    /// All, in the order of the data.
    pub const ALL: [Self; 6] = [
        Self::AttentionBefore,
        Self::AttentionCore,
        Self::Dispatch,
        Self::Shared,
        Self::Experts,
        Self::Combine,
    ];

    /// Whether it runs on the network and not on the GPU's cores.
    pub fn on_network(self) -> bool {
        matches!(self, Self::Dispatch | Self::Combine)
    }

    /// As the primary source calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AttentionBefore => "ATTN-0",
            Self::AttentionCore => "ATTN-1",
            Self::Dispatch => "DISPATCH",
            Self::Shared => "SHARED",
            Self::Experts => "MLP",
            Self::Combine => "COMBINE",
        }
    }

    /// What must have ended in the same microbatch; the first stage of a layer waits for the layer before.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::AttentionBefore => &[Self::Shared, Self::Combine],
            Self::AttentionCore => &[Self::AttentionBefore],
            Self::Dispatch | Self::Shared => &[Self::AttentionCore],
            Self::Experts => &[Self::Dispatch],
            Self::Combine => &[Self::Experts],
        }
    }
}

/// How long each stage of one layer takes for one microbatch, in microseconds, by `Stage as usize`; none negative.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StageTimes(pub [f64; 6]);

impl StageTimes {
    /// One stage's.
    pub fn of(&self, stage: Stage) -> f64 {
        self.0[stage as usize]
    }

    /// Of all stages on the network, or of all on the GPU's cores.
    pub fn sum_us(&self, on_network: bool) -> f64 {
        Stage::ALL.iter().filter(|stage| stage.on_network() == on_network).map(|&stage| self.of(stage)).sum()
    }

    /// Every stage takes `factor` times as long.
    pub fn scaled(self, factor: f64) -> Self {
        Self(self.0.map(|us| us * factor))
    }
}

/// Which communication runs beside which computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overlap {
    /// Nothing runs beside anything; microbatches one after the other.
    None,
    /// Prefill: while one of two microbatches communicates, the other computes.
    DualBatch,
    /// Decode: attention in two steps, so that five stages of two microbatches alternate.
    FiveStage,
}

impl Overlap {
    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DualBatch => "dual-batch",
            Self::FiveStage => "five-stage",
        }
    }
}

#[cfg(test)]
mod tests;
