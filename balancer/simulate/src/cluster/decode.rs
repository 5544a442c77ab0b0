//! A decode unit: ranks in lockstep steps that generate one token for every running request. A rank begins the requests of its
//! queue in their order, as long as it has slots and room for KV; when its KV overflows, the request that began last waits
//! again. Its KV is kept aside meanwhile, as SGLang keeps it for decode, so nothing is computed twice.

use super::rank_state::{RankState, StepSample, UnitView};
use super::setup::DecodePool;
use super::step_time::StepTime;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A request of a rank.
#[derive(Debug, Clone)]
struct Live {
    rank: u16,
    /// KV tokens at the beginning of `begun`, or while it waits.
    context: u64,
    /// Tokens to generate from there.
    left: u64,
    /// Whether it has generated anything here.
    first: bool,
    /// The unit's step count when it began; `None` while it waits.
    begun: Option<u64>,
    /// Index in its rank's batch.
    place: usize,
    /// Grows whenever its end is planned anew.
    plan: u32,
}

#[derive(Debug, Clone, Default)]
struct Rank {
    batch: Vec<u64>,
    waiting: VecDeque<u64>,
    kv: u64,
    own_us: f64,
}

/// What ended with a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DecodeStep {
    /// Requests that generated their first token here, with their rank.
    pub first: Vec<(u64, u16)>,
    /// Requests that generated their last token.
    pub finished: Vec<u64>,
}

/// One decode unit.
pub struct DecodeUnit {
    slots: u32,
    reserve_tokens: u64,
    ranks: Vec<Rank>,
    state: Vec<RankState>,
    cache_news: VecDeque<super::rank_state::CacheNews>,
    lives: HashMap<u64, Live>,
    /// Steps that have ended.
    steps: u64,
    /// By step count: requests whose last token it brings, with their plan.
    ends: BTreeMap<u64, Vec<(u64, u32)>>,
    /// Began with the running step.
    fresh: Vec<u64>,
    /// Moves that take effect before the next step.
    moves: Vec<(u64, u16)>,
    preempted: u64,
    moved: u64,
}

impl DecodeUnit {
    /// An empty unit.
    pub fn new(pool: &DecodePool) -> Self {
        let state = RankState { up: true, capacity_tokens: pool.pool.kv_tokens, ..RankState::default() };
        let ranks = usize::from(pool.pool.ranks);
        Self {
            slots: pool.slots,
            reserve_tokens: pool.reserve_tokens,
            ranks: vec![Rank::default(); ranks],
            state: vec![state; ranks],
            cache_news: VecDeque::new(),
            lives: HashMap::new(),
            steps: 0,
            ends: BTreeMap::new(),
            fresh: Vec::new(),
            moves: Vec::new(),
            preempted: 0,
            moved: 0,
        }
    }

    /// What the ranks publish.
    pub fn view(&mut self) -> UnitView<'_> {
        UnitView { ranks: &self.state, cache_news: &mut self.cache_news }
    }

    /// By rank: (KV tokens, running requests, own time in microseconds) of the step that runs or ran last.
    pub fn loads(&self) -> impl Iterator<Item = (u64, u32, f64)> + '_ {
        self.ranks.iter().map(|rank| (rank.kv, rank.batch.len() as u32, rank.own_us))
    }

    /// Requests that had to wait again because KV overflowed.
    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    /// Requests that changed their rank.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Gives a request with `context` KV tokens, that has `left` tokens to generate, to a rank. `Ok(false)`: the rank will never
    /// have room for it, or does not serve.
    pub fn deliver(
        &mut self,
        (id, context, left): (u64, u64, u64),
        (rank, number): (u16, u64),
    ) -> Result<bool, &'static str> {
        let index = usize::from(rank);
        let state = self.state.get_mut(index).ok_or("the unit has no such rank")?;
        if self.lives.contains_key(&id) {
            return Err("the request is on a rank already");
        }
        if number > 0 {
            state.last_dispatch = Some(number);
        }
        let needed = (context + self.reserve_tokens).max(context + left);
        if !state.up || needed > state.capacity_tokens {
            return Ok(false);
        }
        let live = Live { rank, context, left, first: false, begun: None, place: 0, plan: 0 };
        self.lives.insert(id, live);
        self.ranks[index].waiting.push_back(id);
        state.waiting += 1;
        state.queued_tokens += context;
        Ok(true)
    }

    /// Whether the request is here.
    pub fn has(&self, id: u64) -> bool {
        self.lives.contains_key(&id)
    }

    /// KV tokens of a running request, and its rank; `None` while it waits or is not here.
    pub fn running(&self, id: u64) -> Option<(u64, u16)> {
        let live = self.lives.get(&id)?;
        Some((live.context + self.steps - live.begun?, live.rank))
    }

    /// The copy of a request's KV is complete on another rank: before the next step it goes on there.
    pub fn copied(&mut self, id: u64, to: u16) {
        self.moves.push((id, to));
    }

    /// Begins a step and returns how long it takes; `None` when nothing runs.
    pub fn begin_step(&mut self, time: &dyn StepTime) -> Option<u64> {
        for (id, to) in std::mem::take(&mut self.moves) {
            self.move_to(id, to);
        }
        let mut running = 0;
        for rank in 0..self.ranks.len() {
            self.admit(rank);
            self.preempt(rank);
            running += self.ranks[rank].batch.len();
        }
        if running == 0 {
            return None;
        }
        let mut slowest = 0.0f64;
        for rank in &mut self.ranks {
            rank.own_us = time.decode_us(rank.kv, rank.batch.len() as u32);
            slowest = slowest.max(rank.own_us);
        }
        Some((slowest.ceil() as u64).max(1))
    }

    /// Ends the step.
    pub fn end_step(&mut self, step_us: u64) -> DecodeStep {
        self.steps += 1;
        let mut step = DecodeStep::default();
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            let requests = rank.batch.len() as u32;
            let sample = StepSample {
                tokens: requests.into(),
                pairs: rank.kv,
                requests,
                kv_tokens: rank.kv,
                own_us: rank.own_us,
            };
            rank.kv += u64::from(requests);
            let state = &mut self.state[index];
            state.used_tokens = rank.kv;
            state.generated_per_s = f64::from(requests) * 1e6 / step_us.max(1) as f64;
            state.last_step = (requests > 0).then_some(sample);
        }
        for id in std::mem::take(&mut self.fresh) {
            if let Some(live) = self.lives.get_mut(&id)
                && live.begun.is_some()
                && !std::mem::replace(&mut live.first, true)
            {
                step.first.push((id, live.rank));
            }
        }
        for (id, plan) in self.ends.remove(&self.steps).unwrap_or_default() {
            if self.lives.get(&id).is_some_and(|live| live.plan == plan && live.begun.is_some()) {
                self.leave(id);
                self.lives.remove(&id);
                step.finished.push(id);
            }
        }
        step
    }

    /// A rank dies: returns the requests that are lost with it.
    pub fn die(&mut self, rank: u16) -> Vec<u64> {
        let index = usize::from(rank);
        let mut lost: Vec<u64> =
            self.lives.iter().filter(|(_, l)| l.rank == rank).map(|(&id, _)| id).collect();
        lost.sort_unstable();
        for id in &lost {
            self.lives.remove(id);
        }
        self.ranks[index] = Rank::default();
        let capacity_tokens = self.state[index].capacity_tokens;
        self.state[index] = RankState { capacity_tokens, ..RankState::default() };
        lost
    }

    /// A rank serves (again).
    pub fn join(&mut self, rank: u16) {
        self.state[usize::from(rank)].up = true;
    }

    /// Begins waiting requests in their order while there are slots and room.
    fn admit(&mut self, rank: usize) {
        while let Some(&id) = self.ranks[rank].waiting.front() {
            let place = &mut self.ranks[rank];
            let live = &self.lives[&id];
            let room = place.kv + live.context + self.reserve_tokens <= self.state[rank].capacity_tokens;
            // A rank that has nothing can always run one: longer ones were not taken.
            if place.batch.len() as u32 >= self.slots || !(room || place.batch.is_empty()) {
                return;
            }
            place.waiting.pop_front();
            let state = &mut self.state[rank];
            state.waiting -= 1;
            state.queued_tokens -= live.context;
            self.begin(id, rank);
        }
    }

    fn begin(&mut self, id: u64, rank: usize) {
        let place = &mut self.ranks[rank];
        let live = self.lives.get_mut(&id).expect("it is here");
        live.begun = Some(self.steps);
        live.rank = rank as u16;
        live.place = place.batch.len();
        live.plan += 1;
        place.batch.push(id);
        place.kv += live.context;
        self.ends.entry(self.steps + live.left).or_default().push((id, live.plan));
        if !live.first {
            self.fresh.push(id);
        }
        let state = &mut self.state[rank];
        state.running += 1;
        state.used_tokens = place.kv;
    }

    /// Takes a running request out of its batch, with its KV; what it generated so far is settled.
    fn leave(&mut self, id: u64) {
        let live = self.lives.get_mut(&id).expect("it is here");
        let generated = self.steps - live.begun.take().expect("it runs");
        live.context += generated;
        live.left -= generated;
        let (rank, at, context) = (live.rank, live.place, live.context);
        let place = &mut self.ranks[usize::from(rank)];
        place.kv -= context;
        place.batch.swap_remove(at);
        if let Some(moved) = place.batch.get(at) {
            self.lives.get_mut(moved).expect("requests of a batch are here").place = at;
        }
        let state = &mut self.state[usize::from(rank)];
        state.running -= 1;
        state.used_tokens = place.kv;
    }

    /// Sends the requests that began last back to wait until this step's tokens fit.
    fn preempt(&mut self, rank: usize) {
        loop {
            let place = &self.ranks[rank];
            let needed = place.kv + place.batch.len() as u64;
            if needed <= self.state[rank].capacity_tokens || place.batch.len() <= 1 {
                return;
            }
            let last = place.batch.iter().copied().max_by_key(|id| (self.lives[id].begun, *id));
            let last = last.expect("the batch has several");
            self.leave(last);
            self.preempted += 1;
            self.ranks[rank].waiting.push_front(last);
            let state = &mut self.state[rank];
            state.waiting += 1;
            state.queued_tokens += self.lives[&last].context;
        }
    }

    /// Moves a running request, unless it has ended, waits, or finds no room.
    fn move_to(&mut self, id: u64, to: u16) {
        let Some((context, from)) = self.running(id) else { return };
        let (place, state) = (&self.ranks[usize::from(to)], &self.state[usize::from(to)]);
        let room = place.kv + context < state.capacity_tokens && (place.batch.len() as u32) < self.slots;
        if !state.up || !room || from == to {
            return;
        }
        self.leave(id);
        self.begin(id, usize::from(to));
        self.moved += 1;
    }
}
