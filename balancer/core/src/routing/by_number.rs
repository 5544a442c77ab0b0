//! Requests under numbers that only grow: as they arrived, or as they were dispatched.

use super::RequestId;
use std::collections::VecDeque;

/// No request: gateways may not use it (`reserved_request`).
const GONE: RequestId = RequestId(0);
/// Entries below which gaps are left alone.
const SHORT: usize = 16;

/// A list by number. Whoever leaves makes a gap, and gaps are closed before they are more than the requests, so that each
/// call but for those takes constant time, or the logarithm of the length where there are gaps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct ByNumber {
    entries: VecDeque<(u64, RequestId)>,
    length: usize,
}

impl ByNumber {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(u64, RequestId)>()
    }

    /// Adds a request under a number above all that were.
    pub(super) fn push(&mut self, number: u64, request: RequestId) {
        assert!(request != GONE, "validated: 0 names no request");
        assert!(self.entries.back().is_none_or(|&(last, _)| last < number), "numbers grow");
        self.entries.push_back((number, request));
        self.length += 1;
    }

    /// Takes out the request that is there under this number.
    pub(super) fn remove(&mut self, number: u64) {
        let place = self.place(number);
        let (found, request) = &mut self.entries[place];
        assert!(*found == number && *request != GONE, "number {number} is there");
        *request = GONE;
        self.length -= 1;
        while self.entries.front().is_some_and(|&(_, request)| request == GONE) {
            self.entries.pop_front();
        }
        if self.entries.len() > SHORT.max(2 * self.length) {
            self.entries.retain(|&(_, request)| request != GONE);
            // A flood that is over leaves no room behind.
            if self.entries.capacity() > 4 * self.length {
                self.entries.shrink_to(2 * self.length);
            }
        }
    }

    /// Requests, lowest number first.
    pub(super) fn iter(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.entries.iter().map(|&(_, request)| request).filter(|&request| request != GONE)
    }

    /// Those from a number on.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = RequestId> + '_ {
        let first = self.place(number);
        self.entries.range(first..).map(|&(_, request)| request).filter(|&request| request != GONE)
    }

    /// Where the number is, or the next one.
    fn place(&self, number: u64) -> usize {
        let Some(&(first, _)) = self.entries.front() else { return 0 };
        // Where every number has an entry, there is no need to search.
        let straight = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        match self.entries.get(straight) {
            Some(&(found, _)) if found == number => straight,
            _ => self.entries.partition_point(|&(other, _)| other < number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_by_number(ops in prop::collection::vec((1..4u64, any::<u16>()), 0..400)) {
            let (mut list, mut map, mut last) = (ByNumber::default(), BTreeMap::new(), 0);
            for (step, leaves) in ops {
                if leaves % 2 == 0 || map.is_empty() {
                    last += step;
                    list.push(last, RequestId(last));
                    map.insert(last, RequestId(last));
                } else {
                    let number = *map.keys().nth(usize::from(leaves) % map.len()).unwrap();
                    list.remove(number);
                    map.remove(&number);
                }
                prop_assert_eq!(list.len(), map.len());
                prop_assert!(list.iter().eq(map.values().copied()));
                let from = u64::from(leaves) % (last + 2);
                prop_assert!(list.from(from).eq(map.range(from..).map(|(_, &request)| request)));
                prop_assert!(list.entries.len() <= SHORT + 2 * list.len());
            }
        }
    }
}
