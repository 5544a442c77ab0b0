//! The last changes, for watchers. What is older they list.

use evenkeel_core::records::{Changed, Record, Revision, Scope};
use std::collections::VecDeque;

/// Changes kept: far more than happen while a watcher of the same process is busy.
const CHANGES_MAX: usize = 1024;
/// Bytes kept: a few of the largest plans. Chunks are shared with nobody once they are written.
const BYTES_MAX: usize = 16 << 20;
/// What a change takes beside what it carries, roughly.
const CHANGE_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct History {
    changes: VecDeque<Changed>,
    bytes: usize,
    /// Every change after this revision is there.
    complete_after: Revision,
}

impl History {
    /// A history that begins after a revision.
    pub(super) fn after(revision: Revision) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, complete_after: revision }
    }

    /// Adds the changes of one revision.
    pub(super) fn extend(&mut self, changes: impl IntoIterator<Item = Changed>) {
        for change in changes {
            self.bytes += bytes(&change);
            self.changes.push_back(change);
        }
        while self.changes.len() > CHANGES_MAX || self.bytes > BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// A revision goes as a whole: half of it would be told as all.
    fn forget_oldest(&mut self) {
        let Some(oldest) = self.changes.front().map(|change| change.revision) else { return };
        while let Some(change) = self.changes.pop_front_if(|change| change.revision == oldest) {
            self.bytes -= bytes(&change);
        }
        self.complete_after = oldest;
    }

    /// Changes of a scope after a revision, in order; `None`: some are forgotten.
    pub(super) fn changes_after(&self, after: Revision, scope: &Scope) -> Option<Vec<Changed>> {
        let wanted = |change: &&Changed| change.revision > after && scope.contains(&change.key);
        (after >= self.complete_after).then(|| self.changes.iter().filter(wanted).cloned().collect())
    }
}

fn bytes(change: &Changed) -> usize {
    let carried = match change.now.as_ref().map(|now| &now.record) {
        Some(Record::Chunk(bytes)) => bytes.len(),
        Some(Record::Manifest(manifest)) => manifest.account.len(),
        Some(Record::Request(request)) => request.answer.len(),
        _ => 0,
    };
    CHANGE_BYTES + carried
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::{Epoch, UnitId};
    use evenkeel_core::records::{Key, Versioned};

    fn chunk(revision: u64, i: u32, bytes: usize) -> Changed {
        let revision = Revision(revision);
        let record = Record::Chunk(vec![0; bytes].into());
        let now = Some(Versioned { record, created: revision, modified: revision, lease: None });
        Changed { revision, key: Key::Chunk(UnitId::new("u").expect("valid"), Epoch(0), i), now }
    }

    #[track_caller]
    fn check(history: &History, after: u64, count: Option<usize>) {
        let found = history.changes_after(Revision(after), &Scope::All);
        assert_eq!(found.map(|changes| changes.len()), count, "after {after}");
    }

    #[test]
    fn what_is_forgotten_is_not_told_in_part() {
        let mut history = History::after(Revision(3));
        for revision in 4..=6 {
            history.extend([chunk(revision, 0, BYTES_MAX / 4), chunk(revision, 1, BYTES_MAX / 8)]);
        }
        check(&history, 3, None);
        check(&history, 4, Some(4));
        check(&history, 5, Some(2));
        check(&history, 6, Some(0));
    }

    #[test]
    fn changes_without_content_are_bounded_by_their_number() {
        let mut history = History::after(Revision(0));
        for revision in 1..=CHANGES_MAX as u64 + 10 {
            history.extend([chunk(revision, 0, 0)]);
        }
        check(&history, 9, None);
        check(&history, 10, Some(CHANGES_MAX));
    }
}
