//! Assigns a cohort of whole prompts to bins so that tokens and attention are equal each by itself.

use super::work::{Imbalance, Work};

/// Least-loaded bins that an insertion chooses among: enough that one of them lacks just what the item
/// brings most of.
const INSERT_CHOICES: usize = 4;
/// Lowest bins that a repair step tries as partners of the worst bin.
const REPAIR_PARTNERS: usize = 6;
/// Smallest relative gain of a repair step; below it the potential is at its floor within rounding.
const GAIN_MIN: f64 = 1e-9;

/// A cohort: what the bins have already, and the prompts to be added, in any order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cohort {
    /// Per bin, the work that it has not finished yet. Not empty if there are items.
    pub carried: Vec<Work>,
    /// Prompts.
    pub items: Vec<Work>,
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

/// Loads divided by the mean over bins, so that the two dimensions compare.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    n: f64,
    a: f64,
}

impl Load {
    fn plus(self, other: Load) -> Load {
        Load { n: self.n + other.n, a: self.a + other.a }
    }

    fn minus(self, other: Load) -> Load {
        Load { n: self.n - other.n, a: self.a - other.a }
    }

    fn worst(self) -> f64 {
        self.n.max(self.a)
    }

    /// `n^8 + a^8`: so steep that the sum over bins follows the fullest, and smooth where the maximum
    /// itself would not tell two ways to lower a bin apart.
    fn potential(self) -> f64 {
        self.n.powi(8) + self.a.powi(8)
    }
}

/// Assigns every item. Deterministic; ties go to the lower index.
pub fn assign(cohort: &Cohort) -> Assignment {
    assert!(!cohort.carried.is_empty() || cohort.items.is_empty(), "items need bins");
    let scale = Scale::of(cohort);
    let items: Vec<Load> = cohort.items.iter().map(|&w| scale.load(w)).collect();
    let mut bins = Bins {
        loads: cohort.carried.iter().map(|&w| scale.load(w)).collect(),
        members: vec![Vec::new(); cohort.carried.len()],
    };
    insert_largest_first(&items, &mut bins);
    repair(&items, &mut bins);
    measure(cohort, &bins)
}

struct Scale {
    n: f64,
    a: f64,
}

impl Scale {
    fn of(cohort: &Cohort) -> Self {
        let bins = cohort.carried.len().max(1) as f64;
        let all = || cohort.carried.iter().chain(&cohort.items);
        let sum = |value: fn(&Work) -> u64| all().map(|w| value(w) as f64).sum::<f64>();
        let (n, a) = (sum(|w| w.tokens), sum(|w| w.attention));
        Self { n: if n > 0.0 { bins / n } else { 0.0 }, a: if a > 0.0 { bins / a } else { 0.0 } }
    }

    fn load(&self, work: Work) -> Load {
        Load { n: work.tokens as f64 * self.n, a: work.attention as f64 * self.a }
    }
}

struct Bins {
    loads: Vec<Load>,
    members: Vec<Vec<usize>>,
}

fn insert_largest_first(items: &[Load], bins: &mut Bins) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&x, &y| items[y].worst().total_cmp(&items[x].worst()).then(x.cmp(&y)));
    for item in order {
        let bin = lowest::<INSERT_CHOICES>(&bins.loads, Load::worst)
            .into_iter()
            .flatten()
            .min_by(|&x, &y| added(bins.loads[x], items[item]).total_cmp(&added(bins.loads[y], items[item])))
            .expect("items need bins");
        bins.loads[bin] = bins.loads[bin].plus(items[item]);
        bins.members[bin].push(item);
    }
}

fn added(bin: Load, item: Load) -> f64 {
    bin.plus(item).potential() - bin.potential()
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

/// Moves or swaps items out of the worst bin as long as the potential falls; at most as many steps as
/// there are items, which bounds the time and has never been the limit.
fn repair(items: &[Load], bins: &mut Bins) {
    for _ in 0..items.len() {
        let Some(worst) = (0..bins.loads.len())
            .max_by(|&x, &y| bins.loads[x].worst().total_cmp(&bins.loads[y].worst()).then(y.cmp(&x)))
        else {
            return;
        };
        let Some(step) = best_step(items, bins, worst) else {
            return;
        };
        apply(items, bins, worst, step);
    }
}

/// One repair: item number `out` of the worst bin goes to `partner`, in exchange for its `back`.
#[derive(Clone, Copy)]
struct Step {
    partner: usize,
    out: usize,
    back: Option<usize>,
}

fn best_step(items: &[Load], bins: &Bins, worst: usize) -> Option<Step> {
    let high = bins.loads[worst];
    let key = if high.n >= high.a { |l: Load| l.n } else { |l: Load| l.a };
    let mut best = (GAIN_MIN * high.potential(), None);
    for partner in lowest::<REPAIR_PARTNERS>(&bins.loads, key).into_iter().flatten() {
        if partner == worst {
            continue;
        }
        let low = bins.loads[partner];
        let before = high.potential() + low.potential();
        for (out, &moved) in bins.members[worst].iter().enumerate() {
            let backs = (0..bins.members[partner].len()).map(Some).chain([None]);
            for back in backs {
                let returned = back.map_or(Load::default(), |b| items[bins.members[partner][b]]);
                let delta = items[moved].minus(returned);
                let gain = before - high.minus(delta).potential() - low.plus(delta).potential();
                if gain > best.0 {
                    best = (gain, Some(Step { partner, out, back }));
                }
            }
        }
    }
    best.1
}

fn apply(items: &[Load], bins: &mut Bins, worst: usize, step: Step) {
    let moved = bins.members[worst].swap_remove(step.out);
    let returned = step.back.map(|back| bins.members[step.partner].swap_remove(back));
    let delta = items[moved].minus(returned.map_or(Load::default(), |r| items[r]));
    bins.loads[worst] = bins.loads[worst].minus(delta);
    bins.loads[step.partner] = bins.loads[step.partner].plus(delta);
    bins.members[step.partner].push(moved);
    bins.members[worst].extend(returned);
}

fn measure(cohort: &Cohort, bins: &Bins) -> Assignment {
    let mut bin_of = vec![usize::MAX; cohort.items.len()];
    let mut total = cohort.carried.clone();
    for (bin, members) in bins.members.iter().enumerate() {
        for &item in members {
            assert_eq!(bin_of[item], usize::MAX, "item {item} is in two bins");
            bin_of[item] = bin;
            total[bin] += cohort.items[item];
        }
    }
    assert!(bin_of.iter().all(|&bin| bin != usize::MAX), "an item is in no bin");
    let largest = |value: fn(&Work) -> u64| {
        cohort.items.iter().chain(&cohort.carried).map(|w| value(w) as f64).fold(0.0, f64::max)
    };
    Assignment {
        bin_of,
        tokens: Imbalance::of(total.iter().map(|w| w.tokens as f64), largest(|w| w.tokens)),
        attention: Imbalance::of(total.iter().map(|w| w.attention as f64), largest(|w| w.attention)),
    }
}

#[cfg(test)]
#[path = "cohort_tests.rs"]
mod tests;
