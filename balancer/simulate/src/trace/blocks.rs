//! Prefix blocks as ranges: prompts are long, and the ids of blocks that were first seen together are
//! consecutive in every source.

use super::BLOCK_TOKENS;

/// Ids within a trace have so many bits; copies of the trace put their number above them.
pub const ID_BITS: u32 = 40;
/// Blocks with lower ids are a system prompt that all copies of the trace share.
pub const SYSTEM_PROMPT_BLOCKS: u64 = 8;

/// Blocks with consecutive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first id.
    pub first: u64,
    /// How many; at least 1.
    pub count: u32,
}

/// Ids of the whole blocks of [`BLOCK_TOKENS`] of one prompt. An id names the whole prefix up to its block's
/// end: equal ids mean equal prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks(Box<[BlockRange]>);

impl Blocks {
    /// Blocks of these ranges, one after the other; ranges that continue the one before are joined.
    pub(super) fn of_ranges(ranges: impl IntoIterator<Item = BlockRange>) -> Self {
        let mut joined: Vec<BlockRange> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.first + u64::from(last.count) == range.first => last.count += range.count,
                _ => joined.push(range),
            }
        }
        Self(joined.into())
    }

    /// The ids, in the order of the prompt.
    pub fn ids(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        self.0.iter().flat_map(|range| range.first..range.first + u64::from(range.count))
    }

    /// The ranges, in the order of the prompt.
    pub fn ranges(&self) -> &[BlockRange] {
        &self.0
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.0.iter().map(|range| range.count as usize).sum()
    }

    /// Whether the source has no prefixes, or the prompt is shorter than a block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Only the blocks that are whole in a prompt of so many tokens.
    pub(super) fn within(self, input_tokens: u64) -> Self {
        let mut left = input_tokens / BLOCK_TOKENS;
        let cut = |range: &BlockRange| {
            let count = left.min(range.count.into());
            left -= count;
            (count > 0).then_some(BlockRange { first: range.first, count: count as u32 })
        };
        Self(self.0.iter().map_while(cut).collect())
    }

    /// Gives the first [`SYSTEM_PROMPT_BLOCKS`] blocks the ids of the system prompt, when they are the
    /// consecutive ids from `first` on.
    pub(super) fn share_from(&mut self, first: u64) {
        let Some(&range) = self.0.first().filter(|range| range.first == first) else { return };
        let shared = range.count.min(SYSTEM_PROMPT_BLOCKS as u32);
        let rest = BlockRange { first: first + u64::from(shared), count: range.count - shared };
        let head = BlockRange { first: 0, count: shared };
        let rest = Some(rest).filter(|rest| rest.count > 0);
        self.0 = [head].into_iter().chain(rest).chain(self.0[1..].iter().copied()).collect();
    }
}

impl FromIterator<u64> for Blocks {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> Self {
        Self::of_ranges(ids.into_iter().map(|first| BlockRange { first, count: 1 }))
    }
}
