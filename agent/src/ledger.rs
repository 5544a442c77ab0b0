//! `ledger.bin` and `ledger.copy`: what an agent must never forget: the highest term it has seen, its last good plan, and
//! the plan that workers which lost their weights load beside it.
//!
//! ```text
//! magic "EVKLEDG2" | u32 length | u64 generation | u64 revision | u32 length of the plan | plan as evenkeel.v1.Plan, or nothing |
//! plan beside it, or nothing | SHA-256
//! ```
//!
//! Little-endian; the length covers what follows but the hash, the hash everything before it. Each file is replaced as a
//! whole: written aside, synced, renamed, and the directory synced, so that a crash at any moment leaves the
//! old or the new one. The copy is written after the first, and only then is a record kept: whichever of the
//! two a disk damages, the other holds nothing older than what was kept. The damaged one is written anew at
//! the next start. When both are damaged the agent does not guess.

mod disk;
#[cfg(test)]
mod tests;

pub use disk::{is_full, replace};

use crate::failure::Failure;
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::RefusalCode;
use evenkeel_proto::v1;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"EVKLEDG2";
const HASH_BYTES: usize = 32;
/// Term and length of the plan.
const HEAD_BYTES: usize = 20;

/// What the ledger says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Highest term seen.
    pub term: Term,
    /// Last good plan.
    pub plan: Option<Arc<Plan>>,
    /// What a node that lost its weights loads beside it: the plan that is staged, or the one before. Other nodes may serve it.
    pub beside: Option<Arc<Plan>>,
}

/// A record that could not be kept; the one before is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteError {
    /// [`RefusalCode::DiskFull`] or [`RefusalCode::StateUnwritable`].
    pub code: RefusalCode,
    /// Why, with the remedy.
    pub message: String,
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Failure::other(error.code.code(), error.message)
    }
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    paths: [PathBuf; 2],
    record: Record,
}

impl Ledger {
    /// Reads the ledger of a state directory; without a file it is empty. A file that is damaged or behind the
    /// other is written anew.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let paths = ["ledger.bin", "ledger.copy"].map(|name| directory.join(name));
        let [first, copy] = paths.each_ref().map(|path| read(path));
        let (record, whole) = match (first, copy) {
            (Found::Record(record), Found::Record(copied)) => {
                let whole = copied == record;
                (record, whole)
            }
            (Found::Record(record), _) => (record, false),
            (Found::Damaged(reason) | Found::Unreadable(reason), Found::Record(copied)) => {
                tracing::error!(reason, path = %paths[0].display(), "the ledger is damaged, its copy is taken");
                (copied, false)
            }
            // The first write was cut off before the first file stood, or somebody has removed it.
            (Found::Nothing, Found::Record(copied)) => (copied, false),
            (Found::Nothing, Found::Nothing) => (Record::default(), true),
            (Found::Unreadable(reason), _) | (Found::Nothing, Found::Unreadable(reason)) => {
                return Err(Failure::other("ledger_unreadable", reason));
            }
            (Found::Damaged(reason), _) | (Found::Nothing, Found::Damaged(reason)) => {
                return Err(damaged(&paths, &reason));
            }
        };
        let mut ledger = Self { paths, record };
        if !whole {
            // What could not be mended now is mended by the next write.
            let written = ledger.write(ledger.record.clone());
            written.unwrap_or_else(|error| tracing::warn!(error.message, "the ledger has one copy only"));
        }
        Ok(ledger)
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Makes `record` durable. Blocks for the disk.
    pub fn write(&mut self, record: Record) -> Result<(), WriteError> {
        let bytes = encode(&record);
        for path in &self.paths {
            replace(path, &bytes).map_err(|error| {
                let message = format!(
                    "writing {} failed: {error}; nothing was done that it should have recorded: make room or repair the disk, and the agent goes on",
                    path.display()
                );
                let full = is_full(&error);
                WriteError { code: if full { RefusalCode::DiskFull } else { RefusalCode::StateUnwritable }, message }
            })?;
        }
        self.record = record;
        Ok(())
    }
}

/// What stands in one of the files.
enum Found {
    Record(Record),
    Nothing,
    Damaged(String),
    Unreadable(String),
}

fn read(path: &Path) -> Found {
    match fs::read(path) {
        Ok(bytes) => decode(&bytes).map_or_else(Found::Damaged, Found::Record),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(error) => Found::Unreadable(format!("{}: {error}", path.display())),
    }
}

fn damaged([first, copy]: &[PathBuf; 2], reason: &str) -> Failure {
    let message = format!(
        "{} {reason}, and {} is of no use either; the weights are not affected: move both files away and start again, and the agent takes its plan from the worker or the balancer (it forgets the highest term it has seen)",
        first.display(),
        copy.display()
    );
    Failure::other("ledger_corrupt", message)
}

fn encode(record: &Record) -> Vec<u8> {
    let bytes_of = |plan: &Option<Arc<Plan>>| {
        plan.as_ref().map_or_else(Vec::new, |plan| v1::Plan::from(plan.as_ref()).encode_to_vec())
    };
    let (plan, beside) = (bytes_of(&record.plan), bytes_of(&record.beside));
    let length = |bytes: usize| u32::try_from(bytes).expect("plans are far below 4 GiB").to_le_bytes();
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&length(HEAD_BYTES + plan.len() + beside.len()));
    bytes.extend_from_slice(&record.term.generation.to_le_bytes());
    bytes.extend_from_slice(&record.term.revision.to_le_bytes());
    bytes.extend_from_slice(&length(plan.len()));
    bytes.extend_from_slice(&plan);
    bytes.extend_from_slice(&beside);
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Record, String> {
    let torn = |what: &str| format!("is torn or damaged ({what})");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| torn("no ledger begins like this"))?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| torn("it ends within the length"))?;
    let length = u32::from_le_bytes(*length) as usize;
    if length < HEAD_BYTES || rest.len() != length + HASH_BYTES {
        return Err(torn(&format!("{} bytes follow, not {length} and {HASH_BYTES}", rest.len())));
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
    if Sha256::digest(content).as_slice() != hash {
        return Err(torn("its checksum does not match"));
    }
    let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
    let term = Term { generation: number(0), revision: number(8) };
    let plans = &rest[HEAD_BYTES..length];
    let cut = u32::from_le_bytes(rest[16..HEAD_BYTES].try_into().expect("four bytes")) as usize;
    let (plan, beside) = plans.split_at_checked(cut).ok_or_else(|| torn("a plan ends beyond it"))?;
    let read = |bytes: &[u8]| {
        if bytes.is_empty() {
            return Ok(None);
        }
        let plan = v1::Plan::decode(bytes).map_err(|error| torn(&error.to_string()))?;
        Plan::try_from(&plan).map(|plan| Some(Arc::new(plan))).map_err(|error| torn(&error.to_string()))
    };
    Ok(Record { term, plan: read(plan)?, beside: read(beside)? })
}
