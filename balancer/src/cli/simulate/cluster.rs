//! `evenkeel simulate prefill`, `decode` and `disaggregated`: the units.

use super::output::Output;
use super::policies::Kinds;
use super::run::{Common, run};
use super::workload::Workload;
use crate::cli::Failure;
use clap::Args;
use evenkeel_simulate::cluster::{DecodePool, HandOff, Pool, PrefillPool, Units};

/// KV tokens of a prefill rank of 80 GB, derived: 10 experts a layer of DeepSeek-V3 (26 GB), attention and the rest (15 GB) and
/// activations leave about 28 GB, at 70 KB a token.
const PREFILL_KV_TOKENS: u64 = 400_000;
/// KV tokens of a decode rank, in the same way: 3 experts a layer leave about 49 GB.
const DECODE_KV_TOKENS: u64 = 700_000;
/// New tokens of a prefill rank's step: about a second by the service's step times, so that an objective of two is within reach.
const STEP_TOKENS: u64 = 4096;
/// Most ranks and units that a flag takes; the simulator checks again.
const RANKS_MAX: i64 = 4096;
const UNITS_MAX: i64 = 64;

/// Prefill units.
#[derive(Args)]
#[command(next_help_heading = "Prefill units")]
struct PrefillFlags {
    /// New tokens that a rank runs in a step
    #[arg(long, value_name = "TOKENS", default_value_t = STEP_TOKENS, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    step_tokens: u64,
    /// KV tokens of a prefill rank, cached prefixes included
    #[arg(long, value_name = "TOKENS", default_value_t = PREFILL_KV_TOKENS)]
    prefill_kv_tokens: u64,
    /// Tokens of a prefix cache that all ranks of a unit share, as DeepSeek's on disk; 0 for none
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    shared_cache_tokens: u64,
}

impl PrefillFlags {
    fn pool(&self, units: u16, ranks: u16) -> PrefillPool {
        PrefillPool {
            pool: Pool { units, ranks, kv_tokens: self.prefill_kv_tokens },
            step_tokens: self.step_tokens,
            shared_cache_tokens: self.shared_cache_tokens,
        }
    }
}

/// Decode units.
#[derive(Args)]
#[command(next_help_heading = "Decode units")]
struct DecodeFlags {
    /// Requests that a decode rank runs at once
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    slots: u32,
    /// KV tokens of a decode rank
    #[arg(long, value_name = "TOKENS", default_value_t = DECODE_KV_TOKENS)]
    decode_kv_tokens: u64,
}

impl DecodeFlags {
    fn pool(&self, units: u16, ranks: u16) -> DecodePool {
        DecodePool {
            pool: Pool { units, ranks, kv_tokens: self.decode_kv_tokens },
            slots: self.slots,
            reserve_tokens: DecodePool::RESERVE_TOKENS,
        }
    }
}

/// Prompts on prefill units: a request ends with its first token.
///
/// Ranks run in lockstep: a step lasts as long as its slowest rank. Prompts longer than a step are cut; ranks keep prefixes while
/// there is room. Every policy gets the same requests, and hears from the engines as often as its original does.
#[derive(Args)]
#[command(after_help = "Examples:
  Two policies on a unit of 32 ranks, eight copies of the trace
    evenkeel simulate prefill --trace mooncake.jsonl.gz --scale 8 --policy evenkeel,sglang-total-tokens --report prefill.html
  All policies
    evenkeel simulate prefill --trace mooncake.jsonl.gz --scale 8 --policy all --json")]
pub(super) struct Prefill {
    #[command(flatten)]
    workload: Workload,
    /// Ranks of a unit
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    ranks: u16,
    /// Units
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=UNITS_MAX))]
    units: u16,
    #[command(flatten)]
    flags: PrefillFlags,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    output: Output,
}

impl Prefill {
    pub(super) fn run(self) -> Result<(), Failure> {
        let units = Units::Prefill(self.flags.pool(self.units, self.ranks));
        let kinds = Kinds { prefill: true, decode: false };
        run("prefill", kinds, units, &self.workload, &self.common, &self.output)
    }
}

/// Outputs on decode units: a request arrives with its KV.
///
/// Every running request generates a token a step, and a step lasts as long as its slowest rank. A request waits at its rank while
/// slots or KV are full.
#[derive(Args)]
#[command(after_help = "Examples:
  Three policies on a unit of 144 ranks, 60 copies of the trace
    evenkeel simulate decode --trace mooncake.jsonl.gz --scale 60 --policy evenkeel,vllm-0.33,tensorrt-llm-default-adp
  A page with plots
    evenkeel simulate decode --trace mooncake.jsonl.gz --scale 60 --policy all --report decode.html")]
pub(super) struct Decode {
    #[command(flatten)]
    workload: Workload,
    /// Ranks of a unit
    #[arg(long, default_value_t = 144, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    ranks: u16,
    /// Units
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=UNITS_MAX))]
    units: u16,
    #[command(flatten)]
    flags: DecodeFlags,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    output: Output,
}

impl Decode {
    pub(super) fn run(self) -> Result<(), Failure> {
        let units = Units::Decode(self.flags.pool(self.units, self.ranks));
        let kinds = Kinds { prefill: false, decode: true };
        run("decode", kinds, units, &self.workload, &self.common, &self.output)
    }
}

/// Prefill units, a hand-off of KV, decode units.
///
/// A prompt runs on a prefill unit, its KV goes over the rank's network port, and its output is generated on a decode unit.
#[derive(Args)]
#[command(after_help = "Examples:
  Four prefill units and one decode unit
    evenkeel simulate disaggregated --trace mooncake.jsonl.gz --scale 40 --prefill-units 4 --policy all --report both.html
  A peer's prefill policy with another's decode policy
    evenkeel simulate disaggregated --trace mooncake.jsonl.gz --scale 40 --policy evenkeel,dynamo-kv+dynamo-decode")]
pub(super) struct Disaggregated {
    #[command(flatten)]
    workload: Workload,
    /// Ranks of a prefill unit
    #[arg(long, default_value_t = 32, value_name = "RANKS", value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    prefill_ranks: u16,
    /// Prefill units
    #[arg(long, default_value_t = 1, value_name = "UNITS", value_parser = clap::value_parser!(u16).range(1..=UNITS_MAX))]
    prefill_units: u16,
    /// Ranks of a decode unit
    #[arg(long, default_value_t = 144, value_name = "RANKS", value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    decode_ranks: u16,
    /// Decode units
    #[arg(long, default_value_t = 1, value_name = "UNITS", value_parser = clap::value_parser!(u16).range(1..=UNITS_MAX))]
    decode_units: u16,
    #[command(flatten)]
    prefill: PrefillFlags,
    #[command(flatten)]
    decode: DecodeFlags,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    output: Output,
}

impl Disaggregated {
    pub(super) fn run(self) -> Result<(), Failure> {
        let prefill = self.prefill.pool(self.prefill_units, self.prefill_ranks);
        let decode = self.decode.pool(self.decode_units, self.decode_ranks);
        let units = Units::Disaggregated(prefill, decode, HandOff::default());
        let kinds = Kinds { prefill: true, decode: true };
        run("disaggregated", kinds, units, &self.workload, &self.common, &self.output)
    }
}
