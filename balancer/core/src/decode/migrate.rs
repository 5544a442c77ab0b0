//! Few moves of running requests, each worth its transfer.

use super::RankLoad;
use super::admit::weight_of_requests;

/// Ranks that a move may go to: the lowest in the dimension that is relieved. 3 to 144 give the same balance.
const TARGETS: usize = 6;

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

/// Whoever keeps running requests by rank.
pub trait RunningRequests {
    /// A request's name.
    type Id: Copy + Ord;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// A rank's load; not `up` when it is not to get requests.
    fn load(&self, rank: usize) -> RankLoad;

    /// Whether the rank is to give its requests away. Such a rank is not `up`.
    fn drains(&self, rank: usize) -> bool;

    /// The rank's requests that can move, in any order. Asked only of ranks that a move may leave: two for each of the
    /// [`per_step`](MigrationPolicy::per_step), and those that drain.
    fn running(&self, rank: usize) -> impl Iterator<Item = Running<Self::Id>>;
}

/// What migrations may take, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MigrationPolicy {
    /// Most moves a step in the whole unit. 0: the engine cannot.
    pub per_step: u32,
    /// KV tokens that a node sends at most for the moves of one step, and receives at most; longer requests stay. The copy is
    /// made while the request runs on, beside the step's own traffic: 32k tokens of DeepSeek-V3 are 2.3 GB, a 50 GB/s NIC's
    /// work of 46 ms, and a node has eight.
    pub node_tokens: u64,
    /// Ranks of a node.
    pub ranks_per_node: usize,
    /// Steps for which a request stays after a move.
    pub rest_steps: u32,
    /// Steps that a running request is taken to go on: the mean of what is left, as no single end is known.
    pub remaining_steps: f64,
    /// What a moved token costs, in the potential for one step: a move is worth it when the potential falls by more than
    /// `kv_tokens * token_cost / remaining_steps`. 5e-5 makes a 6k-token move pay when it brings a rank of 100 requests from
    /// 2 % above the mean to 1 %; with 2e-4 too few moves are left to balance long prompts.
    pub token_cost: f64,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            per_step: 0,
            node_tokens: 32_768,
            ranks_per_node: 8,
            rest_steps: 50,
            remaining_steps: 500.0,
            token_cost: 5e-5,
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

/// The moves before the next step, at most `policy.per_step`; no request twice.
///
/// Ranks that drain come first, whatever their requests cost. Then the rank that stands out most, in KV or in requests, gives
/// the request whose move lowers the potential most after its cost; if it has none, the one that stands out most in the
/// other dimension does. The potential is the sum over ranks of (KV over mean KV)^2 + (requests over mean requests)^2; where ranks have
/// few requests their number weighs less, as in admission: even numbers at five long contexts a rank left KV 1.5 % more uneven than it was
/// without migrations.
pub fn plan_migrations<R: RunningRequests>(running: &R, policy: &MigrationPolicy) -> Vec<Migration<R::Id>> {
    if policy.per_step == 0 {
        return Vec::new();
    }
    let mut planner = Planner::new(running, policy);
    while planner.moves.len() < policy.per_step as usize {
        let Some(migration) = planner.drain().or_else(|| planner.relieve()) else { break };
        planner.apply(migration);
    }
    planner.moves
}

/// KV and requests of a rank, or of a move, over the means; requests by their weight.
#[derive(Clone, Copy)]
struct Relative {
    kv: f64,
    requests: f64,
}

type Dimension = fn(&Relative) -> f64;
const DIMENSIONS: [Dimension; 2] = [|r| r.kv, |r| r.requests];

struct Planner<'a, R: RunningRequests> {
    running: &'a R,
    policy: &'a MigrationPolicy,
    /// By rank, with the moves planned so far.
    ranks: Vec<Relative>,
    up: Vec<usize>,
    /// One KV token and one request.
    one: Relative,
    /// KV tokens by node.
    sent: Vec<u64>,
    received: Vec<u64>,
    moves: Vec<Migration<R::Id>>,
}

impl<'a, R: RunningRequests> Planner<'a, R> {
    fn new(running: &'a R, policy: &'a MigrationPolicy) -> Self {
        let loads: Vec<RankLoad> = (0..running.ranks()).map(|rank| running.load(rank)).collect();
        let up: Vec<usize> = (0..loads.len()).filter(|&rank| loads[rank].up).collect();
        let one_over_mean = |of: fn(&RankLoad) -> u64| {
            let sum: f64 = up.iter().map(|&rank| of(&loads[rank]) as f64).sum();
            up.len() as f64 / sum.max(1.0)
        };
        let requests = one_over_mean(|l| l.requests);
        let one = Relative {
            kv: one_over_mean(|l| l.kv_tokens),
            requests: requests * weight_of_requests(1.0 / requests),
        };
        let relative = |l: &RankLoad| Relative {
            kv: l.kv_tokens as f64 * one.kv,
            requests: l.requests as f64 * one.requests,
        };
        let ranks = loads.iter().map(relative).collect();
        let nodes = loads.len().div_ceil(policy.ranks_per_node.max(1));
        let (sent, received) = (vec![0; nodes], vec![0; nodes]);
        Self { running, policy, ranks, up, one, sent, received, moves: Vec::new() }
    }

    fn node(&self, rank: usize) -> usize {
        rank / self.policy.ranks_per_node.max(1)
    }

    /// Something from the first rank that drains and still has what can move.
    fn drain(&self) -> Option<Migration<R::Id>> {
        let mut ranks = (0..self.ranks.len()).filter(|&rank| self.running.drains(rank));
        ranks.find_map(|from| self.best(from, DIMENSIONS[0], |_| f64::NEG_INFINITY))
    }

    /// The best move off the rank that stands out most.
    fn relieve(&self) -> Option<Migration<R::Id>> {
        let highest = DIMENSIONS.map(|of| {
            let above =
                |&x: &usize, &y: &usize| of(&self.ranks[x]).total_cmp(&of(&self.ranks[y])).then(y.cmp(&x));
            let rank = self.up.iter().copied().max_by(above)?;
            Some((of(&self.ranks[rank]), rank, of))
        });
        let [Some(kv), Some(requests)] = highest else { return None };
        let order = if kv.0 >= requests.0 { [kv, requests] } else { [requests, kv] };
        let worth = |request: &Running<R::Id>| match request.since_move {
            Some(steps) if steps < self.policy.rest_steps => f64::INFINITY,
            _ => 0.0,
        };
        order.into_iter().find_map(|(_, from, of)| self.best(from, of, worth))
    }

    /// The move from a rank to one of the lowest in `of` whose gain after its cost is largest and above `at_least`; of
    /// equals the lower name and rank.
    fn best(
        &self,
        from: usize,
        of: Dimension,
        at_least: impl Fn(&Running<R::Id>) -> f64,
    ) -> Option<Migration<R::Id>> {
        let targets = self.lowest(from, of);
        let left = self.policy.node_tokens.saturating_sub(self.sent[self.node(from)]);
        let mut best: Option<(f64, Migration<R::Id>)> = None;
        for request in self.running.running(from) {
            let Running { id, kv_tokens, .. } = request;
            let at_least = at_least(&request);
            if kv_tokens > left || self.moves.iter().any(|migration| migration.id == id) {
                continue;
            }
            for &to in &targets {
                let room = self.policy.node_tokens.saturating_sub(self.received[self.node(to)]);
                let value = self.value(kv_tokens, from, to);
                let better =
                    best.is_none_or(|(most, m)| value > most || (value == most && (id, to) < (m.id, m.to)));
                if kv_tokens <= room && value > at_least && better {
                    best = Some((value, Migration { id, from, to, kv_tokens }));
                }
            }
        }
        best.map(|(_, migration)| migration)
    }

    /// Other ranks that are up, the lowest in `of`.
    fn lowest(&self, from: usize, of: Dimension) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.up.iter().copied().filter(|&rank| rank != from).collect();
        if ranks.len() > TARGETS {
            let below =
                |x: &usize, y: &usize| of(&self.ranks[*x]).total_cmp(&of(&self.ranks[*y])).then(x.cmp(y));
            ranks.select_nth_unstable_by(TARGETS, below);
            ranks.truncate(TARGETS);
        }
        ranks
    }

    /// By how much the potential falls over what is left of the request, less what its transfer costs.
    fn value(&self, kv_tokens: u64, from: usize, to: usize) -> f64 {
        let (source, target) = (self.ranks[from], self.ranks[to]);
        // x^2 + y^2 - (x - d)^2 - (y + d)^2
        let fall = |source: f64, target: f64, by: f64| 2.0 * by * (source - target - by);
        let kv = fall(source.kv, target.kv, kv_tokens as f64 * self.one.kv);
        let requests = fall(source.requests, target.requests, self.one.requests);
        (kv + requests) * self.policy.remaining_steps - kv_tokens as f64 * self.policy.token_cost
    }

    fn apply(&mut self, migration: Migration<R::Id>) {
        let Migration { from, to, kv_tokens, .. } = migration;
        let (sender, receiver) = (self.node(from), self.node(to));
        self.sent[sender] += kv_tokens;
        self.received[receiver] += kv_tokens;
        let kv = kv_tokens as f64 * self.one.kv;
        self.ranks[from].kv -= kv;
        self.ranks[from].requests -= self.one.requests;
        self.ranks[to].kv += kv;
        self.ranks[to].requests += self.one.requests;
        self.moves.push(migration);
    }
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
mod tests;
