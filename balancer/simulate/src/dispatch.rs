//! The seat of a dispatch policy: requests in, ranks out, with no more knowledge than the real one has. What the policy is told
//! of the engines is as old as its reports are.

use rpds::HashTrieSet;
use std::sync::Arc;

/// Prompt tokens of one prefix block.
pub const BLOCK_TOKENS: u64 = 64;

/// One request, as a dispatcher sees it. How long its output becomes is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its name.
    pub id: u64,
    /// Prompt tokens, the cached prefix included; at least 1.
    pub prompt_tokens: u64,
    /// Ids of whole prefix blocks of [`BLOCK_TOKENS`], `prompt_tokens / BLOCK_TOKENS` of them or none. An id names the whole
    /// prefix up to its block's end: equal ids mean equal prefixes.
    pub blocks: Arc<[u64]>,
    /// SGLang's bootstrap room.
    pub room: Option<u64>,
    /// A rank that was forced from outside.
    pub pin: Option<u16>,
    /// Turns of the same session before it.
    pub turn: u32,
}

/// Ids of the prefix blocks that a rank has cached. A rank that has a block has all blocks before it, as engines drop the ends of
/// prefixes first. Copies are cheap: they share what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachedBlocks(HashTrieSet<u64>);

impl CachedBlocks {
    /// Whether the block is there.
    pub fn contains(&self, block: u64) -> bool {
        self.0.contains(&block)
    }

    /// Leading blocks that are there.
    pub fn matched(&self, blocks: &[u64]) -> usize {
        // Ever longer strides, then halves of the last: most ranks miss the first block, and long prefixes cost few looks.
        let (mut known, mut stride) = (0, 1);
        while blocks.get(known + stride - 1).is_some_and(|block| self.0.contains(block)) {
            known += stride;
            stride *= 2;
        }
        let end = (known + stride - 1).min(blocks.len());
        known + blocks[known..end].partition_point(|block| self.0.contains(block))
    }

    /// Adds a block.
    pub fn insert(&mut self, block: u64) {
        self.0.insert_mut(block);
    }

    /// Takes a block away.
    pub fn remove(&mut self, block: u64) {
        self.0.remove_mut(&block);
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What an engine publishes of one rank.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RankView {
    /// Requests in the running batch.
    pub running: u32,
    /// Requests that wait in the engine's own queue.
    pub waiting: u32,
    /// KV tokens in use.
    pub used_tokens: u64,
    /// Tokens of queued requests (SGLang's `num_total_tokens` is used + queued).
    pub queued_tokens: u64,
    /// Prompt tokens, without their cached prefix, that wait for prefill.
    pub waiting_uncached: u64,
    /// KV tokens that fit; at least 1.
    pub capacity_tokens: u64,
    /// Generated tokens a second; 0 when not known.
    pub generated_per_s: f64,
    /// Prefix blocks, as the KV events tell them.
    pub cached: CachedBlocks,
}

impl RankView {
    /// KV usage, 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        (self.used_tokens as f64 / self.capacity_tokens.max(1) as f64).min(1.0)
    }
}

/// A request and the rank it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispatched {
    /// The request.
    pub id: u64,
    /// The rank.
    pub rank: u16,
}

/// Something that dispatches requests to ranks.
pub trait DispatchPolicy {
    /// As tables show it.
    fn name(&self) -> &'static str;

    /// How often it hears from the engines, in seconds; 0 is before each assignment. A replay must honour it: between two reports
    /// the policy sees nothing of the engines.
    fn report_interval_s(&self) -> f64;

    /// The engines' reports, one per rank.
    fn on_reports(&mut self, ranks: &[RankView]);

    /// Dispatches requests that arrived together. A request that is not in the answer is held by the policy and may be in a later
    /// one.
    fn assign(&mut self, arrivals: &[Arrival], now_s: f64) -> Vec<Dispatched>;

    /// A request's first token came out.
    fn on_first_token(&mut self, id: u64, rank: u16);

    /// A request ended.
    fn on_finish(&mut self, id: u64, rank: u16);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_leading_blocks_is_matched() {
        let blocks: Vec<u64> = (100..140).collect();
        let mut cached = CachedBlocks::default();
        for have in 0..=blocks.len() {
            for named in 0..=blocks.len() {
                assert_eq!(cached.matched(&blocks[..named]), have.min(named), "{have} of {named}");
            }
            blocks.get(have).into_iter().for_each(|&block| cached.insert(block));
        }
    }
}
