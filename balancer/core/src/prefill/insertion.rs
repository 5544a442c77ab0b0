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
    let size = |item: u32| (problem.load_anywhere(item).worst(), item);
    let mut order: Vec<(f64, u32)> = (0..problem.items.len() as u32).map(size).collect();
    order.sort_unstable_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    let mut ascending = Ascending::of(&bins.loads);
    let mut near = Vec::new();
    for (_, item) in order {
        near.clear();
        hit_bins(&problem.items[item as usize], bins.loads.len(), &mut near);
        near.extend(&ascending.bins[..CHOICES.min(ascending.bins.len())]);
        let (_, bin, load) = near
            .iter()
            .map(|&bin| {
                let load = problem.load_on(item, rank_of(bin as usize));
                (added(bins.loads[bin as usize], load), bin, load)
            })
            .min_by(|x, y| x.0.total_cmp(&y.0))
            .expect("items need bins");
        let before = bins.loads[bin as usize];
        bins.loads[bin as usize] += load;
        bins.members[bin as usize].push(item);
        ascending.raise(bin, before.worst(), bins.loads[bin as usize].worst());
    }
}

/// What the potential gains. A bin that is fuller must save work in proportion: this is what breaks the
/// affinity to a hot rank.
fn added(bin: Load, item: Load) -> f64 {
    (bin + item).potential() - bin.potential()
}

/// The bins of the ranks with the longest hits, longest first.
fn hit_bins(item: &Item, bins: usize, into: &mut Vec<u32>) {
    let mut best: [Option<(u64, usize)>; HIT_CHOICES] = [None; HIT_CHOICES];
    for hit in item.hits.iter().filter(|hit| hit.rank * MICROBATCHES < bins) {
        let shorter = |b: &Option<(u64, usize)>| b.is_none_or(|(tokens, _)| hit.tokens > tokens);
        if let Some(place) = best.iter().position(shorter) {
            best[place..].rotate_right(1);
            best[place] = Some((hit.tokens, hit.rank));
        }
    }
    for (_, rank) in best.into_iter().flatten() {
        into.extend((0..MICROBATCHES).map(|half| (rank * MICROBATCHES + half) as u32));
    }
}

/// Bins by their larger load, least first. Kept sorted by moving what lies between: a few hundred entries
/// move faster than a heap gives its four least.
struct Ascending {
    keys: Vec<f64>,
    bins: Vec<u32>,
}

impl Ascending {
    fn of(loads: &[Load]) -> Self {
        let mut bins: Vec<u32> = (0..loads.len() as u32).collect();
        bins.sort_by(|&x, &y| loads[x as usize].worst().total_cmp(&loads[y as usize].worst()));
        Self { keys: bins.iter().map(|&bin| loads[bin as usize].worst()).collect(), bins }
    }

    fn raise(&mut self, bin: u32, from: f64, to: f64) {
        let first = self.keys.partition_point(|&key| key < from);
        let same = self.bins[first..].iter().position(|&other| other == bin);
        let place = first + same.expect("each bin has its place");
        let end = self.keys.partition_point(|&key| key < to).max(place + 1);
        self.keys.copy_within(place + 1..end, place);
        self.bins.copy_within(place + 1..end, place);
        (self.keys[end - 1], self.bins[end - 1]) = (to, bin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_stay_sorted() {
        let mut loads: Vec<Load> = [3.0, 1.0, 2.0, 1.0].map(|n| Load { n, a: 0.0 }).to_vec();
        let mut ascending = Ascending::of(&loads);
        for (bin, by) in [(1, 0.5), (3, 0.0), (3, 9.0), (0, 0.1), (2, 1.0), (1, 0.0)] {
            let before = loads[bin].n;
            loads[bin].n += by;
            ascending.raise(bin as u32, before, loads[bin].n);
            assert!(ascending.keys.is_sorted(), "{:?}", ascending.keys);
            for (&key, &bin) in ascending.keys.iter().zip(&ascending.bins) {
                assert_eq!(key, loads[bin as usize].n);
            }
        }
    }

    #[test]
    fn the_longest_hits_are_tried() {
        let hit = |(rank, tokens)| crate::prefill::Hit { rank, tokens };
        let hits = [(4, 10), (0, 30), (9, 99), (2, 20)].map(hit).to_vec();
        let prompt = crate::prefill::Prompt { context: 0, remaining: 100 };
        let mut bins = Vec::new();
        hit_bins(&Item { prompt, hits }, 10, &mut bins);
        assert_eq!(bins, [0, 1, 4, 5]);
    }
}
