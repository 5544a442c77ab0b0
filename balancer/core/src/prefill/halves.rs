//! Makes the two microbatches of each rank equal.

use super::cohort::{Bins, MICROBATCHES, Problem, rank_of};
use super::load::Load;

/// Difference of the halves over their mean, in tokens or attention, that is left alone: half of what is
/// asked for.
const EVEN_ENOUGH: f64 = 0.01;
/// Swaps of a rank at most. Each is the best of all there are, so four suffice nearly always.
const STEPS_MAX: usize = 12;

/// Moves and swaps items between the halves of each rank. What a rank has in all stays as it is, and so
/// does what an item costs.
pub(super) fn even_halves(problem: &Problem, bins: &mut Bins) {
    let mut loads = [Vec::new(), Vec::new()];
    for first in (0..bins.loads.len()).step_by(MICROBATCHES) {
        for (half, loads) in loads.iter_mut().enumerate() {
            loads.clear();
            let members = &bins.members[first + half];
            loads.extend(members.iter().map(|&item| problem.load_on(item, rank_of(first))));
        }
        for _ in 0..STEPS_MAX {
            let Some((out, back)) = best_step(bins.loads[first], bins.loads[first + 1], &loads) else {
                break;
            };
            let taken = [(0, out), (1, back)].map(|(half, place): (usize, Option<usize>)| {
                place.map(|p| (bins.members[first + half].swap_remove(p), loads[half].swap_remove(p)))
            });
            for (half, taken) in taken.into_iter().enumerate() {
                let Some((item, load)) = taken else { continue };
                bins.loads[first + half] = bins.loads[first + half] - load;
                bins.loads[first + 1 - half] += load;
                bins.members[first + 1 - half].push(item);
                loads[1 - half].push(load);
            }
        }
    }
}

/// The move or swap that makes the halves most alike; `None` when they are alike enough or none helps.
fn best_step(zero: Load, one: Load, loads: &[Vec<Load>; 2]) -> Option<(Option<usize>, Option<usize>)> {
    let difference = zero - one;
    let mean = Load { n: (zero.n + one.n) / 2.0, a: (zero.a + one.a) / 2.0 };
    let part = |value: f64, mean: f64| if mean > 0.0 { value / mean } else { 0.0 };
    let uneven = |d: Load| part(d.n, mean.n).abs().max(part(d.a, mean.a).abs());
    let now = uneven(difference);
    if now <= EVEN_ENOUGH {
        return None;
    }
    let mut best = (now, None);
    let mut consider = |d: Load, step| {
        let after = uneven(d);
        if after < best.0 {
            best = (after, Some(step));
        }
    };
    for (out, &moved) in loads[0].iter().enumerate() {
        let after = difference - moved - moved;
        consider(after, (Some(out), None));
        for (back, &returned) in loads[1].iter().enumerate() {
            consider(after + returned + returned, (Some(out), Some(back)));
        }
    }
    for (back, &returned) in loads[1].iter().enumerate() {
        consider(difference + returned + returned, (None, Some(back)));
    }
    best.1
}
