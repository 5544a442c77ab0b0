//! `map_record` with the layout of the dispatch: what the CUDA kernel computes, on the CPU.
//!
//! It differs from [`map_record`](crate::map_record()) where a device cannot: a batch with an id that no expert has is
//! not refused, the id passes through and is counted as a fault. And it knows the padding of a captured graph: rows
//! from `valid` on are mapped, but counted nowhere.

use crate::map_record::DispatchTable;

/// The engines' ids: `i32` or `i64`.
pub trait ExpertIndex: Copy + PartialEq + std::fmt::Debug {
    /// The expert, if the id is none of padding.
    fn expert(self) -> Option<usize>;
    /// The id of a slot.
    fn of_slot(slot: u32) -> Self;
}

impl ExpertIndex for i32 {
    fn expert(self) -> Option<usize> {
        usize::try_from(self).ok()
    }
    fn of_slot(slot: u32) -> Self {
        i32::try_from(slot).expect("slots of a layer fit 31 bits")
    }
}

impl ExpertIndex for i64 {
    fn expert(self) -> Option<usize> {
        usize::try_from(self).ok()
    }
    fn of_slot(slot: u32) -> Self {
        slot.into()
    }
}

/// One batch of ids.
#[derive(Debug, Clone, Copy)]
pub struct IdBatch<'a, I> {
    /// `[tokens][top_k]`; negative ones are padding.
    pub ids: &'a [I],
    /// Ids of a token.
    pub top_k: usize,
    /// Tokens that count.
    pub valid: usize,
    /// See [`map_record`](crate::map_record()).
    pub salt: u32,
}

/// What the kernel writes, and what it adds to counters that were zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped<I> {
    /// `[tokens][top_k]`.
    pub physical: Vec<I>,
    /// `[slots]`: ids of each slot.
    pub slot_counts: Vec<u32>,
    /// `[ranks]`: tokens that go to each rank, once each.
    pub rank_counts: Vec<u32>,
    /// `[words][tokens]`: bit `rank % 32` of word `rank / 32` says that the token goes to the rank.
    pub in_rank: Vec<u32>,
    /// Ids that no expert has.
    pub faults: u32,
}

/// Maps a batch whose slots lie on `ranks` ranks in blocks of equal size.
pub fn map_with_layout<I: ExpertIndex>(table: &DispatchTable, ranks: usize, batch: IdBatch<I>) -> Mapped<I> {
    assert!(table.slots().is_multiple_of(ranks), "{} slots on {ranks} ranks", table.slots());
    assert!(batch.ids.len().is_multiple_of(batch.top_k), "whole tokens");
    let slots_per_rank = table.slots() / ranks;
    let tokens = batch.ids.len() / batch.top_k;
    let mut mapped = Mapped {
        physical: batch.ids.to_vec(),
        slot_counts: vec![0; table.slots()],
        rank_counts: vec![0; ranks],
        in_rank: vec![0; ranks.div_ceil(32) * tokens],
        faults: 0,
    };
    for (at, out) in mapped.physical.iter_mut().enumerate() {
        let token = at / batch.top_k;
        let counted = token < batch.valid;
        let Some(expert) = out.expert() else { continue };
        if expert >= table.experts() {
            mapped.faults += u32::from(counted);
            continue;
        }
        // The index wraps after 2^32 tokens: it only feeds the hash.
        let slot = table.choose(expert, token as u32, batch.salt);
        *out = I::of_slot(slot);
        if counted {
            mapped.slot_counts[slot as usize] += 1;
            let rank = slot as usize / slots_per_rank;
            let word = &mut mapped.in_rank[rank / 32 * tokens + token];
            mapped.rank_counts[rank] += u32::from(*word >> (rank % 32) & 1 == 0);
            *word |= 1 << (rank % 32);
        }
    }
    mapped
}

/// The bit mask of [`Mapped::in_rank`] as bytes of 0 or 1, `[tokens][ranks]`.
pub fn bool_matrix(in_rank: &[u32], tokens: usize, ranks: usize) -> Vec<u8> {
    let bit = |token: usize, rank: usize| (in_rank[rank / 32 * tokens + token] >> (rank % 32) & 1) as u8;
    (0..tokens * ranks).map(|at| bit(at / ranks, at % ranks)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_record;
    use proptest::prelude::*;

    /// Two ranks of two slots. Expert 0 on both ranks, expert 1 on rank 0, expert 2 on rank 1.
    fn table() -> DispatchTable {
        let slots = [(Some(0), 32768), (Some(1), 65536), (Some(0), 32768), (Some(2), 65536)];
        DispatchTable::new(3, &slots).unwrap()
    }

    fn batch<I>(ids: &[I]) -> IdBatch<'_, I> {
        IdBatch { ids, top_k: 2, valid: usize::MAX, salt: 0 }
    }

    #[test]
    fn a_token_counts_once_for_each_rank_it_goes_to() {
        let mapped = map_with_layout(&table(), 2, batch(&[1i64, 2, 1, 1, -1, 2]));
        assert_eq!(mapped.in_rank, [3, 1, 2]);
        assert_eq!((mapped.rank_counts, mapped.slot_counts), (vec![2, 2], vec![0, 3, 0, 2]));
        assert_eq!(bool_matrix(&mapped.in_rank, 3, 2), [1, 1, 1, 0, 0, 1]);
    }

    #[test]
    fn rows_past_the_valid_ones_are_mapped_and_not_counted() {
        let mapped = map_with_layout(&table(), 2, IdBatch { valid: 1, ..batch(&[1, 2, 2, 9]) });
        assert_eq!(mapped.physical, [1, 3, 3, 9]);
        assert_eq!((mapped.rank_counts, mapped.faults), (vec![1, 1], 0));
        assert_eq!(mapped.in_rank, [3, 0]);
    }

    #[test]
    fn an_id_that_no_expert_has_passes_through_as_a_fault() {
        let mapped = map_with_layout(&table(), 2, batch(&[3i64, 1 << 40, 1, -7]));
        assert_eq!((mapped.physical, mapped.faults), (vec![3, 1 << 40, 1, -7], 2));
        assert_eq!(mapped.slot_counts, [0, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn without_faults_it_is_map_record(ids in prop::collection::vec(-1i32..3, 0..100), salt in any::<u32>()) {
            let ids = &ids[..ids.len() / 2 * 2];
            let (mut physical, mut counts) = (vec![0; ids.len()], vec![0; 4]);
            map_record(&table(), ids, 2, salt, &mut physical, &mut counts).unwrap();
            let mapped = map_with_layout(&table(), 2, IdBatch { salt, ..batch(ids) });
            prop_assert_eq!((mapped.physical, mapped.slot_counts), (physical, counts));
        }
    }
}
