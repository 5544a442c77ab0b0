//! `evenkeel simulate timeline`.

use super::output::write;
use super::refused;
use crate::cli::Failure;
use crate::simulation_report::Timeline;
use clap::{Args, ValueEnum};
use evenkeel_core::prefill::Work;
use evenkeel_simulate::overlap::Overlap;
use evenkeel_simulate::step_time::DeepSeekV3;
use std::path::PathBuf;

/// Draw how the stages of two microbatches overlap.
///
/// Three layers of DeepSeek-V3 on one H800, to scale, kernels at their published rates. The orders are those that DeepSeek draws:
/// dual-batch in prefill, five-stage with attention in two steps in decode. The picture is SVG and needs nothing else.
#[derive(Args)]
#[command(after_help = "Examples:
  Decode as DeepSeek runs it
    evenkeel simulate timeline --overlap five-stage --out decode.svg
  Prefill, with 60 % of the tokens and of the attention in one microbatch
    evenkeel simulate timeline --overlap dual-batch --split 0.6 --out uneven.svg
  Prefill without overlap
    evenkeel simulate timeline --overlap none --phase prefill --out none.svg")]
pub(super) struct TimelineCommand {
    /// What runs beside what
    #[arg(long, value_enum)]
    overlap: OverlapName,
    /// Whose stages [default: decode for five-stage, else prefill]
    #[arg(long, value_enum)]
    phase: Option<Phase>,
    /// Prefill: new tokens of the rank in the step
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(2..=1 << 20))]
    tokens: u64,
    /// Decode: requests of the rank
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(2..=1 << 16))]
    requests: u64,
    /// Tokens that a new token sees on average [default: 2048 in prefill, 4989 in decode]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    context: Option<u64>,
    /// Part of everything that is in microbatch 0, above 0 and below 1
    #[arg(long, value_name = "PART", default_value_t = 0.5)]
    split: f64,
    /// Where to write the picture; - is stdout
    #[arg(long, value_name = "SVG", default_value = "-")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum OverlapName {
    /// One stage after the other
    None,
    /// One microbatch computes while the other communicates
    DualBatch,
    /// The same with attention in two steps
    FiveStage,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Phase {
    Prefill,
    Decode,
}

/// Mean context of a new token of DeepSeek's profile, prompts of 4k; and of an output token of its service.
const CONTEXTS: [u64; 2] = [2048, 4989];

impl TimelineCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        if !(self.split > 0.0 && self.split < 1.0) {
            return Err(refused(
                "simulate_split",
                format!("--split is {}: accepted are numbers above 0 and below 1", self.split),
            ));
        }
        let timeline = self.timeline();
        eprintln!("{}", timeline.words());
        write(&self.out, &timeline.file())
    }

    fn timeline(&self) -> Timeline {
        let overlap = match self.overlap {
            OverlapName::None => Overlap::None,
            OverlapName::DualBatch => Overlap::DualBatch,
            OverlapName::FiveStage => Overlap::FiveStage,
        };
        let phase = self.phase.unwrap_or(match self.overlap {
            OverlapName::FiveStage => Phase::Decode,
            OverlapName::None | OverlapName::DualBatch => Phase::Prefill,
        });
        let parts = match self.split {
            0.5 => String::new(),
            split => format!(", {:.0} % in microbatch 0", 100.0 * split),
        };
        match phase {
            Phase::Prefill => {
                let context = self.context.unwrap_or(CONTEXTS[0]);
                let title =
                    format!("prefill, {} new tokens that see {context} on average{parts}", self.tokens);
                prefill_timeline(title, overlap, self.tokens, context, self.split)
            }
            Phase::Decode => {
                let context = self.context.unwrap_or(CONTEXTS[1]);
                let title =
                    format!("decode, {} requests with {context} tokens of KV each{parts}", self.requests);
                decode_timeline(title, overlap, self.requests as f64, context as f64, self.split)
            }
        }
    }
}

/// The stages of a prefill step.
pub(super) fn prefill_timeline(
    title: String,
    overlap: Overlap,
    tokens: u64,
    context: u64,
    split: f64,
) -> Timeline {
    let first = ((tokens as f64 * split) as u64).clamp(1, tokens.max(2) - 1);
    let half = |tokens: u64| Work { tokens, attention: tokens * context };
    let model = DeepSeekV3 { prefill_overlap: overlap, ..DeepSeekV3::UNSTRETCHED };
    Timeline { title, overlap, microbatches: model.prefill_stages([half(first), half(tokens - first)]) }
}

/// The stages of a decode step.
pub(super) fn decode_timeline(
    title: String,
    overlap: Overlap,
    requests: f64,
    context: f64,
    split: f64,
) -> Timeline {
    let model = DeepSeekV3 { decode_overlap: overlap, ..DeepSeekV3::UNSTRETCHED };
    let microbatches = match overlap {
        Overlap::None => model.decode_stages(requests * context, requests),
        Overlap::DualBatch | Overlap::FiveStage => {
            model.decode_stages_split(requests * context, requests, split)
        }
    };
    Timeline { title, overlap, microbatches }
}
