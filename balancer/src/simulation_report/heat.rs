//! Loads of all ranks over time as a map: a line a rank, a column a moment, the colour its load over the mean of the moment.

use super::svg::{Anchor, Svg};
use std::fmt::Write;

/// Map: width and most height, pixels. Four stand in a row on a wide screen.
const WIDTH: f64 = 366.0;
const HEIGHT: f64 = 108.0;
/// Most lines and columns: more are joined, as the highest of them, so that no peak is lost.
const LINES_MAX: usize = 36;
const COLUMNS_MAX: usize = 61;
/// Upper ends of the colours, load over mean; the last has none.
const CLASSES: [f64; 7] = [0.5, 0.8, 0.95, 1.05, 1.25, 1.6, 2.5];

/// The class of a load over the mean.
fn class(ratio: f64) -> usize {
    CLASSES.iter().position(|&end| ratio < end).unwrap_or(CLASSES.len())
}

/// `[moments][ranks]` as `[lines][columns]` of load over the moment's mean; 1 where there is no load at all.
pub(super) fn ratios(series: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let (moments, ranks) = (series.len(), series.first().map_or(0, Vec::len));
    let (columns, lines) = (moments.min(COLUMNS_MAX), ranks.min(LINES_MAX));
    let mut map = vec![vec![0.0f64; columns]; lines];
    for (moment, loads) in series.iter().enumerate() {
        let mean = loads.iter().map(|&load| f64::from(load)).sum::<f64>() / ranks.max(1) as f64;
        for (rank, &load) in loads.iter().enumerate() {
            let ratio = if mean > 0.0 { f64::from(load) / mean } else { 1.0 };
            let cell = &mut map[rank * lines / ranks][moment * columns / moments];
            *cell = cell.max(ratio);
        }
    }
    map
}

/// Draws the map of one policy.
pub(super) fn map(name: &str, ours: bool, figure: &str, series: &[Vec<f32>]) -> String {
    let map = ratios(series);
    let mut svg = Svg::new(WIDTH, HEIGHT + 18.0, format!("{name}: loads of the ranks over time, {figure}"));
    svg.text(if ours { "bold" } else { "ink" }, (0.0, 11.0), Anchor::Start, name);
    svg.text("", (WIDTH, 11.0), Anchor::End, figure);
    let columns = map.first().map_or(0, Vec::len);
    let (width, height) = (WIDTH / columns.max(1) as f64, HEIGHT / map.len().max(1) as f64);
    let mut paths = vec![String::new(); CLASSES.len() + 1];
    for (line, cells) in map.iter().enumerate() {
        let mut column = 0;
        while column < cells.len() {
            let class = class(cells[column]);
            let run = cells[column..].iter().take_while(|&&cell| self::class(cell) == class).count();
            let (x, y) = (column as f64 * width, 18.0 + line as f64 * height);
            write!(paths[class], "M{x:.1} {y:.1}h{:.1}v{height:.2}h-{0:.1}z", run as f64 * width)
                .expect("a string takes everything");
            column += run;
        }
    }
    for (class, data) in paths.iter().enumerate().filter(|(_, data)| !data.is_empty()) {
        svg.path(&format!("h{class}"), data);
    }
    svg.inline()
}

/// What the colours mean.
pub(super) fn legend() -> String {
    let mut svg = Svg::new(630.0, 22.0, "Colours: load over the mean of the moment");
    svg.text("", (0.0, 13.0), Anchor::Start, "load over mean:");
    for class in 0..=CLASSES.len() {
        let x = 98.0 + 66.0 * class as f64;
        svg.rect(&format!("h{class}"), (x, 3.0), (14.0, 12.0), "");
        let text = match class {
            0 => format!("< {}", CLASSES[0]),
            class if class == CLASSES.len() => format!("≥ {}", CLASSES[class - 1]),
            class => format!("≥ {}", CLASSES[class - 1]),
        };
        svg.text("", (x + 18.0, 13.0), Anchor::Start, &text);
    }
    svg.inline()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_survives_joining() {
        let mut series = vec![vec![1.0f32; 144]; 240];
        series[200][100] = 145.0;
        let map = ratios(&series);
        assert_eq!((map.len(), map[0].len()), (LINES_MAX, COLUMNS_MAX));
        let most = map.iter().flatten().copied().fold(0.0, f64::max);
        assert_eq!(most, 72.5);
        assert_eq!(map.iter().flatten().filter(|&&cell| cell > 1.0).count(), 1);
    }

    #[test]
    fn moments_without_load_are_even_and_none_at_all_is_empty() {
        assert_eq!(ratios(&[vec![0.0, 0.0]]), [[1.0], [1.0]]);
        assert!(ratios(&[]).is_empty());
        assert!(map("p", false, "", &[]).starts_with("<svg"));
    }
}
