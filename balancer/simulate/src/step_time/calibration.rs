//! What the step times are held against: two figures that they are fitted to, and others that they are not.

use super::DeepSeekV3;
use crate::overlap::Overlap;
use evenkeel_core::prefill::Work;

/// To whose throughput the one factor of each phase is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calibration {
    /// The primary source's service over a day: 73.7k tokens in (cache hits counted) and 14.8k out a second and node. A service waits
    /// for requests and for its slowest ranks, and these waits are in the factors.
    Service,
    /// The primary source's published profiles: full batches, experts in perfect balance.
    Profile,
}

impl Calibration {
    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Profile => "profile",
        }
    }

    /// Factors of prefill and decode.
    pub fn stretches(self) -> [f64; 2] {
        let points = match self {
            Self::Service => [SERVICE_PREFILL, SERVICE_DECODE],
            Self::Profile => [PROFILE_PREFILL, PROFILE_DECODE],
        };
        points.map(|point| point.modelled(&DeepSeekV3::UNSTRETCHED) / point.stated)
    }
}

/// A rank at work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// New tokens of a step, and tokens that each of them sees on average.
    Prefill {
        /// New tokens of a step.
        tokens: f64,
        /// Mean visible context.
        visible: f64,
    },
    /// Requests of a step and their mean context.
    Decode {
        /// Requests.
        requests: f64,
        /// Mean context, tokens.
        context: f64,
        /// Ranks of the unit.
        ranks: u16,
    },
}

/// A throughput that somebody stated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// What it is.
    pub name: &'static str,
    /// Tokens a second and node of 8: new input tokens, or output tokens.
    pub stated: f64,
    /// At this load.
    pub load: Load,
    /// Whether communication was overlapped.
    pub overlap: bool,
    /// Who says so.
    pub source: &'static str,
}

impl Point {
    /// What the model gives, in the unit of `stated`.
    pub fn modelled(&self, model: &DeepSeekV3) -> f64 {
        let mut model = *model;
        if !self.overlap {
            (model.prefill_overlap, model.decode_overlap) = (Overlap::None, Overlap::None);
        }
        match self.load {
            Load::Prefill { tokens, visible } => {
                let work = Work { tokens: tokens as u64, attention: (tokens * visible) as u64 };
                8.0 * tokens / model.prefill_us(work) * 1e6
            }
            Load::Decode { requests, context, ranks } => {
                model.decode_ranks = ranks;
                8.0 * requests / model.decode_at_us(requests * context, requests) * 1e6
            }
        }
    }
}

/// Of the input tokens, those that hit the cache (day 6: 342B of 608B).
pub const HIT_PART: f64 = 342.0 / 608.0;
/// Mean KV length of an output token (day 6).
const KV_LENGTH: f64 = 4989.0;
/// Mean prompt, derived: were all requests alike, with 168B tokens out for 608B in, an output token would see the prompt and half of the
/// output, 4,989 in all.
pub const MEAN_PROMPT: f64 = KV_LENGTH / (1.0 + 168.0 / 608.0 / 2.0);
/// Requests of a decode rank, derived: 14.8k tokens a second and node at 21 a second and user (day 6 states 20 to 22).
pub const SERVICE_REQUESTS: f64 = 14_800.0 / 8.0 / 21.0;
/// New tokens of a prefill step (profile-data: "a batch size of 16K tokens per GPU", its setting being that of the service).
const STEP_TOKENS: f64 = 16_384.0;

const DAY_6: &str = "open-infra-index, day 6";
const PROFILE: &str = "profile-data, as the SGLang team reads it (LMSYS, 5 May 2025)";
const SGLANG: &str = "SGLang on H100 (LMSYS, 5 May 2025)";

const fn prompts(length: f64) -> Load {
    Load::Prefill { tokens: STEP_TOKENS, visible: length / 2.0 }
}

/// Fitted under [`Calibration::Service`].
pub const SERVICE_PREFILL: Point = Point {
    name: "new input tokens, 43.8 % of 73.7k",
    stated: 73_700.0 * (1.0 - HIT_PART),
    load: Load::Prefill { tokens: STEP_TOKENS, visible: MEAN_PROMPT * (HIT_PART + (1.0 - HIT_PART) / 2.0) },
    overlap: true,
    source: DAY_6,
};
/// Fitted under [`Calibration::Service`].
pub const SERVICE_DECODE: Point = Point {
    name: "output tokens at 21 a second and user",
    stated: 14_800.0,
    load: Load::Decode { requests: SERVICE_REQUESTS, context: KV_LENGTH, ranks: 144 },
    overlap: true,
    source: DAY_6,
};
/// Fitted under [`Calibration::Profile`].
pub const PROFILE_PREFILL: Point = Point {
    name: "prompts of 4k, balanced",
    stated: 62_713.0,
    load: prompts(4096.0),
    overlap: true,
    source: PROFILE,
};
/// Fitted under [`Calibration::Profile`].
pub const PROFILE_DECODE: Point = Point {
    name: "128 requests of 4k on 128 ranks",
    stated: 18_598.0,
    load: Load::Decode { requests: 128.0, context: 4096.0, ranks: 128 },
    overlap: true,
    source: PROFILE,
};
/// Fitted under neither.
pub const OTHERS: [Point; 6] = [
    Point {
        name: "prompts of 4k, expert balance simulated",
        stated: 59_337.0,
        load: prompts(4096.0),
        overlap: true,
        source: SGLANG,
    },
    Point { name: "prompts of 1k", stated: 57_674.0, load: prompts(1024.0), overlap: true, source: SGLANG },
    Point { name: "prompts of 2k", stated: 54_543.0, load: prompts(2048.0), overlap: true, source: SGLANG },
    Point { name: "prompts of 4k", stated: 50_302.0, load: prompts(4096.0), overlap: true, source: SGLANG },
    Point {
        name: "256 requests of 2k on 72 ranks",
        stated: 22_282.0,
        load: Load::Decode { requests: 256.0, context: 2000.0, ranks: 72 },
        overlap: true,
        source: SGLANG,
    },
    Point {
        name: "128 requests of 4k on 72 ranks, MTP simulated",
        stated: 17_373.0,
        load: Load::Decode { requests: 128.0, context: 4000.0, ranks: 72 },
        overlap: true,
        source: SGLANG,
    },
];

/// A line of the calibration's table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// What is stated.
    pub point: Point,
    /// Whether the model was fitted to it.
    pub fitted: bool,
    /// What the model gives.
    pub modelled: f64,
}

impl Line {
    /// The model over what was stated, less 1; to a tenth of a percent.
    pub fn error_percent(&self) -> f64 {
        // 0 is added to what was rounded so that there is no -0.0.
        (1000.0 * (self.modelled / self.point.stated - 1.0)).round() / 10.0 + 0.0
    }
}

/// The model beside everything that was stated.
pub fn table(calibration: Calibration) -> Vec<Line> {
    let model = DeepSeekV3::new(calibration);
    let service = calibration == Calibration::Service;
    let fitted = [SERVICE_PREFILL, SERVICE_DECODE].map(|point| (point, service));
    let profile = [PROFILE_PREFILL, PROFILE_DECODE].map(|point| (point, !service));
    let others = OTHERS.map(|point| (point, false));
    let points = fitted.into_iter().chain(profile).chain(others);
    points.map(|(point, fitted)| Line { point, fitted, modelled: point.modelled(&model) }).collect()
}

/// Tokens a second and user at which the model, fitted to the profiles, makes the stated 14.8k tokens a second and node: the requests of
/// a rank are what gives that throughput. Day 6 states 20 to 22; nothing of it is fitted. `None`: it never makes them.
pub fn profile_speed() -> Option<f64> {
    let model = DeepSeekV3::new(Calibration::Profile);
    let speed = |requests: f64| 1e6 / model.decode_at_us(requests * KV_LENGTH, requests);
    let enough = (1..=1024).map(f64::from).find(|&requests| 8.0 * requests * speed(requests) >= 14_800.0)?;
    Some(speed(enough))
}
