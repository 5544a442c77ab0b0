//! The KV room of a prefill rank: what running prompts hold, and the prefix blocks that stay after them until the room is
//! needed. As in the engines, blocks that a prompt holds are never taken, and of the others the least recently used go first, the
//! ends of prefixes before their beginnings.

use std::collections::HashMap;

/// No neighbour in the list.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Block {
    id: u64,
    /// Prompts that hold it. Only blocks that nobody holds are in the list.
    holders: u32,
    older: u32,
    newer: u32,
}

/// The room of one rank, in blocks. Never more than `capacity` are in use: held, kept or promised.
#[derive(Debug, Clone)]
pub struct RankCache {
    capacity: usize,
    slots: Vec<Block>,
    free: Vec<u32>,
    by_id: HashMap<u64, u32>,
    oldest: u32,
    newest: u32,
    /// Blocks that nobody holds.
    idle: usize,
    /// Room promised to running prompts for blocks that are not there yet.
    promised: usize,
}

impl RankCache {
    /// An empty room of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            idle: 0,
            promised: 0,
        }
    }

    /// Blocks that prompts hold or are promised.
    pub fn held(&self) -> usize {
        self.by_id.len() - self.idle + self.promised
    }

    /// Blocks in use: held, promised or kept for later.
    pub fn used(&self) -> usize {
        self.by_id.len() + self.promised
    }

    /// Leading blocks that are there.
    pub fn matched(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.by_id.contains_key(block)).count()
    }

    /// Begins a prompt that needs `needed` blocks in all, `blocks` of them with a name. Returns the leading blocks that were
    /// there, which it holds from now on, and `None` when there is no room, which changes nothing. Blocks that had to go are
    /// appended to `removed`.
    pub fn begin(&mut self, blocks: &[u64], needed: usize, removed: &mut Vec<u64>) -> Option<usize> {
        let hits = self.matched(blocks);
        let idle_hits = blocks[..hits].iter().filter(|block| self.holders(**block) == 0).count();
        let (held, missing) = (self.held() + idle_hits, needed - hits);
        if held + missing > self.capacity {
            return None;
        }
        for block in &blocks[..hits] {
            self.hold(*block);
        }
        self.promised += missing;
        while self.used() > self.capacity {
            removed.push(self.evict());
        }
        Some(hits)
    }

    /// A block of a running prompt has been computed. Returns whether it is new here.
    pub fn store(&mut self, block: u64) -> bool {
        self.promised -= 1;
        if self.by_id.contains_key(&block) {
            self.hold(block);
            return false;
        }
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        let fresh = Block { id: block, holders: 1, older: NONE, newer: NONE };
        if slot as usize == self.slots.len() {
            self.slots.push(fresh)
        } else {
            self.slots[slot as usize] = fresh
        }
        self.by_id.insert(block, slot);
        true
    }

    /// A prompt leaves: it held `blocks` and was promised `promised` more that it never stored.
    pub fn release(&mut self, blocks: &[u64], promised: usize) {
        self.promised -= promised;
        // The end first: it is older then, and goes before the beginning.
        for block in blocks.iter().rev() {
            let slot = self.by_id[block];
            self.slots[slot as usize].holders -= 1;
            if self.slots[slot as usize].holders == 0 {
                self.append(slot);
            }
        }
    }

    fn holders(&self, block: u64) -> u32 {
        self.by_id.get(&block).map_or(0, |&slot| self.slots[slot as usize].holders)
    }

    fn hold(&mut self, block: u64) {
        let slot = self.by_id[&block];
        if self.slots[slot as usize].holders == 0 {
            self.unlink(slot);
        }
        self.slots[slot as usize].holders += 1;
    }

    fn evict(&mut self) -> u64 {
        let slot = self.oldest;
        assert!(slot != NONE, "room was promised that is not there");
        self.unlink(slot);
        let id = self.slots[slot as usize].id;
        self.by_id.remove(&id);
        self.free.push(slot);
        id
    }

    fn append(&mut self, slot: u32) {
        self.slots[slot as usize].older = self.newest;
        self.slots[slot as usize].newer = NONE;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.slots[newest as usize].newer = slot,
        }
        self.newest = slot;
        self.idle += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Block { older, newer, .. } = self.slots[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        self.idle -= 1;
    }
}

#[cfg(test)]
#[path = "rank_cache_tests.rs"]
mod tests;
