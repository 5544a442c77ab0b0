//! The words that the CUDA side of `map_record` reads and writes: one layer's tables and counters.
//!
//! An entry is `last point:16 | slot:16`: the expert's tokens up to that point (see `map_record.rs`) go to the slot.
//! Replicas with no share have no entry: no point reaches them. A table buffer has four sections, each padded to whole
//! 16-byte vectors:
//!
//! | section | words | what |
//! |---|---|---|
//! | first | `[experts]` | with one replica its entry, whose last point is 65535; otherwise the number of its first group |
//! | groups | at most `4 * (slots - experts)` and `2 * slots` | entries of the other experts, four a group, the last repeated |
//! | rows | `[experts][4]` | the first three entries (the last one repeated), and the number before the first group's |
//!
//! The staged kernel copies the first two, which are small; the direct one reads a row, which settles most experts
//! with one load. (An expert with n replicas, n at least 2, has at most 2n words in groups and n - 1 spare slots.)

use crate::map_record::{DispatchTable, MapError};

/// Slots that an entry can name.
pub const DEVICE_SLOTS_MAX: usize = 1 << 16;

/// Where the sections `groups` and `rows` begin.
fn sections(experts: usize, slots: usize) -> [usize; 2] {
    let groups = experts.next_multiple_of(4);
    [groups, groups + (4 * slots.saturating_sub(experts)).min((2 * slots).next_multiple_of(4))]
}

/// Words of one table buffer.
pub(crate) fn table_words(experts: usize, slots: usize) -> usize {
    sections(experts, slots)[1] + 4 * experts
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
        let [groups, rows] = sections(self.experts(), self.slots());
        let mut words = vec![0; table_words(self.experts(), self.slots())];
        let mut group = 0;
        for expert in 0..self.experts() {
            let entries = self.device_entries(expert);
            let last = *entries.last().expect("shares that sum to one");
            let number = u32::try_from(group).expect("65536 slots fit 32 bits");
            let row = &mut words[rows + 4 * expert..][..4];
            row.fill(last);
            row.iter_mut().zip(&entries).for_each(|(word, &entry)| *word = entry);
            row[2] = if entries.len() > 3 { entries[2] } else { last };
            // The kernel steps to a group before it reads it.
            row[3] = number.wrapping_sub(1);
            words[expert] = if entries.len() == 1 { last } else { number };
            if entries.len() > 1 {
                for entries in entries.chunks(4) {
                    let place = &mut words[groups + 4 * group..][..4];
                    place.fill(last);
                    place[..entries.len()].copy_from_slice(entries);
                    group += 1;
                }
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
        assert_eq!(words[..4], [0, one, two, 0], "first");
        assert_eq!(words[4..8], [first, second, third, fourth], "the group of expert 0");
        assert_eq!(words[8..20], [0; 12], "spare groups");
        assert_eq!(words[20..24], [first, second, third, u32::MAX], "row of expert 0");
        assert_eq!(words[24..28], [one, one, one, 0], "row of expert 1");
        assert_eq!(words[28..], [two, two, two, 0], "row of expert 2");
    }
}
