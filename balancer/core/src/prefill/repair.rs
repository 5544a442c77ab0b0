//! Moves and swaps items out of the fullest bins.

use super::cohort::{Bins, Problem, rank_of};
use super::load::Load;

/// Lowest bins that a repair step tries as partners of the worst bin.
const PARTNERS: usize = 6;
/// Smallest relative gain of a step; below it the potential is at its floor within rounding.
const GAIN_MIN: f64 = 1e-9;
/// How far above the bound a bin may stay: below what a step's time shows, and half of what is asked for.
const EVEN_ENOUGH: f64 = 1.004;
/// Bins that may turn out to be at their best (one prompt fills them) before the repair ends: the ones after
/// them are lower and seldom better. With 64 of them a cohort of 5120 prompts on 320 ranks takes a third longer; its
/// microbatches end at 1.122 instead of 1.141 and its ranks at 1.194 instead of 1.186. No fuller cohort comes that far.
const STUCK_MAX: usize = 16;

/// Takes the worst bin and does the best step with one of the bins that are lowest where it is highest, as
/// long as the potential falls. At most as many steps as there are items, which bounds the time and has
/// never been the limit.
pub(super) fn repair(problem: &Problem, bins: &mut Bins) {
    let mut stuck: Vec<usize> = Vec::new();
    let mut scratch = Scratch::default();
    for _ in 0..problem.items.len() {
        let Some(worst) = fullest(&bins.loads, &stuck) else { return };
        match best_step(problem, bins, worst, &mut scratch) {
            Some(step) => {
                stuck.retain(|&bin| bin != step.partner);
                apply(problem, bins, worst, step);
            }
            None if stuck.len() == STUCK_MAX => return,
            None => stuck.push(worst),
        }
    }
}

/// The fullest bin of those that are not stuck, if it is fuller than it may stay; the first among equals.
fn fullest(loads: &[Load], stuck: &[usize]) -> Option<usize> {
    let mut best = (EVEN_ENOUGH, None);
    for (bin, load) in loads.iter().enumerate() {
        if load.worst() > best.0 && !stuck.contains(&bin) {
            best = (load.worst(), Some(bin));
        }
    }
    best.1
}

/// Item number `out` of the worst bin goes to `partner`, in exchange for its `back`.
#[derive(Clone, Copy)]
struct Step {
    partner: usize,
    out: usize,
    back: Option<usize>,
}

/// Loads of a partner's items on the partner's rank and on the worst bin's.
#[derive(Default)]
struct Scratch {
    here: Vec<Load>,
    there: Vec<Load>,
}

fn best_step(problem: &Problem, bins: &Bins, worst: usize, scratch: &mut Scratch) -> Option<Step> {
    let high = bins.loads[worst];
    let partners: [Option<usize>; PARTNERS] =
        if high.n >= high.a { lowest(&bins.loads, |l| l.n) } else { lowest(&bins.loads, |l| l.a) };
    let mut best = (GAIN_MIN * high.potential(), None);
    let mut worst_after = f64::INFINITY;
    for partner in partners.into_iter().flatten() {
        if partner == worst {
            continue;
        }
        if worst_after <= EVEN_ENOUGH {
            break;
        }
        let low = bins.loads[partner];
        let before = high.potential() + low.potential();
        let loads_on = |bin, into: &mut Vec<Load>| {
            into.clear();
            into.extend(bins.members[partner].iter().map(|&item| problem.load_on(item, rank_of(bin))));
            // The last stands for nothing that comes back.
            into.push(Load::default());
        };
        loads_on(partner, &mut scratch.here);
        loads_on(worst, &mut scratch.there);
        for (out, &moved) in bins.members[worst].iter().enumerate() {
            let left = high - problem.load_on(moved, rank_of(worst));
            let joined = low + problem.load_on(moved, rank_of(partner));
            for (back, (&here, &there)) in scratch.here.iter().zip(&scratch.there).enumerate() {
                let (high, low) = (left + there, joined - here);
                let gain = before - high.potential() - low.potential();
                if gain > best.0 {
                    worst_after = high.worst().max(low.worst());
                    let back = Some(back).filter(|&back| back < bins.members[partner].len());
                    best = (gain, Some(Step { partner, out, back }));
                }
            }
        }
    }
    best.1
}

fn apply(problem: &Problem, bins: &mut Bins, worst: usize, step: Step) {
    let (high, low) = (rank_of(worst), rank_of(step.partner));
    let moved = bins.members[worst].swap_remove(step.out);
    bins.loads[worst] = bins.loads[worst] - problem.load_on(moved, high);
    bins.loads[step.partner] += problem.load_on(moved, low);
    if let Some(back) = step.back {
        let returned = bins.members[step.partner].swap_remove(back);
        bins.loads[step.partner] = bins.loads[step.partner] - problem.load_on(returned, low);
        bins.loads[worst] += problem.load_on(returned, high);
        bins.members[worst].push(returned);
    }
    bins.members[step.partner].push(moved);
}

/// The up to `K` bins of lowest key, lowest first.
fn lowest<const K: usize>(loads: &[Load], key: impl Fn(Load) -> f64) -> [Option<usize>; K] {
    let mut best: [Option<usize>; K] = [None; K];
    let mut keys = [f64::INFINITY; K];
    for (bin, &load) in loads.iter().enumerate() {
        let value = key(load);
        if value >= keys[K - 1] {
            continue;
        }
        let place = keys.iter().position(|&k| value < k).expect("below the last key");
        keys[place..].rotate_right(1);
        best[place..].rotate_right(1);
        (keys[place], best[place]) = (value, Some(bin));
    }
    best
}
