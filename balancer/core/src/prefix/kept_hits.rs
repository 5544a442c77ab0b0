//! The hits of one prompt, kept while it is held: to look again costs a few blocks and not all of them.

use crate::ids::Rank;

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
    /// Words of a level: one for the blocks, and those of a bit set of ranks as the index has them.
    level_words: usize,
    /// `[levels, level_words]`, the blocks growing, from 1.
    levels: Vec<u64>,
}

impl KeptHits {
    pub(super) fn clear(&mut self) {
        self.levels.clear();
    }

    /// The next level.
    pub(super) fn push(&mut self, blocks: u32, ranks: &[u64]) {
        debug_assert!(self.levels().last().is_none_or(|(before, _)| before < blocks), "levels grow");
        self.level_words = 1 + ranks.len();
        if self.levels.len() == LEVELS_MAX * self.level_words {
            // The second is given up: who is no further counts as having no more than the first. That is not so, which the next look
            // will see, and take the long way.
            self.levels.drain(self.level_words..2 * self.level_words);
        }
        self.levels.push(blocks.into());
        self.levels.extend_from_slice(ranks);
    }

    /// Levels: blocks, and who has them.
    pub(super) fn levels(&self) -> impl Iterator<Item = (u32, &[u64])> {
        self.levels.chunks_exact(self.level_words.max(1)).map(|level| (level[0] as u32, &level[1..]))
    }

    /// Blocks that each of `ranks` has, a bit set as in the index.
    pub fn of_all(&self, ranks: &[u64]) -> u32 {
        let all = |level: &[u64]| ranks.iter().zip(level).all(|(ranks, level)| ranks & !level == 0);
        self.levels().take_while(|(_, level)| all(level)).last().map_or(0, |(blocks, _)| blocks)
    }

    /// The ranks that have more than so many, and how many; in no particular order.
    pub fn above(&self, least: u32) -> impl Iterator<Item = (Rank, u32)> {
        let none: &[u64] = &[];
        let next = self.levels().map(|(_, ranks)| ranks).skip(1).chain([none]);
        let levels = self.levels().zip(next).skip_while(move |((blocks, _), _)| *blocks <= least);
        levels.flat_map(|((blocks, ranks), next)| {
            ranks.iter().enumerate().flat_map(move |(word, &ranks)| {
                let last = ranks & !next.get(word).copied().unwrap_or(0);
                bits(last).map(move |bit| (Rank((word * 64 + bit) as u16), blocks))
            })
        })
    }
}

/// Places of the ones of a word.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Every rank of the bit set has `blocks` hits.
pub(super) fn record(hits: &mut [u32], ranks: &[u64], blocks: u32) {
    for (word, &ranks) in ranks.iter().enumerate() {
        bits(ranks).for_each(|bit| hits[word * 64 + bit] = blocks);
    }
}
