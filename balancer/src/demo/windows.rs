//! Expert routing for the demo's engines, window by window.

use super::DemoError;
use super::experts::{StepRouting, WINDOW_STEPS, split_window};
use evenkeel_core::snapshot::LoadTable;
use evenkeel_core::topology::UnitShape;
use evenkeel_proto::v1;
use evenkeel_simulate::expert_loads::{self, RecordedRouting, Synthetic};
use std::ops::Range;
use std::path::Path;

/// Spread of the synthetic loads over the experts of a layer: log-normal, as recorded DeepSeek-V3 routing.
const SIGMA: f64 = 0.5;
/// How far an expert's load moves from window to window within a domain.
const DRIFT: f64 = 0.02;
/// Choices per layer and window: 4 steps of 64k tokens with 8 experts each.
const ROUTED: u64 = 2_097_152;
/// Windows of each recorded domain: its first half, then its second.
const HALVES: usize = 2;

/// Synthetic windows of one domain, without end.
pub(super) struct SyntheticWindows {
    windows: expert_loads::SyntheticWindows,
    layers: usize,
    experts: usize,
    next: u64,
}

impl SyntheticWindows {
    /// For a unit of this shape; units draw different loads from one `seed`.
    pub(super) fn new(shape: &UnitShape, seed: u64, unit: u64) -> Self {
        let (layers, experts) = (shape.layers.into(), shape.experts.into());
        // Seeds of neighbouring units must not overlap.
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(unit);
        let of = Synthetic { layers, experts, routed: ROUTED, sigma: SIGMA, drift: DRIFT, seed };
        Self { windows: expert_loads::SyntheticWindows::new(of), layers, experts, next: 0 }
    }

    /// The steps of the next window.
    pub(super) fn next_window(&mut self) -> Vec<StepRouting> {
        let counts = self.windows.window(self.next);
        self.next += 1;
        let loads = LoadTable::new(self.layers, self.experts, counts);
        split_window(&loads.expect("synthetic counts are small"))
    }
}

/// The recorded routing of DeepSeek-V2-Lite: two windows of the intent domain, then two of law.
pub(super) struct RecordedWindows {
    windows: Vec<Vec<StepRouting>>,
}

impl RecordedWindows {
    /// Reads both domains from the directory of the recorded data.
    pub(super) fn read(directory: &Path) -> Result<Self, DemoError> {
        let mut windows = Vec::new();
        for domain in ["dsv2lite_intent", "dsv2lite_law"] {
            let routing = RecordedRouting::read(directory, domain)?;
            let steps = HALVES * WINDOW_STEPS as usize;
            // Tokens that do not fill a step are left out.
            let per_step = routing.tokens() / steps;
            let steps: Vec<_> =
                (0..steps).map(|s| step(&routing, s * per_step..(s + 1) * per_step)).collect();
            windows.extend(steps.chunks(WINDOW_STEPS as usize).map(<[_]>::to_vec));
        }
        Ok(Self { windows })
    }

    /// The windows in order.
    pub(super) fn windows(&self) -> impl Iterator<Item = &[StepRouting]> {
        self.windows.iter().map(Vec::as_slice)
    }
}

fn step(routing: &RecordedRouting, tokens: Range<usize>) -> StepRouting {
    let wide = |n: usize| u32::try_from(n).expect("sizes of recorded routing fit 32 bits");
    let ids = (0..routing.layers()).flat_map(|l| routing.ids(l, tokens.clone()).iter().copied()).collect();
    let top_k = v1::TopK {
        layers: wide(routing.layers()),
        tokens: wide(tokens.len()),
        top_k: wide(routing.top_k()),
        ids,
    };
    let counts = LoadTable::new(routing.layers(), routing.experts(), routing.counts(tokens));
    StepRouting::TopK(top_k, counts.expect("recorded counts are small"))
}
