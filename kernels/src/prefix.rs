//! `prefix`: where each slot's tokens begin, from the slots' counts.

/// `[slots + 1]`: the exclusive sums of `counts`, and the total.
pub fn prefix(counts: &[u32]) -> Vec<u32> {
    let mut sums = vec![0];
    sums.extend(counts.iter().scan(0u32, |sum, &count| {
        *sum += count;
        Some(*sum)
    }));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_begins_where_the_ones_before_it_end() {
        assert_eq!(prefix(&[3, 0, 2]), [0, 3, 3, 5]);
        assert_eq!(prefix(&[]), [0]);
    }
}
