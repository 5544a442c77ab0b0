//! How near the split comes to the exact optimum. Its reference and its kernel give the same quotas, so this needs no
//! GPU.

use crate::placements::{SPLIT_CASES, SplitCase};
use evenkeel_kernels::split::{RELAXATION, split};

/// Layers of a case, and batches of each layer and noise.
const LAYERS: u64 = 8;
const BATCHES: u64 = 16;

/// Median and 99th percentile.
pub(crate) fn median_p99(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    (at(0.5), at(0.99))
}

/// Gaps of one case, in percent.
pub(crate) fn gaps(case: &SplitCase, noise: f64, sweeps: u32, relaxation: f32) -> Vec<f64> {
    let mut gaps = Vec::new();
    for layer in 0..LAYERS {
        let placed = case.place(layer + 1);
        for batch in 0..BATCHES {
            let counts = case.batch(&placed, noise, 1000 * (layer + 1) + batch);
            let quotas = split(&placed.plan, &counts, sweeps, relaxation);
            let best = placed.optimum(&counts);
            gaps.push((placed.most(&quotas) as f64 / best as f64 - 1.0) * 100.0);
        }
    }
    gaps
}

pub(crate) fn run() {
    println!("\nsplit: gap to the exact whole-token optimum in percent, {LAYERS} layers x {BATCHES} batches");
    println!("  case          sweeps colours lanes   noise .1 median / p99   noise .2 median / p99");
    for case in SPLIT_CASES {
        let packed = case.place(1).plan;
        let of = |noise| median_p99(&mut gaps(&case, noise, case.sweeps, RELAXATION));
        let ((m1, p1), (m2, p2)) = (of(0.1), of(0.2));
        println!(
            "  {:<13} {:>6} {:>7} {:>5}   {m1:>10.4} / {p1:<8.4}   {m2:>10.4} / {p2:<8.4}",
            case.name(),
            case.sweeps,
            packed.colours(),
            packed.lanes()
        );
    }
}
