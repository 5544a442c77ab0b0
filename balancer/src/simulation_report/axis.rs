//! Axes: where a value lies, and which values are marked.

use super::svg::{Anchor, Svg};

/// Marks stand at least so far apart, pixels: a number of six letters fits.
const MARK_PIXELS: f64 = 46.0;

/// A horizontal axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    left: f64,
    width: f64,
}

impl Axis {
    /// From 0 to the largest of `values`.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>, left: f64, width: f64) -> Self {
        let high = values.fold(0.0, f64::max);
        Self { low: 0.0, high: if high > 0.0 { high * 1.04 } else { 1.0 }, log: false, left, width }
    }

    /// Logarithmic, over `values`, from `least` at the lowest. Values that are not positive stand at its beginning.
    pub(super) fn log(values: impl Iterator<Item = f64> + Clone, least: f64, left: f64, width: f64) -> Self {
        let positive = values.filter(|&value| value > 0.0);
        let low = positive.clone().fold(f64::INFINITY, f64::min).max(least);
        let high = positive.fold(0.0, f64::max);
        let low = if low.is_finite() { low } else { least.max(1e-3) };
        Self { low, high: (high * 1.04).max(low * 1.05), log: true, left, width }
    }

    /// Where a value lies; what is outside lies at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.left + self.width * part.clamp(0.0, 1.0)
    }

    /// Values to mark.
    fn marks(&self) -> Vec<f64> {
        if self.log {
            const FINER: [&[f64]; 5] = [
                &[1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
                &[1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0],
                &[1.0, 2.0, 5.0],
                &[1.0, 3.0],
                &[1.0],
            ];
            let found = FINER.iter().map(|mantissas| self.at_mantissas(mantissas)).find(|m| self.apart(m));
            if let Some(marks) = found.filter(|marks| marks.len() >= 2) {
                return marks;
            }
        }
        let rough = (self.high - self.low) * MARK_PIXELS * 1.3 / self.width;
        let unit = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|&step| step >= rough).unwrap_or(unit);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|n| n as f64 * step).take_while(|&value| value <= self.high).take(100).collect()
    }

    fn at_mantissas(&self, mantissas: &[f64]) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = decades.flat_map(|decade| mantissas.iter().map(move |m| m * 10f64.powi(decade)));
        all.filter(|value| (self.low * 0.999..=self.high).contains(value)).collect()
    }

    fn apart(&self, marks: &[f64]) -> bool {
        marks.windows(2).all(|pair| self.at(pair[1]) - self.at(pair[0]) >= MARK_PIXELS)
    }

    /// Draws rules from `top` to `bottom`, and numbers below them.
    pub(super) fn draw(&self, svg: &mut Svg, top: f64, bottom: f64, unit: &str) {
        for mark in self.marks() {
            let x = self.at(mark);
            svg.line("rule", (x, top), (x, bottom));
            svg.text("", (x, bottom + 14.0), Anchor::Middle, &format!("{}{unit}", number(mark)));
        }
    }
}

/// A number in few letters.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    let text = match magnitude {
        _ if magnitude >= 1e9 => return format!("{:.3}G", value / 1e9),
        _ if magnitude >= 1e6 => return format!("{}M", number(value / 1e6)),
        _ if magnitude >= 1e5 => return format!("{}k", number(value / 1e3)),
        _ if magnitude >= 100.0 => format!("{value:.0}"),
        _ if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |value, text: &str| assert_eq!(number(value), text);
        check(0.0, "0");
        check(1.05, "1.05");
        check(1.0, "1");
        check(12.34, "12.3");
        check(100.0, "100");
        check(1234.4, "1234");
        check(20_000.0, "20000");
        check(700_000.0, "700k");
        check(1_500_000.0, "1.5M");
    }

    #[test]
    fn marks_lie_apart_and_inside() {
        let check = |axis: Axis| {
            let marks = axis.marks();
            assert!(marks.len() >= 2, "{axis:?}: {marks:?}");
            assert!(axis.apart(&marks), "{axis:?}: {marks:?}");
        };
        for (low, high) in [(1.0, 1.03), (1.0, 1.4), (1.0, 9.0), (3.0, 40_000.0), (0.001, 0.5)] {
            check(Axis::log([low, high].into_iter(), 1e-6, 200.0, 480.0));
            check(Axis::from_zero([low, high].into_iter(), 200.0, 480.0));
        }
        check(Axis::log(std::iter::empty(), 1.0, 0.0, 300.0));
        check(Axis::from_zero(std::iter::empty(), 0.0, 300.0));
    }
}
