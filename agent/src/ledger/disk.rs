//! Replaces a file so that a crash at any moment leaves the old or the new content.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What is done, in this order. A crash may fall between any two, and within the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The new content is written aside.
    Write,
    /// It is made durable.
    Sync,
    /// It takes the place of the old one.
    Rename,
    /// That it has is made durable.
    SyncDirectory,
}

impl Step {
    pub(super) const ALL: [Step; 4] = [Step::Write, Step::Sync, Step::Rename, Step::SyncDirectory];

    pub(super) fn perform(self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self {
            Step::Write => fs::write(aside(path), bytes),
            Step::Sync => File::open(aside(path))?.sync_all(),
            Step::Rename => fs::rename(aside(path), path),
            Step::SyncDirectory => File::open(path.parent().expect("a file in a directory"))?.sync_all(),
        }
    }
}

pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Replaces a file so that a crash at any moment leaves the old or the new content.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let replaced = Step::ALL.iter().try_for_each(|step| step.perform(path, bytes));
    if replaced.is_err() {
        // On a disk that is full, a part of it would stand in the way of whatever comes next.
        let _ = fs::remove_file(aside(path));
    }
    replaced
}

/// Whether an error says that there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
