//! `slot_copy`: many slots copied in one launch, for the boundary copy where there are no spare slots.
//!
//! A launch has no order among its copies, so a destination may overlap no source and no other destination: a
//! rotation of slots goes through a staging buffer, in two launches.

use std::ops::Range;

/// One copy; places are byte offsets (or device addresses).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotMove {
    /// First byte read.
    pub source: u64,
    /// First byte written.
    pub destination: u64,
    /// How many; at least 1.
    pub bytes: u64,
}

/// Copies that cannot go into one launch. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A destination that something else of the launch reads or writes.
    #[error(
        "[slot_copy_overlap] copy {index} writes bytes that copy {other} reads or writes: put them into two launches"
    )]
    Overlap {
        /// Index of the copy that writes.
        index: usize,
        /// Index of the other.
        other: usize,
    },
    /// No bytes, or more than there are.
    #[error(
        "[slot_copy_bytes] copy {index} has {bytes} bytes: at least 1 is needed, and the end must not wrap"
    )]
    Bytes {
        /// Index of the copy.
        index: usize,
        /// Its bytes.
        bytes: u64,
    },
}

impl CopyError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            CopyError::Overlap { .. } => "slot_copy_overlap",
            CopyError::Bytes { .. } => "slot_copy_bytes",
        }
    }
}

/// Refuses copies that depend on an order.
pub fn check_moves(moves: &[SlotMove]) -> Result<(), CopyError> {
    let mut spans: Vec<(Range<u64>, bool, usize)> = Vec::with_capacity(2 * moves.len());
    for (index, m) in moves.iter().enumerate() {
        let span = |from: u64| from.checked_add(m.bytes).filter(|_| m.bytes > 0).map(|end| from..end);
        let refused = CopyError::Bytes { index, bytes: m.bytes };
        spans.push((span(m.source).ok_or(refused.clone())?, false, index));
        spans.push((span(m.destination).ok_or(refused)?, true, index));
    }
    spans.sort_by_key(|(span, ..)| (span.start, span.end));
    // The span reaching furthest, of all so far and of the written ones: a new span only has to be compared with these.
    let mut read: Option<(u64, usize)> = None;
    let mut written: Option<(u64, usize)> = None;
    for (span, writes, index) in spans {
        let over = |reach: Option<(u64, usize)>| reach.filter(|(end, _)| *end > span.start).map(|(_, at)| at);
        if let Some(other) = over(written) {
            return Err(CopyError::Overlap { index: other, other: index });
        }
        if let Some(other) = over(read).filter(|_| writes) {
            return Err(CopyError::Overlap { index, other });
        }
        let reach = if writes { &mut written } else { &mut read };
        if reach.is_none_or(|(end, _)| end < span.end) {
            *reach = Some((span.end, index));
        }
    }
    Ok(())
}

/// Copies within `memory`.
pub fn slot_copy(memory: &mut [u8], moves: &[SlotMove]) -> Result<(), CopyError> {
    check_moves(moves)?;
    let place = |at: u64| usize::try_from(at).expect("offsets into memory");
    for m in moves {
        memory.copy_within(place(m.source)..place(m.source + m.bytes), place(m.destination));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(list: &[(u64, u64, u64)]) -> Vec<SlotMove> {
        list.iter().map(|&(source, destination, bytes)| SlotMove { source, destination, bytes }).collect()
    }

    #[track_caller]
    fn check(list: &[(u64, u64, u64)], code: Option<&str>) {
        assert_eq!(check_moves(&moves(list)).err().as_ref().map(CopyError::code), code);
    }

    #[test]
    fn only_copies_without_an_order_go_together() {
        check(&[(0, 10, 5), (0, 15, 5)], None);
        check(&[(0, 10, 5), (5, 0, 5)], Some("slot_copy_overlap"));
        check(&[(0, 10, 5), (5, 14, 5)], Some("slot_copy_overlap"));
        check(&[(0, 4, 5)], Some("slot_copy_overlap"));
        check(&[(0, 100, 90), (1, 200, 1), (20, 80, 2)], Some("slot_copy_overlap"));
        check(&[(0, 10, 0)], Some("slot_copy_bytes"));
        check(&[(u64::MAX, 10, 2)], Some("slot_copy_bytes"));
    }

    #[test]
    fn bytes_arrive() {
        let mut memory: Vec<u8> = (0..10).collect();
        slot_copy(&mut memory, &moves(&[(0, 6, 2), (1, 8, 2)])).unwrap();
        assert_eq!(memory, [0, 1, 2, 3, 4, 5, 0, 1, 1, 2]);
    }
}
