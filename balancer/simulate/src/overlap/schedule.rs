//! A list scheduler over two resources: the GPU's cores and the network. Each stage begins when its resource is free and its
//! inputs are there.

use super::order::order;
use super::{Overlap, Stage, StageTimes};

/// Layers that are run; more are counted. The schedule repeats itself from the second layer to the last but one (tested against
/// schedules run in full), so the time between these two is every further layer's.
const RUN: usize = 6;
const REPEATING: [usize; 2] = [2, 3];

/// When a stage runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// From 0.
    pub layer: usize,
    /// 0 or 1.
    pub microbatch: usize,
    /// Which.
    pub stage: Stage,
    /// From the beginning of the first layer, microseconds.
    pub start_us: f64,
    /// As `start_us`.
    pub end_us: f64,
}

/// The stages of some layers on one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// In the order in which they were scheduled.
    pub spans: Vec<Span>,
    /// Until the last stage ended.
    pub total_us: f64,
    /// One layer of all microbatches, once the pipeline is full.
    pub layer_us: f64,
    /// Of `layer_us`, with no computation: what communication costs.
    pub exposed_us: f64,
}

/// Runs `layers` layers, at least 1, of one or two microbatches.
pub fn schedule(overlap: Overlap, microbatches: &[StageTimes], layers: usize) -> Schedule {
    let mut state = State::new(overlap);
    let spans: Vec<Span> = order(overlap, microbatches.len(), layers)
        .map(|(stage, microbatch, layer)| {
            let (start_us, end_us) = state.run(stage, microbatch, microbatches[microbatch].of(stage));
            Span { layer, microbatch, stage, start_us, end_us }
        })
        .collect();
    let layer_us = layers_us(overlap, microbatches, RUN + 1) - layers_us(overlap, microbatches, RUN);
    let computing: f64 = microbatches.iter().map(|times| times.sum_us(false)).sum();
    Schedule { spans, total_us: state.ended, layer_us, exposed_us: (layer_us - computing).max(0.0) }
}

/// How long `layers` layers take: [`Schedule::total_us`] without the schedule.
pub fn layers_us(overlap: Overlap, microbatches: &[StageTimes], layers: usize) -> f64 {
    let mut state = State::new(overlap);
    let mut combined_us = [0.0; 2];
    for (stage, microbatch, layer) in order(overlap, microbatches.len(), layers.min(RUN)) {
        let (_, end_us) = state.run(stage, microbatch, microbatches[microbatch].of(stage));
        if let Some(at) = REPEATING.iter().position(|&repeating| repeating == layer)
            && stage == Stage::Combine
        {
            combined_us[at] = end_us;
        }
    }
    let layer_us = combined_us[1] - combined_us[0];
    state.ended + layer_us * layers.saturating_sub(RUN) as f64
}

#[derive(Default)]
struct State {
    /// Nothing runs beside anything.
    serial: bool,
    /// When the cores and the network are free.
    free: [f64; 2],
    /// When each microbatch's last stage of a kind ended.
    end: [[f64; 6]; 2],
    ended: f64,
}

impl State {
    fn new(overlap: Overlap) -> Self {
        Self { serial: overlap == Overlap::None, ..Self::default() }
    }

    fn run(&mut self, stage: Stage, microbatch: usize, us: f64) -> (f64, f64) {
        let resource = usize::from(stage.on_network());
        let inputs = stage.needs().iter().map(|&need| self.end[microbatch][need as usize]);
        let free = if self.serial { self.ended } else { self.free[resource] };
        let start = inputs.fold(free, f64::max);
        let end = start + us;
        self.free[resource] = end;
        self.end[microbatch][stage as usize] = end;
        self.ended = self.ended.max(end);
        (start, end)
    }
}
