//! The blocks of all live requests, counted per rank: how many are unique, and how many of a request's are among them.
//!
//! Blocks of a request that does not name them are taken to be its own alone.

use crate::dispatch::{Arrival, BLOCK_TOKENS};
use std::collections::HashMap;
use std::sync::Arc;

/// Whole blocks of the request's prompt.
pub(super) fn count(arrival: &Arrival) -> u64 {
    match arrival.blocks.len() {
        0 => arrival.prompt_tokens / BLOCK_TOKENS,
        named => named as u64,
    }
}

/// What a live request holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    named: Arc<[u64]>,
    unnamed: u64,
}

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
        let more = count(arrival);
        unique.extend(self.unique.iter().map(|own| own + more));
        for uses in arrival.blocks.iter().filter_map(|block| self.uses.get(block)) {
            for used in uses {
                unique[used.rank] -= 1;
            }
        }
    }

    pub(super) fn hold(&mut self, arrival: &Arrival, rank: usize) -> Held {
        let named = arrival.blocks.clone();
        for &block in named.iter() {
            let uses = self.uses.entry(block).or_default();
            match uses.iter_mut().find(|used| used.rank == rank) {
                Some(used) => used.count += 1,
                None => {
                    uses.push(Uses { rank, count: 1 });
                    self.unique[rank] += 1;
                }
            }
        }
        let unnamed = count(arrival) - named.len() as u64;
        self.unique[rank] += unnamed;
        Held { named, unnamed }
    }

    /// What was held there is not any more.
    pub(super) fn release(&mut self, held: &Held, rank: usize) {
        self.unique[rank] -= held.unnamed;
        for block in held.named.iter() {
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

    fn arrival(prompt_tokens: u64, blocks: &[u64]) -> Arrival {
        Arrival { id: 0, prompt_tokens, blocks: blocks.into(), room: None, pin: None, turn: 0 }
    }

    #[track_caller]
    fn check(active: &ActiveBlocks, arrival: &Arrival, expected: [u64; 2]) {
        let mut unique = Vec::new();
        active.with(arrival, &mut unique);
        assert_eq!(unique, expected);
    }

    #[test]
    fn a_block_counts_once_per_rank_until_its_last_use_ends() {
        let mut active = ActiveBlocks::new(2);
        let one = active.hold(&arrival(128, &[1, 2]), 0);
        let two = active.hold(&arrival(192, &[1, 3, 4]), 0);
        let other = active.hold(&arrival(64, &[1]), 1);
        check(&active, &arrival(9, &[]), [4, 1]);
        check(&active, &arrival(192, &[1, 2, 5]), [5, 3]);
        active.release(&two, 0);
        check(&active, &arrival(9, &[]), [2, 1]);
        active.release(&one, 0);
        active.release(&other, 1);
        check(&active, &arrival(64, &[1]), [1, 1]);
        assert!(active.uses.is_empty(), "nothing is kept of what ended");
    }

    #[test]
    fn unnamed_blocks_are_the_requests_own() {
        let mut active = ActiveBlocks::new(2);
        let held = active.hold(&arrival(130, &[]), 0);
        check(&active, &arrival(130, &[]), [4, 2]);
        active.release(&held, 0);
        check(&active, &arrival(130, &[]), [2, 2]);
    }
}
