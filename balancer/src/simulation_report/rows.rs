//! Plots with a row for each policy: twenty of them stay readable, and a name stands beside what it names.

use super::axis::{Axis, number};
use super::svg::{Anchor, Svg};
use evenkeel_simulate::cluster::Spread;

const WIDTH: f64 = 600.0;
/// Of a letter of the names, pixels, at most; and of all names, so that the plot keeps half of the width.
const LETTER: f64 = 6.4;
const NAMES_MAX: f64 = 250.0;
/// Of the numbers on the right.
const NUMBERS: f64 = 66.0;
const ROW: f64 = 19.0;
const TOP: f64 = 8.0;

/// A policy's name, and whether it is Evenkeel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) text: &'a str,
    pub(super) ours: bool,
}

impl Name<'_> {
    fn class(self, ours: &'static str, peer: &'static str) -> &'static str {
        if self.ours { ours } else { peer }
    }
}

/// A value that should not be exceeded, and its name.
pub(super) type Limit<'a> = Option<(f64, &'a str)>;

struct Frame {
    svg: Svg,
    axis: Axis,
    left: f64,
}

impl Frame {
    fn new(title: &str, rows: usize, (axis, left): (Axis, f64), unit: &str, limit: Limit<'_>) -> Self {
        let bottom = TOP + ROW * rows as f64 + if limit.is_some() { 12.0 } else { 0.0 };
        let mut svg = Svg::new(WIDTH, bottom + 24.0, title);
        axis.draw(&mut svg, TOP, bottom, unit);
        if let Some((value, text)) = limit {
            svg.line("limit", (axis.at(value), TOP - 6.0), (axis.at(value), bottom));
            svg.text("limit-text small", (axis.at(value) + 4.0, bottom - 3.0), Anchor::Start, text);
        }
        Self { svg, axis, left }
    }

    fn name(&mut self, row: usize, name: Name<'_>, value: &str) -> f64 {
        let y = TOP + ROW * row as f64 + ROW / 2.0;
        self.svg.text(name.class("bold", "ink"), (self.left - 10.0, y + 4.0), Anchor::End, name.text);
        self.svg.text(name.class("bold", "ink"), (WIDTH - 2.0, y + 4.0), Anchor::End, value);
        y
    }
}

/// Where plots beside these names begin, and how wide they are.
fn span<'a>(names: impl Iterator<Item = Name<'a>>) -> (f64, f64) {
    let letters = names.map(|name| name.text.chars().count()).max().unwrap_or(0);
    let left = (LETTER * letters as f64 + 14.0).min(NAMES_MAX);
    (left, WIDTH - left - NUMBERS)
}

/// Bars from 0; each may have a second part behind its first.
pub(super) fn bars(title: &str, unit: &str, rows: &[(Name<'_>, f64, f64)]) -> String {
    let (left, width) = span(rows.iter().map(|row| row.0));
    let axis = Axis::from_zero(rows.iter().map(|row| row.1 + row.2), left, width);
    let mut frame = Frame::new(title, rows.len(), (axis, left), unit, None);
    for (row, &(name, value, further)) in rows.iter().enumerate() {
        let y = frame.name(row, name, &format!("{value:.1}{unit}"));
        let end = frame.axis.at(value);
        let hint = format!("{}: {value:.1}{unit}", name.text);
        frame.svg.rect(name.class("ours", "peer"), (left, y - 6.0), (end - left, 12.0), &hint);
        if further > 0.0 {
            let more = frame.axis.at(value + further) - end;
            let hint = format!("{}: {further:.1}{unit} more", name.text);
            frame.svg.rect(name.class("ours-soft", "peer-soft"), (end, y - 6.0), (more, 12.0), &hint);
        }
    }
    frame.svg.inline()
}

/// Spreads: a dot at the median, a thick line to the 90th and a thin one to the 99th percentile, a stroke at the largest.
pub(super) fn spreads(title: &str, least: f64, limit: Limit<'_>, rows: &[(Name<'_>, Spread)]) -> String {
    let (left, width) = span(rows.iter().map(|row| row.0));
    let some = rows.iter().filter(|(_, spread)| spread.count > 0);
    let values = some.flat_map(|(_, spread)| [spread.p50, spread.p99, spread.max]);
    let axis = Axis::log(values.chain(limit.map(|(value, _)| value)), least, left, width);
    let mut frame = Frame::new(title, rows.len(), (axis, left), "", limit);
    for (row, &(name, spread)) in rows.iter().enumerate() {
        if spread.count == 0 {
            frame.name(row, name, "none");
            continue;
        }
        let y = frame.name(row, name, &number(spread.p99));
        let at = |value: f64| frame.axis.at(value);
        let [p50, p90, p99, max] = [at(spread.p50), at(spread.p90), at(spread.p99), at(spread.max)];
        let class = name.class("ours", "peer");
        let hint = format!(
            "{}: median {}, p90 {}, p99 {}, largest {}",
            name.text,
            number(spread.p50),
            number(spread.p90),
            number(spread.p99),
            number(spread.max)
        );
        frame.svg.rect(name.class("ours-soft", "peer-soft"), (p99, y - 0.5), (max - p99, 1.0), "");
        frame.svg.rect(class, (p90, y - 1.5), (p99 - p90, 3.0), &hint);
        frame.svg.rect(class, (p50, y - 4.0), (p90 - p50, 8.0), &hint);
        frame.svg.rect(class, (max - 0.7, y - 4.0), (1.4, 8.0), &hint);
        frame.svg.circle(class, (p50, y), 5.0);
    }
    frame.svg.inline()
}
