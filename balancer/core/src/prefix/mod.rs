//! Prefix index: which ranks have which blocks of KVCache, told by the engines' KV events. See README.md.

mod fullness;
mod holders;
mod index;
mod kept_hits;

#[cfg(test)]
mod index_tests;

pub(crate) use fullness::Fullness;
pub use index::{InvalidPrefixPolicy, KvOutcome, PrefixCounters, PrefixIndex, PrefixPolicy};
pub use kept_hits::KeptHits;

use std::sync::Arc;

/// Most blocks that a [`PrefixPolicy`] may ask for: 2^26 of 64 tokens are 4 G tokens, more than the KVCache of any unit, and
/// their numbers stay clear of 32 bits.
pub const BLOCKS_MAX: usize = 1 << 26;

/// The engine's name for a whole prefix up to the end of one of its blocks: equal hashes mean equal prefixes. 64 bits of
/// whatever the engine computes; two prefixes that share them cost a wrong guess of a rank's load, never a wrong answer,
/// because the engine compares for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockHash(pub u64);

/// One change of a rank's KVCache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvChange {
    /// Blocks are there now.
    Stored {
        /// The block that the first of them follows; `None` where they begin a prompt.
        parent: Option<BlockHash>,
        /// In the order of the prompt, each the parent of the next.
        blocks: Arc<[BlockHash]>,
    },
    /// Blocks are gone.
    Removed {
        /// In any order.
        blocks: Arc<[BlockHash]>,
    },
    /// All blocks are gone.
    Cleared,
}
