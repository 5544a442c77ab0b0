//! What a router decides about prompts.

use super::ledger::RankPhase;
use super::{Decision, RequestId, Router, RoutingEvent};
use crate::cost_fit::StepCost;
use crate::ids::Rank;
use crate::prefill::{
    Cohort, HELD_PER_RANK, Hit, Item, MICROBATCHES, Prompt, RankBacklog, RoundBudget, Source, Work, assign,
    plan_round,
};
use crate::units::{Millis, Tokens};

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
        let overdue = oldest.is_some_and(|arrived| now.since(arrived) >= self.policy.cohort_wait_max_ms);
        if overdue || events.contains(&RoutingEvent::Tick) {
            match self.policy.round_tokens {
                // What began on a draining rank ends there; nothing begins there any more.
                Some(round_tokens) => {
                    let draining: Vec<Rank> = self.ledger.ranks_in(RankPhase::Draining).collect();
                    self.dispatch_round(&draining, &[], round_tokens, decisions);
                    let up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
                    // Each is looked up in the prefix index, and no more are planned with.
                    let seen = HELD_PER_RANK * up.len();
                    let held: Vec<RequestId> = self.holding.in_order().take(seen).collect();
                    self.dispatch_round(&up, &held, round_tokens, decisions);
                }
                None => self.dispatch_cohort(decisions),
            }
        }
        decisions.extend(self.ledger.held_since(before).map(|request| Decision::Hold { request }));
    }

    /// Held prompts go out whole, in their order, as many as the ranks have room for.
    fn dispatch_cohort(&mut self, decisions: &mut Vec<Decision>) {
        let up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
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

    /// Each of these ranks gets its next chunks.
    fn dispatch_round(
        &mut self,
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
        let backlog = |(&rank, prompts): (&Rank, &Vec<(RequestId, Prompt)>)| {
            let [first, second] = self.ledger.outstanding(rank);
            let pinned = prompts.iter().map(|(_, prompt)| *prompt).collect();
            RankBacklog { pinned, outstanding: first + second }
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
                }
            }
            let number = self.ledger.dispatch(request, rank, chunk.microbatch, Some(chunk.tokens), hit);
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

    /// Held prompts that some rank has a prefix of join what is pinned to it, unless its backlog outweighs the prefix: what it takes
    /// there, after what is there, against what it takes on the rank with the least. The rest are returned in their order.
    fn send_home(
        &self,
        ranks: &[Rank],
        held: &[RequestId],
        pair_cost: f64,
        pinned: &mut [Vec<(RequestId, Prompt)>],
    ) -> Vec<RequestId> {
        let cost_of = |work: Work| work.tokens as f64 + pair_cost * work.attention as f64;
        let cost = |prompt: &Prompt| cost_of(Work::of(prompt.context, prompt.remaining));
        let load = |(&rank, prompts): (&Rank, &Vec<(RequestId, Prompt)>)| {
            let [first, second] = self.ledger.outstanding(rank);
            cost_of(first + second) + prompts.iter().map(|(_, prompt)| cost(prompt)).sum::<f64>()
        };
        let mut loads: Vec<f64> = ranks.iter().zip(&*pinned).map(load).collect();
        let mut scratch = Vec::new();
        let mut free = Vec::with_capacity(held.len());
        for &request in held {
            let item = self.item(request, ranks, &mut scratch);
            let whole = item.prompt;
            let at = |tokens: u64| {
                let context = tokens.min(whole.context + whole.remaining - 1);
                Prompt { context, remaining: whole.context + whole.remaining - context }
            };
            let there = |hit: &Hit| loads[hit.rank] + cost(&at(hit.tokens));
            let best = item.hits.iter().min_by(|x, y| there(x).total_cmp(&there(y)));
            let least = loads.iter().copied().fold(f64::INFINITY, f64::min) + cost(&whole);
            match best.filter(|hit| there(hit) <= least) {
                Some(&Hit { rank, tokens }) => {
                    loads[rank] += cost(&at(tokens));
                    pinned[rank].push((request, at(tokens)));
                }
                None => free.push(request),
            }
        }
        free
    }
}
