//! A prefix cache shared by the whole cluster, as DeepSeek's on-disk one: which rank computed a prefix does
//! not matter. Least recently used blocks go first.

use crate::dispatch::BLOCK_TOKENS;
use std::collections::{BTreeMap, HashMap};

/// Prefix blocks by id, at most `capacity` of them.
#[derive(Debug, Clone)]
pub struct PrefixCache {
    capacity: usize,
    used_at: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl PrefixCache {
    /// An empty cache of `capacity` blocks of [`BLOCK_TOKENS`].
    pub fn new(capacity: usize) -> Self {
        Self { capacity, used_at: HashMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    /// Looks a prompt up and keeps its blocks. Returns how many of its tokens were cached: whole blocks of
    /// a prefix, and always fewer tokens than the prompt has, for the last one must run to give logits.
    pub fn admit(&mut self, blocks: impl Iterator<Item = u64> + Clone, input_tokens: u64) -> u64 {
        let hits = blocks.clone().take_while(|block| self.used_at.contains_key(block)).count() as u64;
        for block in blocks {
            self.touch(block);
        }
        (hits * BLOCK_TOKENS).min(input_tokens.saturating_sub(1))
    }

    fn touch(&mut self, block: u64) {
        self.clock += 1;
        if let Some(before) = self.used_at.insert(block, self.clock) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.clock, block);
        if self.used_at.len() > self.capacity {
            let (_, oldest) = self.by_use.pop_first().expect("the cache is not empty");
            self.used_at.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Admits prompts one after the other; compares the cached tokens of the last.
    #[track_caller]
    fn check(capacity: usize, prompts: &[&[u64]], input_tokens: u64, expected: u64) {
        let mut cache = PrefixCache::new(capacity);
        let cached = prompts.iter().map(|blocks| cache.admit(blocks.iter().copied(), input_tokens)).last();
        assert_eq!(cached, Some(expected), "{prompts:?}");
    }

    #[test]
    fn a_prefix_hits_as_far_as_it_is_unbroken() {
        check(9, &[&[1, 2, 3]], 192, 0);
        check(9, &[&[1, 2, 3], &[1, 2, 4]], 192, 128);
        check(9, &[&[1, 2, 3], &[9, 2, 3]], 192, 0);
    }

    #[test]
    fn the_last_token_always_runs() {
        check(9, &[&[1, 2], &[1, 2]], 128, 127);
        check(9, &[&[1, 2], &[1, 2]], 100, 99);
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        check(2, &[&[1, 2], &[3], &[2]], 128, 64);
        check(2, &[&[1, 2], &[3], &[1]], 128, 0);
    }
}
