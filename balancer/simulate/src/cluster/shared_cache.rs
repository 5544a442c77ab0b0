//! A prefix cache that all prefill ranks share, as DeepSeek's on disk: which rank computed a prefix does not matter.

use super::rank_cache::RankCache;

/// Blocks that prompts left behind, the most recently used ones.
pub(super) struct SharedCache {
    capacity: usize,
    cache: RankCache,
}

impl SharedCache {
    /// An empty cache of `capacity` blocks; 0: there is none.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, cache: RankCache::new(capacity) }
    }

    /// Leading blocks that are there.
    pub(super) fn matched(&self, blocks: &[u64]) -> usize {
        if self.capacity == 0 { 0 } else { self.cache.matched(blocks) }
    }

    /// A prompt has run: its blocks stay, as many of the first as fit.
    pub(super) fn keep(&mut self, blocks: &[u64]) {
        let blocks = &blocks[..blocks.len().min(self.capacity)];
        let Some(hits) = self.cache.begin(blocks, blocks.len(), &mut Vec::new()) else { return };
        for &block in &blocks[hits..] {
            self.cache.store(block);
        }
        self.cache.release(blocks, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_kept_while_there_is_room() {
        let mut cache = SharedCache::new(3);
        cache.keep(&[1, 2]);
        assert_eq!(cache.matched(&[1, 2, 9]), 2);
        cache.keep(&[5, 6]);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[5, 6])), (1, 2));
        cache.keep(&[1, 2, 3, 4]);
        assert_eq!(cache.matched(&[1, 2, 3, 4]), 3);
        assert_eq!(SharedCache::new(0).matched(&[1]), 0);
    }
}
