//! Assigns a cohort of whole prompts to bins so that tokens and attention are equal each by itself.

use super::halves::even_halves;
use super::insertion::insert_largest_first;
use super::item::Item;
use super::load::{Load, Scale};
use super::repair::repair;
use super::work::{Imbalance, Work};

/// Microbatches of a rank's dual batch.
pub const MICROBATCHES: usize = 2;

/// A cohort: what the bins have already, and the prompts to be added, in any order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cohort {
    /// Per bin, the work that it has not finished yet. Bins are the ranks' microbatches: rank `r` has bins
    /// `2r` and `2r + 1`. Not empty if there are items.
    pub carried: Vec<Work>,
    /// Prompts.
    pub items: Vec<Item>,
}

/// Where each prompt goes, and how good that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Bin of each item.
    pub bin_of: Vec<usize>,
    /// Of the bins' tokens, carried work included.
    pub tokens: Imbalance,
    /// Of the bins' attention, carried work included.
    pub attention: Imbalance,
}

/// What the steps of an assignment share: the items, and their loads where nothing is cached.
pub(super) struct Problem<'a> {
    pub(super) items: &'a [Item],
    scale: Scale,
    anywhere: Vec<Load>,
}

impl<'a> Problem<'a> {
    fn new(items: &'a [Item], scale: Scale) -> Self {
        let anywhere = items.iter().map(|item| scale.load(item.work_anywhere())).collect();
        Self { items, scale, anywhere }
    }

    /// Load of an item on a rank.
    pub(super) fn load_on(&self, item: u32, rank: usize) -> Load {
        let index = item as usize;
        if self.items[index].hits.is_empty() {
            return self.anywhere[index];
        }
        self.scale.load(self.items[index].work_on(rank))
    }

    /// Load of an item on a rank that has none of it.
    pub(super) fn load_anywhere(&self, item: u32) -> Load {
        self.anywhere[item as usize]
    }
}

/// The bins while they fill.
pub(super) struct Bins {
    pub(super) loads: Vec<Load>,
    pub(super) members: Vec<Vec<u32>>,
}

impl Bins {
    /// Work of each bin, and the largest of what cannot be divided, in each dimension.
    fn work(&self, cohort: &Cohort) -> (Vec<Work>, Work) {
        let mut total = cohort.carried.clone();
        let mut largest = total.iter().copied().fold(Work::default(), Work::max_each);
        for ((bin, members), total) in self.members.iter().enumerate().zip(&mut total) {
            for &item in members {
                let work = cohort.items[item as usize].work_on(rank_of(bin));
                *total += work;
                largest = largest.max_each(work);
            }
        }
        (total, largest)
    }
}

/// Rank of a bin.
pub(super) fn rank_of(bin: usize) -> usize {
    bin / MICROBATCHES
}

/// Assigns every item. Deterministic; ties go to the lower index.
pub fn assign(cohort: &Cohort) -> Assignment {
    let count = cohort.carried.len();
    assert!(count.is_multiple_of(MICROBATCHES), "{count} bins are not whole ranks");
    assert!(count > 0 || cohort.items.is_empty(), "items need bins");
    let carried = || cohort.carried.iter().copied();
    let all = carried().chain(cohort.items.iter().map(Item::work_anywhere));
    let largest = all.clone().fold(Work::default(), Work::max_each);
    let problem = Problem::new(&cohort.items, Scale::of(count, all, largest));
    // Room for half as many again as a bin gets on average: few bins ask for more.
    let room = cohort.items.len() * 3 / 2 / count.max(1) + 1;
    let mut bins = Bins {
        loads: carried().map(|work| problem.scale.load(work)).collect(),
        members: (0..count).map(|_| Vec::with_capacity(room)).collect(),
    };
    insert_largest_first(&problem, &mut bins);
    // Hits have made the total smaller: the bound is 1 again.
    let (total, largest) = bins.work(cohort);
    let scale = Scale::of(count, total.iter().copied(), largest);
    let problem = Problem::new(&cohort.items, scale);
    bins.loads = total.iter().map(|&work| problem.scale.load(work)).collect();
    repair(&problem, &mut bins);
    even_halves(&problem, &mut bins);
    measure(cohort, &bins)
}

pub(super) fn measure(cohort: &Cohort, bins: &Bins) -> Assignment {
    let mut bin_of = vec![usize::MAX; cohort.items.len()];
    for (bin, members) in bins.members.iter().enumerate() {
        for &item in members {
            let place = &mut bin_of[item as usize];
            assert_eq!(*place, usize::MAX, "item {item} is in two bins");
            *place = bin;
        }
    }
    assert!(bin_of.iter().all(|&bin| bin != usize::MAX), "an item is in no bin");
    let (total, largest) = bins.work(cohort);
    Assignment {
        bin_of,
        tokens: Imbalance::of(total.iter().map(|w| w.tokens as f64), largest.tokens as f64),
        attention: Imbalance::of(total.iter().map(|w| w.attention as f64), largest.attention as f64),
    }
}

#[cfg(test)]
#[path = "cohort_tests.rs"]
mod tests;
