//! A bounded table: block -> set of ranks. When it is full, the block that was unused for the longest is forgotten.
//!
//! Blocks live in rows that are used again, 20 bytes and a bit set of the ranks each. Rows are found over chained buckets, whose
//! number is fixed from the start: there is no moment at which millions of rows are hashed anew.

use super::BlockHash;
use crate::ids::Rank;

/// No row: a bucket or a list ends. Links count rows from 1, so that fresh buckets are zeroed memory that the system maps on use.
const NONE: u32 = 0;
/// Ranks of one word of a bit set.
const WORD: usize = u64::BITS as usize;

/// The lists that a row is in, as row + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Links {
    /// Next of the same bucket, or of the free rows.
    next: u32,
    /// Next in age.
    older: u32,
    /// Next in youth.
    newer: u32,
}

/// See the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Holders {
    /// Words of a row's bit set.
    words: usize,
    rows_max: usize,
    /// First row of each bucket; a power of two of them.
    buckets: Vec<u32>,
    /// `[rows]`.
    hashes: Vec<BlockHash>,
    /// `[rows]`.
    links: Vec<Links>,
    /// `[rows, words]`: bit `r % 64` of word `r / 64` is rank r. A free row's are zero.
    ranks: Vec<u64>,
    free: u32,
    oldest: u32,
    newest: u32,
    len: usize,
    evicted: u64,
    /// `[ranks]`: blocks that each holds.
    held: Vec<u32>,
}

impl Holders {
    /// Room for `rows_max` blocks (at least 1), taken as it is needed.
    pub(super) fn new(ranks: u16, rows_max: usize) -> Self {
        assert!((1..=super::BLOCKS_MAX).contains(&rows_max), "the policy was checked: {rows_max}");
        Self {
            words: usize::from(ranks).div_ceil(WORD),
            rows_max,
            buckets: vec![NONE; rows_max.next_power_of_two()],
            hashes: Vec::new(),
            links: Vec::new(),
            ranks: Vec::new(),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            len: 0,
            evicted: 0,
            held: vec![0; usize::from(ranks)],
        }
    }

    /// Blocks that a rank holds.
    pub(super) fn held(&self, rank: Rank) -> u32 {
        self.held[rank.index()]
    }

    /// Blocks that at least one rank holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Blocks forgotten because the table was full.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<u32>()
            + self.hashes.capacity() * size_of::<BlockHash>()
            + self.links.capacity() * size_of::<Links>()
            + self.ranks.capacity() * size_of::<u64>()
    }

    /// What [`bytes`](Self::bytes) never exceeds.
    pub(super) fn bytes_max(&self) -> usize {
        let row = size_of::<BlockHash>() + size_of::<Links>() + self.words * size_of::<u64>();
        self.rows_max * row + self.buckets.len() * size_of::<u32>()
    }

    /// The bit set of the ranks that hold the block, if any does.
    pub(super) fn get(&self, block: BlockHash) -> Option<&[u64]> {
        // Often nothing is expected: that need not cost a look into memory.
        if self.len == 0 {
            return None;
        }
        let row = self.find(block)?;
        Some(&self.ranks[row * self.words..][..self.words])
    }

    /// Counts the block as used now. Whether `rank` holds it.
    pub(super) fn touch(&mut self, block: BlockHash, rank: Rank) -> bool {
        let Some(row) = self.find(block) else { return false };
        self.unlink_age(row);
        self.link_newest(row);
        let (word, bit) = self.place(row, rank);
        self.ranks[word] & bit != 0
    }

    /// `rank` holds the block; it counts as used now.
    pub(super) fn add(&mut self, block: BlockHash, rank: Rank) {
        let row = match self.find(block) {
            Some(row) => {
                self.unlink_age(row);
                row
            }
            None => self.take_row(block),
        };
        self.link_newest(row);
        let (word, bit) = self.place(row, rank);
        self.held[rank.index()] += u32::from(self.ranks[word] & bit == 0);
        self.ranks[word] |= bit;
    }

    /// `rank` holds the block no longer.
    pub(super) fn remove(&mut self, block: BlockHash, rank: Rank) {
        if let Some(row) = self.find(block) {
            self.clear_bit(row, rank);
        }
    }

    /// `rank` holds nothing. One pass over the bit sets of all rows, which is rare enough to need no lists per rank.
    pub(super) fn remove_rank(&mut self, rank: Rank) {
        for row in 0..self.hashes.len() {
            self.clear_bit(row, rank);
        }
    }

    /// Forgets everything; the memory stays.
    pub(super) fn clear(&mut self) {
        if self.len == 0 {
            return;
        }
        self.buckets.fill(NONE);
        self.hashes.clear();
        self.links.clear();
        self.ranks.clear();
        self.held.fill(0);
        (self.free, self.oldest, self.newest, self.len) = (NONE, NONE, NONE, 0);
    }

    /// Takes a rank out of a row, if it is in it.
    fn clear_bit(&mut self, row: usize, rank: Rank) {
        let (word, bit) = self.place(row, rank);
        if self.ranks[word] & bit != 0 {
            self.ranks[word] &= !bit;
            self.held[rank.index()] -= 1;
            self.release_if_unheld(row);
        }
    }

    /// Word and bit of a rank in a row.
    fn place(&self, row: usize, rank: Rank) -> (usize, u64) {
        (row * self.words + rank.index() / WORD, 1 << (rank.index() % WORD))
    }

    /// Engines' hashes are even already, but traces number their blocks: every bit must reach the bucket (the two halves of a
    /// product with an odd constant, 2^64 over the golden ratio).
    fn bucket(&self, block: BlockHash) -> usize {
        let product = u128::from(block.0) * 0x9e37_79b9_7f4a_7c15;
        let mixed = (product >> 64) as u64 ^ product as u64;
        (mixed ^ (mixed >> 32)) as usize & (self.buckets.len() - 1)
    }

    fn find(&self, block: BlockHash) -> Option<usize> {
        let mut link = self.buckets[self.bucket(block)];
        while link != NONE {
            let row = link as usize - 1;
            if self.hashes[row] == block {
                return Some(row);
            }
            link = self.links[row].next;
        }
        None
    }

    /// A row for a block that has none: a free one, a new one, or that of the oldest block. It is in its bucket and not yet in
    /// the order of age.
    fn take_row(&mut self, block: BlockHash) -> usize {
        if self.free == NONE && self.hashes.len() == self.rows_max {
            self.evicted += 1;
            let oldest = self.oldest as usize - 1;
            for word in 0..self.words {
                let mut bits = std::mem::take(&mut self.ranks[oldest * self.words + word]);
                while bits != 0 {
                    self.held[word * WORD + bits.trailing_zeros() as usize] -= 1;
                    bits &= bits - 1;
                }
            }
            self.release_if_unheld(oldest);
        }
        let row = match self.free {
            NONE => self.push_row(),
            link => {
                self.free = self.links[link as usize - 1].next;
                link as usize - 1
            }
        };
        let bucket = self.bucket(block);
        self.hashes[row] = block;
        self.links[row] = Links { next: self.buckets[bucket], older: NONE, newer: NONE };
        self.buckets[bucket] = row as u32 + 1;
        self.len += 1;
        row
    }

    /// Grows by half and never beyond the bound: doubling would allocate up to twice of it.
    fn push_row(&mut self) -> usize {
        let rows = self.hashes.len();
        if rows == self.hashes.capacity() {
            let more = (rows / 2).max(64).min(self.rows_max - rows);
            self.hashes.reserve_exact(more);
            self.links.reserve_exact(more);
            self.ranks.reserve_exact(more * self.words);
        }
        self.hashes.push(BlockHash(0));
        self.links.push(Links { next: NONE, older: NONE, newer: NONE });
        self.ranks.resize((rows + 1) * self.words, 0);
        rows
    }

    /// Gives a row back when no rank is left in it.
    fn release_if_unheld(&mut self, row: usize) {
        if self.ranks[row * self.words..][..self.words].iter().any(|&word| word != 0) {
            return;
        }
        self.unlink_age(row);
        let (bucket, after) = (self.bucket(self.hashes[row]), self.links[row].next);
        let mut link = self.buckets[bucket];
        if link as usize - 1 == row {
            self.buckets[bucket] = after;
        } else {
            while self.links[link as usize - 1].next as usize - 1 != row {
                link = self.links[link as usize - 1].next;
            }
            self.links[link as usize - 1].next = after;
        }
        self.links[row] = Links { next: self.free, older: NONE, newer: NONE };
        self.free = row as u32 + 1;
        self.len -= 1;
    }

    fn unlink_age(&mut self, row: usize) {
        let Links { older, newer, .. } = self.links[row];
        match older {
            NONE => self.oldest = newer,
            link => self.links[link as usize - 1].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            link => self.links[link as usize - 1].older = older,
        }
    }

    fn link_newest(&mut self, row: usize) {
        let link = row as u32 + 1;
        self.links[row].older = self.newest;
        self.links[row].newer = NONE;
        match self.newest {
            NONE => self.oldest = link,
            newest => self.links[newest as usize - 1].newer = link,
        }
        self.newest = link;
    }
}
