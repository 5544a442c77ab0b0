//! The hits of one prompt, kept while it is held: to look again costs a few blocks and not all of them.

/// Different numbers of hits that are kept. Prompts share a system prompt with most ranks, a session with one or two and next to
/// nothing with the rest.
const LEVELS_MAX: usize = 16;

/// Leading blocks of a prompt that each rank has, in levels: so many blocks, and the ranks that have at least these. Every level's
/// ranks are among those of the one before, and whoever is not among those of the next has no more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KeptHits {
    /// Change of the index up to which they count; `None`: never looked up.
    pub(super) as_of: Option<u64>,
    /// `[levels]`, growing, from 1.
    blocks: Vec<u32>,
    /// `[levels, words]`: a bit set of ranks each, as in the index.
    ranks: Vec<u64>,
}

impl KeptHits {
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.ranks.clear();
    }

    /// The next level.
    pub(super) fn push(&mut self, blocks: u32, ranks: &[u64]) {
        debug_assert!(self.blocks.last().is_none_or(|&before| before < blocks), "levels grow");
        if self.blocks.len() == LEVELS_MAX {
            // The second is given up: who is no further counts as having no more than the first. That is not so, which the next look
            // will see, and take the long way.
            self.blocks.remove(1);
            let words = ranks.len();
            self.ranks.drain(words..2 * words);
        }
        self.blocks.push(blocks);
        self.ranks.extend_from_slice(ranks);
    }

    /// Levels: blocks, and who has them.
    pub(super) fn levels(&self) -> impl Iterator<Item = (u32, &[u64])> {
        let words = self.ranks.len() / self.blocks.len().max(1);
        self.blocks.iter().copied().zip(self.ranks.chunks_exact(words.max(1)))
    }

    /// `hits` becomes `[ranks]`.
    pub fn spread(&self, ranks: u16, hits: &mut Vec<u32>) {
        hits.clear();
        hits.resize(usize::from(ranks), 0);
        self.levels().for_each(|(blocks, ranks)| record(hits, ranks, blocks));
    }
}

/// Every rank of the bit set has `blocks` hits.
pub(super) fn record(hits: &mut [u32], ranks: &[u64], blocks: u32) {
    for (word, &ranks) in ranks.iter().enumerate() {
        let mut ranks = ranks;
        while ranks != 0 {
            hits[word * 64 + ranks.trailing_zeros() as usize] = blocks;
            ranks &= ranks - 1;
        }
    }
}
