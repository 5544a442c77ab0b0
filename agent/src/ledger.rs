//! `ledger.bin`: what an agent must never forget: the highest term it has seen, and its last good plan.
//!
//! ```text
//! magic "EVKLEDG1" | u32 length | u64 generation | u64 revision | plan as evenkeel.v1.Plan, or nothing | SHA-256
//! ```
//!
//! Little-endian; the length covers term and plan, the hash everything before it. The file is replaced as a
//! whole: written aside, synced, renamed, and the directory synced, so that a crash at any moment leaves the
//! old or the new one. A file that does not check out was damaged by something else, and is never guessed at.

use crate::failure::Failure;
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"EVKLEDG1";
const HASH_BYTES: usize = 32;
const TERM_BYTES: usize = 16;

/// What the ledger says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Highest term seen.
    pub term: Term,
    /// Last good plan.
    pub plan: Option<Arc<Plan>>,
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    record: Record,
}

impl Ledger {
    /// Reads the ledger of a state directory; without a file it is empty.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join("ledger.bin");
        let damaged = |reason: String| {
            let message = format!(
                "{} {reason}; the weights are not affected: move the file away and start again, and the agent takes its plan from the worker or the balancer (it forgets the highest term it has seen)",
                path.display()
            );
            Failure::other("ledger_corrupt", message)
        };
        let record = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => {
                return Err(Failure::other("ledger_unreadable", format!("{}: {error}", path.display())));
            }
        };
        Ok(Self { path, record })
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Makes `record` durable. Blocks for the disk.
    pub fn write(&mut self, record: Record) -> Result<(), Failure> {
        replace(&self.path, &encode(&record)).map_err(|error| {
            let message = format!(
                "writing {} failed: {error}; nothing was done that it should have recorded: make room or repair the disk, and start again",
                self.path.display()
            );
            Failure::other("ledger_unwritable", message)
        })?;
        self.record = record;
        Ok(())
    }
}

/// Replaces a file so that a crash at any moment leaves the old or the new content.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    let directory = path.parent().expect("a file in a directory");
    File::open(directory)?.sync_all()
}

fn encode(record: &Record) -> Vec<u8> {
    let plan =
        record.plan.as_ref().map_or_else(Vec::new, |plan| v1::Plan::from(plan.as_ref()).encode_to_vec());
    let length = u32::try_from(TERM_BYTES + plan.len()).expect("a plan is far below 4 GiB");
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&record.term.generation.to_le_bytes());
    bytes.extend_from_slice(&record.term.revision.to_le_bytes());
    bytes.extend_from_slice(&plan);
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let torn = |what: &str| format!("is torn or damaged ({what})");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| torn("no ledger begins like this"))?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| torn("it ends within the length"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length < TERM_BYTES || rest.len() != length + HASH_BYTES {
        return Err(torn(&format!("{} bytes follow, not {length} and {HASH_BYTES}", rest.len())));
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
    if Sha256::digest(content).as_slice() != hash {
        return Err(torn("its checksum does not match"));
    }
    let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
    let term = Term { generation: number(0), revision: number(8) };
    let plan = match &rest[TERM_BYTES..length] {
        [] => None,
        bytes => {
            let plan = v1::Plan::decode(bytes).map_err(|error| torn(&error.to_string()))?;
            Some(Arc::new(Plan::try_from(&plan).map_err(|error| torn(&error.to_string()))?))
        }
    };
    Ok(Record { term, plan })
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::UnitId;
    use evenkeel_core::topology::{Role, UnitShape};

    fn record() -> Record {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 1,
            experts: 2,
            top_k: 1,
            ranks: 2,
            slots_per_rank: 1,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let boot = Plan::boot(UnitId::new("u").unwrap(), &shape);
        let plan = Some(Arc::new(boot.child(boot.layers.clone())));
        Record { term: Term { generation: 1, revision: 7 }, plan }
    }

    #[test]
    fn a_record_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        assert_eq!(*ledger.record(), Record::default());
        for written in [Record { plan: None, ..record() }, record()] {
            ledger.write(written.clone()).unwrap();
            assert_eq!(*Ledger::open(directory.path()).unwrap().record(), written);
        }
    }

    #[test]
    fn a_file_cut_or_changed_at_any_byte_is_an_error_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.bin");
        let bytes = encode(&record());
        let refused = |damaged: &[u8]| {
            fs::write(&path, damaged).unwrap();
            let failure = Ledger::open(directory.path()).unwrap_err();
            assert_eq!(failure.code, "ledger_corrupt");
            assert!(failure.message.contains("move the file away"), "{failure}");
        };
        for at in 0..bytes.len() {
            refused(&bytes[..at]);
            let mut other = bytes.clone();
            other[at] ^= 1;
            refused(&other);
        }
        refused(&[bytes.as_slice(), &[0]].concat());
    }

    #[test]
    fn a_torn_file_beside_the_ledger_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        Ledger::open(directory.path()).unwrap().write(record()).unwrap();
        fs::write(directory.path().join("ledger.tmp"), b"EVK").unwrap();
        assert_eq!(*Ledger::open(directory.path()).unwrap().record(), record());
    }

    #[test]
    fn a_write_that_fails_leaves_the_record() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        fs::create_dir(directory.path().join("ledger.tmp")).unwrap();
        assert_eq!(ledger.write(record()).unwrap_err().code, "ledger_unwritable");
        assert_eq!(*ledger.record(), Record::default());
    }
}
