//! The prefixes that a router believes each rank to have, learnt from where it sent them.

use crate::dispatch::Arrival;
use hashlink::LinkedHashMap;

/// One bounded set of blocks per rank; the least recently sent block goes first.
#[derive(Debug, Clone)]
pub(super) struct ApproximateIndex {
    /// `[ranks]`, the least recent block first.
    ranks: Vec<LinkedHashMap<u64, ()>>,
    blocks_per_rank: usize,
}

impl ApproximateIndex {
    pub(super) fn new(ranks: u16, blocks_per_rank: usize) -> Self {
        Self { ranks: vec![LinkedHashMap::new(); ranks.into()], blocks_per_rank }
    }

    /// Leading blocks of the request that the rank has.
    pub(super) fn matched(&self, arrival: &Arrival, rank: usize) -> usize {
        let known = &self.ranks[rank];
        arrival.blocks.iter().take_while(|&block| known.contains_key(block)).count()
    }

    /// The part of the request's blocks that leads and the rank has; 0 when the request names no blocks.
    pub(super) fn matched_part(&self, arrival: &Arrival, rank: usize) -> f64 {
        match arrival.blocks.len() {
            0 => 0.0,
            blocks => self.matched(arrival, rank) as f64 / blocks as f64,
        }
    }

    pub(super) fn insert(&mut self, arrival: &Arrival, rank: usize) {
        let known = &mut self.ranks[rank];
        for &block in arrival.blocks.iter() {
            known.insert(block, ());
        }
        while known.len() > self.blocks_per_rank {
            known.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(blocks: &[u64]) -> Arrival {
        Arrival { id: 0, prompt_tokens: 1, blocks: blocks.into(), room: None, pin: None, turn: 0 }
    }

    /// Inserts requests at rank 0 of an index of three blocks a rank; then `looked_up` matches so many blocks there, and none at
    /// rank 1.
    #[track_caller]
    fn check(inserted: &[&[u64]], looked_up: &[u64], expected: usize) {
        let mut index = ApproximateIndex::new(2, 3);
        for blocks in inserted {
            index.insert(&arrival(blocks), 0);
        }
        let matched = |rank| index.matched(&arrival(looked_up), rank);
        assert_eq!((matched(0), matched(1)), (expected, 0));
    }

    #[test]
    fn leading_blocks_match() {
        check(&[&[1, 2, 3]], &[1, 2, 9, 3], 2);
        check(&[&[1, 2, 3]], &[9, 1], 0);
    }

    #[test]
    fn the_least_recently_sent_block_goes_first() {
        check(&[&[1, 2, 3], &[1, 4]], &[1, 2], 1);
        check(&[&[1, 2, 3], &[1, 4]], &[1, 3, 4], 3);
        check(&[&[1, 2, 3, 4, 5]], &[1], 0);
        check(&[&[1, 2, 3, 4, 5]], &[3, 4, 5], 3);
    }
}
