//! How long a step takes on one rank: DeepSeek-V3 on H800 nodes, stage by stage, with the overlap that the primary source
//! describes. Modelled.
//!
//! Kernels run at their published rates ([`hardware`]); sizes are the model's ([`model`]); the stages are scheduled by
//! [`crate::overlap`]; and one factor a phase, over the whole step, stands for everything between kernels at their best and a
//! service: launches, small kernels, imbalance of experts, waiting. It is the only thing that is fitted ([`calibration`]).

pub mod calibration;
pub mod hardware;
pub mod model;
mod stages;

use crate::overlap::{Overlap, StageTimes, layers_us};
use calibration::Calibration;
use evenkeel_core::prefill::Work;
use model::MOE_LAYERS;

/// DeepSeek-V3 on H800 nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeepSeekV3 {
    /// In prefill: none or dual-batch.
    pub prefill_overlap: Overlap,
    /// In decode: none or five-stage.
    pub decode_overlap: Overlap,
    /// Ranks of a decode unit: its all-to-all's latency and its experts depend on them.
    pub decode_ranks: u16,
    /// How much longer a step takes than its kernels at their published rates.
    pub prefill_stretch: f64,
    /// The same in decode.
    pub decode_stretch: f64,
}

impl DeepSeekV3 {
    /// The primary source's overlaps on its units of 32 and 144 ranks.
    pub fn new(calibration: Calibration) -> Self {
        let [prefill_stretch, decode_stretch] = calibration.stretches();
        Self { prefill_stretch, decode_stretch, ..Self::UNSTRETCHED }
    }

    /// Kernels at their published rates, and nothing else.
    pub const UNSTRETCHED: Self = Self {
        prefill_overlap: Overlap::DualBatch,
        decode_overlap: Overlap::FiveStage,
        decode_ranks: 144,
        prefill_stretch: 1.0,
        decode_stretch: 1.0,
    };

    /// Time of one rank for its part of a prefill step, microseconds, cut into two equal microbatches under overlap.
    pub fn prefill_us(&self, work: Work) -> f64 {
        let half = Work { tokens: work.tokens / 2, attention: work.attention / 2 };
        let rest = Work { tokens: work.tokens - half.tokens, attention: work.attention - half.attention };
        self.prefill_halves_us([half, rest])
    }

    /// The same with given microbatches.
    pub fn prefill_halves_us(&self, halves: [Work; 2]) -> f64 {
        let whole = halves[0] + halves[1];
        let layers = layers_us(self.prefill_overlap, &self.prefill_stages(halves), MOE_LAYERS);
        self.prefill_stretch * (layers + stages::prefill_rest_us(whole.tokens as f64, whole.attention as f64))
    }

    /// Time of one rank for a decode step, microseconds: one token for each of `requests` requests, whose contexts are `kv_tokens`
    /// tokens, cut into two equal microbatches under overlap.
    pub fn decode_us(&self, kv_tokens: u64, requests: u32) -> f64 {
        let (kv_tokens, requests) = (kv_tokens as f64, f64::from(requests));
        self.decode_at_us(kv_tokens, requests)
    }

    /// [`Self::decode_us`] of means.
    pub fn decode_at_us(&self, kv_tokens: f64, requests: f64) -> f64 {
        let layers = layers_us(self.decode_overlap, &self.decode_stages(kv_tokens, requests), MOE_LAYERS);
        self.decode_stretch * (layers + stages::decode_rest_us(kv_tokens, requests))
    }

    /// Stages of a prefill layer by microbatch, not stretched: two under overlap, else one of everything.
    pub fn prefill_stages(&self, halves: [Work; 2]) -> Vec<StageTimes> {
        let of =
            |work: Work| stages::prefill(self.prefill_overlap, work.tokens as f64, work.attention as f64);
        match self.prefill_overlap {
            Overlap::None => vec![of(halves[0] + halves[1])],
            Overlap::DualBatch | Overlap::FiveStage => halves.map(of).to_vec(),
        }
    }

    /// The same of a decode layer.
    pub fn decode_stages(&self, kv_tokens: f64, requests: f64) -> Vec<StageTimes> {
        let of = |part: f64| stages::decode(self.decode_ranks, kv_tokens * part, requests * part);
        match self.decode_overlap {
            Overlap::None => vec![of(1.0)],
            Overlap::DualBatch | Overlap::FiveStage => vec![of(0.5); 2],
        }
    }

    /// Unequal microbatches of a decode layer: `part` of everything, and the rest.
    pub fn decode_stages_split(&self, kv_tokens: f64, requests: f64, part: f64) -> Vec<StageTimes> {
        let of = |part: f64| stages::decode(self.decode_ranks, kv_tokens * part, requests * part);
        vec![of(part), of(1.0 - part)]
    }
}

impl crate::cluster::StepTime for DeepSeekV3 {
    fn prefill_us(&self, work: Work) -> f64 {
        self.prefill_us(work)
    }

    fn decode_us(&self, kv_tokens: u64, requests: u32) -> f64 {
        self.decode_us(kv_tokens, requests)
    }
}

#[cfg(test)]
mod tests;
