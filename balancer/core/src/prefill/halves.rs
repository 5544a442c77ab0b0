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
    let mut changes = [Vec::new(), Vec::new()];
    for first in (0..bins.loads.len()).step_by(MICROBATCHES) {
        let rank = rank_of(first);
        let part = Part::of(bins.loads[first], bins.loads[first + 1]);
        let mut difference = part.of_mean(bins.loads[first] - bins.loads[first + 1]);
        for (members, changes) in bins.members[first..].iter().zip(&mut changes) {
            let change = |&item: &u32| {
                let load = part.of_mean(problem.load_on(item, rank));
                load + load
            };
            changes.clear();
            changes.extend(members.iter().map(change));
            // The last stands for nothing that moves.
            changes.push(Load::default());
        }
        for _ in 0..STEPS_MAX {
            let Some(step) = best_step(difference, &changes) else { break };
            difference = difference - changes[0][step[0]] + changes[1][step[1]];
            let taken: [Option<(u32, Load)>; 2] = std::array::from_fn(|half| {
                let (place, members) = (step[half], &mut bins.members[first + half]);
                (place < members.len()).then(|| (members.swap_remove(place), take(&mut changes[half], place)))
            });
            for (half, taken) in taken.into_iter().enumerate() {
                let Some((item, change)) = taken else { continue };
                let load = problem.load_on(item, rank);
                bins.loads[first + half] = bins.loads[first + half] - load;
                bins.loads[first + 1 - half] += load;
                bins.members[first + 1 - half].push(item);
                put(&mut changes[1 - half], change);
            }
        }
    }
}

/// As `swap_remove` does, but that the last one stays the last.
fn take(changes: &mut Vec<Load>, place: usize) -> Load {
    let change = changes[place];
    let before_last = changes.len() - 2;
    changes[place] = changes[before_last];
    changes.remove(before_last);
    change
}

/// Before the last one.
fn put(changes: &mut Vec<Load>, change: Load) {
    changes.insert(changes.len() - 1, change);
}

/// One over the mean half of a rank, which no exchange changes; 0 where there is nothing.
#[derive(Clone, Copy)]
struct Part(Load);

impl Part {
    fn of(zero: Load, one: Load) -> Self {
        let part = |sum: f64| if sum > 0.0 { 2.0 / sum } else { 0.0 };
        let both = zero + one;
        Self(Load { n: part(both.n), a: part(both.a) })
    }

    fn of_mean(self, load: Load) -> Load {
        Load { n: load.n * self.0.n, a: load.a * self.0.a }
    }
}

/// The places of what half 0 gives and half 1 gives back so that the halves are most alike, the last place for nothing; `None` when they
/// are alike enough or nothing helps. All are parts of the mean half, and what moves counts twice, as one half loses what the other gains.
fn best_step(difference: Load, changes: &[Vec<Load>; 2]) -> Option<[usize; 2]> {
    let uneven = |d: Load| d.n.abs().max(d.a.abs());
    let now = uneven(difference);
    if now <= EVEN_ENOUGH {
        return None;
    }
    let mut best = (now, None);
    for (out, &given) in changes[0].iter().enumerate() {
        let left = difference - given;
        // The least first and where it is only if it is better: seldom, and a loop without a branch is several times faster.
        let after = || changes[1].iter().map(|&returned| uneven(left + returned));
        let least = after().fold(f64::INFINITY, |x, y| if y < x { y } else { x });
        if least < best.0 {
            let back = after().position(|after| after == least).expect("it is one of them");
            best = (least, Some([out, back]));
        }
    }
    best.1
}
