//! The running placement made better by few moves.
//!
//! A placement made anew moves nearly every expert; after a drift of some percent a handful of swaps is enough. So the split
//! of the running placement that minimises the sum of squared levels is taken (its highest ranks are the critical set, its
//! lowest have room), and of the steps between the two the one with the largest drop of that sum per move is made:
//!
//! - *swap*: a single expert of a high rank against a lighter one of a low rank, two moves;
//! - *copy*: an expert of a high rank onto a redundant replica of a low rank, one move.
//!
//! Again until the level is good enough, nothing helps, or the budget is spent. Every step lowers the sum strictly, so it ends.

use super::groups::present_homes;
use super::problem::{LayerProblem, Placement, Replicas};
use super::regularise::least_squares;

/// What a repair may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Experts that ranks fetch.
    pub(super) moves: usize,
    /// Of those, the ones that no rank of the same node holds.
    pub(super) node_moves: usize,
}

impl Budget {
    /// As much as helps.
    pub(super) const NONE: Self = Self { moves: usize::MAX, node_moves: usize::MAX };

    fn allows(self, cost: Budget) -> bool {
        cost.moves <= self.moves && cost.node_moves <= self.node_moves
    }

    fn spend(&mut self, cost: Budget) {
        self.moves -= cost.moves;
        self.node_moves -= cost.node_moves;
    }
}

/// Highest and lowest ranks between which steps are sought.
const RANKS_TRIED: usize = 12;
/// Steps whose effect is computed, the most promising by their load; more find the same steps.
const STEPS_TRIED: usize = 12;
/// Ranks within this part of the mean below the highest belong to the critical set.
const CRITICAL: f64 = 1e-3;
/// A step must lower the sum of squares by this part of it: less is rounding, and a plan would follow itself.
const GAIN_MIN: f64 = 1e-9;
/// Steps before giving up: where so many do not do, a placement from nothing is better.
const STEPS_MAX: usize = 48;

/// Experts of the placement that are in no slot, which must come back whatever the budget says.
pub(super) fn missing(problem: &LayerProblem, running: &Placement) -> Vec<u16> {
    let mut held = vec![false; problem.experts()];
    running.rows().flatten().for_each(|&expert| held[usize::from(expert)] = true);
    problem.heaviest_first.iter().copied().filter(|&expert| !held[usize::from(expert)]).collect()
}

/// Repairs within the budget, down to a level of `1 + enough` times the mean. Missing experts are placed first and spend
/// the budget too; it must allow for them.
pub(super) fn repair(
    problem: &LayerProblem,
    running: &Placement,
    mut budget: Budget,
    enough: f64,
) -> Placement {
    let mut placement = running.clone();
    let joined = (0..problem.ranks()).any(|rank| problem.slots(rank) > 0 && running.of(rank).is_empty());
    let homes = present_homes(problem, running);
    for expert in missing(problem, running) {
        bring_back(problem, &mut placement, expert, homes.as_ref().map(|homes| homes[usize::from(expert)]));
        // Nobody holds it, so it comes from outside the node.
        budget.moves = budget.moves.saturating_sub(1);
        budget.node_moves = budget.node_moves.saturating_sub(1);
    }
    fill(problem, running, &mut placement, &mut budget);
    if !joined {
        // A rank that joins is filled, and the others stay as they are: they need not wait for one another.
        improve(problem, running, &mut placement, budget, enough);
    }
    placement.sort();
    placement
}

/// Puts an expert that is nowhere into the free slot of the lowest rank, or over a redundant replica; on its own node
/// where that is possible.
fn bring_back(problem: &LayerProblem, placement: &mut Placement, expert: u16, home: Option<u16>) {
    let mut counts = vec![0usize; problem.experts()];
    placement.rows().flatten().for_each(|&held| counts[usize::from(held)] += 1);
    let part = |held: u16| problem.loads[usize::from(held)] / counts[usize::from(held)].max(1) as f64;
    let speed = problem.deployment.speed();
    let level = |rank: usize| placement.of(rank).iter().map(|&held| part(held)).sum::<f64>() / speed[rank];
    let away = |rank: usize| home.is_some_and(|home| problem.deployment.ranks()[rank].node != home);
    let open = (0..problem.ranks()).filter(|&rank| placement.room(rank) > 0);
    let lowest = open.min_by(|&a, &b| away(a).cmp(&away(b)).then(level(a).total_cmp(&level(b))));
    if let Some(rank) = lowest {
        placement.push(rank, expert);
        return;
    }
    // The redundant replica that carries least goes.
    let redundant = (0..problem.ranks())
        .flat_map(|rank| placement.of(rank).iter().map(move |&held| (rank, held)))
        .filter(|&(_, held)| counts[usize::from(held)] > 1)
        .min_by(|a, b| away(a.0).cmp(&away(b.0)).then(part(a.1).total_cmp(&part(b.1))));
    let (rank, held) = redundant.expect("there is a slot for every expert");
    placement.replace(rank, held, expert);
}

/// Fills free slots, those of the lowest rank first, with the experts whose replicas carry most.
pub(super) fn fill(
    problem: &LayerProblem,
    running: &Placement,
    placement: &mut Placement,
    budget: &mut Budget,
) {
    let mut counts = vec![0u16; problem.experts()];
    placement.rows().flatten().for_each(|&held| counts[usize::from(held)] += 1);
    let most = problem.deployment.live();
    let speed = problem.deployment.speed();
    // Ranks that hold all they may.
    let mut done = vec![false; problem.ranks()];
    loop {
        let part = |expert: u16| problem.loads[usize::from(expert)] / f64::from(counts[usize::from(expert)]);
        let level =
            |rank: usize| placement.of(rank).iter().map(|&held| part(held)).sum::<f64>() / speed[rank];
        let open = (0..problem.ranks()).filter(|&rank| !done[rank] && placement.room(rank) > 0);
        let Some(rank) = open.min_by(|&a, &b| level(a).total_cmp(&level(b))) else { return };
        let wanted = problem.heaviest_first.iter().copied().filter(|&expert| {
            !placement.holds(rank, expert)
                && usize::from(counts[usize::from(expert)]) < most
                && budget.allows(cost_of(problem, running, rank, expert))
        });
        // Of equals the last would win: the order is turned round.
        let Some(expert) = wanted.rev().max_by(|&a, &b| part(a).total_cmp(&part(b))) else {
            done[rank] = true;
            continue;
        };
        budget.spend(cost_of(problem, running, rank, expert));
        placement.push(rank, expert);
        counts[usize::from(expert)] += 1;
    }
}

/// What it costs to bring an expert to a rank: it is fetched from where it runs, wherever else it will be.
fn cost_of(problem: &LayerProblem, running: &Placement, rank: usize, expert: u16) -> Budget {
    let ranks = problem.deployment.ranks();
    let near =
        (0..ranks.len()).any(|other| ranks[other].node == ranks[rank].node && running.holds(other, expert));
    Budget { moves: 1, node_moves: usize::from(!near) }
}

/// One change of the placement.
#[derive(Debug, Clone, Copy)]
enum Step {
    Swap { high: usize, out: u16, low: usize, back: u16 },
    Copy { low: usize, over: u16, expert: u16 },
}

impl Step {
    fn apply(self, placement: &mut Placement) {
        match self {
            Step::Swap { high, out, low, back } => {
                placement.replace(high, out, back);
                placement.replace(low, back, out);
            }
            Step::Copy { low, over, expert } => placement.replace(low, over, expert),
        }
    }

    fn cost(self, problem: &LayerProblem, running: &Placement) -> Budget {
        match self {
            Step::Swap { high, out, low, back } => {
                let (a, b) = (cost_of(problem, running, low, out), cost_of(problem, running, high, back));
                Budget { moves: 2, node_moves: a.node_moves + b.node_moves }
            }
            Step::Copy { low, expert, .. } => cost_of(problem, running, low, expert),
        }
    }
}

/// The placement with its best split.
struct State {
    replicas: Replicas,
    /// `[ranks]`: load by speed.
    level: Vec<f64>,
    highest: f64,
    /// Sum over ranks of load squared by speed.
    squares: f64,
}

impl State {
    fn of(problem: &LayerProblem, placement: &Placement) -> Self {
        let replicas = Replicas::of(placement, problem.experts());
        let loads = least_squares(problem, &replicas);
        let speed = problem.deployment.speed();
        let level: Vec<f64> = loads
            .iter()
            .zip(speed)
            .map(|(load, speed)| if *speed > 0.0 { load / speed } else { 0.0 })
            .collect();
        let squares = level.iter().zip(speed).map(|(level, speed)| level * level * speed).sum();
        let highest = level.iter().copied().fold(0.0, f64::max);
        Self { replicas, level, highest, squares }
    }
}

fn improve(
    problem: &LayerProblem,
    running: &Placement,
    placement: &mut Placement,
    mut budget: Budget,
    enough: f64,
) {
    let mean = problem.mean();
    let mut state = State::of(problem, placement);
    for _ in 0..STEPS_MAX {
        if state.highest <= mean * (1.0 + enough) {
            return;
        }
        let Some((step, next)) = best_step(problem, running, placement, &state, budget) else { return };
        budget.spend(step.cost(problem, running));
        step.apply(placement);
        state = next;
    }
}

/// The step with the largest drop of the sum of squares per move.
fn best_step(
    problem: &LayerProblem,
    running: &Placement,
    placement: &Placement,
    state: &State,
    budget: Budget,
) -> Option<(Step, State)> {
    let mut best: Option<(f64, Step, State)> = None;
    for step in promising(problem, placement, state) {
        let cost = step.cost(problem, running);
        if !budget.allows(cost) {
            continue;
        }
        let mut changed = placement.clone();
        step.apply(&mut changed);
        let next = State::of(problem, &changed);
        let drop = (state.squares - next.squares) / cost.moves as f64;
        let helps = drop > GAIN_MIN * state.squares && next.highest <= state.highest * (1.0 + 1e-9);
        if helps && best.as_ref().is_none_or(|(most, ..)| drop > *most) {
            best = Some((drop, step, next));
        }
    }
    best.map(|(_, step, next)| (step, next))
}

/// The steps whose load comes nearest to what should go from a high rank's level set to a low one's.
fn promising(problem: &LayerProblem, placement: &Placement, state: &State) -> Vec<Step> {
    let mean = problem.mean();
    let mut order: Vec<usize> = (0..problem.ranks()).filter(|&rank| problem.slots(rank) > 0).collect();
    order.sort_by(|&a, &b| state.level[a].total_cmp(&state.level[b]).then(a.cmp(&b)));
    let critical = |&&rank: &&usize| state.level[rank] >= state.highest - CRITICAL * mean;
    let highs: Vec<usize> = order.iter().rev().take_while(critical).take(RANKS_TRIED).copied().collect();
    let lows: Vec<usize> =
        order.iter().take(RANKS_TRIED).copied().filter(|rank| !highs.contains(rank)).collect();
    let speed = problem.deployment.speed();
    // What a level set has above or below the mean.
    let beyond = |level: f64| -> f64 {
        let near = |rank: &&usize| (state.level[**rank] - level).abs() <= CRITICAL * mean;
        order.iter().filter(near).map(|&rank| (state.level[rank] - mean).abs() * speed[rank]).sum()
    };
    let excess = beyond(state.highest);
    let homes = present_homes(problem, placement);
    let node = |rank: usize| problem.deployment.ranks()[rank].node;
    // With groups a single expert stays on its node.
    let may_swap = |a: usize, b: usize| homes.is_none() || node(a) == node(b);
    let single = |expert: u16| state.replicas.count(expert.into()) == 1;
    let load = |expert: u16| problem.loads[usize::from(expert)];
    let mut steps: Vec<(f64, Step)> = Vec::new();
    for &low in &lows {
        let wanted = excess.min(beyond(state.level[low]));
        for &high in highs.iter().filter(|&&high| may_swap(high, low)) {
            for &out in placement.of(high).iter().filter(|&&expert| single(expert)) {
                for &back in placement.of(low).iter().filter(|&&expert| single(expert)) {
                    let by = load(out) - load(back);
                    if by > 0.0 && by < 2.0 * wanted.max((state.level[high] - state.level[low]) * speed[low])
                    {
                        steps.push(((by - wanted).abs(), Step::Swap { high, out, low, back }));
                    }
                }
            }
        }
    }
    sort_and_cut(&mut steps, STEPS_TRIED);
    let mut copies: Vec<(f64, Step)> = Vec::new();
    for &low in &lows {
        let stays_at_home = |expert: u16| {
            homes.as_ref().is_none_or(|homes| {
                let mut ranks = state.replicas.rank[state.replicas.range(expert.into())].iter();
                ranks.any(|&rank| usize::from(rank) != low && node(rank.into()) == homes[usize::from(expert)])
            })
        };
        let over =
            placement.of(low).iter().copied().filter(|&expert| !single(expert) && stays_at_home(expert));
        // The replica that is missed least there.
        let Some(over) = over.min_by(|&a, &b| load(a).total_cmp(&load(b)).then(a.cmp(&b))) else { continue };
        for &high in &highs {
            let heaviest = placement.of(high).iter().copied().filter(|&expert| !placement.holds(low, expert));
            if let Some(expert) = heaviest.max_by(|&a, &b| load(a).total_cmp(&load(b)).then(b.cmp(&a))) {
                copies.push((-load(expert), Step::Copy { low, over, expert }));
            }
        }
    }
    sort_and_cut(&mut copies, STEPS_TRIED);
    steps.into_iter().chain(copies).map(|(_, step)| step).collect()
}

/// The order of steps that rank equal is that in which they were found.
fn sort_and_cut(steps: &mut Vec<(f64, Step)>, most: usize) {
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    steps.truncate(most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], rows: &[&[u16]], slots: usize, moves: usize, level: f64) {
        let problem = LayerProblem::uniform(rows.len(), slots, loads.to_vec());
        let running = Placement::of_rows(slots, rows);
        let repaired = repair(&problem, &running, Budget { moves, node_moves: usize::MAX }, 0.0);
        assert!(running.moves_to(&repaired) <= moves, "{repaired:?}");
        let state = State::of(&problem, &repaired);
        assert!((state.highest - level).abs() < 1e-4, "{} {repaired:?}", state.highest);
    }

    #[test]
    fn one_swap_levels_two_ranks() {
        check(&[5.0, 3.0, 2.0, 2.0], &[&[0, 1], &[2, 3]], 2, 2, 7.0);
        check(&[4.0, 3.0, 2.0, 1.0], &[&[0, 1], &[2, 3]], 2, 2, 5.0);
    }

    #[test]
    fn the_budget_is_kept() {
        check(&[4.0, 3.0, 2.0, 1.0], &[&[0, 1], &[2, 3]], 2, 0, 7.0);
        check(&[4.0, 3.0, 2.0, 1.0], &[&[0, 1], &[2, 3]], 2, 1, 7.0);
    }

    #[test]
    fn a_copy_over_a_useless_replica_is_one_move() {
        // Expert 2 is on both light ranks; a second replica of expert 0 is worth more.
        check(&[8.0, 0.5, 2.0, 0.5], &[&[0, 1], &[2, 3], &[2, 3]], 2, 1, 4.25);
    }

    #[test]
    fn a_free_slot_is_filled_with_the_heaviest_replica() {
        check(&[6.0, 1.0, 1.0], &[&[0, 1], &[2]], 2, 1, 4.0);
    }

    #[test]
    fn missing_experts_come_back() {
        check(&[1.0, 1.0, 1.0, 1.0], &[&[0, 1], &[2]], 2, 1, 2.0);
        check(&[1.0, 1.0, 1.0, 1.0], &[&[0, 1], &[1, 2]], 2, 1, 2.0);
    }
}
