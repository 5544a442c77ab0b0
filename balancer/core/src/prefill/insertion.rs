//! The first assignment of a cohort: largest first, each item into the best of a few bins.

use super::cohort::{Bins, MICROBATCHES, Problem};
use super::load::Load;
use super::{cohort::rank_of, item::Item};

/// Least-loaded bins that an insertion chooses among: enough that one of them lacks just what the item
/// brings most of.
const CHOICES: usize = 4;
/// Ranks with the longest hits that an item is tried on beside them: the best may be hot.
const HIT_CHOICES: usize = 2;

pub(super) fn insert_largest_first(problem: &Problem, bins: &mut Bins) {
    assert!(problem.items.len() <= 1 << NUMBER_BITS, "{} items have no numbers", problem.items.len());
    let largest_first = |item: u32| !keyed(problem.load_anywhere(item), !item);
    let mut order: Vec<u64> = (0..problem.items.len() as u32).map(largest_first).collect();
    order.sort_unstable();
    let mut lowest = Lowest::of(&bins.loads);
    let mut near = Vec::new();
    for item in order.into_iter().map(number_of) {
        near.clear();
        hit_bins(&problem.items[item as usize], bins.loads.len(), &mut near);
        near.extend(lowest.choices());
        let (_, bin, load) = near
            .iter()
            .map(|&bin| {
                let load = problem.load_on(item, rank_of(bin as usize));
                (added(bins.loads[bin as usize], load), bin, load)
            })
            .min_by(|x, y| x.0.total_cmp(&y.0))
            .expect("items need bins");
        bins.loads[bin as usize] += load;
        bins.members[bin as usize].push(item);
        lowest.raise(bin, bins.loads[bin as usize]);
    }
}

/// What the potential gains. A bin that is fuller must save work in proportion: this is what breaks the
/// affinity to a hot rank.
fn added(bin: Load, item: Load) -> f64 {
    (bin + item).potential() - bin.potential()
}

/// The bins of the ranks with the longest hits, longest first; of equal ones the first rank's, for that has least in its cache.
fn hit_bins(item: &Item, bins: usize, into: &mut Vec<u32>) {
    let mut best: [Option<(u64, usize)>; HIT_CHOICES] = [None; HIT_CHOICES];
    for hit in item.hits.iter().filter(|hit| hit.rank * MICROBATCHES < bins) {
        let after = |(tokens, rank)| hit.tokens > tokens || (hit.tokens == tokens && hit.rank < rank);
        let shorter = |b: &Option<(u64, usize)>| b.is_none_or(after);
        if let Some(place) = best.iter().position(shorter) {
            best[place..].rotate_right(1);
            best[place] = Some((hit.tokens, hit.rank));
        }
    }
    for (_, rank) in best.into_iter().flatten() {
        into.extend((0..MICROBATCHES).map(|half| (rank * MICROBATCHES + half) as u32));
    }
}

/// Low bits of a key, which are the number of an item or a bin: more than there may be of either. What is left of a load is exact to
/// one in 10^8.
const NUMBER_BITS: u32 = 24;

/// A load's larger part, and a number that orders equals, as one integer: what is sorted by whole numbers is sorted without a branch.
fn keyed(load: Load, number: u32) -> u64 {
    debug_assert!(load.worst() >= 0.0, "work is not negative");
    let least = (1 << NUMBER_BITS) - 1;
    (load.worst().to_bits() & !least) | (u64::from(number) & least)
}

fn number_of(keyed: u64) -> u32 {
    (keyed & ((1 << NUMBER_BITS) - 1)) as u32
}

/// Bins that are kept in order, of all those that a cohort may have: to keep a few in order and to look for the next now and then
/// takes less than to keep hundreds in order, and than a heap.
const FRONT: usize = 64;

/// The bins of least larger load; ties go to the lower bin.
struct Lowest {
    /// By load and bin, the lowest last, where they leave from; none of the others is lower.
    front: Vec<u64>,
    rest: Vec<u64>,
}

impl Lowest {
    fn of(loads: &[Load]) -> Self {
        let rest = loads.iter().zip(0..).map(|(&load, bin)| keyed(load, bin)).collect();
        let mut lowest = Self { front: Vec::with_capacity(FRONT), rest };
        lowest.refill();
        lowest
    }

    /// The lowest [`CHOICES`], lowest first, or as many as there are.
    fn choices(&self) -> impl Iterator<Item = u32> {
        self.front.iter().rev().take(CHOICES).map(|&keyed| number_of(keyed))
    }

    /// A bin is fuller now.
    fn raise(&mut self, bin: u32, to: Load) {
        let raised = keyed(to, bin);
        let Some(place) = self.front.iter().rposition(|&other| number_of(other) == bin) else {
            let place = self.rest.iter().position(|&other| number_of(other) == bin);
            self.rest[place.expect("each bin has its place")] = raised;
            return;
        };
        if raised < self.front[0] {
            let above = self.front.partition_point(|&other| other > raised).min(place);
            self.front.copy_within(above..place, above + 1);
            self.front[above] = raised;
            return;
        }
        self.front.remove(place);
        self.rest.push(raised);
        if self.front.len() < CHOICES {
            self.refill();
        }
    }

    fn refill(&mut self) {
        self.rest.append(&mut self.front);
        let others = self.rest.len().saturating_sub(FRONT);
        if others > 0 {
            self.rest.select_nth_unstable_by(others, |x, y| y.cmp(x));
        }
        self.front.extend(self.rest.drain(others..));
        self.front.sort_unstable_by(|x, y| y.cmp(x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bins_are_at_hand() {
        for bins in [1, 3, 64, 65, 300] {
            let mut loads = vec![Load::default(); bins];
            let mut lowest = Lowest::of(&loads);
            for turn in 0..2000usize {
                // One of the lowest as a rule, now and then any.
                let bin =
                    if turn % 7 == 0 { turn * 31 % bins } else { lowest.choices().next().unwrap() as usize };
                loads[bin].n += (turn * 37 % 11) as f64;
                lowest.raise(bin as u32, loads[bin]);
                let mut all: Vec<(f64, u32)> = loads.iter().zip(0..).map(|(l, b)| (l.n, b)).collect();
                all.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
                let expected: Vec<u32> = all.iter().take(CHOICES).map(|&(_, bin)| bin).collect();
                assert_eq!(lowest.choices().collect::<Vec<_>>(), expected, "turn {turn} of {bins} bins");
            }
        }
    }

    #[test]
    fn the_longest_hits_are_tried() {
        let hit = |(rank, tokens)| crate::prefill::Hit { rank, tokens };
        let hits = [(4, 10), (3, 20), (0, 30), (9, 99), (2, 20)].map(hit).to_vec();
        let prompt = crate::prefill::Prompt { context: 0, remaining: 100 };
        let mut bins = Vec::new();
        hit_bins(&Item { prompt, hits }, 10, &mut bins);
        assert_eq!(bins, [0, 1, 4, 5]);
    }
}
