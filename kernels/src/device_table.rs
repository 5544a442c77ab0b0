//! The words that the CUDA side of `map_record` reads and writes: one layer's tables and counters.
//!
//! A table buffer is `rows | entries`, each padded to whole 16-byte vectors. A row is `count:12 | low:20`. With one
//! replica `low` is its slot; otherwise it is where the row's entries begin, and an entry is
//! `last point:16 | slot:16`: the expert's tokens up to that point (see `map_record.rs`) go to the slot. Replicas
//! with no share have no entry: no point reaches them.

use crate::map_record::{DispatchTable, MapError};

/// Slots that an entry can name.
pub const DEVICE_SLOTS_MAX: usize = 1 << 16;

/// Words of one table buffer.
pub(crate) fn table_words(experts: usize, slots: usize) -> usize {
    experts.next_multiple_of(4) + slots.next_multiple_of(4)
}

/// Where the tokens per rank begin among the counters.
pub(crate) fn rank_counts_at(slots: usize) -> usize {
    slots.next_multiple_of(4)
}

/// Words of a layer's counters.
pub(crate) fn count_words(slots: usize, ranks: usize) -> usize {
    rank_counts_at(slots) + ranks.next_multiple_of(4)
}

impl DispatchTable {
    /// The table as one device buffer. `code` of the refusal: `map_too_many_slots`.
    pub fn device_words(&self) -> Result<Vec<u32>, MapError> {
        if self.slots() > DEVICE_SLOTS_MAX {
            return Err(MapError::TooManySlots { slots: self.slots(), most: DEVICE_SLOTS_MAX });
        }
        let rows_end = self.experts().next_multiple_of(4);
        let mut words = vec![0; rows_end];
        for expert in 0..self.experts() {
            let mut begin = 0;
            let entries: Vec<u32> = self
                .row_entries(expert)
                .filter_map(|(slot, upper)| {
                    let empty = upper == begin;
                    begin = upper;
                    (!empty).then(|| (upper - 1) << 16 | slot)
                })
                .collect();
            if let [only] = entries[..] {
                words[expert] = 1 << 20 | (only & 0xFFFF);
            } else {
                let at = words.len() - rows_end;
                words[expert] = u32::try_from(entries.len() << 20 | at).expect("65536 slots fit a row's fields");
                words.extend(entries);
            }
        }
        words.resize(table_words(self.experts(), self.slots()), 0);
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_the_slot_or_point_at_entries() {
        let slots = [(Some(0), 16384), (Some(1), 65536), (None, 0), (Some(0), 49152), (Some(2), 65536), (Some(2), 0)];
        let words = DispatchTable::new(3, &slots).unwrap().device_words().unwrap();
        assert_eq!(words[..4], [2 << 20, 1 << 20 | 1, 1 << 20 | 4, 0]);
        assert_eq!(words[4..], [16383 << 16, 0xFFFF_0003, 0, 0, 0, 0, 0, 0]);
    }
}
