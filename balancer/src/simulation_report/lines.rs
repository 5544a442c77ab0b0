//! Distributions as lines: which part of the moments was at most so uneven.

use super::axis::Axis;
use super::rows::Name;
use super::svg::{Anchor, Svg};
use std::fmt::Write;

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 30.0;

/// Of each policy, in the order of merit: its values, unsorted. Evenkeel's line is thick, the best peer's dashed, the others thin.
pub(super) fn distributions(title: &str, least: f64, rows: &[(Name<'_>, Vec<f64>)]) -> String {
    let axis = Axis::log(rows.iter().flat_map(|(_, v)| v.iter().copied()), least, LEFT, WIDTH - LEFT - RIGHT);
    let (top, bottom) = (TOP, HEIGHT - BOTTOM);
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    axis.draw(&mut svg, top, bottom, "");
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = bottom - part * (bottom - top);
        svg.line("rule", (LEFT, y), (WIDTH - RIGHT, y));
        svg.text("", (LEFT - 6.0, y + 4.0), Anchor::End, &format!("{:.0} %", part * 100.0));
    }
    let next = rows.iter().position(|(name, _)| !name.ours);
    // Evenkeel last, so that it lies on top.
    let order = (0..rows.len())
        .filter(|&row| !rows[row].0.ours)
        .chain((0..rows.len()).filter(|&row| rows[row].0.ours));
    for row in order {
        let (name, values) = &rows[row];
        let class = match (name.ours, next == Some(row)) {
            (true, _) => "ours-line",
            (false, true) => "next-line",
            (false, false) => "peer-line",
        };
        svg.path(class, &steps(values, |value| axis.at(value), |part| bottom - part * (bottom - top)));
    }
    legend(&mut svg, rows, next);
    svg.inline()
}

fn legend(svg: &mut Svg, rows: &[(Name<'_>, Vec<f64>)], next: Option<usize>) {
    let mut x = LEFT;
    let mut entry = |class: &str, text: &str| {
        svg.path(class, &format!("M{x:.0} 9h22"));
        svg.text("ink", (x + 27.0, 13.0), Anchor::Start, text);
        // Letters of this size are at most so wide.
        x += 27.0 + 6.8 * text.chars().count() as f64 + 18.0;
    };
    if let Some((name, _)) = rows.iter().find(|(name, _)| name.ours) {
        entry("ours-line", name.text);
    }
    if let Some(next) = next {
        entry("next-line", rows[next].0.text);
    }
    let others = rows.iter().filter(|(name, _)| !name.ours).count().saturating_sub(1);
    if others > 0 {
        entry("peer-line", &format!("{others} others"));
    }
}

/// The steps of an empirical distribution.
fn steps(values: &[f64], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let mut data = String::new();
    for (index, &value) in sorted.iter().enumerate() {
        let part = (index + 1) as f64 / sorted.len() as f64;
        let command = if index == 0 {
            format!("M{:.1} {:.1}V{:.1}", x(value), y(0.0), y(part))
        } else {
            format!("H{:.1}V{:.1}", x(value), y(part))
        };
        data.write_str(&command).expect("a string takes everything");
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_rises_by_its_values_from_left_to_right() {
        let found = steps(&[3.0, 1.0], |value| 10.0 * value, |part| 100.0 * (1.0 - part));
        assert_eq!(found, "M10.0 100.0V50.0H30.0V0.0");
        assert_eq!(steps(&[], |v| v, |p| p), "");
    }
}
