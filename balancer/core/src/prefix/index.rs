//! The index of one unit: events in, hits of a prompt on every rank out.

use super::holders::Holders;
use super::kept_hits::{KeptHits, record};
use super::{BLOCKS_MAX, BlockHash, KvChange};
use crate::ids::Rank;
use crate::topology::RANKS_MAX;
use crate::units::Millis;

/// Words of a bit set of the most ranks that a unit has.
const WORDS_MAX: usize = (RANKS_MAX as usize).div_ceil(64);
/// Longest life of an expectation that a policy may ask for: an hour.
const EXPECTED_MS_MAX: u64 = 3_600_000;

/// Bounds of a [`PrefixIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrefixPolicy {
    /// Distinct blocks that are remembered from events, 1 to [`BLOCKS_MAX`].
    pub blocks_max: usize,
    /// Distinct blocks that are expected after dispatches, in each of two generations; 1 to [`BLOCKS_MAX`].
    pub expected_max: usize,
    /// An expectation lives at least so long and at most twice, in milliseconds; 1 to 3,600,000.
    pub expected_ms: u64,
}

impl Default for PrefixPolicy {
    fn default() -> Self {
        Self {
            // 320 ranks of 700k KV tokens in blocks of 64 hold 3.5 M, if they have none in common.
            blocks_max: 1 << 22,
            // What 2,600 prompts of 100 blocks a second bring in half of the life below; then the oldest go first.
            expected_max: 1 << 18,
            // A prompt that runs is announced within seconds, and what waits for longer the router expects again. No load report that
            // an engine's router reads today is older than this.
            expected_ms: 10_000,
        }
    }
}

/// A bound that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("prefix {field} is {value}: accepted are {min} to {max}")]
pub struct InvalidPrefixPolicy {
    /// The field, or `ranks`.
    pub field: &'static str,
    /// As given.
    pub value: u64,
    /// Lowest accepted.
    pub min: u64,
    /// Highest accepted.
    pub max: u64,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvOutcome {
    /// The index follows the rank.
    Applied,
    /// Applied, but the parent is not known to be there: until it is, the stored blocks are hits of no prompt.
    UnknownParent,
    /// Dropped: this number, or a later one, was there already.
    Stale,
    /// Events are missing before this one. All that was known of the rank is forgotten, because anything of it may have been
    /// removed unseen; the event is applied and those that follow it count. `missed` events were lost.
    Gap {
        /// How many.
        missed: u64,
    },
    /// Dropped: the unit has no such rank.
    UnknownRank,
}

/// What the index has seen, in events but for `evicted_blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrefixCounters {
    /// Applied, whatever else is said of them.
    pub applied: u64,
    /// Applied without a known parent.
    pub unknown_parents: u64,
    /// Dropped as old.
    pub stale: u64,
    /// Times that a rank was forgotten because events were missing.
    pub gaps: u64,
    /// Dropped for their rank.
    pub unknown_ranks: u64,
    /// Blocks forgotten because the index was full, expected ones included.
    pub evicted_blocks: u64,
}

/// Which ranks of a unit have which blocks. Everything it says may be late; what it forgets costs hits that would have been, and
/// only lateness makes it say too much.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrefixIndex {
    ranks: u16,
    policy: PrefixPolicy,
    /// From events.
    stored: Holders,
    /// From dispatches: the generation that is filled, and the one before it.
    expected: [Holders; 2],
    expected_since: Millis,
    /// Per rank: the number of its last event.
    sequences: Vec<Option<u64>>,
    /// Times that hits may have changed.
    changes: u64,
    counters: PrefixCounters,
}

impl PrefixIndex {
    /// An empty index of a unit.
    pub fn new(ranks: u16, policy: PrefixPolicy) -> Result<Self, InvalidPrefixPolicy> {
        for (field, value, max) in [
            ("ranks", u64::from(ranks), u64::from(RANKS_MAX)),
            ("blocks_max", policy.blocks_max as u64, BLOCKS_MAX as u64),
            ("expected_max", policy.expected_max as u64, BLOCKS_MAX as u64),
            ("expected_ms", policy.expected_ms, EXPECTED_MS_MAX),
        ] {
            if !(1..=max).contains(&value) {
                return Err(InvalidPrefixPolicy { field, value, min: 1, max });
            }
        }
        let expected = Holders::new(ranks, policy.expected_max);
        Ok(Self {
            ranks,
            policy,
            stored: Holders::new(ranks, policy.blocks_max),
            expected: [expected.clone(), expected],
            expected_since: Millis(0),
            sequences: vec![None; usize::from(ranks)],
            changes: 0,
            counters: PrefixCounters::default(),
        })
    }

    /// Takes event `sequence` of `rank`: one more than its last, or any after [`forget`](Self::forget) or with
    /// [`KvChange::Cleared`], which leaves nothing to be wrong about and starts the numbering again.
    pub fn apply(&mut self, rank: Rank, sequence: u64, change: &KvChange) -> KvOutcome {
        let Some(last) = self.sequences.get(rank.index()).copied() else {
            self.counters.unknown_ranks += 1;
            return KvOutcome::UnknownRank;
        };
        let cleared = matches!(change, KvChange::Cleared);
        if last == Some(sequence) || (!cleared && last.is_some_and(|last| sequence < last)) {
            self.counters.stale += 1;
            return KvOutcome::Stale;
        }
        let missed = last.filter(|_| !cleared).map_or(0, |last| sequence - last - 1);
        if missed > 0 {
            self.counters.gaps += 1;
            self.drop_blocks(rank);
        }
        self.sequences[rank.index()] = Some(sequence);
        self.changes += 1;
        self.counters.applied += 1;
        let parent_known = self.change(rank, change);
        if !parent_known {
            self.counters.unknown_parents += 1;
        }
        match (missed, parent_known) {
            (1.., _) => KvOutcome::Gap { missed },
            (0, true) => KvOutcome::Applied,
            (0, false) => KvOutcome::UnknownParent,
        }
    }

    /// `rank` was given a prompt with these whole blocks: they will be there before the engine says so, or are there and were
    /// used. Counts them as used now.
    pub fn expect(&mut self, rank: Rank, blocks: &[BlockHash]) {
        assert!(rank.0 < self.ranks, "a prompt was dispatched to rank {rank} of {}", self.ranks);
        self.changes += 1;
        // From the end: of one prompt, the first block is forgotten last, because without it the others are no hits.
        for &block in blocks.iter().rev() {
            if !self.stored.touch(block, rank) {
                self.expected[0].add(block, rank);
            }
        }
    }

    /// Time goes on; expectations that did not come true end. Call it once per batch of events.
    pub fn advance(&mut self, now: Millis) {
        let elapsed = now.since(self.expected_since);
        if elapsed < self.policy.expected_ms {
            return;
        }
        self.changes += 1;
        let [young, old] = &mut self.expected;
        old.clear();
        std::mem::swap(young, old);
        if elapsed >= 2 * self.policy.expected_ms {
            old.clear();
        }
        self.expected_since = now;
    }

    /// The rank went down, or starts again: nothing is known of it, and its next event may have any number.
    pub fn forget(&mut self, rank: Rank) {
        assert!(rank.0 < self.ranks, "rank {rank} of {} is forgotten", self.ranks);
        self.changes += 1;
        self.drop_blocks(rank);
        self.sequences[rank.index()] = None;
    }

    /// Leading blocks of a prompt that each rank has or will have: `hits` becomes `[ranks]`.
    pub fn hits(&self, blocks: &[BlockHash], hits: &mut Vec<u32>) {
        hits.clear();
        hits.resize(usize::from(self.ranks), 0);
        self.walk(blocks, |depth, ranks| record(hits, ranks, depth));
    }

    /// The same, kept: what was looked up before is only looked at where it ends, which is where ranks gain and lose blocks. An
    /// engine that gives up a block and keeps what follows it leaves these hits too high until the end is gone as well.
    pub fn keep_hits(&self, blocks: &[BlockHash], kept: &mut KeptHits) {
        let looked_up = kept.as_of.is_some();
        if kept.as_of.replace(self.changes) == Some(self.changes)
            || (looked_up && self.still_end(blocks, kept))
        {
            return;
        }
        kept.clear();
        self.walk(blocks, |depth, ranks| kept.push(depth, ranks));
    }

    /// Whether every rank has its last hit still, and not the block after it.
    fn still_end(&self, blocks: &[BlockHash], kept: &KeptHits) -> bool {
        let words = usize::from(self.ranks).div_ceil(64);
        let (all, none) = ([u64::MAX; WORDS_MAX], [0; WORDS_MAX]);
        let levels = std::iter::once((0, &all[..words])).chain(kept.levels());
        let next = kept.levels().map(|(_, ranks)| ranks).chain([&none[..words]]);
        levels.zip(next).all(|((depth, ranks), next)| {
            let depth = depth as usize;
            let last = depth.checked_sub(1).map(|last| self.holders_of(blocks[last]));
            let after = blocks.get(depth).map(|&block| self.holders_of(block));
            (0..words).all(|word| {
                last.is_none_or(|held| ranks[word] & !of_word(&held, word) == 0)
                    && after.is_none_or(|held| ranks[word] & of_word(&held, word) == next[word])
            })
        })
    }

    /// Calls `level` with each number of leading blocks that some rank has no more than, in growing order, and with the ranks that
    /// have at least these.
    fn walk(&self, blocks: &[BlockHash], mut level: impl FnMut(u32, &[u64])) {
        let mut all = [u64::MAX; WORDS_MAX];
        let active = &mut all[..usize::from(self.ranks).div_ceil(64)];
        for (depth, &block) in blocks.iter().enumerate() {
            let holders = self.holders_of(block);
            let leaves = |(word, active): (usize, &u64)| *active & !of_word(&holders, word) != 0;
            // At the first block everybody drops out who has nothing.
            if depth > 0 && active.iter().enumerate().any(leaves) {
                level(depth as u32, active);
            }
            let mut any = 0;
            for (word, active) in active.iter_mut().enumerate() {
                *active &= of_word(&holders, word);
                any |= *active;
            }
            if any == 0 {
                return;
            }
        }
        if !blocks.is_empty() {
            level(blocks.len() as u32, active);
        }
    }

    /// Bit sets of the ranks that have a block or will have it.
    fn holders_of(&self, block: BlockHash) -> [Option<&[u64]>; 3] {
        self.layers().map(|layer| layer.get(block))
    }

    /// Blocks that a rank has or is expected to have; one that is both counts twice.
    pub fn blocks_of(&self, rank: Rank) -> u64 {
        self.layers().iter().map(|layer| u64::from(layer.held(rank))).sum()
    }

    /// Distinct blocks, from events and expected ones; one that is both counts twice.
    pub fn blocks(&self) -> usize {
        self.layers().iter().map(|layer| layer.len()).sum()
    }

    /// Bytes allocated for blocks.
    pub fn bytes(&self) -> usize {
        self.layers().iter().map(|layer| layer.bytes()).sum()
    }

    /// What [`bytes`](Self::bytes) never exceeds.
    pub fn bytes_max(&self) -> usize {
        self.layers().iter().map(|layer| layer.bytes_max()).sum()
    }

    /// What it has seen.
    pub fn counters(&self) -> PrefixCounters {
        let evicted = self.layers().iter().map(|layer| layer.evicted()).sum();
        PrefixCounters { evicted_blocks: evicted, ..self.counters }
    }

    fn layers(&self) -> [&Holders; 3] {
        let [young, old] = &self.expected;
        [&self.stored, young, old]
    }

    fn drop_blocks(&mut self, rank: Rank) {
        self.stored.remove_rank(rank);
        self.expected.iter_mut().for_each(|layer| layer.remove_rank(rank));
    }

    /// Whether the parent of what was stored is known to be there; true of all other changes.
    fn change(&mut self, rank: Rank, change: &KvChange) -> bool {
        match change {
            KvChange::Stored { parent, blocks } => {
                for &block in blocks.iter().rev() {
                    self.stored.add(block, rank);
                }
                parent.is_none_or(|parent| self.stored.touch(parent, rank) || self.is_expected(parent, rank))
            }
            KvChange::Removed { blocks } => {
                for &block in blocks.iter() {
                    self.stored.remove(block, rank);
                    self.expected.iter_mut().for_each(|layer| layer.remove(block, rank));
                }
                true
            }
            KvChange::Cleared => {
                self.drop_blocks(rank);
                true
            }
        }
    }

    fn is_expected(&self, block: BlockHash, rank: Rank) -> bool {
        let bit = |ranks: &[u64]| ranks[rank.index() / 64] >> (rank.index() % 64) & 1 == 1;
        self.expected.iter().any(|layer| layer.get(block).is_some_and(bit))
    }
}

/// One word of the ranks that are in any of these sets.
fn of_word(holders: &[Option<&[u64]>; 3], word: usize) -> u64 {
    holders.iter().flatten().fold(0, |held, ranks| held | ranks[word])
}
