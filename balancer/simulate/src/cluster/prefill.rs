//! A prefill unit: ranks in lockstep steps with a token budget each, a first-in-first-out queue and a prefix cache per rank.

use super::rank_cache::RankCache;
use super::rank_state::{CacheNews, RankState, StepSample, UnitView};
use super::request::Request;
use super::setup::PrefillPool;
use super::step_time::StepTime;
use crate::dispatch::BLOCK_TOKENS;
use evenkeel_core::prefill::Work;
use evenkeel_core::prefix::{BlockHash, KvChange};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A begun prompt that gets no further chunk for so many steps, or when nothing else is planned, is run to its end: whoever planned its
/// chunks counted on blocks that were gone when it began.
const PATIENCE_STEPS: u32 = 8;

/// A prompt that was given to a rank.
#[derive(Debug, Clone)]
struct Prompt {
    rank: u16,
    tokens: u64,
    blocks: Arc<[u64]>,
    /// Prompt tokens that the shared cache has.
    shared_cached: u64,
    /// Uncached tokens as the rank counted them when it was given the prompt.
    expected_new: u64,
    begun: bool,
    /// Cached when it began.
    hit: u64,
    /// Cached, or run.
    context: u64,
    /// Of `blocks`, how many it holds in the rank's cache.
    stored: usize,
    /// New tokens that the rank may run of it; `u64::MAX` for all.
    allowed: u64,
    /// In the rank's queue.
    queued: bool,
    /// Steps that it has waited for its next chunk.
    waited: u32,
}

impl Prompt {
    fn given(rank: u16, request: &Request, shared_cached: u64, cache: &RankCache) -> Self {
        let hits = cache.matched(&request.blocks) as u64 * BLOCK_TOKENS;
        let cached = hits.max(shared_cached).min(request.prompt_tokens - 1);
        Self {
            rank,
            tokens: request.prompt_tokens,
            blocks: request.blocks.clone(),
            shared_cached,
            expected_new: request.prompt_tokens - cached,
            begun: false,
            hit: 0,
            context: 0,
            stored: 0,
            allowed: 0,
            queued: false,
            waited: 0,
        }
    }

    fn blocks_needed(&self) -> usize {
        (self.tokens.div_ceil(BLOCK_TOKENS) as usize).max(self.blocks.len())
    }
}

#[derive(Debug, Clone)]
struct Rank {
    /// Prompts with something to run, in the order in which they came.
    queue: VecDeque<u64>,
    cache: RankCache,
    /// The running step: tokens of each prompt.
    batch: Vec<(u64, u64)>,
    work: Work,
    own_us: f64,
}

/// A prompt that has run whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptDone {
    /// The request.
    pub id: u64,
    /// Where it ran.
    pub rank: u16,
    /// Prompt tokens that were cached.
    pub hit: u64,
}

/// What a rank did in a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankStep {
    /// New tokens and attention pairs.
    pub work: Work,
    /// Its own time.
    pub own_us: f64,
}

/// One prefill unit.
pub struct PrefillUnit {
    step_tokens: u64,
    ranks: Vec<Rank>,
    state: Vec<RankState>,
    cache_news: VecDeque<CacheNews>,
    prompts: HashMap<u64, Prompt>,
    /// By rank: prompts that wait for their next chunk.
    parked: Vec<Vec<u64>>,
    steps: Vec<RankStep>,
}

impl PrefillUnit {
    /// An empty unit.
    pub fn new(pool: &PrefillPool) -> Self {
        let capacity = (pool.pool.kv_tokens / BLOCK_TOKENS) as usize;
        let rank = Rank {
            queue: VecDeque::new(),
            cache: RankCache::new(capacity),
            batch: Vec::new(),
            work: Work::default(),
            own_us: 0.0,
        };
        let state = RankState { up: true, capacity_tokens: pool.pool.kv_tokens, ..RankState::default() };
        let ranks = usize::from(pool.pool.ranks);
        Self {
            step_tokens: pool.step_tokens,
            ranks: vec![rank; ranks],
            state: vec![state; ranks],
            cache_news: VecDeque::new(),
            prompts: HashMap::new(),
            parked: vec![Vec::new(); ranks],
            steps: vec![RankStep::default(); ranks],
        }
    }

    /// What the ranks publish.
    pub fn view(&mut self) -> UnitView<'_> {
        UnitView { ranks: &self.state, cache_news: &mut self.cache_news }
    }

    /// By rank: what it did in the step that ended last.
    pub fn last_step(&self) -> &[RankStep] {
        &self.steps
    }

    /// KV tokens in use on a rank: held by prompts, promised to them or kept for later ones.
    pub fn used_tokens(&self, rank: u16) -> u64 {
        self.ranks[usize::from(rank)].cache.used() as u64 * BLOCK_TOKENS
    }

    /// Gives a prompt, or `tokens` more of it, to a rank. `Ok(false)`: the rank will never have room for it, or does not serve.
    pub fn deliver(
        &mut self,
        (id, request, shared_cached): (u64, &Request, u64),
        (rank, number): (u16, u64),
        tokens: Option<u64>,
    ) -> Result<bool, &'static str> {
        let index = usize::from(rank);
        let place = self.ranks.get_mut(index).ok_or("the unit has no such rank")?;
        let state = &mut self.state[index];
        if number > 0 {
            state.last_dispatch = Some(number);
        }
        let prompt = match self.prompts.entry(id) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => {
                let prompt = Prompt::given(rank, request, shared_cached, &place.cache);
                if !state.up || prompt.blocks_needed() as u64 * BLOCK_TOKENS > state.capacity_tokens {
                    return Ok(false);
                }
                state.waiting += 1;
                state.queued_tokens += prompt.tokens;
                state.waiting_uncached += prompt.expected_new;
                free.insert(prompt)
            }
        };
        if prompt.rank != rank {
            return Err("the prompt is on another rank");
        }
        prompt.allowed = prompt.allowed.saturating_add(tokens.unwrap_or(u64::MAX));
        prompt.waited = 0;
        if !prompt.queued && prompt.context < prompt.tokens {
            prompt.queued = true;
            place.queue.push_back(id);
        }
        Ok(true)
    }

    /// Whether a prompt that the rank was given is there and not done.
    pub fn has(&self, id: u64) -> bool {
        self.prompts.contains_key(&id)
    }

    /// Begins a step and returns how long it takes; `None` when no rank has anything that it can run.
    pub fn begin_step(&mut self, now_us: u64, time: &dyn StepTime) -> Option<u64> {
        let mut any = false;
        for rank in 0..self.ranks.len() {
            self.fill(rank, now_us);
            any |= !self.ranks[rank].batch.is_empty();
        }
        if !any && self.unpark() {
            return self.begin_step(now_us, time);
        }
        if !any {
            return None;
        }
        let mut slowest = 0.0f64;
        for rank in &mut self.ranks {
            rank.own_us = time.prefill_us(rank.work);
            slowest = slowest.max(rank.own_us);
        }
        Some((slowest.ceil() as u64).max(1))
    }

    /// Nobody has anything planned: what waits for a chunk gets none. Returns whether there was any.
    fn unpark(&mut self) -> bool {
        let mut any = false;
        for (rank, parked) in self.ranks.iter_mut().zip(&mut self.parked) {
            for id in parked.drain(..) {
                // It may have run whole, or be lost.
                let Some(prompt) = self.prompts.get_mut(&id) else { continue };
                if !prompt.queued && prompt.context < prompt.tokens {
                    prompt.allowed = u64::MAX;
                    prompt.queued = true;
                    rank.queue.push_back(id);
                    any = true;
                }
            }
        }
        any
    }

    /// Fills a rank's batch from its queue.
    fn fill(&mut self, rank: usize, now_us: u64) {
        let Rank { queue, cache, batch, work, .. } = &mut self.ranks[rank];
        *work = Work::default();
        // What has begun goes on whatever waits for room before it, else both wait for ever.
        let mut full = false;
        for &id in queue.iter() {
            let room = self.step_tokens - work.tokens;
            if room == 0 {
                break;
            }
            let prompt = self.prompts.get_mut(&id).expect("queued prompts are there");
            if !prompt.begun {
                if full {
                    continue;
                }
                let mut removed = Vec::new();
                let Some(hits) = cache.begin(&prompt.blocks, prompt.blocks_needed(), &mut removed) else {
                    full = true;
                    continue;
                };
                let mut log = Log { now_us, rank: rank as u16, news: &mut self.cache_news };
                log.removed(removed);
                let state = &mut self.state[rank];
                state.waiting -= 1;
                state.running += 1;
                state.queued_tokens -= prompt.tokens;
                state.waiting_uncached -= prompt.expected_new;
                prompt.begun = true;
                prompt.stored = hits;
                prompt.context =
                    (hits as u64 * BLOCK_TOKENS).max(prompt.shared_cached).min(prompt.tokens - 1);
                prompt.hit = prompt.context;
                store(cache, prompt, &mut log);
            }
            let tokens = prompt.allowed.min(prompt.tokens - prompt.context).min(room);
            *work += Work::of(prompt.context, tokens);
            batch.push((id, tokens));
        }
        self.state[rank].used_tokens = cache.held() as u64 * BLOCK_TOKENS;
    }

    /// Ends the step and returns the prompts that have run whole. They keep their KV until they are released.
    pub fn end_step(&mut self, now_us: u64) -> Vec<PromptDone> {
        let mut done = Vec::new();
        for index in 0..self.ranks.len() {
            let Rank { queue, cache, batch, work, own_us } = &mut self.ranks[index];
            self.steps[index] = RankStep { work: *work, own_us: *own_us };
            // Before the batch: what got a chunk is in the queue by now, and what has used it up is parked anew below.
            self.parked[index].retain(|id| {
                let Some(prompt) = self.prompts.get_mut(id) else { return false };
                prompt.waited += 1;
                if !prompt.queued && prompt.waited > PATIENCE_STEPS {
                    prompt.allowed = u64::MAX;
                    prompt.queued = true;
                    queue.push_back(*id);
                }
                !prompt.queued
            });
            let requests = batch.len() as u32;
            let mut kv_tokens = 0;
            let mut log = Log { now_us, rank: index as u16, news: &mut self.cache_news };
            for (id, tokens) in batch.drain(..) {
                // It is not there any more if its rank died meanwhile.
                let Some(prompt) = self.prompts.get_mut(&id) else { continue };
                prompt.context += tokens;
                prompt.allowed -= if prompt.allowed == u64::MAX { 0 } else { tokens };
                kv_tokens += prompt.context;
                store(cache, prompt, &mut log);
                if prompt.context == prompt.tokens {
                    done.push(PromptDone { id, rank: index as u16, hit: prompt.hit });
                }
                if prompt.context == prompt.tokens || prompt.allowed == 0 {
                    prompt.queued = false;
                }
                if prompt.allowed == 0 && prompt.context < prompt.tokens {
                    self.parked[index].push(id);
                }
            }
            queue.retain(|id| self.prompts[id].queued);
            let sample = StepSample {
                tokens: work.tokens,
                pairs: work.attention,
                requests,
                kv_tokens,
                own_us: *own_us,
            };
            self.state[index].last_step = (requests > 0).then_some(sample);
        }
        done
    }

    /// A prompt's KV has left: its blocks stay as long as there is room.
    pub fn release(&mut self, id: u64) {
        // Its rank may have died meanwhile.
        let Some(prompt) = self.prompts.remove(&id) else { return };
        let rank = usize::from(prompt.rank);
        let cache = &mut self.ranks[rank].cache;
        cache.release(&prompt.blocks[..prompt.stored], prompt.blocks_needed() - prompt.stored);
        let state = &mut self.state[rank];
        state.running -= 1;
        state.used_tokens = cache.held() as u64 * BLOCK_TOKENS;
    }

    /// A rank dies: returns the requests that are lost with it.
    pub fn die(&mut self, rank: u16, now_us: u64) -> Vec<u64> {
        let index = usize::from(rank);
        let mut lost: Vec<u64> =
            self.prompts.iter().filter(|(_, p)| p.rank == rank).map(|(&id, _)| id).collect();
        lost.sort_unstable();
        for id in &lost {
            self.prompts.remove(id);
        }
        let capacity_tokens = self.state[index].capacity_tokens;
        let place = &mut self.ranks[index];
        place.queue.clear();
        self.parked[index].clear();
        place.batch.clear();
        place.work = Work::default();
        place.cache = RankCache::new((capacity_tokens / BLOCK_TOKENS) as usize);
        self.state[index] = RankState { capacity_tokens, ..RankState::default() };
        self.cache_news.push_back(CacheNews { at_us: now_us, rank, change: KvChange::Cleared });
        lost
    }

    /// A rank serves (again).
    pub fn join(&mut self, rank: u16) {
        self.state[usize::from(rank)].up = true;
    }
}

/// Where changes of a rank's cache are written down.
struct Log<'a> {
    now_us: u64,
    rank: u16,
    news: &'a mut VecDeque<CacheNews>,
}

impl Log<'_> {
    fn removed(&mut self, blocks: Vec<u64>) {
        if !blocks.is_empty() {
            self.push(KvChange::Removed { blocks: blocks.into_iter().map(BlockHash).collect() });
        }
    }

    fn push(&mut self, change: KvChange) {
        self.news.push_back(CacheNews { at_us: self.now_us, rank: self.rank, change });
    }
}

/// Puts the whole blocks of what a prompt has by now into its rank's cache.
fn store(cache: &mut RankCache, prompt: &mut Prompt, log: &mut Log<'_>) {
    let whole = ((prompt.context / BLOCK_TOKENS) as usize).min(prompt.blocks.len());
    let first = prompt.stored;
    let mut fresh: Vec<BlockHash> = Vec::new();
    let mut parent = first.checked_sub(1).map(|before| BlockHash(prompt.blocks[before]));
    for index in first..whole {
        let block = prompt.blocks[index];
        if cache.store(block) {
            fresh.push(BlockHash(block));
        } else if fresh.is_empty() {
            parent = Some(BlockHash(block));
        } else {
            // Somebody else computed the rest of the same prefix: what is new so far is one piece.
            log.push(KvChange::Stored { parent, blocks: std::mem::take(&mut fresh).into() });
            parent = Some(BlockHash(block));
        }
        prompt.stored = index + 1;
    }
    if !fresh.is_empty() {
        log.push(KvChange::Stored { parent, blocks: fresh.into() });
    }
}
