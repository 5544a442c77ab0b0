//! An agent's ledger on a modelled disk: what a crash at any point may leave of it.
//!
//! The ledger is replaced as `agent/src/ledger.rs` does it: written aside, synced, renamed, and the folder synced. The
//! death of the process leaves what it wrote; the loss of power leaves of unsynced data and names whatever it likes.

use super::random::Random;
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_core::planted;
use std::sync::Arc;

/// What the ledger says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    pub(super) term: Term,
    pub(super) plan: Option<Arc<Plan>>,
    /// What workers that lost their weights load beside it.
    pub(super) beside: Option<Arc<Plan>>,
}

/// What stands under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum File {
    Absent,
    Whole(Record),
    Torn,
}

/// How far the replacement of the ledger is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Written,
    Synced,
    Renamed,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    /// Durable under the ledger's name.
    durable: File,
    /// Under way, and how far.
    replacing: Option<(Record, Step)>,
    /// The data of the last replacement never reached the disk.
    unsynced: Option<Record>,
    /// Grows with all that changes what a crash leaves.
    pub(super) changes: u64,
    /// The name of the last replacement never reached the disk: the file that was there before.
    unnamed: Option<File>,
}

/// The ledger is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

impl Disk {
    pub(super) fn new() -> Self {
        Self { durable: File::Absent, replacing: None, unsynced: None, changes: 0, unnamed: None }
    }

    /// Writes the record aside.
    pub(super) fn begin(&mut self, record: Record) {
        assert!(self.replacing.is_none(), "the ledger is replaced by one at a time");
        self.changes += 1;
        self.replacing = Some((record, Step::Written));
    }

    /// Goes one step on; `true` when the record is durable, as far as the program can know.
    pub(super) fn advance(&mut self) -> bool {
        self.changes += 1;
        let Some((record, step)) = self.replacing.take() else { return true };
        match step {
            Step::Written => {
                if planted!(LedgerFileNotSynced) {
                    self.unsynced = Some(record.clone());
                }
                let next = if planted!(LedgerWrittenInPlace) { Step::Renamed } else { Step::Synced };
                self.replacing = Some((record, next));
            }
            Step::Synced => self.replacing = Some((record, Step::Renamed)),
            Step::Renamed => {
                let before = std::mem::replace(&mut self.durable, File::Whole(record));
                if planted!(LedgerFolderNotSynced) {
                    self.unnamed.get_or_insert(before);
                }
                return true;
            }
        }
        false
    }

    /// The process dies: what it wrote is there.
    pub(super) fn kill(&mut self) {
        self.changes += 1;
        if let Some((record, step)) = self.replacing.take() {
            self.durable = self.killed(record, step);
        }
    }

    fn killed(&self, record: Record, step: Step) -> File {
        match step {
            Step::Written if planted!(LedgerWrittenInPlace) => File::Torn,
            Step::Written | Step::Synced => self.durable.clone(),
            Step::Renamed => File::Whole(record),
        }
    }

    /// The host loses power.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        self.changes += 1;
        let outcomes = self.outcomes();
        self.durable = random.of(&outcomes).expect("something is left").clone();
        (self.replacing, self.unsynced, self.unnamed) = (None, None, None);
    }

    /// Whatever a crash at this moment may leave.
    fn outcomes(&self) -> Vec<File> {
        let mut outcomes = vec![self.durable.clone()];
        outcomes.extend(self.unsynced.iter().map(|_| File::Torn));
        outcomes.extend(self.unnamed.clone());
        if let Some((record, step)) = &self.replacing {
            outcomes.push(self.killed(record.clone(), *step));
        }
        outcomes
    }

    /// The operator removes the ledger.
    pub(super) fn wipe(&mut self) {
        let changes = self.changes + 1;
        *self = Self { changes, ..Self::new() };
    }

    /// What can be read after a crash at this moment, in every case.
    pub(super) fn readings(&self) -> impl Iterator<Item = Result<Record, Damaged>> {
        self.outcomes().into_iter().map(|file| read(&file))
    }

    /// Whether there is a last good plan.
    pub(super) fn has_plan(&self) -> bool {
        matches!(&self.durable, File::Whole(Record { plan: Some(_), .. }))
    }

    /// What a starting agent reads.
    pub(super) fn open(&self) -> Result<Record, Damaged> {
        read(&self.durable)
    }
}

fn read(file: &File) -> Result<Record, Damaged> {
    match file {
        File::Absent => Ok(Record::default()),
        File::Whole(record) => Ok(record.clone()),
        File::Torn => Err(Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_at_any_point_leaves_the_old_or_the_new_record() {
        let record = |revision| Record { term: Term { generation: 0, revision }, plan: None, beside: None };
        let mut disk = Disk::new();
        let mut known = Record::default();
        for revision in 1..4 {
            disk.begin(record(revision));
            loop {
                for reading in disk.readings() {
                    let found = reading.expect("the ledger is never torn");
                    assert!(found == known || found == record(revision));
                }
                if disk.advance() {
                    break;
                }
            }
            known = record(revision);
            assert_eq!(disk.open(), Ok(known.clone()));
        }
    }
}
