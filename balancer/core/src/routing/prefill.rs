//! What a router decides about prompts.

use super::ledger::RankPhase;
use super::{BlockHash, Decision, RequestId, Router, RoutingEvent};
use crate::cost_fit::StepCost;
use crate::ids::Rank;
use crate::prefill::{
    Cohort, HELD_PER_RANK, Hit, Home, HomeRank, Homes, Item, MICROBATCHES, Prompt, RankBacklog, RoundBudget,
    Source, Way, Work, assign, plan_round,
};
use crate::units::{Millis, Tokens};
use rustc_hash::FxHashSet;

impl Router {
    /// An arrival joins the held prompts, at the cost that it will have on a rank that has nothing of it cached.
    pub(super) fn hold_prompt(&mut self, arrival: &RoutingEvent, decisions: &mut Vec<Decision>) {
        let &RoutingEvent::Arrive { request, .. } = arrival else {
            return;
        };
        let Prompt { context, remaining } = self.ledger.rest(request);
        let (work, cost) = (Work::of(context, remaining), self.fit.cost());
        let micros = cost.token_us * work.tokens as f64 + cost.pair_us * work.attention as f64;
        let refusal = self.holding.push(arrival, micros as u64);
        self.turn_away(refusal, decisions);
    }

    /// `before`: requests that had arrived before the batch.
    pub(super) fn decide_prefill(
        &mut self,
        now: Millis,
        events: &[RoutingEvent],
        before: u64,
        decisions: &mut Vec<Decision>,
    ) {
        let oldest = self.ledger.oldest_held();
        let wait_max_ms = self.policy.cohort_wait_max_ms;
        // What stays held in a round has its reason, and is looked at again in the next: only where none comes it is overdue.
        let waited = |arrived: Millis| now.since(arrived.max(self.planned)) >= wait_max_ms;
        let overdue = oldest.is_some_and(waited);
        if overdue || events.contains(&RoutingEvent::Tick) {
            self.planned = now;
            match self.policy.round_tokens {
                // What began on a draining rank ends there; nothing begins there any more.
                Some(round_tokens) => {
                    let draining: Vec<Rank> = self.ledger.ranks_in(RankPhase::Draining).collect();
                    self.dispatch_round(now, &draining, &[], round_tokens, decisions);
                    let up = self.ranks_by_cache();
                    // Each is looked up in the prefix index, and no more are planned with.
                    let seen = HELD_PER_RANK * up.len();
                    let held: Vec<RequestId> = self.holding.in_order().take(seen).collect();
                    self.renew_expectations(now);
                    self.dispatch_round(now, &up, &held, round_tokens, decisions);
                }
                None => self.dispatch_cohort(decisions),
            }
        }
        decisions.extend(self.ledger.held_since(before).map(|request| Decision::Hold { request }));
    }

    /// The ranks that are up, with the least in their cache first: of ranks that have as little to do the first is taken, and a prompt
    /// that comes new shall not drive out what others come back to.
    fn ranks_by_cache(&self) -> Vec<Rank> {
        let mut up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
        if let Some(prefixes) = &self.prefixes {
            up.sort_by_cached_key(|&rank| (prefixes.blocks_of(rank), rank));
        }
        up
    }

    /// Held prompts go out whole, in their order, as many as the ranks have room for.
    fn dispatch_cohort(&mut self, decisions: &mut Vec<Decision>) {
        let up = self.ranks_by_cache();
        let carried: Vec<Work> = up.iter().flat_map(|&rank| self.ledger.outstanding(rank)).collect();
        let chosen = self.choose(carried.iter().map(|work| work.tokens).sum(), up.len() as u64);
        if chosen.is_empty() {
            return;
        }
        let mut hits = Vec::new();
        let items: Vec<Item> = chosen.iter().map(|&request| self.item(request, &up, &mut hits)).collect();
        let cohort = Cohort { carried, items };
        let assignment = assign(&cohort);
        self.note_cohort(chosen.len(), assignment.tokens, assignment.attention);
        decisions.reserve(chosen.len());
        for ((request, bin), item) in chosen.into_iter().zip(assignment.bin_of).zip(&cohort.items) {
            let (index, microbatch) = (bin / MICROBATCHES, (bin % MICROBATCHES) as u8);
            let rank = up[index];
            let hit = item.hits.iter().find(|hit| hit.rank == index).map_or(0, |hit| hit.tokens);
            if let Some(blocks) = self.holding.serve(request) {
                self.expect_prefixes(rank, &blocks);
            }
            let number = self.ledger.dispatch(request, rank, microbatch, None, hit);
            self.counters.dispatched += 1;
            decisions.push(Decision::Dispatch { request, number, rank, microbatch, tokens: None });
        }
    }

    /// The next prompts, given the tokens that `ranks` ranks have to run already. The last may go beyond the
    /// bound: else a long one would never go out.
    fn choose(&self, outstanding: u64, ranks: u64) -> Vec<RequestId> {
        let Some(cohort_tokens) = self.policy.cohort_tokens else {
            return self.holding.in_order().collect();
        };
        let mut room = (cohort_tokens * ranks).saturating_sub(outstanding);
        let fits = |request: &RequestId| {
            let open = room > 0;
            room = room.saturating_sub(self.ledger.rest(*request).remaining);
            open
        };
        self.holding.in_order().take_while(fits).collect()
    }

    /// A held prompt with what the ranks that are up have of it; `hits` is scratch.
    fn item(&self, request: RequestId, up: &[Rank], hits: &mut Vec<u32>) -> Item {
        let prompt = self.ledger.rest(request);
        let blocks = self.holding.blocks(request);
        let mut item = Item::from(prompt);
        if let Some(prefixes) = self.prefixes.as_ref().filter(|_| !blocks.is_empty()) {
            prefixes.hits(blocks, hits);
            let tokens = |rank: &Rank| u64::from(hits[rank.index()]) * self.policy.block_tokens;
            let own = up.iter().map(tokens).enumerate().filter(|&(_, tokens)| tokens > prompt.context);
            item.hits.extend(own.map(|(rank, tokens)| Hit { rank, tokens }));
        }
        item
    }

    /// A prompt may take longer than an expectation lives.
    fn renew_expectations(&mut self, now: Millis) {
        for (request, blocks) in self.holding.aged(now, self.policy.prefix.expected_ms / 2) {
            if let Some(rank) = self.ledger.rank_of(request) {
                self.expect_prefixes(rank, &blocks);
            }
        }
    }

    /// Each of these ranks gets its next chunks.
    fn dispatch_round(
        &mut self,
        now: Millis,
        ranks: &[Rank],
        held: &[RequestId],
        round_tokens: u64,
        decisions: &mut Vec<Decision>,
    ) {
        if ranks.is_empty() {
            return;
        }
        let StepCost { token_us, pair_us, .. } = self.fit.cost();
        let pair_cost = if token_us > 0.0 { pair_us / token_us } else { RoundBudget::of(0).pair_cost };
        let mut pinned: Vec<Vec<(RequestId, Prompt)>> =
            ranks.iter().map(|&rank| self.ledger.pinned_prompts(rank).collect()).collect();
        let held = self.send_home(ranks, held, pair_cost, &mut pinned);
        let age = |request: RequestId| (self.ledger.arrived(request), request);
        pinned.iter_mut().for_each(|prompts| prompts.sort_by_key(|&(request, _)| age(request)));
        let is_newcomer = |request: RequestId| held.first().is_some_and(|&first| age(request) > age(first));
        let backlog = |(&rank, prompts): (&Rank, &Vec<(RequestId, Prompt)>)| {
            let [first, second] = self.ledger.outstanding(rank);
            let pinned = prompts.iter().map(|(_, prompt)| *prompt).collect();
            let newcomers = prompts.len() - prompts.partition_point(|&(request, _)| !is_newcomer(request));
            RankBacklog { pinned, newcomers, outstanding: first + second }
        };
        let backlogs: Vec<RankBacklog> = ranks.iter().zip(&pinned).map(backlog).collect();
        let prompts: Vec<Prompt> = held.iter().map(|&request| self.ledger.rest(request)).collect();
        let round = plan_round(&backlogs, &prompts, &RoundBudget { tokens: round_tokens, pair_cost });
        if round.chunks.is_empty() {
            return;
        }
        self.note_cohort(round.chunks.len(), round.tokens, round.attention);
        for chunk in &round.chunks {
            let rank = ranks[chunk.rank];
            let (request, hit) = match chunk.prompt {
                Source::Pinned(index) => {
                    let (request, prompt) = pinned[chunk.rank][index];
                    (request, prompt.context)
                }
                Source::Held(index) => (held[index], 0),
            };
            if self.ledger.rank_of(request).is_none() {
                self.counters.dispatched += 1;
                if let Some(blocks) = self.holding.serve(request) {
                    self.expect_prefixes(rank, &blocks);
                    self.holding.begin(request, blocks, now);
                }
            }
            let number = self.ledger.dispatch(request, rank, chunk.microbatch, Some(chunk.tokens), hit);
            if self.ledger.rest(request).remaining == 0 {
                self.holding.end(request);
            }
            let tokens = Some(Tokens(chunk.tokens));
            decisions.push(Decision::Dispatch {
                request,
                number,
                rank,
                microbatch: chunk.microbatch,
                tokens,
            });
        }
    }

    /// Held prompts that some rank has a prefix of join what is pinned to it, unless its backlog outweighs the prefix. Those whose
    /// prefix is still to run there stay held. The rest are returned in their order.
    fn send_home(
        &self,
        ranks: &[Rank],
        held: &[RequestId],
        pair_cost: f64,
        pinned: &mut [Vec<(RequestId, Prompt)>],
    ) -> Vec<RequestId> {
        let prompts: Vec<Vec<Prompt>> =
            pinned.iter().map(|rank| rank.iter().map(|&(_, p)| p).collect()).collect();
        let before = ranks.iter().zip(&prompts).map(|(&rank, pinned)| {
            let [first, second] = self.ledger.outstanding(rank);
            let kept = self.prefixes.as_ref().map_or(0, |prefixes| prefixes.blocks_of(rank));
            HomeRank { given: first + second, pinned, kept }
        });
        let mut homes = Homes::new(before, pair_cost);
        let mut scratch = Vec::new();
        let mut free = Vec::with_capacity(held.len());
        let mut coming = Coming::default();
        for &request in held {
            let item = self.item(request, ranks, &mut scratch);
            let most = item.hits.iter().map(|hit| hit.tokens).max().unwrap_or(item.prompt.context);
            let shared = coming.shared(self.holding.blocks(request)) * self.policy.block_tokens;
            if shared.saturating_sub(most) >= item.prompt.remaining.div_ceil(SHARED_PARTS_MAX) {
                continue;
            }
            let near: Vec<Home> =
                item.hits.iter().map(|&hit| self.home(request, hit, &pinned[hit.rank])).collect();
            match homes.send(item.prompt, &near) {
                Way::Home(rank, rest) => pinned[rank].push((request, rest)),
                Way::Wait(_) => {}
                Way::Free => {
                    coming.add(self.holding.blocks(request));
                    free.push(request);
                }
            }
        }
        free
    }

    /// What of the hit is still to run on the rank, where these prompts are pinned.
    fn home(&self, request: RequestId, hit: Hit, pinned: &[(RequestId, Prompt)]) -> Home {
        let blocks = self.holding.blocks(request);
        let ahead = |(other, prompt): &(RequestId, Prompt)| {
            if prompt.context >= hit.tokens {
                return false;
            }
            let others = self.holding.any_blocks(*other);
            let most = (hit.tokens / self.policy.block_tokens) as usize;
            let common = common(&others[..others.len().min(most)], &blocks[..blocks.len().min(most)]);
            common as u64 * self.policy.block_tokens > prompt.context
        };
        let after = pinned.iter().position(ahead);
        Home { rank: hit.rank, tokens: hit.tokens, after }
    }
}

/// A prompt waits for an older one that takes any rank in the same round if they share a quarter of it or more: where the older one
/// began, that need not run twice. Less is not worth a round.
const SHARED_PARTS_MAX: u64 = 4;

/// Beginnings of the prompts that take any rank in this round, of 1, 2, 4, ... blocks.
#[derive(Default)]
struct Coming(FxHashSet<BlockHash>);

impl Coming {
    fn add(&mut self, blocks: &[BlockHash]) {
        self.0.extend(beginnings(blocks).map(|depth| blocks[depth - 1]));
    }

    /// Leading blocks that a prompt has in common with one of them: the next lower power of two.
    fn shared(&self, blocks: &[BlockHash]) -> u64 {
        beginnings(blocks).take_while(|depth| self.0.contains(&blocks[depth - 1])).last().unwrap_or(0) as u64
    }
}

fn beginnings(blocks: &[BlockHash]) -> impl Iterator<Item = usize> {
    let length = blocks.len();
    (0..usize::BITS).map(|power| 1 << power).take_while(move |&depth: &usize| depth <= length)
}

/// Leading blocks that two prompts share: a block's hash names all that is before it.
fn common(one: &[BlockHash], other: &[BlockHash]) -> usize {
    let length = one.len().min(other.len());
    let (mut low, mut high) = (0, length + 1);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if one[middle - 1] == other[middle - 1] { low = middle } else { high = middle }
    }
    low
}
