//! Held requests where they stand: a line for each tenant and priority, in order of arrival. Whoever is in a line is found by
//! name and leaves it from anywhere, in constant time.

use super::queue::HeldRequest;
use crate::routing::RequestId;
use rustc_hash::FxHashMap;

/// A place in [`Lines`]; [`NOBODY`] for none.
pub(super) type Place = u32;
pub(super) const NOBODY: Place = Place::MAX;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Line {
    first: Place,
    last: Place,
    length: u32,
}

impl Line {
    pub(super) const EMPTY: Self = Self { first: NOBODY, last: NOBODY, length: 0 };

    pub(super) fn first(&self) -> Place {
        self.first
    }

    pub(super) fn last(&self) -> Place {
        self.last
    }

    pub(super) fn length(&self) -> u32 {
        self.length
    }
}

/// Who stands in a place, and between whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Standing {
    held: HeldRequest,
    before: Place,
    behind: Place,
}

/// All lines of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Lines {
    places: Vec<Standing>,
    /// Places in which nobody stands.
    free: Vec<Place>,
    by_name: FxHashMap<RequestId, Place>,
}

impl Lines {
    /// Requests in all lines.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Strikes a request's name off, which is to leave its line at once.
    pub(super) fn strike_off(&mut self, request: RequestId) -> Option<Place> {
        self.by_name.remove(&request)
    }

    pub(super) fn at(&self, place: Place) -> HeldRequest {
        self.places[place as usize].held
    }

    pub(super) fn behind(&self, place: Place) -> Place {
        self.places[place as usize].behind
    }

    /// To the end of a line.
    pub(super) fn push(&mut self, line: &mut Line, held: HeldRequest) {
        let standing = Standing { held, before: line.last, behind: NOBODY };
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = standing;
                place
            }
            None => {
                self.places.push(standing);
                Place::try_from(self.places.len() - 1).expect("LIVE_MAX fits 32 bits")
            }
        };
        let before = self.by_name.insert(held.request, place);
        assert!(before.is_none(), "request {} is held already", held.request.0);
        match line.last {
            NOBODY => line.first = place,
            last => self.places[last as usize].behind = place,
        }
        line.last = place;
        line.length += 1;
    }

    /// Whoever stands there leaves its line; the name is struck off.
    pub(super) fn leave(&mut self, line: &mut Line, place: Place) {
        let Standing { before, behind, .. } = self.places[place as usize];
        match before {
            NOBODY => line.first = behind,
            before => self.places[before as usize].behind = behind,
        }
        match behind {
            NOBODY => line.last = before,
            behind => self.places[behind as usize].before = before,
        }
        line.length -= 1;
        self.free.push(place);
        // The next that come stand close together again.
        if self.by_name.is_empty() {
            self.places.clear();
            self.free.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fair_queue::{Priority, TenantId};
    use proptest::prelude::*;

    fn held(number: u64) -> HeldRequest {
        HeldRequest {
            request: RequestId(number),
            tenant: TenantId(1),
            priority: Priority::Batch,
            cost: number,
        }
    }

    fn in_line(lines: &Lines, line: &Line) -> Vec<u64> {
        let mut at = line.first();
        let next = std::iter::from_fn(|| {
            let place = (at != NOBODY).then_some(at)?;
            at = lines.behind(place);
            Some(lines.at(place).request.0)
        });
        next.collect()
    }

    proptest! {
        #[test]
        fn lines_are_as_lists_from_which_anyone_leaves(ops in prop::collection::vec((0..2usize, any::<u16>()), 0..300)) {
            let mut lines = Lines::default();
            let (mut all, mut lists) = ([Line::EMPTY; 2], [vec![], vec![]]);
            for (number, (which, leaves)) in (1u64..).zip(ops) {
                if leaves % 2 == 0 || lists[which].is_empty() {
                    lines.push(&mut all[which], held(number));
                    lists[which].push(number);
                } else {
                    let index = usize::from(leaves) % lists[which].len();
                    let place = lines.strike_off(RequestId(lists[which].remove(index))).unwrap();
                    lines.leave(&mut all[which], place);
                }
                for (line, list) in all.iter().zip(&lists) {
                    prop_assert_eq!(&in_line(&lines, line), list);
                    prop_assert_eq!(line.length() as usize, list.len());
                    prop_assert_eq!(line.last() == NOBODY, list.is_empty());
                }
                prop_assert_eq!(lines.len(), lists[0].len() + lists[1].len());
            }
        }
    }
}
