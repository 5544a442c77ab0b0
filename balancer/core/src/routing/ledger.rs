//! The dispatch ledger: what the balancer gave to whom. It is the truth; reports correct it, and never
//! overwrite what was in flight when they were made.

use super::by_number::ByNumber;
use super::history::History;
use super::{DispatchNumber, RequestId};
use crate::decode::{RankLoad, Running, RunningRequests};
use crate::ids::Rank;
use crate::prefill::{Prompt, Work};
use crate::units::{Millis, Tokens};
use rustc_hash::FxHashMap;

/// Where a unit's step count stops: at 30 ms a step, after a thousand years. KV sums of
/// [`LIVE_MAX`](super::LIVE_MAX) requests that gained so many tokens each still fit 63 bits.
const STEPS_SUM_MAX: u64 = 1 << 40;

/// Not a count of steps: above [`STEPS_SUM_MAX`].
const NEVER: u64 = u64::MAX;

/// One live request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Live {
    /// Order of arrival while held, number of the first dispatch afterwards.
    order: u64,
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
    /// The same at the last migration; [`NEVER`] before the first.
    moved_at: u64,
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

/// Whether a rank is given requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RankPhase {
    /// It is.
    #[default]
    Up,
    /// It is not, and goes on with those that it has.
    Draining,
    /// It does not serve.
    Down,
}

/// What the ledger holds of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct RankLedger {
    phase: RankPhase,
    /// Live requests by the number of their (first) dispatch.
    requests: ByNumber,
    /// Sum over live requests of (prompt tokens - steps at dispatch): adding requests x steps gives KV.
    kv_base: i64,
    outstanding: [Work; 2],
    history: History,
    /// Of the latest report that was used; 0 before the first.
    report_sequence: u64,
    /// What the rank has more than the ledger, as far as its reports contradict the ledger.
    kv_difference: i64,
    requests_difference: i64,
}

/// Why a report was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReportDrop {
    /// Repeated, older than one that was used, or of a rank that is down.
    Stale,
    /// It names a dispatch that was never made: another balancer made it.
    UnknownDispatch,
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
    /// What the rank has more (or less) than the ledger by its reports, in KV tokens.
    pub kv_difference: i64,
    /// The same in requests.
    pub requests_difference: i64,
    /// Whether the rank is given requests.
    pub phase: RankPhase,
}

/// Requests by name, and their sums by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Ledger {
    live: FxHashMap<RequestId, Live>,
    /// Held requests by order of arrival.
    held: ByNumber,
    ranks: Vec<RankLedger>,
    steps: u64,
    /// Requests that ever arrived.
    arrivals: u64,
    /// Number of the latest dispatch.
    dispatches: u64,
}

impl Ledger {
    pub(super) fn new(ranks: u16) -> Self {
        Self {
            live: FxHashMap::default(),
            held: ByNumber::default(),
            ranks: vec![RankLedger::new(RankPhase::Up, 0); ranks.into()],
            steps: 0,
            arrivals: 0,
            dispatches: 0,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live.len()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Bytes that are allocated for live requests: the table and the lists at what they have grown to, and the windows.
    pub(super) fn bytes(&self) -> usize {
        // A table has a power of two of places, each with a control byte, at most seven eighths of them full.
        let places = (self.live.capacity() * 8 / 7).next_power_of_two();
        let table = places * (size_of::<(RequestId, Live)>() + 1);
        let ranks = self.ranks.iter().map(|rank| rank.requests.bytes() + rank.history.bytes());
        table + self.held.bytes() + ranks.sum::<usize>() + size_of_val(&*self.ranks)
    }

    pub(super) fn contains(&self, request: RequestId) -> bool {
        self.live.contains_key(&request)
    }

    pub(super) fn rank_of(&self, request: RequestId) -> Option<Rank> {
        self.live.get(&request).and_then(|live| live.rank)
    }

    pub(super) fn any_up(&self) -> bool {
        self.ranks.iter().any(|rank| rank.phase == RankPhase::Up)
    }

    pub(super) fn oldest_held(&self) -> Option<Millis> {
        self.held.iter().next().map(|request| self.live[&request].arrived)
    }

    /// Requests that ever arrived.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Held requests but for the first so many that ever arrived, oldest first.
    pub(super) fn held_since(&self, arrivals: u64) -> impl Iterator<Item = RequestId> + '_ {
        self.held.from(arrivals + 1)
    }

    /// Held requests, oldest first.
    pub(super) fn held_requests(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.held.iter()
    }

    /// When a live request arrived.
    pub(super) fn arrived(&self, request: RequestId) -> Millis {
        self.live[&request].arrived
    }

    /// What is left to give of a live request.
    pub(super) fn rest(&self, request: RequestId) -> Prompt {
        self.live[&request].rest()
    }

    /// Prompts of a rank that are not wholly dispatched, oldest first.
    pub(super) fn pinned_prompts(&self, rank: Rank) -> impl Iterator<Item = (RequestId, Prompt)> + '_ {
        let requests = self.ranks[rank.index()].requests.iter();
        requests.map(|request| (request, self.live[&request].rest())).filter(|(_, p)| p.remaining > 0)
    }

    /// Ranks in this phase, in their order.
    pub(super) fn ranks_in(&self, phase: RankPhase) -> impl Iterator<Item = Rank> + '_ {
        let ranks = (0u16..).map(Rank).zip(&self.ranks);
        ranks.filter(move |(_, ledger)| ledger.phase == phase).map(|(rank, _)| rank)
    }

    pub(super) fn outstanding(&self, rank: Rank) -> [Work; 2] {
        self.ranks[rank.index()].outstanding
    }

    /// Loads of all ranks with the reports' corrections, for the admission.
    pub(super) fn loads(&self) -> impl Iterator<Item = RankLoad> + Clone + '_ {
        self.ranks.iter().map(|rank| rank.load(self.steps))
    }

    pub(super) fn totals(&self, rank: Rank) -> Option<LedgerTotals> {
        self.ranks.get(rank.index()).map(|ledger| LedgerTotals {
            requests: ledger.requests.len() as u64,
            kv_tokens: Tokens(ledger.kv(self.steps)),
            outstanding: ledger.outstanding[0] + ledger.outstanding[1],
            kv_difference: ledger.kv_difference,
            requests_difference: ledger.requests_difference,
            phase: ledger.phase,
        })
    }

    pub(super) fn hold(&mut self, request: RequestId, now: Millis, prompt: Tokens, cached: Tokens) {
        self.arrivals += 1;
        let narrow = |tokens: Tokens| u32::try_from(tokens.0).expect("validated against PROMPT_TOKENS_MAX");
        let live = Live {
            order: self.arrivals,
            arrived: now,
            rank: None,
            microbatch: 0,
            prompt: narrow(prompt),
            cached: narrow(cached),
            given: 0,
            run: 0,
            steps_at: 0,
            moved_at: NEVER,
        };
        let before = self.live.insert(request, live);
        assert!(before.is_none(), "validated: request {request:?} is not live");
        // A table of requests that come and go doubles to be rid of the places they left, though half is empty.
        if self.live.capacity() > 2 * self.live.len() {
            self.live.shrink_to(self.live.len() + self.live.len() / 8);
        }
        self.held.push(self.arrivals, request);
    }

    /// Gives `tokens` more (`None`: all that are left) of a request to `rank`, which at the first time has `hit`
    /// leading tokens of it cached.
    pub(super) fn dispatch(
        &mut self,
        request: RequestId,
        rank: Rank,
        microbatch: u8,
        tokens: Option<u64>,
        hit: u64,
    ) -> DispatchNumber {
        self.dispatches += 1;
        let (number, steps) = (self.dispatches, self.steps);
        let live = self.live.get_mut(&request).expect("only live requests are dispatched");
        let ledger = &mut self.ranks[rank.index()];
        match live.rank {
            None => {
                assert_eq!(ledger.phase, RankPhase::Up, "rank {rank} takes no requests");
                self.held.remove(live.order);
                (live.rank, live.order, live.steps_at) = (Some(rank), number, steps);
                live.cached = live.cached.max(hit.min(u64::from(live.prompt) - 1) as u32);
                ledger.reach(steps);
                ledger.requests.push(number, request);
                ledger.kv_base += live.kv_base();
                ledger.history.dispatched(number, ledger.requests.len() as u64, ledger.kv(steps));
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
        DispatchNumber(number)
    }

    /// A running request goes on on another rank.
    pub(super) fn migrate(&mut self, request: RequestId, to: Rank) -> DispatchNumber {
        self.dispatches += 1;
        let (number, steps) = (self.dispatches, self.steps);
        let live = self.live.get_mut(&request).expect("only live requests move");
        let from = live.rank.expect("only running requests move");
        assert_ne!(from, to, "a request moves to where it is");
        let source = &mut self.ranks[from.index()];
        source.reach(steps);
        source.requests.remove(live.order);
        source.kv_base -= live.kv_base();
        source.reach(steps);
        let target = &mut self.ranks[to.index()];
        assert_eq!(target.phase, RankPhase::Up, "rank {to} takes no requests");
        target.reach(steps);
        target.requests.push(number, request);
        target.kv_base += live.kv_base();
        target.history.dispatched(number, target.requests.len() as u64, target.kv(steps));
        (live.rank, live.order, live.moved_at) = (Some(to), number, steps);
        DispatchNumber(number)
    }

    /// All that was given of a request has run; `false` when it is on no rank.
    pub(super) fn ran(&mut self, request: RequestId) -> bool {
        let Some(live) = self.live.get_mut(&request) else {
            return false;
        };
        let Some(rank) = live.rank else {
            return false;
        };
        self.ranks[rank.index()].outstanding[usize::from(live.microbatch)] -= live.outstanding();
        live.run = live.given;
        true
    }

    /// Forgets a request; `false` when it was not live.
    pub(super) fn finish(&mut self, request: RequestId) -> bool {
        let Some(live) = self.live.remove(&request) else {
            return false;
        };
        match live.rank {
            None => self.held.remove(live.order),
            Some(rank) => {
                let ledger = &mut self.ranks[rank.index()];
                ledger.reach(self.steps);
                ledger.requests.remove(live.order);
                ledger.kv_base -= live.kv_base();
                ledger.reach(self.steps);
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
            for request in ledger.requests.iter() {
                let live = self.live.get_mut(&request).expect("the rank's requests are live");
                live.run = live.given;
            }
            ledger.outstanding = [Work::default(); 2];
        }
    }

    /// Takes the rank and its requests away; returns these in the order of their dispatch.
    pub(super) fn take_down(&mut self, rank: Rank) -> Vec<RequestId> {
        let down = RankLedger::new(RankPhase::Down, self.dispatches);
        let gone = std::mem::replace(&mut self.ranks[rank.index()], down).requests;
        let requests: Vec<RequestId> = gone.iter().collect();
        for request in &requests {
            self.live.remove(request);
        }
        requests
    }

    /// The rank takes requests: a new one if it was down, and its reports count from anew.
    pub(super) fn bring_up(&mut self, rank: Rank) {
        let dispatches = self.dispatches;
        let ledger = &mut self.ranks[rank.index()];
        if ledger.phase == RankPhase::Down {
            *ledger = RankLedger::new(RankPhase::Up, dispatches);
        }
        (ledger.phase, ledger.report_sequence) = (RankPhase::Up, 0);
    }

    /// The rank takes no more requests, unless it is down anyhow.
    pub(super) fn drain(&mut self, rank: Rank) {
        let ledger = &mut self.ranks[rank.index()];
        if ledger.phase == RankPhase::Up {
            ledger.phase = RankPhase::Draining;
        }
    }

    /// Takes a report, number `sequence` of the rank's, which had received the dispatches up to `as_of`.
    pub(super) fn correct(
        &mut self,
        rank: Rank,
        sequence: u64,
        as_of: DispatchNumber,
        requests: u32,
        kv: Tokens,
    ) -> Result<(), ReportDrop> {
        let ledger = &mut self.ranks[rank.index()];
        if ledger.phase == RankPhase::Down || sequence <= ledger.report_sequence {
            return Err(ReportDrop::Stale);
        }
        if as_of.0 > self.dispatches {
            return Err(ReportDrop::UnknownDispatch);
        }
        ledger.report_sequence = sequence;
        ledger.reach(self.steps);
        let before = (ledger.requests_difference, ledger.kv_difference);
        let reported = (u64::from(requests), kv.0);
        (ledger.requests_difference, ledger.kv_difference) =
            ledger.history.differences(as_of.0, reported, before);
        Ok(())
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
    /// An empty rank, when the unit's latest dispatch is `number`.
    fn new(phase: RankPhase, number: u64) -> Self {
        Self {
            phase,
            requests: ByNumber::default(),
            kv_base: 0,
            outstanding: [Work::default(); 2],
            history: History::new(number),
            report_sequence: 0,
            kv_difference: 0,
            requests_difference: 0,
        }
    }

    fn kv(&self, steps: u64) -> u64 {
        let kv = self.kv_base + self.requests.len() as i64 * steps as i64;
        u64::try_from(kv).expect("KV is a sum over requests, each of which has at least its prompt")
    }

    /// With the reports' corrections.
    fn load(&self, steps: u64) -> RankLoad {
        RankLoad {
            kv_tokens: (self.kv(steps) as i64).saturating_add(self.kv_difference).max(0) as u64,
            requests: (self.requests.len() as i64).saturating_add(self.requests_difference).max(0) as u64,
            up: self.phase == RankPhase::Up,
        }
    }

    /// Tells the history what there is. To be called before and after every change.
    fn reach(&mut self, steps: u64) {
        self.history.reach(self.requests.len() as u64, self.kv(steps));
    }
}

impl RunningRequests for Ledger {
    type Id = RequestId;

    fn ranks(&self) -> usize {
        self.ranks.len()
    }

    fn load(&self, rank: usize) -> RankLoad {
        self.ranks[rank].load(self.steps)
    }

    fn drains(&self, rank: usize) -> bool {
        self.ranks[rank].phase == RankPhase::Draining
    }

    fn running(&self, rank: usize) -> impl Iterator<Item = Running<RequestId>> {
        self.ranks[rank].requests.iter().map(|id| {
            let live = &self.live[&id];
            let since = self.steps.checked_sub(live.moved_at);
            Running {
                id,
                kv_tokens: live.kv(self.steps) as u64,
                since_move: since.map(|steps| u32::try_from(steps).unwrap_or(u32::MAX)),
            }
        })
    }
}
