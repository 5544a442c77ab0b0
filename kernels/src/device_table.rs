//! The words that the CUDA side of `map_record` reads and writes: one layer's tables and counters.
//!
//! An entry is `last point:16 | slot:16`: the expert's tokens up to that point (see `map_record.rs`) go to the slot.
//! Replicas with no share have no entry: no point reaches them. A table buffer has four sections, each padded to whole
//! 16-byte vectors:
//!
//! | section | words | what |
//! |---|---|---|
//! | first | `[experts]` | each expert's first entry; with one replica its last point is 65535 |
//! | next | `[experts]` of 16 bits | where its other entries begin |
//! | others | `[slots]` | the other entries |
//! | rows | `[experts][4]` | its first three entries (the last one repeated), and where the fourth is |
//!
//! The staged kernel copies the first three, which are small; the direct one reads a row, which settles most experts
//! with one load.

use crate::map_record::{DispatchTable, MapError};

/// Slots that an entry can name.
pub const DEVICE_SLOTS_MAX: usize = 1 << 16;

/// Where the sections `next`, `others` and `rows` begin.
fn sections(experts: usize, slots: usize) -> [usize; 3] {
    let next = experts.next_multiple_of(4);
    let others = next + experts.div_ceil(2).next_multiple_of(4);
    [next, others, others + slots.next_multiple_of(4)]
}

/// Words of one table buffer.
pub(crate) fn table_words(experts: usize, slots: usize) -> usize {
    sections(experts, slots)[2] + 4 * experts
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
        let [next, others, rows] = sections(self.experts(), self.slots());
        let mut words = vec![0; table_words(self.experts(), self.slots())];
        let mut other = 0;
        for expert in 0..self.experts() {
            let entries = self.device_entries(expert);
            let index = |at: usize| u32::try_from(at).expect("65536 slots fit 32 bits");
            words[expert] = entries[0];
            words[next + expert / 2] |= (index(other) & 0xFFFF) << (16 * (expert % 2));
            for (place, word) in words[rows + 4 * expert..][..3].iter_mut().enumerate() {
                *word = entries[place.min(entries.len() - 1)];
            }
            words[rows + 4 * expert + 3] = index(other + 2);
            for &entry in &entries[1..] {
                words[others + other] = entry;
                other += 1;
            }
        }
        Ok(words)
    }

    /// The expert's entries; at least one, as the shares sum to one.
    fn device_entries(&self, expert: usize) -> Vec<u32> {
        let mut begin = 0;
        let entries = self.row_entries(expert).filter_map(|(slot, upper)| {
            let empty = upper == begin;
            begin = upper;
            (!empty).then(|| (upper - 1) << 16 | slot)
        });
        entries.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_settle_three_replicas_and_the_others_follow() {
        let quarter = 1 << 14;
        let slots = [
            (Some(0), quarter),
            (Some(1), 1 << 16),
            (None, 0),
            (Some(0), 0),
            (Some(0), quarter),
            (Some(0), quarter),
            (Some(0), quarter),
            (Some(2), 1 << 16),
        ];
        let words = DispatchTable::new(3, &slots).unwrap().device_words().unwrap();
        let (first, second, third, fourth) = (0x3FFF_0000, 0x7FFF_0004, 0xBFFF_0005, 0xFFFF_0006);
        let (one, two) = (0xFFFF_0001, 0xFFFF_0007);
        assert_eq!(words[..4], [first, one, two, 0], "first");
        assert_eq!(words[4..8], [3 << 16, 3, 0, 0], "next");
        assert_eq!(words[8..16], [second, third, fourth, 0, 0, 0, 0, 0], "others");
        assert_eq!(words[16..20], [first, second, third, 2], "row of expert 0");
        assert_eq!(words[20..], [one, one, one, 5, two, two, two, 5], "rows of experts 1 and 2");
    }
}
