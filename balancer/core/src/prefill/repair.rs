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
    let mut heights = Heights::of(&bins.loads);
    let mut stuck = 0;
    let mut scratch = Scratch::default();
    for _ in 0..problem.items.len() {
        let Some(worst) = heights.fullest() else { return };
        match best_step(problem, bins, &heights, worst, &mut scratch) {
            Some(step) => {
                apply(problem, bins, worst, step);
                stuck -= usize::from(heights.is_stuck(step.partner));
                heights.set(worst, bins.loads[worst]);
                heights.set(step.partner, bins.loads[step.partner]);
            }
            None if stuck == STUCK_MAX => return,
            None => {
                heights.stick(worst);
                stuck += 1;
            }
        }
    }
}

/// The bins' loads once more, each dimension by itself: what is looked through at every step is read in a row.
struct Heights {
    n: Vec<f64>,
    a: Vec<f64>,
    /// The larger of both; [`STUCK`] for a bin that is at its best.
    worst: Vec<f64>,
}

/// Below every load.
const STUCK: f64 = -1.0;

impl Heights {
    fn of(loads: &[Load]) -> Self {
        Self {
            n: loads.iter().map(|load| load.n).collect(),
            a: loads.iter().map(|load| load.a).collect(),
            worst: loads.iter().map(|load| load.worst()).collect(),
        }
    }

    fn set(&mut self, bin: usize, load: Load) {
        (self.n[bin], self.a[bin], self.worst[bin]) = (load.n, load.a, load.worst());
    }

    fn stick(&mut self, bin: usize) {
        self.worst[bin] = STUCK;
    }

    fn is_stuck(&self, bin: usize) -> bool {
        self.worst[bin] == STUCK
    }

    /// The fullest bin of those that are not stuck, if it is fuller than it may stay; the first among equals.
    fn fullest(&self) -> Option<usize> {
        // Several maxima side by side: one by itself would wait for each comparison.
        const LANES: usize = 8;
        let mut highest = [EVEN_ENOUGH; LANES];
        let chunks = self.worst.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (highest, &height) in highest.iter_mut().zip(chunk) {
                *highest = if height > *highest { height } else { *highest };
            }
        }
        let highest = highest.iter().chain(rest).fold(EVEN_ENOUGH, |x, &y| x.max(y));
        if highest == EVEN_ENOUGH { None } else { self.worst.iter().position(|&height| height == highest) }
    }
}

/// Item number `out` of the worst bin goes to `partner`, in exchange for its `back`.
#[derive(Clone, Copy)]
struct Step {
    partner: usize,
    out: usize,
    back: Option<usize>,
}

/// Loads of a partner's items on the partner's rank and on the worst bin's, and what it would be to give each in exchange.
#[derive(Default)]
struct Scratch {
    here: Vec<Load>,
    there: Vec<Load>,
    potentials: Vec<f64>,
}

fn best_step(
    problem: &Problem,
    bins: &Bins,
    heights: &Heights,
    worst: usize,
    scratch: &mut Scratch,
) -> Option<Step> {
    let high = bins.loads[worst];
    let partners: [Option<usize>; PARTNERS] = lowest(if high.n >= high.a { &heights.n } else { &heights.a });
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
            let exchanges = || scratch.here.iter().zip(&scratch.there);
            let after =
                exchanges().map(|(&here, &there)| (left + there).potential() + (joined - here).potential());
            scratch.potentials.clear();
            scratch.potentials.extend(after);
            let least = scratch.potentials.iter().copied().fold(f64::INFINITY, f64::min);
            if before - least > best.0 {
                let back =
                    scratch.potentials.iter().position(|&after| after == least).expect("it is one of them");
                worst_after = (left + scratch.there[back]).worst().max((joined - scratch.here[back]).worst());
                let back = Some(back).filter(|&back| back < bins.members[partner].len());
                best = (before - least, Some(Step { partner, out, back }));
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

/// The up to `K` bins of lowest height, lowest first; the first among equals.
fn lowest<const K: usize>(heights: &[f64]) -> [Option<usize>; K] {
    let mut best: [Option<usize>; K] = [None; K];
    let mut keys = [f64::INFINITY; K];
    for (bin, &height) in heights.iter().enumerate() {
        if height >= keys[K - 1] {
            continue;
        }
        let mut place = K - 1;
        while place > 0 && height < keys[place - 1] {
            (keys[place], best[place]) = (keys[place - 1], best[place - 1]);
            place -= 1;
        }
        (keys[place], best[place]) = (height, Some(bin));
    }
    best
}
