//! `map_record`: turns the router's logical expert ids into physical slots and counts what each slot gets.
//!
//! An expert with several replicas gives each a share of its tokens. Which replica serves a token depends
//! only on the token's index and a salt: the upper 16 bits of `mix32(token + salt * 0x9E3779B9)` fall into
//! exactly one of the intervals that the cumulative shares cut from `0..65536`. A replay with the same salt
//! therefore gives the same slots, and every node that maps the same tokens agrees on each of them.

use crate::mix::mix32;

/// Units in a whole share.
pub const SHARE_ONE: u32 = 1 << 16;

/// 2^32 divided by the golden ratio, made odd: consecutive salts land far apart.
const SALT_STEP: u32 = 0x9E37_79B9;

/// One layer's routing table in compressed rows: row `e` lists the slots that hold expert `e`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchTable {
    /// `[experts + 1]`: where each expert's row begins in the two columns below.
    row: Vec<u32>,
    /// Physical slot of each entry.
    slot: Vec<u32>,
    /// One past the last of the 65536 points that fall to the entry; the last of a row is 65536.
    upper: Vec<u32>,
    slots: usize,
}

/// Why a table or a batch was refused. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A slot that names an expert the layer does not have.
    #[error("slot {slot} holds expert {expert}: the layer has {experts} experts")]
    UnknownExpert {
        /// Physical slot.
        slot: usize,
        /// Its expert.
        expert: usize,
        /// Experts of the layer.
        experts: usize,
    },
    /// Shares that do not sum to one.
    #[error("the shares of expert {expert} sum to {sum}: they must sum to {SHARE_ONE}")]
    SharesNotOne {
        /// The expert.
        expert: usize,
        /// Their sum.
        sum: u64,
    },
    /// An id that no expert has.
    #[error(
        "token {token}, choice {choice}: expert id {id} is not below {experts} (negative ids are padding)"
    )]
    UnknownId {
        /// Index of the token.
        token: usize,
        /// Which of its choices.
        choice: usize,
        /// The id.
        id: i32,
        /// Experts of the layer.
        experts: usize,
    },
    /// More slots than the device's tables can name.
    #[error("the layer has {slots} slots: the device's tables name at most {most}")]
    TooManySlots {
        /// Slots of the layer.
        slots: usize,
        /// The most.
        most: usize,
    },
    /// Buffers that do not fit each other.
    #[error("{what} has {have} entries: must have {need}")]
    WrongLength {
        /// Name of the buffer.
        what: &'static str,
        /// Its length.
        have: usize,
        /// Length needed.
        need: usize,
    },
}

impl MapError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            MapError::UnknownExpert { .. } => "map_unknown_expert",
            MapError::SharesNotOne { .. } => "map_shares_not_one",
            MapError::UnknownId { .. } => "map_unknown_id",
            MapError::TooManySlots { .. } => "map_too_many_slots",
            MapError::WrongLength { .. } => "map_wrong_length",
        }
    }
}

impl DispatchTable {
    /// Builds the rows from `[slots]` of expert (`None` is an empty slot) and share in units of 1/65536.
    pub fn new(experts: usize, slots: &[(Option<usize>, u32)]) -> Result<Self, MapError> {
        let mut rows: Vec<Vec<(u32, u32)>> = vec![Vec::new(); experts];
        for (slot, &(expert, share)) in slots.iter().enumerate() {
            let Some(expert) = expert else { continue };
            let row = rows.get_mut(expert).ok_or(MapError::UnknownExpert { slot, expert, experts })?;
            row.push((u32::try_from(slot).expect("slots of a layer fit 32 bits"), share));
        }
        let mut table = Self { row: vec![0], slot: Vec::new(), upper: Vec::new(), slots: slots.len() };
        for (expert, row) in rows.iter().enumerate() {
            let sum = row.iter().map(|&(_, share)| u64::from(share)).sum();
            if sum != u64::from(SHARE_ONE) {
                return Err(MapError::SharesNotOne { expert, sum });
            }
            let mut upper = 0;
            for &(slot, share) in row {
                upper += share;
                table.slot.push(slot);
                table.upper.push(upper);
            }
            table.row.push(u32::try_from(table.slot.len()).expect("slots of a layer fit 32 bits"));
        }
        Ok(table)
    }

    /// Experts of the layer.
    pub fn experts(&self) -> usize {
        self.row.len() - 1
    }

    /// Physical slots of the layer.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The row of `expert`: slots and the cumulative share up to and with each.
    pub(crate) fn row_entries(&self, expert: usize) -> impl Iterator<Item = (u32, u32)> + '_ {
        (self.row[expert] as usize..self.row[expert + 1] as usize).map(|at| (self.slot[at], self.upper[at]))
    }

    /// The slot of `expert` that serves the token with this index.
    pub(crate) fn choose(&self, expert: usize, token: u32, salt: u32) -> u32 {
        let point = mix32(token.wrapping_add(salt.wrapping_mul(SALT_STEP))) >> 16;
        let (begin, end) = (self.row[expert] as usize, self.row[expert + 1] as usize);
        let entry = begin + self.upper[begin..end].partition_point(|&upper| upper <= point);
        self.slot[entry]
    }
}

/// Maps `ids`, `[tokens][top_k]` logical experts in row-major order, to `physical` slots of the same shape,
/// and adds one to `counts[slot]` for each. Negative ids are padding: they pass through and are not counted.
/// Nothing is written when an error is returned.
pub fn map_record(
    table: &DispatchTable,
    ids: &[i32],
    top_k: usize,
    salt: u32,
    physical: &mut [i32],
    counts: &mut [u32],
) -> Result<(), MapError> {
    let length = |what, have, need| {
        if have == need { Ok(()) } else { Err(MapError::WrongLength { what, have, need }) }
    };
    length("top_k", top_k, top_k.max(1))?;
    length("ids", ids.len(), ids.len().next_multiple_of(top_k))?;
    length("physical", physical.len(), ids.len())?;
    length("counts", counts.len(), table.slots)?;
    let experts = table.experts();
    let unknown = |id: &i32| usize::try_from(*id).is_ok_and(|expert| expert >= experts);
    if let Some(at) = ids.iter().position(unknown) {
        return Err(MapError::UnknownId { token: at / top_k, choice: at % top_k, id: ids[at], experts });
    }
    for (at, (&id, out)) in ids.iter().zip(physical).enumerate() {
        let Ok(expert) = usize::try_from(id) else {
            *out = id;
            continue;
        };
        // The index wraps after 2^32 tokens of one batch: it only feeds the hash.
        let slot = table.choose(expert, (at / top_k) as u32, salt);
        counts[slot as usize] += 1;
        *out = i32::try_from(slot).expect("slots of a layer fit 31 bits");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Slots: expert 0 (1/4), expert 1 (all), empty, expert 0 (3/4).
    fn table() -> DispatchTable {
        DispatchTable::new(2, &[(Some(0), 16384), (Some(1), 65536), (None, 0), (Some(0), 49152)]).unwrap()
    }

    #[test]
    fn padding_passes_through_uncounted() {
        let (mut physical, mut counts) = ([7; 4], [0; 4]);
        map_record(&table(), &[1, -1, -2, 1], 2, 0, &mut physical, &mut counts).unwrap();
        assert_eq!((physical, counts), ([1, -1, -2, 1], [0, 2, 0, 0]));
    }

    #[track_caller]
    fn check_refused(ids: &[i32], top_k: usize, code: &str) {
        let (mut physical, mut counts) = (vec![7; ids.len()], [0; 4]);
        let error = map_record(&table(), ids, top_k, 0, &mut physical, &mut counts).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(counts, [0; 4]);
        assert!(physical.iter().all(|&p| p == 7), "nothing is written");
    }

    #[test]
    fn a_bad_batch_is_refused_whole() {
        check_refused(&[0, 2], 1, "map_unknown_id");
        check_refused(&[0, 1, 0], 2, "map_wrong_length");
        check_refused(&[], 0, "map_wrong_length");
    }

    #[test]
    fn a_bad_table_is_refused() {
        let code = |slots: &[(Option<usize>, u32)]| DispatchTable::new(2, slots).unwrap_err().code();
        assert_eq!(code(&[(Some(2), 65536)]), "map_unknown_expert");
        assert_eq!(code(&[(Some(0), 65536)]), "map_shares_not_one");
        assert_eq!(code(&[(Some(0), 65535), (Some(1), 65536)]), "map_shares_not_one");
    }

    #[test]
    fn tokens_follow_the_shares() {
        let tokens = 20_000;
        let (ids, mut physical, mut counts) = (vec![0; tokens], vec![0; tokens], [0; 4]);
        map_record(&table(), &ids, 1, 3, &mut physical, &mut counts).unwrap();
        // Five standard deviations of a binomial: 5 * sqrt(20000 * 1/4 * 3/4) = 306.
        assert!(counts[0].abs_diff(5000) < 306, "{counts:?}");
        assert_eq!(counts[0] + counts[3], 20_000);
    }

    #[test]
    fn the_salt_changes_the_choice_and_nothing_else_does() {
        let run = |salt| {
            let (mut physical, mut counts) = ([0; 64], [0; 4]);
            map_record(&table(), &[0; 64], 1, salt, &mut physical, &mut counts).unwrap();
            physical
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    proptest! {
        #[test]
        fn every_token_lands_on_a_slot_of_its_expert_and_is_counted(
            ids in prop::collection::vec(-1i32..2, 0..300), salt in any::<u32>()
        ) {
            let (mut physical, mut counts) = (vec![0; ids.len()], [0; 4]);
            map_record(&table(), &ids, 1, salt, &mut physical, &mut counts).unwrap();
            for (id, slot) in ids.iter().zip(&physical) {
                let allowed: &[i32] = match id { 0 => &[0, 3], 1 => &[1], _ => &[-1] };
                prop_assert!(allowed.contains(slot));
            }
            let real = ids.iter().filter(|id| **id >= 0).count();
            prop_assert_eq!(counts.iter().sum::<u32>() as usize, real);
        }
    }
}
