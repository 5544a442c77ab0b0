//! The dispatch ledger: what the balancer gave to whom. It is the truth; reports correct it, and never
//! overwrite what was in flight when they were made.

use super::RequestId;
use crate::decode::RankLoad;
use crate::ids::Rank;
use crate::prefill::{Prompt, Work};
use crate::units::{Millis, Tokens};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Dispatches of a rank that a report can refer to: at a thousand a second and rank, a quarter of a second.
const RECENT_MAX: usize = 256;

/// Where a unit's step count stops: at 30 ms a step, after a thousand years. KV sums of
/// [`LIVE_MAX`](super::LIVE_MAX) requests that gained so many tokens each still fit 63 bits.
const STEPS_SUM_MAX: u64 = 1 << 40;

/// One live request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    /// Order of arrival while held, of the first dispatch afterwards.
    sequence: u64,
    arrived: Millis,
    /// Rank, once dispatched.
    rank: Option<Rank>,
    microbatch: u8,
    prompt: u32,
    cached: u32,
    /// New tokens dispatched.
    given: u32,
    /// Of these, known to have run.
    run: u32,
    /// The unit's step count at the dispatch.
    steps_at: u64,
}

impl Live {
    fn outstanding(&self) -> Work {
        Work::of(u64::from(self.cached + self.run), u64::from(self.given - self.run))
    }

    fn rest(&self) -> Prompt {
        let context = u64::from(self.cached + self.given);
        Prompt { context, remaining: u64::from(self.prompt) - context }
    }
}

/// What the ledger holds of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RankLedger {
    up: bool,
    /// Live requests by order of dispatch.
    requests: BTreeMap<u64, RequestId>,
    /// Sum over live requests of (prompt tokens - steps at dispatch): adding requests x steps gives KV.
    kv_base: i64,
    outstanding: [Work; 2],
    /// Last report minus the ledger at the time of the report.
    kv_difference: i64,
    requests_difference: i64,
    /// Latest dispatches, finished ones too, so that a report can name one.
    recent: VecDeque<(RequestId, u64)>,
}

/// Totals of one rank, as decisions see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerTotals {
    /// Live requests dispatched to the rank.
    pub requests: u64,
    /// KV tokens of these requests.
    pub kv_tokens: Tokens,
    /// Prefill work dispatched and not known to have run.
    pub outstanding: Work,
    /// What the last report had more (or less) than the ledger, in KV tokens.
    pub kv_difference: i64,
    /// The same in requests.
    pub requests_difference: i64,
    /// Whether the rank is given requests.
    pub up: bool,
}

/// Requests by name, and their sums by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    live: HashMap<RequestId, Live>,
    /// Held requests by order of arrival.
    held: BTreeMap<u64, RequestId>,
    ranks: Vec<RankLedger>,
    steps: u64,
    last_sequence: u64,
}

impl Ledger {
    pub(super) fn new(ranks: u16) -> Self {
        let rank = RankLedger {
            up: true,
            requests: BTreeMap::new(),
            kv_base: 0,
            outstanding: [Work::default(); 2],
            kv_difference: 0,
            requests_difference: 0,
            recent: VecDeque::new(),
        };
        Self {
            live: HashMap::new(),
            held: BTreeMap::new(),
            ranks: vec![rank; ranks.into()],
            steps: 0,
            last_sequence: 0,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live.len()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn contains(&self, request: RequestId) -> bool {
        self.live.contains_key(&request)
    }

    pub(super) fn rank_of(&self, request: RequestId) -> Option<Rank> {
        self.live.get(&request).and_then(|live| live.rank)
    }

    pub(super) fn any_up(&self) -> bool {
        self.ranks.iter().any(|rank| rank.up)
    }

    pub(super) fn oldest_held(&self) -> Option<Millis> {
        self.held.values().next().map(|request| self.live[request].arrived)
    }

    /// Number of the latest arrival or first dispatch.
    pub(super) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Held requests that arrived after the sequence number, oldest first.
    pub(super) fn held_since(&self, sequence: u64) -> impl Iterator<Item = RequestId> + '_ {
        self.held.range(sequence + 1..).map(|(_, &request)| request)
    }

    /// Held requests with all they need, oldest first.
    pub(super) fn held_prompts(&self) -> impl Iterator<Item = (RequestId, Prompt)> + '_ {
        self.held.values().map(|&request| (request, self.live[&request].rest()))
    }

    /// Prompts of a rank that are not wholly dispatched, oldest first.
    pub(super) fn pinned_prompts(&self, rank: Rank) -> impl Iterator<Item = (RequestId, Prompt)> + '_ {
        let requests = self.ranks[rank.index()].requests.values();
        requests.map(|&request| (request, self.live[&request].rest())).filter(|(_, p)| p.remaining > 0)
    }

    pub(super) fn ranks_up(&self) -> impl Iterator<Item = Rank> + '_ {
        (0u16..).map(Rank).zip(&self.ranks).filter(|(_, ledger)| ledger.up).map(|(rank, _)| rank)
    }

    pub(super) fn outstanding(&self, rank: Rank) -> [Work; 2] {
        self.ranks[rank.index()].outstanding
    }

    /// Loads of all ranks with the reports' corrections, for the admission.
    pub(super) fn loads(&self) -> impl Iterator<Item = RankLoad> + Clone + '_ {
        self.ranks.iter().map(|rank| RankLoad {
            kv_tokens: (rank.kv(self.steps) as i64).saturating_add(rank.kv_difference).max(0) as u64,
            requests: (rank.requests.len() as i64).saturating_add(rank.requests_difference).max(0) as u64,
            up: rank.up,
        })
    }

    pub(super) fn totals(&self, rank: Rank) -> Option<LedgerTotals> {
        self.ranks.get(rank.index()).map(|ledger| LedgerTotals {
            requests: ledger.requests.len() as u64,
            kv_tokens: Tokens(ledger.kv(self.steps)),
            outstanding: ledger.outstanding[0] + ledger.outstanding[1],
            kv_difference: ledger.kv_difference,
            requests_difference: ledger.requests_difference,
            up: ledger.up,
        })
    }

    pub(super) fn hold(&mut self, request: RequestId, now: Millis, prompt: Tokens, cached: Tokens) {
        let sequence = self.sequence();
        let narrow = |tokens: Tokens| u32::try_from(tokens.0).expect("validated against PROMPT_TOKENS_MAX");
        let live = Live {
            sequence,
            arrived: now,
            rank: None,
            microbatch: 0,
            prompt: narrow(prompt),
            cached: narrow(cached),
            given: 0,
            run: 0,
            steps_at: 0,
        };
        let before = self.live.insert(request, live);
        assert!(before.is_none(), "validated: request {request:?} is not live");
        self.held.insert(sequence, request);
    }

    fn sequence(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }

    /// Gives `tokens` more (`None`: all that are left) of a request to `rank`.
    pub(super) fn dispatch(&mut self, request: RequestId, rank: Rank, microbatch: u8, tokens: Option<u64>) {
        let next = self.sequence();
        let steps = self.steps;
        let live = self.live.get_mut(&request).expect("only live requests are dispatched");
        let ledger = &mut self.ranks[rank.index()];
        assert!(ledger.up, "rank {rank} is down");
        match live.rank {
            None => {
                self.held.remove(&live.sequence);
                (live.rank, live.sequence, live.steps_at) = (Some(rank), next, steps);
                ledger.requests.insert(next, request);
                ledger.kv_base += live.kv_base();
                ledger.remember(request, next);
            }
            Some(pinned) => assert_eq!(pinned, rank, "a request stays on its rank"),
        }
        ledger.outstanding[usize::from(live.microbatch)] -= live.outstanding();
        live.microbatch = microbatch;
        let rest = live.rest().remaining;
        let tokens = tokens.unwrap_or(rest);
        assert!(tokens <= rest, "a chunk longer than its prompt");
        live.given += tokens as u32;
        ledger.outstanding[usize::from(live.microbatch)] += live.outstanding();
    }

    /// Forgets a request; `false` when it was not live.
    pub(super) fn finish(&mut self, request: RequestId) -> bool {
        let Some(live) = self.live.remove(&request) else {
            return false;
        };
        match live.rank {
            None => {
                self.held.remove(&live.sequence);
            }
            Some(rank) => {
                let ledger = &mut self.ranks[rank.index()];
                ledger.requests.remove(&live.sequence);
                ledger.kv_base -= live.kv_base();
                ledger.outstanding[usize::from(live.microbatch)] -= live.outstanding();
            }
        }
        true
    }

    /// Every dispatched request generated `count` tokens.
    pub(super) fn generated(&mut self, count: u32) {
        self.steps = (self.steps + u64::from(count)).min(STEPS_SUM_MAX);
    }

    /// Every rank has run all that it was given.
    pub(super) fn ran_all(&mut self) {
        for ledger in &mut self.ranks {
            for request in ledger.requests.values() {
                let live = self.live.get_mut(request).expect("the rank's requests are live");
                live.run = live.given;
            }
            ledger.outstanding = [Work::default(); 2];
        }
    }

    /// Forgets the rank's requests and gives it no more; returns how many.
    pub(super) fn take_down(&mut self, rank: Rank) -> usize {
        let ledger = &mut self.ranks[rank.index()];
        let gone = std::mem::take(&mut ledger.requests);
        for request in gone.values() {
            self.live.remove(request);
        }
        *ledger = RankLedger {
            up: false,
            requests: BTreeMap::new(),
            kv_base: 0,
            outstanding: [Work::default(); 2],
            kv_difference: 0,
            requests_difference: 0,
            recent: VecDeque::new(),
        };
        gone.len()
    }

    /// Takes a report of a rank that is up. `false` when the request it names is too long ago to tell what
    /// was in flight: the loads of such a report are not used.
    pub(super) fn correct(
        &mut self,
        rank: Rank,
        kv: Tokens,
        requests: u32,
        as_of: Option<RequestId>,
    ) -> bool {
        let (steps, live) = (self.steps, &self.live);
        let ledger = &mut self.ranks[rank.index()];
        ledger.up = true;
        let heard = match as_of {
            None => 0,
            Some(request) => match ledger.recent.iter().rev().find(|(r, _)| *r == request) {
                Some((_, sequence)) => *sequence,
                None => return false,
            },
        };
        let in_flight = ledger.requests.range(heard + 1..);
        let (mut flying, mut flying_kv) = (0i64, 0i64);
        for (_, request) in in_flight {
            flying += 1;
            flying_kv += live[request].kv(steps);
        }
        ledger.kv_difference = kv.0 as i64 + flying_kv - ledger.kv(steps) as i64;
        ledger.requests_difference = i64::from(requests) + flying - ledger.requests.len() as i64;
        true
    }

    /// Sums over live requests, to be compared with the totals that are kept.
    #[cfg(test)]
    pub(super) fn recount(&self, rank: Rank) -> LedgerTotals {
        let kept = self.totals(rank).expect("rank of the unit");
        let mut sums =
            LedgerTotals { requests: 0, kv_tokens: Tokens(0), outstanding: Work::default(), ..kept };
        for live in self.live.values().filter(|live| live.rank == Some(rank)) {
            sums.requests += 1;
            sums.kv_tokens += Tokens(live.kv(self.steps) as u64);
            sums.outstanding += live.outstanding();
        }
        sums
    }
}

impl Live {
    fn kv_base(&self) -> i64 {
        i64::from(self.prompt) - self.steps_at as i64
    }

    fn kv(&self, steps: u64) -> i64 {
        self.kv_base() + steps as i64
    }
}

impl RankLedger {
    fn kv(&self, steps: u64) -> u64 {
        let kv = self.kv_base + self.requests.len() as i64 * steps as i64;
        u64::try_from(kv).expect("KV is a sum over requests, each of which has at least its prompt")
    }

    fn remember(&mut self, request: RequestId, sequence: u64) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((request, sequence));
    }
}
