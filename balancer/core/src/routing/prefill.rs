//! What a router decides about prompts.

use super::ledger::RankPhase;
use super::{BlockHash, Decision, RequestId, Router, RoutingEvent};
use crate::cost_fit::StepCost;
use crate::ids::Rank;
use crate::prefill::{
    Cohort, HELD_PER_RANK, Hit, HomeRank, Homes, Item, MICROBATCHES, Prompt, RankBacklog, RoundBudget,
    Source, Way, Work, assign, assign_each, plan_round,
};
use crate::units::{Millis, Tokens};
use rustc_hash::FxHashSet;
use std::sync::Arc;

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
        // Decisions shall not wait for the first look, which is the longest.
        if let Some(prefixes) = &self.prefixes {
            self.holding.hits(request, prefixes);
        }
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
        let tick = events.contains(&RoutingEvent::Tick);
        let mut begun = false;
        if events.iter().any(|event| matches!(event, RoutingEvent::Steps { .. })) {
            // With a tick they have run, and need work now.
            self.ahead = (!tick && self.is_quiet()).then(|| self.ledger.arrivals());
            begun = self.ahead.is_some();
        }
        match self.policy.round_tokens {
            Some(round_tokens) if begun => self.dispatch_rounds(now, round_tokens, decisions),
            // They have their next round, and nobody came since.
            Some(_) if self.ahead == Some(self.ledger.arrivals()) => {
                self.ahead = self.ahead.filter(|_| !tick)
            }
            _ if !(overdue || tick) => {}
            Some(round_tokens) => self.dispatch_rounds(now, round_tokens, decisions),
            None => self.dispatch_cohort(now, decisions),
        }
        decisions.extend(self.ledger.held_since(before).map(|request| Decision::Hold { request }));
    }

    /// Whether a round can be planned while the one before it runs, so that it need not wait for its orders: no more than one rank in
    /// eight has anything to run, so that who comes meanwhile finds a rank.
    fn is_quiet(&self) -> bool {
        let busy = |rank: &Rank| self.ledger.pinned_prompts(*rank).next().is_some();
        let up = || self.ledger.ranks_in(RankPhase::Up);
        QUIET_PART * up().filter(busy).count() <= up().count()
    }

    /// The next round of all ranks.
    fn dispatch_rounds(&mut self, now: Millis, round_tokens: u64, decisions: &mut Vec<Decision>) {
        self.planned = now;
        // What began on a draining rank ends there; nothing begins there any more.
        let draining: Vec<Rank> = self.ledger.ranks_in(RankPhase::Draining).collect();
        self.dispatch_round(now, &draining, &[], round_tokens, decisions);
        let up = self.ranks_by_cache();
        let held = self.seen(up.len(), round_tokens);
        self.renew_expectations(now);
        self.dispatch_round(now, &up, &held, round_tokens, decisions);
    }

    /// The held prompts that a round is planned with, for each is weighed on every rank: the next ones, no more than fill two rounds
    /// once they are [`HELD_SEEN`], and no more than [`HELD_PER_RANK`] a rank.
    pub(super) fn seen(&self, ranks: usize, round_tokens: u64) -> Vec<RequestId> {
        let mut room = 2 * round_tokens * ranks as u64;
        let held = self.holding.in_order().take(HELD_PER_RANK * ranks).enumerate();
        held.map_while(|(index, request)| {
            let open = room > 0 || index < HELD_SEEN;
            room = room.saturating_sub(self.ledger.rest(request).remaining);
            open.then_some(request)
        })
        .collect()
    }

    /// The ranks that are up, with the least in their cache first: of ranks that have as little to do the first is taken, and a prompt
    /// that comes new shall not drive out what others come back to.
    fn ranks_by_cache(&self) -> Vec<Rank> {
        let mut up: Vec<Rank> = self.ledger.ranks_in(RankPhase::Up).collect();
        up.sort_by_cached_key(|&rank| (self.blocks_kept(rank), rank));
        up
    }

    /// Prefix blocks in a rank's cache, as far as that is known.
    fn blocks_kept(&self, rank: Rank) -> u64 {
        self.prefixes.as_ref().map_or(0, |prefixes| prefixes.blocks_of(rank))
    }

    /// Held prompts go out whole, in their order, as many as the ranks have room for.
    fn dispatch_cohort(&mut self, now: Millis, decisions: &mut Vec<Decision>) {
        self.planned = now;
        self.renew_expectations(now);
        let up = self.ranks_by_cache();
        let carried: Vec<Work> = up.iter().flat_map(|&rank| self.ledger.outstanding(rank)).collect();
        let chosen = self.choose(carried.iter().map(|work| work.tokens).sum(), up.len() as u64);
        if chosen.is_empty() {
            return;
        }
        let places = Places::new(self.ranks(), &up);
        let items: Vec<Item> = chosen.iter().map(|&request| self.item(request, &places)).collect();
        let cohort = Cohort { carried, items };
        let assignment = if cohort.items.len() < cohort.carried.len() {
            let kept: Vec<u64> = up.iter().map(|&rank| self.blocks_kept(rank)).collect();
            assign_each(&cohort, &kept)
        } else {
            assign(&cohort)
        };
        self.note_cohort(chosen.len(), assignment.tokens, assignment.attention);
        decisions.reserve(chosen.len());
        for ((request, bin), item) in chosen.into_iter().zip(assignment.bin_of).zip(&cohort.items) {
            let (index, microbatch) = (bin / MICROBATCHES, (bin % MICROBATCHES) as u8);
            let rank = up[index];
            let hit = item.hits.iter().find(|hit| hit.rank == index);
            let hit = hit.map_or(item.prompt.context, |hit| hit.tokens);
            if let Some(blocks) = self.holding.serve(request) {
                self.expect_prefixes(rank, Arc::clone(&blocks));
                self.holding.begin(request, blocks, now);
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

    /// A held prompt with what the ranks have of it, all of them or each by itself.
    fn item(&mut self, request: RequestId, places: &Places) -> Item {
        let mut item = Item::from(self.ledger.rest(request));
        let kept = self.prefixes.as_ref().and_then(|prefixes| self.holding.hits(request, prefixes));
        if let Some(kept) = kept {
            let tokens = |blocks: u32| u64::from(blocks) * self.policy.block_tokens;
            let of_all = kept.of_all(&places.ranks);
            item.prompt = item.prompt.with(tokens(of_all));
            let hit = |(rank, blocks): (Rank, u32)| {
                let rank = places.of(rank).filter(|_| tokens(blocks) > item.prompt.context)?;
                Some(Hit { rank, tokens: tokens(blocks) })
            };
            item.hits.extend(kept.above(of_all).filter_map(hit));
        }
        item
    }

    /// A prompt may wait and run for longer than an expectation lives. Of chunks, what was given long since has run, and is announced;
    /// of a whole prompt nobody says how far it is.
    fn renew_expectations(&mut self, now: Millis) {
        let mut room = RENEWED_BLOCKS_MAX;
        for request in self.holding.aged(now, self.policy.prefix.expected_ms / 2) {
            if room == 0 {
                return;
            }
            let blocks = self.holding.tell_again(request, now);
            let given = self.policy.round_tokens.map_or(0, |_| self.ledger.rest(request).context);
            let given = (given / self.policy.block_tokens) as usize;
            let (rest, rank) = (blocks.get(given..).unwrap_or_default(), self.ledger.rank_of(request));
            if let Some(prefixes) = &mut self.prefixes {
                prefixes.expect(rank.expect("what has begun has a rank"), rest);
            }
            room = room.saturating_sub(rest.len());
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
        let is_newcomer =
            |request: RequestId| held.first().is_some_and(|&(first, _)| age(request) > age(first));
        let backlog = |(&rank, prompts): (&Rank, &Vec<(RequestId, Prompt)>)| {
            let [first, second] = self.ledger.outstanding(rank);
            let pinned = prompts.iter().map(|(_, prompt)| *prompt).collect();
            let newcomers = prompts.len() - prompts.partition_point(|&(request, _)| !is_newcomer(request));
            RankBacklog { pinned, newcomers, outstanding: first + second }
        };
        let backlogs: Vec<RankBacklog> = ranks.iter().zip(&pinned).map(backlog).collect();
        let prompts: Vec<Prompt> = held.iter().map(|&(_, prompt)| prompt).collect();
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
                Source::Held(index) => (held[index].0, held[index].1.context),
            };
            if self.ledger.rank_of(request).is_none() {
                self.counters.dispatched += 1;
                if let Some(blocks) = self.holding.serve(request) {
                    self.expect_prefixes(rank, Arc::clone(&blocks));
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
        &mut self,
        ranks: &[Rank],
        held: &[RequestId],
        pair_cost: f64,
        pinned: &mut [Vec<(RequestId, Prompt)>],
    ) -> Vec<(RequestId, Prompt)> {
        if held.is_empty() {
            return Vec::new();
        }
        let places = Places::new(self.ranks(), ranks);
        let items: Vec<Item> = held.iter().map(|&request| self.item(request, &places)).collect();
        let prompts: Vec<Vec<Prompt>> =
            pinned.iter().map(|rank| rank.iter().map(|&(_, p)| p).collect()).collect();
        let before = ranks.iter().zip(&prompts).map(|(&rank, pinned)| {
            let [first, second] = self.ledger.outstanding(rank);
            HomeRank { given: first + second, pinned, kept: self.blocks_kept(rank) }
        });
        let mut homes = Homes::new(before, pair_cost);
        let known = |&(request, prompt): &(RequestId, Prompt)| (prompt, self.holding.any_blocks(request));
        let mut there: Vec<Vec<_>> = pinned.iter().map(|rank| rank.iter().map(known).collect()).collect();
        let mut free = Vec::with_capacity(held.len());
        let mut coming = Coming::default();
        for (&request, item) in held.iter().zip(&items) {
            let most = item.hits.iter().map(|hit| hit.tokens).max().unwrap_or(item.prompt.context);
            let blocks = self.holding.blocks(request);
            let shared = coming.shared(blocks) * self.policy.block_tokens;
            if shared.saturating_sub(most) >= item.prompt.remaining.div_ceil(SHARED_PARTS_MAX) {
                continue;
            }
            let after = |hit: &Hit| self.runs_it(blocks, hit, &there[hit.rank]);
            match homes.send(item.prompt, &item.hits, after) {
                Way::Home(rank, rest) => {
                    pinned[rank].push((request, rest));
                    there[rank].push((rest, blocks));
                }
                Way::Wait(_) => {}
                Way::Free => {
                    coming.add(blocks);
                    free.push((request, item.prompt));
                }
            }
        }
        free
    }

    /// The prompt on the hit's rank that has yet to run some of it, where `pinned` are with the blocks that they have.
    fn runs_it(&self, blocks: &[BlockHash], hit: &Hit, pinned: &[(Prompt, &[BlockHash])]) -> Option<Prompt> {
        let most = (hit.tokens / self.policy.block_tokens) as usize;
        // A block's hash names all that is before it: the first one that is still to run tells whether the prompts share it.
        let ahead = |(prompt, others): &&(Prompt, &[BlockHash])| {
            let next = (prompt.context / self.policy.block_tokens) as usize;
            next < most && blocks.get(next).is_some_and(|block| others.get(next) == Some(block))
        };
        pinned.iter().find(ahead).map(|&(prompt, _)| prompt)
    }
}

/// A unit is quiet while one rank in so many has prompts that are not wholly given. With half of the ranks, prompts that come find them
/// full for one more round: agentic sessions to 160k at 40 % load have their median first token 5 % later in simulation.
const QUIET_PART: usize = 8;

/// Prompts that a round is planned with whatever their length: at 320 ranks a dozen a rank.
const HELD_SEEN: usize = 4096;

/// Blocks whose expectations are renewed in a round, at half a microsecond each. The next round goes on with the rest, and has several
/// seconds until they end.
const RENEWED_BLOCKS_MAX: usize = 16_384;

/// A prompt waits for an older one that takes any rank in the same round if they share a quarter of it or more: where the older one
/// began, that need not run twice. Less is not worth a round.
const SHARED_PARTS_MAX: u64 = 4;

/// The ranks that a plan is made for.
struct Places {
    /// By rank: its place among them.
    places: Vec<Option<usize>>,
    /// All of them as a bit set.
    ranks: Vec<u64>,
}

impl Places {
    /// Of these ranks of a unit of `unit`.
    fn new(unit: u16, ranks: &[Rank]) -> Self {
        let mut places = vec![None; usize::from(unit)];
        let mut set = vec![0; usize::from(unit).div_ceil(64)];
        for (place, rank) in ranks.iter().enumerate() {
            places[rank.index()] = Some(place);
            set[rank.index() / 64] |= 1 << (rank.index() % 64);
        }
        Self { places, ranks: set }
    }

    fn of(&self, rank: Rank) -> Option<usize> {
        self.places[rank.index()]
    }
}

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
