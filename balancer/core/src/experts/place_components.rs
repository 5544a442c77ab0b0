//! A fresh placement for ranks with two slots and few redundant ones. The replica graph then falls into
//! trees: `k` ranks whose `2k` slots hold `k + 1` experts, one of them split over all `k` and a single expert
//! beside it on each (a star). A layer of `E` experts on `G` ranks has `E - G` such trees.

use super::problem::{LayerProblem, Placement};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Halvings of the interval in which the least level lies that leaves room for the heavy experts.
const HALVINGS: usize = 12;
/// Relative heights above that level at which further packings start: the packing is a heuristic and not monotone in the
/// level.
const FURTHER_STARTS: [f64; 3] = [0.01, 0.03, 0.06];
/// Relative height above that level from which on further packings are tried.
const GOOD_PACKING: f64 = 0.04;
/// Redeals tried per tree.
const REDEALS_PER_TREE_MAX: usize = 2;
/// Relative gain below which a redeal is not worth its time.
const REDEAL_GAIN_MIN: f64 = 3e-4;
/// Lowest trees tried before the best partner so far is taken.
const PARTNERS_ENOUGH: usize = 6;
/// Experts of two trees up to which all deals are compared: `C(8, 4) = 70`.
const DEAL_EXPERTS_MAX: usize = 8;

/// Experts of two trees up to which single exchanges are compared: a deal is a bit per expert.
const EXCHANGE_EXPERTS_MAX: usize = 31;

/// Whether the replica graph falls into trees, for which this packing is made: equal ranks with two slots, and at least
/// two trees.
pub(super) fn falls_into_trees(problem: &LayerProblem) -> bool {
    let two_slots = problem.deployment.is_uniform() && problem.slots(0) == 2;
    two_slots && problem.experts() >= problem.ranks() + 2
}

/// Places every expert on ranks with two slots each; needs `experts >= ranks + 2`, so that there are at least
/// two trees.
pub(super) fn place_components(problem: &LayerProblem) -> Placement {
    assert!(falls_into_trees(problem));
    let order = Order::new(problem);
    let least = least_level(problem, &order);
    let mut trees = pack(problem, &order, least).expect("the heavy experts fit at the least level");
    redeal(&mut trees, problem.mean());
    if worst_of(&trees) > least * (1.0 + GOOD_PACKING) {
        let starts = FURTHER_STARTS.iter().filter_map(|above| pack(problem, &order, least * (1.0 + above)));
        if let Some(mut other) = starts.min_by(|a, b| worst_of(a).total_cmp(&worst_of(b))) {
            redeal(&mut other, problem.mean());
            if worst_of(&other) < worst_of(&trees) {
                trees = other;
            }
        }
    }
    lay_out(problem, &trees)
}

/// The least level, up to the halvings, at which the heavy experts leave every other tree a rank. At the level of the heaviest
/// expert none is heavy, so there is one.
fn least_level(problem: &LayerProblem, order: &Order) -> f64 {
    let mut low = problem.mean();
    let mut ranks_of = Vec::new();
    if heavy_trees(problem, order, low, &mut ranks_of).is_some() {
        return low;
    }
    let mut high = order.load(0).max(low);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        match heavy_trees(problem, order, middle, &mut ranks_of) {
            Some(()) => high = middle,
            None => low = middle,
        }
    }
    high
}

/// Experts from the heaviest down; positions in this order are what the packing handles.
struct Order {
    expert: Vec<u16>,
    load: Vec<f64>,
}

impl Order {
    fn new(problem: &LayerProblem) -> Self {
        let expert = problem.heaviest_first.clone();
        Self { load: expert.iter().map(|&e| problem.loads[usize::from(e)]).collect(), expert }
    }

    fn load(&self, at: usize) -> f64 {
        self.load[at]
    }
}

/// `ranks` ranks and the experts on them: at most `ranks + 1`. The heaviest is the split one.
#[derive(Debug, Clone)]
struct Tree {
    ranks: usize,
    experts: Vec<(u16, f64)>,
    sum: f64,
}

impl Tree {
    fn new(ranks: usize) -> Self {
        Self { ranks, experts: Vec::with_capacity(ranks + 1), sum: 0.0 }
    }

    fn put(&mut self, expert: u16, load: f64) {
        self.experts.push((expert, load));
        self.sum += load;
    }

    /// The least possible largest rank load: the mean, or a single expert that is larger. When even the
    /// second heaviest expert exceeds the mean it stays whole on its rank.
    fn level(&self) -> f64 {
        level_of(self.ranks, self.sum, self.experts.iter().map(|e| e.1))
    }
}

fn level_of(ranks: usize, sum: f64, loads: impl Iterator<Item = f64>) -> f64 {
    if ranks == 1 {
        return sum;
    }
    let (mut first, mut second) = (0.0f64, 0.0f64);
    for load in loads {
        if load > first {
            (first, second) = (load, first);
        } else {
            second = second.max(load);
        }
    }
    (sum / ranks as f64).max(second)
}

fn worst_of(trees: &[Tree]) -> f64 {
    trees.iter().map(Tree::level).fold(0.0, f64::max)
}

/// Ranks of the trees of the experts above the level, heaviest first: each is the smallest tree that could carry its expert
/// together with the smallest experts. `None` when they take more ranks or trees than there are.
fn heavy_trees(problem: &LayerProblem, order: &Order, level: f64, ranks_of: &mut Vec<usize>) -> Option<()> {
    let trees_total = problem.experts() - problem.ranks();
    let mut ranks_left = problem.ranks();
    ranks_of.clear();
    for first in (0..problem.experts()).take_while(|&at| order.load(at) > level) {
        let ranks = ranks_for(order, first, level)?;
        // Every tree that is still to come needs a rank.
        if ranks_of.len() + 1 > trees_total || ranks + (trees_total - ranks_of.len() - 1) > ranks_left {
            return None;
        }
        ranks_of.push(ranks);
        ranks_left -= ranks;
    }
    (ranks_of.len() < trees_total || ranks_left == 0).then_some(())
}

/// Packs all experts for one level: the heavy ones get trees of their own, the other trees share the remaining ranks as
/// evenly as possible; then the places are filled.
fn pack(problem: &LayerProblem, order: &Order, level: f64) -> Option<Vec<Tree>> {
    let mut ranks_of = Vec::new();
    heavy_trees(problem, order, level, &mut ranks_of)?;
    let heavy = ranks_of.len();
    let ranks_left = problem.ranks() - ranks_of.iter().sum::<usize>();
    let mut trees: Vec<Tree> = Vec::with_capacity(problem.experts() - problem.ranks());
    for (at, ranks) in ranks_of.into_iter().enumerate() {
        let mut tree = Tree::new(ranks);
        tree.put(order.expert[at], order.load(at));
        trees.push(tree);
    }
    let others = problem.experts() - problem.ranks() - heavy;
    for at in 0..others {
        trees.push(Tree::new(ranks_left / others + usize::from(at < ranks_left % others)));
    }
    fill(&mut trees, level, order, heavy..problem.experts());
    Some(trees)
}

/// Ranks for the expert at `first` so that with the same number of smallest experts it stays below the level.
fn ranks_for(order: &Order, first: usize, level: f64) -> Option<usize> {
    let mut sum = order.load(first);
    for ranks in 1..order.load.len() - first {
        sum += order.load(order.load.len() - ranks);
        if ranks >= 2 && sum <= level * ranks as f64 {
            return Some(ranks);
        }
    }
    None
}

struct Room {
    per_slot: f64,
    tree: usize,
}

impl Ord for Room {
    fn cmp(&self, other: &Self) -> Ordering {
        self.per_slot.total_cmp(&other.per_slot).then(other.tree.cmp(&self.tree))
    }
}

impl PartialOrd for Room {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Room {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Room {}

/// The heaviest expert goes to the tree with the most remaining capacity per remaining place.
fn fill(trees: &mut [Tree], level: f64, order: &Order, rest: std::ops::Range<usize>) {
    let room = |trees: &[Tree], tree: usize| {
        let places = trees[tree].ranks + 1 - trees[tree].experts.len();
        let left = level * trees[tree].ranks as f64 - trees[tree].sum;
        (places > 0).then(|| Room { per_slot: left / places as f64, tree })
    };
    let mut heap: BinaryHeap<Room> = (0..trees.len()).filter_map(|tree| room(trees, tree)).collect();
    for at in rest {
        let Room { tree, .. } = heap.pop().expect("trees have as many places as there are experts");
        trees[tree].put(order.expert[at], order.load(at));
        heap.extend(room(trees, tree));
    }
}

/// Deals the experts of the worst tree and one other anew between the two, best partner and deal first, while
/// that lowers the higher of the two.
fn redeal(trees: &mut [Tree], target: f64) {
    // From the lowest to the highest; kept in order as trees change.
    let mut order: Vec<(f64, u16)> = trees.iter().zip(0..).map(|(tree, at)| (tree.level(), at)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    for _ in 0..REDEALS_PER_TREE_MAX * trees.len() {
        let &(level, worst) = order.last().expect("there are trees");
        if level <= target {
            return;
        }
        let mut best: Option<(usize, u32)> = None;
        let mut least = level * (1.0 - REDEAL_GAIN_MIN);
        for (tried, &(_, other)) in order[..order.len() - 1].iter().enumerate() {
            if tried >= PARTNERS_ENOUGH && best.is_some() {
                break;
            }
            // Two trees cannot both get below the mean of what they carry.
            let (a, b) = (&trees[usize::from(worst)], &trees[usize::from(other)]);
            if a.sum + b.sum >= least * (a.ranks + b.ranks) as f64 {
                continue;
            }
            if let Some((level, deal)) = best_deal(a, b, least) {
                least = level;
                best = Some((tried, deal));
            }
        }
        let Some((at, deal)) = best else { return };
        let other = order[at].1;
        order.pop();
        order.remove(at);
        let (a, b) = dealt(&trees[usize::from(worst)], &trees[usize::from(other)], deal);
        for (name, tree) in [(worst, a), (other, b)] {
            let level = tree.level();
            trees[usize::from(name)] = tree;
            let place = order.partition_point(|&(other, at)| (other, at) < (level, name));
            order.insert(place, (level, name));
        }
    }
}

/// The deal (a bit per expert of both trees: set for the first) with the least higher level below `least`.
fn best_deal(a: &Tree, b: &Tree, mut least: f64) -> Option<(f64, u32)> {
    let (in_a, all) = (a.experts.len(), a.experts.len() + b.experts.len());
    let mut best = None;
    if all <= DEAL_EXPERTS_MAX {
        let mut loads = [0.0; DEAL_EXPERTS_MAX];
        loads.iter_mut().zip(a.experts.iter().chain(&b.experts)).for_each(|(to, expert)| *to = expert.1);
        let total = a.sum + b.sum;
        let mut sums = [0.0; 1 << DEAL_EXPERTS_MAX];
        for deal in 1..1usize << all {
            sums[deal] = sums[deal & (deal - 1)] + loads[deal.trailing_zeros() as usize];
        }
        let mut deal = (1u32 << in_a) - 1;
        while deal < 1 << all {
            // Nearly every deal is too uneven; its sum alone tells.
            let sum = sums[deal as usize];
            if sum <= a.ranks as f64 * least && total - sum <= b.ranks as f64 * least {
                let level = deal_level(&loads[..all], deal, a.ranks, b.ranks);
                if level < least {
                    least = level;
                    best = Some((level, deal));
                }
            }
            deal = next_of_same_size(deal);
        }
    } else if all <= EXCHANGE_EXPERTS_MAX {
        // Too many for all deals: exchange one for one.
        let mut loads = [0.0; EXCHANGE_EXPERTS_MAX];
        loads.iter_mut().zip(a.experts.iter().chain(&b.experts)).for_each(|(to, expert)| *to = expert.1);
        for out in 0..in_a {
            for back in in_a..all {
                let deal = ((1u32 << in_a) - 1) & !(1 << out) | 1 << back;
                let level = deal_level(&loads[..all], deal, a.ranks, b.ranks);
                if level < least {
                    least = level;
                    best = Some((level, deal));
                }
            }
        }
    }
    best
}

/// The next larger number with as many bits set (Gosper's hack, HAKMEM item 175); `bits` is not 0.
fn next_of_same_size(bits: u32) -> u32 {
    let low = bits & bits.wrapping_neg();
    let carried = bits + low;
    carried | (((bits ^ carried) >> 2) / low)
}

fn deal_level(loads: &[f64], deal: u32, ranks_a: usize, ranks_b: usize) -> f64 {
    // [second tree, first tree]: sum, largest, second largest.
    let mut of = [(0.0f64, 0.0f64, 0.0f64); 2];
    for (at, &load) in loads.iter().enumerate() {
        let side = &mut of[(deal >> at & 1) as usize];
        side.0 += load;
        side.2 = side.2.max(side.1.min(load));
        side.1 = side.1.max(load);
    }
    let level = |(sum, _, second): (f64, f64, f64), ranks: usize| match ranks {
        1 => sum,
        _ => (sum / ranks as f64).max(second),
    };
    level(of[1], ranks_a).max(level(of[0], ranks_b))
}

fn dealt(a: &Tree, b: &Tree, deal: u32) -> (Tree, Tree) {
    let (mut left, mut right) = (Tree::new(a.ranks), Tree::new(b.ranks));
    for (at, &(expert, load)) in a.experts.iter().chain(&b.experts).enumerate() {
        if deal >> at & 1 == 1 { left.put(expert, load) } else { right.put(expert, load) }
    }
    (left, right)
}

/// Gives the trees their ranks, one after the other.
fn lay_out(problem: &LayerProblem, trees: &[Tree]) -> Placement {
    let mut placement = Placement::empty(&problem.deployment);
    let mut next = 0;
    for tree in trees {
        assert_eq!(tree.experts.len(), tree.ranks + 1, "every place of a tree is filled");
        let heavier = |a: &&(u16, f64), b: &&(u16, f64)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
        let &(split, _) = tree.experts.iter().max_by(heavier).expect("a tree has experts");
        for (rank, &(beside, _)) in (next..).zip(tree.experts.iter().filter(|(expert, _)| *expert != split)) {
            placement.push(rank, split);
            placement.push(rank, beside);
        }
        next += tree.ranks;
    }
    placement
}

#[cfg(test)]
mod tests {
    use super::super::problem::Replicas;
    use super::super::split::exact_split;
    use super::*;

    #[track_caller]
    fn check(ranks: usize, loads: Vec<f64>, level: f64) {
        let problem = LayerProblem::uniform(ranks, 2, loads);
        let placement = place_components(&problem);
        let split = exact_split(&problem, &Replicas::of(&placement, problem.experts()));
        assert!(split.level <= level + 1e-9, "{} > {level}: {placement:?}", split.level);
    }

    #[test]
    fn a_heavy_expert_gets_a_tree_of_its_own() {
        check(4, vec![10.0, 1.0, 1.0, 1.0, 2.0, 2.0], 4.5);
        check(3, vec![6.0, 2.0, 2.0, 2.0, 3.0], 5.0);
    }

    #[test]
    fn equal_experts_are_packed_evenly() {
        check(6, vec![1.0; 8], 1.5);
        check(4, vec![1.0; 8], 2.0);
        check(5, vec![0.0; 7], 0.0);
    }

    #[test]
    fn all_load_on_one_expert_spreads_it() {
        let mut loads = vec![0.0; 8];
        loads[3] = 6.0;
        check(6, loads, 1.2);
    }
}
