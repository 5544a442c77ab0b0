//! The stages of two microbatches on the GPU's cores and on the network, over some layers, drawn to scale.

use super::axis::{Axis, number};
use super::svg::{Anchor, Svg};
use evenkeel_simulate::overlap::{Overlap, Schedule, Span, StageTimes, schedule};

const WIDTH: f64 = 1180.0;
const LEFT: f64 = 96.0;
const LANE: f64 = 34.0;
const TOP: f64 = 44.0;
/// Layers that are drawn: the pipeline fills in the first.
const LAYERS: usize = 3;
/// A stage's name fits where it has so many pixels a letter.
const LETTER: f64 = 7.4;

/// What is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    /// What the picture is of: phase, batch.
    pub(crate) title: String,
    /// The order.
    pub(crate) overlap: Overlap,
    /// Of each microbatch.
    pub(crate) microbatches: Vec<StageTimes>,
}

impl Timeline {
    /// Its schedule.
    pub(crate) fn schedule(&self) -> Schedule {
        schedule(self.overlap, &self.microbatches, LAYERS)
    }

    /// In a sentence.
    pub(crate) fn words(&self) -> String {
        let Schedule { layer_us, exposed_us, .. } = self.schedule();
        let part = 100.0 * exposed_us / layer_us.max(f64::MIN_POSITIVE);
        format!(
            "{}, overlap {}: a layer takes {} µs, of which {} µs ({part:.0} %) are communication with nothing to compute",
            self.title,
            self.overlap.name(),
            number(layer_us),
            number(exposed_us),
        )
    }

    /// As a file of its own.
    pub(crate) fn file(&self) -> String {
        self.draw().file()
    }

    /// As part of a page.
    pub(super) fn inline(&self) -> String {
        self.draw().inline()
    }

    fn draw(&self) -> Svg {
        let schedule = self.schedule();
        let bottom = TOP + 2.0 * LANE + 14.0;
        let mut svg = Svg::new(WIDTH, bottom + 26.0, self.words());
        svg.text("ink", (0.0, 13.0), Anchor::Start, &self.words());
        let axis = Axis::from_zero([schedule.total_us].into_iter(), LEFT, WIDTH - LEFT - 26.0);
        axis.draw(&mut svg, TOP - 4.0, bottom, " µs");
        for (lane, text) in ["GPU cores", "network"].into_iter().enumerate() {
            svg.text("ink", (0.0, TOP + LANE * lane as f64 + LANE / 2.0 + 2.0), Anchor::Start, text);
        }
        for span in &schedule.spans {
            block(&mut svg, &axis, span);
        }
        for microbatch in 0..self.microbatches.len() {
            let x = WIDTH - 220.0 + 112.0 * microbatch as f64;
            svg.rect(&format!("mb{microbatch}"), (x, 20.0), (12.0, 12.0), "");
            svg.text("", (x + 17.0, 30.0), Anchor::Start, &format!("microbatch {microbatch}"));
        }
        svg
    }
}

fn block(svg: &mut Svg, axis: &Axis, span: &Span) {
    let lane = if span.stage.on_network() { 1.0 } else { 0.0 };
    let (left, right) = (axis.at(span.start_us), axis.at(span.end_us));
    let y = TOP + LANE * lane;
    let hint = format!(
        "{} of microbatch {}, layer {}: {} to {} µs",
        span.stage.name(),
        span.microbatch,
        span.layer + 1,
        number(span.start_us),
        number(span.end_us)
    );
    svg.rect(&format!("mb{} edge", span.microbatch), (left, y), (right - left, LANE - 6.0), &hint);
    let name = span.stage.name();
    let short: String = name
        .chars()
        .filter(|letter| *letter != '-')
        .take(1)
        .chain(name.chars().filter(char::is_ascii_digit))
        .collect();
    let room = ((right - left) / LETTER) as usize;
    let text = if name.len() <= room {
        name
    } else if short.len() <= room {
        &short
    } else {
        ""
    };
    if !text.is_empty() {
        svg.text("on small", ((left + right) / 2.0, y + LANE / 2.0), Anchor::Middle, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_of_every_layer_is_drawn_and_explained() {
        let times = StageTimes([2.0, 6.0, 4.0, 2.0, 3.0, 6.0]);
        let check = |overlap, microbatches: Vec<StageTimes>| {
            let blocks = 6 * LAYERS * microbatches.len();
            let timeline = Timeline { title: "decode".into(), overlap, microbatches };
            let svg = timeline.file();
            assert_eq!(svg.matches(", layer ").count(), blocks, "{overlap:?}");
            assert!(svg.contains("<style>") && !svg.contains("<script"), "{overlap:?}");
        };
        check(Overlap::None, vec![times]);
        check(Overlap::DualBatch, vec![times; 2]);
        check(Overlap::FiveStage, vec![times; 2]);
    }
}
