//! `slots.bin`: the file that stands for the GPU memory of a node.
//!
//! ```text
//! 0                 header, 8192 bytes: magic, shape, seed, ranks, names; the last 8 are its fingerprint
//! 8192              directory, 16 bytes a local slot: u32 expert + 1 (0: nothing), u32 0, u64 fingerprint
//! next 4096         the slots, `expert_bytes` each, in the order of [`NodeLayout`]
//! ```
//!
//! All integers are little-endian. The directory says what each slot was verified to hold. The file is
//! never synced: it has to outlive the process, not the host.

use crate::backend::{Registered, WorkerError};
use crate::layout::NodeLayout;
use evenkeel_core::ids::{ExpertId, Rank};
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_kernels::{Fingerprint, fingerprint};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const MAGIC: &[u8; 8] = b"EVKSLOT1";
/// Holds 2048 ranks of two bytes, two names of 64 and the fields before them.
const HEADER_BYTES: usize = 8192;
const ENTRY_BYTES: u64 = 16;
/// The slots begin on a page.
const PAGE_BYTES: u64 = 4096;
const NAME_BYTES: usize = 64;

/// Whose slots a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The node's part of the unit.
    pub layout: NodeLayout,
    /// Seed of the weights.
    pub weights_seed: u64,
    /// The unit's name.
    pub unit: String,
    /// The node's name.
    pub node: String,
}

impl Header {
    /// Refuses a file that belongs to another unit, node, shape or seed.
    pub fn check_same(&self, found: &Header) -> Result<(), WorkerError> {
        if self == found {
            return Ok(());
        }
        let (need, have) = (self.layout.shape(), found.layout.shape());
        let what = if (&self.unit, &self.node) != (&found.unit, &found.node) {
            format!("of node {} in unit {}", found.node, found.unit)
        } else if self.weights_seed != found.weights_seed {
            format!("with weights seed {} instead of {}", found.weights_seed, self.weights_seed)
        } else if need != have {
            format!("of another shape ({have:?} instead of {need:?})")
        } else {
            format!("of ranks {:?} instead of {:?}", found.layout.ranks(), self.layout.ranks())
        };
        Err(WorkerError::WrongShape(format!(
            "the state directory holds the slots {what}; use another --state-dir, or remove slots.bin, control.bin, ledger.bin and ledger.copy from this one"
        )))
    }

    fn encode(&self) -> Vec<u8> {
        let shape = self.layout.shape();
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.weights_seed.to_le_bytes());
        bytes.extend_from_slice(&shape.expert_bytes.to_le_bytes());
        let ranks = u16::try_from(self.layout.ranks().len()).expect("ranks fit 16 bits");
        let role = match shape.role {
            Role::Prefill => 1,
            Role::Decode => 2,
            Role::Mixed => 3,
        };
        let fields = [role, shape.layers, shape.experts, shape.top_k, shape.ranks];
        let more = [shape.slots_per_rank, shape.spare_per_rank, ranks];
        for field in fields.into_iter().chain(more) {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for name in [&self.unit, &self.node] {
            let mut padded = [0; NAME_BYTES];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend_from_slice(&padded);
        }
        for rank in self.layout.ranks() {
            bytes.extend_from_slice(&rank.0.to_le_bytes());
        }
        bytes.resize(HEADER_BYTES - 8, 0);
        bytes.extend_from_slice(&fingerprint(&bytes).0.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let (content, checksum) = bytes.split_at(HEADER_BYTES - 8);
        if &content[..8] != MAGIC {
            return Err("is not a file of slots".to_owned());
        }
        if fingerprint(content).0.to_le_bytes() != checksum {
            return Err("has a damaged header".to_owned());
        }
        let u64_at = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().expect("eight bytes"));
        let u16_at = |at: usize| u16::from_le_bytes([content[at], content[at + 1]]);
        let name_at = |at: usize| {
            let padded = &content[at..at + NAME_BYTES];
            let length = padded.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES);
            String::from_utf8_lossy(&padded[..length]).into_owned()
        };
        let role = match u16_at(24) {
            1 => Role::Prefill,
            2 => Role::Decode,
            3 => Role::Mixed,
            other => return Err(format!("has unknown role {other}")),
        };
        let shape = UnitShape {
            role,
            layers: u16_at(26),
            experts: u16_at(28),
            top_k: u16_at(30),
            ranks: u16_at(32),
            slots_per_rank: u16_at(34),
            spare_per_rank: u16_at(36),
            expert_bytes: u64_at(16),
        };
        shape.validate().map_err(|error| format!("has a shape that is not valid: {error}"))?;
        let names = 40;
        let ranks_at = names + 2 * NAME_BYTES;
        let ranks: Vec<_> = (0..usize::from(u16_at(38))).map(|i| Rank(u16_at(ranks_at + 2 * i))).collect();
        let sorted = ranks.windows(2).all(|pair| pair[0] < pair[1]);
        if !sorted || ranks.last().is_none_or(|last| last.0 >= shape.ranks) {
            return Err("has ranks that are not valid".to_owned());
        }
        Ok(Self {
            layout: NodeLayout::new(shape, ranks),
            weights_seed: u64_at(8),
            unit: name_at(names),
            node: name_at(names + NAME_BYTES),
        })
    }

    fn data_offset(&self) -> u64 {
        (HEADER_BYTES as u64 + self.layout.slots() as u64 * ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn file_bytes(&self) -> u64 {
        self.data_offset() + self.layout.slots() as u64 * self.layout.shape().expert_bytes
    }
}

/// An open file of slots. All calls may come from several threads.
#[derive(Debug)]
pub struct SlotsFile {
    header: Header,
    file: File,
    directory: Mutex<Vec<Option<Registered>>>,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> WorkerError {
    let what = format!("{what} {}", path.display());
    move |error| WorkerError::Io { what, error }
}

impl SlotsFile {
    /// Makes a file whose slots hold nothing, in place of any that is there.
    pub fn create(path: &Path, header: Header) -> Result<Self, WorkerError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path).map_err(failed("creating", path))?;
        file.set_len(header.file_bytes()).map_err(failed("growing", path))?;
        file.write_all_at(&header.encode(), 0).map_err(failed("writing", path))?;
        let directory = Mutex::new(vec![None; header.layout.slots()]);
        Ok(Self { header, file, directory })
    }

    /// Opens a file that was made before, to go on with it.
    pub fn open(path: &Path) -> Result<Self, WorkerError> {
        Self::open_with(path, OpenOptions::new().read(true).write(true))
    }

    /// Opens a file that another process uses, to look at it.
    pub fn open_read_only(path: &Path) -> Result<Self, WorkerError> {
        Self::open_with(path, OpenOptions::new().read(true))
    }

    fn open_with(path: &Path, options: &OpenOptions) -> Result<Self, WorkerError> {
        let invalid = |reason: String| {
            failed("opening", path)(io::Error::new(io::ErrorKind::InvalidData, format!("it {reason}")))
        };
        let file = options.open(path).map_err(failed("opening", path))?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(failed("reading the header of", path))?;
        let header = Header::decode(&bytes).map_err(invalid)?;
        let length = file.metadata().map_err(failed("reading the size of", path))?.len();
        if length != header.file_bytes() {
            return Err(invalid(format!("has {length} bytes instead of {}", header.file_bytes())));
        }
        let mut entries = vec![0; header.layout.slots() * ENTRY_BYTES as usize];
        file.read_exact_at(&mut entries, HEADER_BYTES as u64).map_err(failed("reading", path))?;
        let directory = entries.chunks_exact(ENTRY_BYTES as usize).map(decode_entry).collect();
        Ok(Self { header, file, directory: Mutex::new(directory) })
    }

    /// Whose slots these are.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What a slot was verified to hold.
    pub fn registered(&self, local: usize) -> Option<Registered> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)[local]
    }

    /// Sets or clears a slot's directory entry.
    pub fn register(&self, local: usize, entry: Option<Registered>) -> Result<(), WorkerError> {
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        // In memory the entry is cleared before and set after the file: readers never see it too early.
        if entry.is_none() {
            directory[local] = None;
        }
        let offset = HEADER_BYTES as u64 + local as u64 * ENTRY_BYTES;
        let what = || "writing the directory of slots.bin".to_owned();
        self.file
            .write_all_at(&encode_entry(entry), offset)
            .map_err(|error| WorkerError::Io { what: what(), error })?;
        directory[local] = entry;
        Ok(())
    }

    fn offset(&self, local: usize, offset: u64, length: usize) -> Result<u64, WorkerError> {
        let size = self.header.layout.shape().expert_bytes;
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(WorkerError::OutOfRange { offset, length, size });
        }
        assert!(local < self.header.layout.slots(), "a local slot is within the layout");
        Ok(self.header.data_offset() + local as u64 * size + offset)
    }

    /// Reads bytes of a slot.
    pub fn read(&self, local: usize, offset: u64, bytes: &mut [u8]) -> Result<(), WorkerError> {
        let at = self.offset(local, offset, bytes.len())?;
        let what = || "reading slots.bin".to_owned();
        self.file.read_exact_at(bytes, at).map_err(|error| WorkerError::Io { what: what(), error })
    }

    /// Writes bytes of a slot.
    pub fn write(&self, local: usize, offset: u64, bytes: &[u8]) -> Result<(), WorkerError> {
        let at = self.offset(local, offset, bytes.len())?;
        let what = || "writing slots.bin".to_owned();
        self.file.write_all_at(bytes, at).map_err(|error| WorkerError::Io { what: what(), error })
    }
}

fn encode_entry(entry: Option<Registered>) -> [u8; ENTRY_BYTES as usize] {
    let mut bytes = [0; ENTRY_BYTES as usize];
    if let Some(Registered { expert, fingerprint }) = entry {
        bytes[..4].copy_from_slice(&(u32::from(expert.0) + 1).to_le_bytes());
        bytes[8..].copy_from_slice(&fingerprint.0.to_le_bytes());
    }
    bytes
}

fn decode_entry(bytes: &[u8]) -> Option<Registered> {
    let plus_one = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let expert = ExpertId(u16::try_from(plus_one.checked_sub(1)?).ok()?);
    Some(Registered {
        expert,
        fingerprint: Fingerprint(u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"))),
    })
}
