//! Few moves of running requests, each worth its transfer.

use super::RankLoad;

/// Ranks that a move may go to: the lowest in the dimension that is relieved.
const TARGETS: usize = 6;
/// Of so many turns one relieves the rank with most requests, the others the one with most KV.
const TURNS: u64 = 4;

/// A running request, as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running<Id> {
    /// Its name.
    pub id: Id,
    /// KV tokens that it has.
    pub kv_tokens: u64,
    /// Steps since it last moved; `None` if it never did.
    pub since_move: Option<u32>,
}

/// What the planner looks at: whoever keeps running requests by rank.
pub trait RunningRequests {
    /// A request's name.
    type Id: Copy + Ord;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// A rank's load; not `up` when it is not to get requests.
    fn load(&self, rank: usize) -> RankLoad;

    /// Whether the rank gives its requests away; such a rank is not `up`.
    fn drains(&self, rank: usize) -> bool;

    /// The rank's requests, in any order. Called for the few ranks from which something may move.
    fn running(&self, rank: usize) -> impl Iterator<Item = Running<Self::Id>>;
}

/// Bounds and costs of migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MigrationPolicy {
    /// Most moves a step in the whole unit; 0: the engine cannot.
    pub per_step: u32,
    /// KV tokens that a node's NICs may send, and may receive, for one step's moves. The moves are copied while the request
    /// still runs, so this is what fits one step beside the dispatch traffic.
    pub node_tokens: u64,
    /// Ranks of a node.
    pub ranks_per_node: usize,
    /// Steps for which a request stays after a move.
    pub rest_steps: u32,
    /// Steps that a running request is expected to go on.
    pub remaining_steps: f64,
    /// What a moved token costs, in the potential's unit (squared relative load of a rank, for a step).
    pub token_cost: f64,
    pub power: i32,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            per_step: 0,
            node_tokens: 32_768,
            ranks_per_node: 8,
            rest_steps: 50,
            remaining_steps: 500.0,
            token_cost: 5e-6,
            power: 2,
        }
    }
}

/// A running request goes to another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration<Id> {
    /// The request.
    pub id: Id,
    /// Where it runs.
    pub from: usize,
    /// Where it goes on.
    pub to: usize,
    /// KV tokens to copy.
    pub kv_tokens: u64,
}

/// The moves before the next step, at most `policy.per_step`. `step` counts the unit's steps: it decides whose turn it is.
pub fn plan_migrations<R: RunningRequests>(
    running: &R,
    policy: &MigrationPolicy,
    step: u64,
) -> Vec<Migration<R::Id>> {
    let mut planner = Planner::new(running, policy);
    let mut moves: Vec<Migration<R::Id>> = Vec::new();
    for turn in 0..u64::from(policy.per_step) {
        let count_turn = (step.wrapping_mul(policy.per_step.into()).wrapping_add(turn)) % TURNS == TURNS - 1;
        let by = if count_turn {
            [Dimension::Requests, Dimension::Kv]
        } else {
            [Dimension::Kv, Dimension::Requests]
        };
        let best =
            planner.drain(&moves).or_else(|| by.into_iter().find_map(|by| planner.relieve(by, &moves)));
        let Some(best) = best else { break };
        planner.apply(&best);
        moves.push(best);
    }
    moves
}

#[derive(Clone, Copy)]
enum Dimension {
    Kv,
    Requests,
}

/// Loads relative to the means, with the moves that were planned so far.
struct Planner<'a, R: RunningRequests> {
    running: &'a R,
    policy: &'a MigrationPolicy,
    /// By rank: (KV over mean KV, requests over mean requests).
    relative: Vec<(f64, f64)>,
    up: Vec<usize>,
    kv_unit: f64,
    requests_unit: f64,
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl<'a, R: RunningRequests> Planner<'a, R> {
    fn new(running: &'a R, policy: &'a MigrationPolicy) -> Self {
        let loads: Vec<RankLoad> = (0..running.ranks()).map(|rank| running.load(rank)).collect();
        let up: Vec<usize> = (0..loads.len()).filter(|&rank| loads[rank].up).collect();
        let sum = |of: fn(&RankLoad) -> u64| up.iter().map(|&r| of(&loads[r]) as f64).sum::<f64>();
        let ranks = up.len() as f64;
        let kv_unit = ranks / sum(|l| l.kv_tokens).max(1.0);
        let requests_unit = ranks / sum(|l| l.requests).max(1.0);
        let relative =
            loads.iter().map(|l| (l.kv_tokens as f64 * kv_unit, l.requests as f64 * requests_unit)).collect();
        let nodes = loads.len() / policy.ranks_per_node.max(1) + 1;
        Self {
            running,
            policy,
            relative,
            up,
            kv_unit,
            requests_unit,
            sent: vec![0; nodes],
            received: vec![0; nodes],
        }
    }

    fn node(&self, rank: usize) -> usize {
        rank / self.policy.ranks_per_node.max(1)
    }

    fn of(&self, by: Dimension, rank: usize) -> f64 {
        match by {
            Dimension::Kv => self.relative[rank].0,
            Dimension::Requests => self.relative[rank].1,
        }
    }

    fn drain(&self, moves: &[Migration<R::Id>]) -> Option<Migration<R::Id>> {
        let mut ranks = (0..self.running.ranks()).filter(|&rank| self.running.drains(rank));
        ranks.find_map(|rank| self.best(rank, &self.targets(Dimension::Kv, rank), moves, true))
    }

    fn relieve(&self, by: Dimension, moves: &[Migration<R::Id>]) -> Option<Migration<R::Id>> {
        let highest = |&x: &usize, &y: &usize| self.of(by, x).total_cmp(&self.of(by, y)).then(y.cmp(&x));
        let from = self.up.iter().copied().max_by(|x, y| highest(x, y))?;
        self.best(from, &self.targets(by, from), moves, false)
    }

    fn targets(&self, by: Dimension, from: usize) -> Vec<usize> {
        let mut targets: Vec<usize> = self.up.iter().copied().filter(|&rank| rank != from).collect();
        let lowest = |x: &usize, y: &usize| self.of(by, *x).total_cmp(&self.of(by, *y)).then(x.cmp(y));
        if targets.len() > TARGETS {
            targets.select_nth_unstable_by(TARGETS, lowest);
            targets.truncate(TARGETS);
        }
        targets.sort_by(lowest);
        targets
    }

    /// The move from a rank that gains most after its cost.
    fn best(
        &self,
        from: usize,
        targets: &[usize],
        moves: &[Migration<R::Id>],
        anyhow: bool,
    ) -> Option<Migration<R::Id>> {
        let mut best: Option<(f64, Migration<R::Id>)> = None;
        let budget = self.policy.node_tokens.saturating_sub(self.sent[self.node(from)]);
        for request in self.running.running(from) {
            let rests = request.since_move.is_some_and(|steps| steps < self.policy.rest_steps);
            if (rests && !anyhow) || request.kv_tokens > budget || moves.iter().any(|m| m.id == request.id) {
                continue;
            }
            let cost = request.kv_tokens as f64 * self.policy.token_cost;
            for &to in targets {
                if request.kv_tokens + self.received[self.node(to)] > self.policy.node_tokens {
                    continue;
                }
                let gain = self.gain(request.kv_tokens, from, to) * self.policy.remaining_steps - cost;
                let better = best.is_none_or(|(value, m)| {
                    gain > value || (gain == value && (request.id, to) < (m.id, m.to))
                });
                if better && (anyhow || gain > 0.0) {
                    best = Some((gain, Migration { id: request.id, from, to, kv_tokens: request.kv_tokens }));
                }
            }
        }
        best.map(|(_, migration)| migration)
    }

    /// By how much the potential falls.
    fn gain(&self, kv_tokens: u64, from: usize, to: usize) -> f64 {
        let (kv, one) = (kv_tokens as f64 * self.kv_unit, self.requests_unit);
        let p = |x: f64| x.max(0.0).powi(self.policy.power);
        let fall = |from: f64, to: f64, by: f64| p(from) - p(from - by) + p(to) - p(to + by);
        let (source, target) = (self.relative[from], self.relative[to]);
        fall(source.0, target.0, kv) + fall(source.1, target.1, one)
    }

    fn apply(&mut self, migration: &Migration<R::Id>) {
        let kv = migration.kv_tokens as f64 * self.kv_unit;
        let (from, to) = (self.node(migration.from), self.node(migration.to));
        self.sent[from] += migration.kv_tokens;
        self.received[to] += migration.kv_tokens;
        self.relative[migration.from].0 -= kv;
        self.relative[migration.from].1 -= self.requests_unit;
        self.relative[migration.to].0 += kv;
        self.relative[migration.to].1 += self.requests_unit;
    }
}
