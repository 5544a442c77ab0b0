//! What a simulation showed, as one page that needs no network and no script, and as JSON with the same figures.

mod axis;
mod heat;
mod json;
mod lines;
mod page;
mod rows;
mod svg;
mod table;
mod timeline;

pub(crate) use axis::number;
pub(crate) use json::line as calibration_json;
pub(crate) use timeline::Timeline;

use evenkeel_simulate::cluster::{Figures, Objectives};
use evenkeel_simulate::step_time::calibration::{Calibration, Line};
use std::cmp::Ordering;

/// A policy and its figures.
pub(crate) struct Run {
    /// As the command line takes it.
    pub(crate) key: String,
    /// As tables show it.
    pub(crate) name: String,
    /// Whether it is Evenkeel.
    pub(crate) ours: bool,
    /// How often it hears from the engines, seconds; 0: before each decision; `None`: not a single interval.
    pub(crate) report_interval_s: Option<f64>,
    /// What it reached.
    pub(crate) figures: Figures,
}

/// All of a simulation.
pub(crate) struct Report {
    /// prefill, decode or disaggregated.
    pub(crate) kind: &'static str,
    /// As it was called.
    pub(crate) command: String,
    /// Of the program.
    pub(crate) version: &'static str,
    /// What went in, by name.
    pub(crate) inputs: Vec<(&'static str, String)>,
    /// What must be known of the trace.
    pub(crate) notes: Vec<String>,
    /// Moments before it are warm-up.
    pub(crate) measured_from_ms: f64,
    /// What counts as served well.
    pub(crate) objectives: Objectives,
    /// To what the step times are fitted.
    pub(crate) calibration: Calibration,
    /// The step times beside what was stated.
    pub(crate) calibration_lines: Vec<Line>,
    /// Pictures of the overlap at the load of the first policy.
    pub(crate) timelines: Vec<Timeline>,
    /// In the order of merit: see [`by_merit`].
    pub(crate) runs: Vec<Run>,
}

impl Report {
    /// The page.
    pub(crate) fn html(&self) -> String {
        page::page(self)
    }

    /// The figures.
    pub(crate) fn json(&self) -> serde_json::Value {
        json::report(self)
    }
}

/// Sorts runs: more goodput first, then shorter steps, then the order in which they were named.
pub(crate) fn by_merit(runs: &mut [Run]) {
    let steps = |run: &Run| {
        let pools = [&run.figures.prefill, &run.figures.decode];
        pools.iter().filter_map(|pool| pool.as_ref()).map(|pool| pool.step_over_ideal).fold(0.0, f64::max)
    };
    runs.sort_by(|a, b| {
        let goodput = b.figures.goodput_part.total_cmp(&a.figures.goodput_part);
        let goodput =
            if a.figures.goodput_part == b.figures.goodput_part { Ordering::Equal } else { goodput };
        goodput.then(steps(a).total_cmp(&steps(b)))
    });
}

#[cfg(test)]
mod tests;
