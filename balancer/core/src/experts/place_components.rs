//! A fresh placement for ranks with two slots and few redundant ones. The replica graph then falls into
//! trees: `k` ranks whose `2k` slots hold `k + 1` experts, one of them split over all `k` and a single expert
//! beside it on each (a star). A layer of `E` experts on `G` ranks has `E - G` such trees.

use super::problem::{LayerProblem, Placement};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Halvings of the interval in which the level is sought; the packing is a heuristic at every level, so more
/// precision buys nothing.
const LEVEL_STEPS: usize = 10;
/// Swaps tried per tree.
const SWAPS_PER_TREE_MAX: usize = 2;

/// Places every expert on ranks with two slots each; needs `experts >= ranks + 2`, so that there are at least
/// two trees.
pub(super) fn place_components(problem: &LayerProblem) -> Placement {
    assert!(problem.slots == 2 && problem.experts() >= problem.ranks + 2);
    let order = Order::new(problem);
    let mut best: Option<(f64, Vec<Tree>)> = None;
    for split_first in [false, true] {
        let (mut low, mut high) = (problem.mean(), 2.0 * order.load(0).max(problem.mean()));
        for _ in 0..LEVEL_STEPS {
            let level = 0.5 * (low + high);
            let packed = pack(problem, &order, level, split_first).map(|trees| (worst_of(&trees), trees));
            match packed {
                Some((reached, trees)) => {
                    if reached <= level {
                        high = level
                    } else {
                        low = level
                    }
                    if best.as_ref().is_none_or(|(least, _)| reached < *least) {
                        best = Some((reached, trees));
                    }
                }
                None => low = level,
            }
        }
    }
    let mut trees = match best {
        Some((_, trees)) => trees,
        None => pack(problem, &order, f64::INFINITY, false).expect("without heavy experts every shape packs"),
    };
    swap_refine(&mut trees, problem);
    lay_out(problem, &trees)
}

/// Experts from the heaviest down; positions in this order are what the packing handles.
struct Order {
    expert: Vec<u16>,
    load: Vec<f64>,
}

impl Order {
    fn new(problem: &LayerProblem) -> Self {
        let mut expert: Vec<u16> = (0..).take(problem.experts()).collect();
        let load = |e: u16| problem.loads[usize::from(e)];
        expert.sort_by(|&a, &b| load(b).total_cmp(&load(a)).then(a.cmp(&b)));
        Self { load: expert.iter().map(|&e| load(e)).collect(), expert }
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

/// Packs all experts for one level: an expert above it gets the smallest tree that carries it together with
/// the smallest experts; the other trees share the remaining ranks as evenly as possible. `None` when the
/// heavy experts alone need more ranks or trees than there are.
fn pack(problem: &LayerProblem, order: &Order, level: f64, split_first: bool) -> Option<Vec<Tree>> {
    let trees_total = problem.experts() - problem.ranks;
    let mut trees: Vec<Tree> = Vec::with_capacity(trees_total);
    let mut ranks_left = problem.ranks;
    let (mut first, mut last) = (0, problem.experts());
    // Also an expert that fits no rank beside the lightest other one has to be split.
    while first < last && order.load(first) + order.load(last - 1) > level {
        let (ranks, small) = heavy_tree(order, first, last, level)?;
        if trees.len() + 1 > trees_total || ranks > ranks_left {
            return None;
        }
        let mut tree = Tree::new(ranks);
        tree.put(order.expert[first], order.load(first));
        (small..last).for_each(|at| tree.put(order.expert[at], order.load(at)));
        trees.push(tree);
        ranks_left -= ranks;
        first += 1;
        last = small;
    }
    let others = trees_total - trees.len();
    if others > ranks_left || (others == 0 && ranks_left > 0) {
        return None;
    }
    let heavy = trees.len();
    for at in 0..others {
        trees.push(Tree::new(ranks_left / others + usize::from(at < ranks_left % others)));
    }
    if split_first {
        // The trees with more ranks stand first: their split experts are the heaviest of the rest.
        for tree in trees[heavy..].iter_mut().filter(|tree| tree.ranks > 1) {
            tree.put(order.expert[first], order.load(first));
            first += 1;
        }
    }
    fill(&mut trees, heavy, order, first..last);
    Some(trees)
}

/// Ranks for the expert at `first` so that with the same number of smallest experts (`small..last`) it stays
/// below the level; at least two.
fn heavy_tree(order: &Order, first: usize, last: usize, level: f64) -> Option<(usize, usize)> {
    let mut sum = order.load(first);
    for ranks in 1..last - first {
        sum += order.load(last - ranks);
        if ranks >= 2 && sum <= level * ranks as f64 {
            return Some((ranks, last - ranks));
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

/// The heaviest expert goes to the tree with the most remaining capacity per remaining place. Capacity is
/// measured at the mean of what these trees carry, so that they come out alike.
fn fill(trees: &mut [Tree], heavy: usize, order: &Order, rest: std::ops::Range<usize>) {
    let open = &mut trees[heavy..];
    let ranks: usize = open.iter().map(|tree| tree.ranks).sum();
    let load: f64 = order.load[rest.clone()].iter().sum::<f64>() + open.iter().map(|t| t.sum).sum::<f64>();
    let capacity = load / ranks.max(1) as f64;
    let room = |trees: &[Tree], tree: usize| {
        let places = trees[tree].ranks + 1 - trees[tree].experts.len();
        let left = capacity * trees[tree].ranks as f64 - trees[tree].sum;
        (places > 0).then(|| Room { per_slot: left / places as f64, tree })
    };
    let mut heap: BinaryHeap<Room> = (0..open.len()).filter_map(|tree| room(open, tree)).collect();
    for at in rest {
        let Room { tree, .. } = heap.pop().expect("trees have as many places as there are experts");
        open[tree].put(order.expert[at], order.load(at));
        heap.extend(room(open, tree));
    }
}

/// Swaps an expert of the worst tree with one of another tree while that lowers the higher of the two.
fn swap_refine(trees: &mut [Tree], problem: &LayerProblem) {
    let mean = problem.mean();
    for _ in 0..SWAPS_PER_TREE_MAX * trees.len() {
        let levels: Vec<f64> = trees.iter().map(Tree::level).collect();
        let worst =
            (0..trees.len()).max_by(|&a, &b| levels[a].total_cmp(&levels[b])).expect("there are trees");
        let mut best = None;
        let mut best_level = levels[worst] * (1.0 - 1e-9);
        for other in (0..trees.len()).filter(|&other| other != worst && levels[other] < levels[worst]) {
            for out in 0..trees[worst].experts.len() {
                for back in 0..trees[other].experts.len() {
                    let level = level_after(&trees[worst], out, trees[other].experts[back].1)
                        .max(level_after(&trees[other], back, trees[worst].experts[out].1));
                    if level < best_level {
                        best_level = level;
                        best = Some((other, out, back));
                    }
                }
            }
        }
        let Some((other, out, back)) = best else { return };
        let (leaving, coming) = (trees[worst].experts[out], trees[other].experts[back]);
        trees[worst].experts[out] = coming;
        trees[other].experts[back] = leaving;
        trees[worst].sum += coming.1 - leaving.1;
        trees[other].sum += leaving.1 - coming.1;
        if best_level <= mean {
            return;
        }
    }
}

fn level_after(tree: &Tree, at: usize, load: f64) -> f64 {
    let sum = tree.sum - tree.experts[at].1 + load;
    if tree.ranks == 1 {
        return sum;
    }
    let loads = tree.experts.iter().enumerate().map(|(i, e)| if i == at { load } else { e.1 });
    level_of(tree.ranks, sum, loads)
}

/// Gives the trees their ranks, one after the other.
fn lay_out(problem: &LayerProblem, trees: &[Tree]) -> Placement {
    let mut placement = Placement::empty(problem.ranks);
    let mut next = 0;
    for tree in trees {
        let mut experts = tree.experts.clone();
        experts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert_eq!(experts.len(), tree.ranks + 1, "every place of a tree is filled");
        for at in 0..tree.ranks {
            placement.of_rank[next + at] = vec![experts[0].0, experts[at + 1].0];
        }
        next += tree.ranks;
    }
    placement.sort();
    placement
}

#[cfg(test)]
mod tests {
    use super::super::problem::Replicas;
    use super::super::split::exact_split;
    use super::*;

    #[track_caller]
    fn check(ranks: usize, loads: Vec<f64>, level: f64) {
        let problem = LayerProblem { ranks, slots: 2, loads };
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
