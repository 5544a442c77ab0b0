//! The blocks of all live requests, counted per rank: how many are unique, and how many of a request's are among them.

use crate::dispatch::Arrival;
use std::collections::HashMap;

/// Blocks in use on each rank. A lookup costs the uses of the looked-up blocks, not the ranks.
#[derive(Debug, Clone)]
pub(super) struct ActiveBlocks {
    uses: HashMap<u64, Vec<Uses>>,
    /// `[ranks]`: unique blocks.
    unique: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Uses {
    rank: usize,
    count: u32,
}

impl ActiveBlocks {
    pub(super) fn new(ranks: u16) -> Self {
        Self { uses: HashMap::new(), unique: vec![0; ranks.into()] }
    }

    /// Unique blocks of each rank if the request went there.
    pub(super) fn with(&self, arrival: &Arrival, unique: &mut Vec<u64>) {
        unique.clear();
        unique.extend(self.unique.iter().map(|own| own + arrival.blocks.len() as u64));
        for uses in arrival.blocks.iter().filter_map(|block| self.uses.get(block)) {
            for used in uses {
                unique[used.rank] -= 1;
            }
        }
    }

    pub(super) fn hold(&mut self, blocks: &[u64], rank: usize) {
        for &block in blocks {
            let uses = self.uses.entry(block).or_default();
            match uses.iter_mut().find(|used| used.rank == rank) {
                Some(used) => used.count += 1,
                None => {
                    uses.push(Uses { rank, count: 1 });
                    self.unique[rank] += 1;
                }
            }
        }
    }

    /// The blocks were held there.
    pub(super) fn release(&mut self, blocks: &[u64], rank: usize) {
        for block in blocks {
            let uses = self.uses.get_mut(block).expect("held blocks are counted");
            let place = uses.iter().position(|used| used.rank == rank).expect("they were held there");
            uses[place].count -= 1;
            if uses[place].count == 0 {
                uses.swap_remove(place);
                self.unique[rank] -= 1;
            }
            if uses.is_empty() {
                self.uses.remove(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(active: &ActiveBlocks, blocks: &[u64], expected: [u64; 2]) {
        let blocks = blocks.into();
        let arrival = Arrival { id: 0, prompt_tokens: 1, blocks, room: None, pin: None, turn: 0 };
        let mut unique = Vec::new();
        active.with(&arrival, &mut unique);
        assert_eq!(unique, expected);
    }

    #[test]
    fn a_block_counts_once_per_rank_until_its_last_use_ends() {
        let mut active = ActiveBlocks::new(2);
        active.hold(&[1, 2], 0);
        active.hold(&[1, 3, 4], 0);
        active.hold(&[1], 1);
        check(&active, &[], [4, 1]);
        check(&active, &[1, 2, 5], [5, 3]);
        active.release(&[1, 3, 4], 0);
        check(&active, &[], [2, 1]);
        active.release(&[1, 2], 0);
        active.release(&[1], 1);
        check(&active, &[1], [1, 1]);
        assert!(active.uses.is_empty(), "nothing is kept of what ended");
    }
}
