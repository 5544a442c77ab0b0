//! `control.bin`: the tables in service, as the control page of a real worker would hold them.
//!
//! Layout, little-endian: magic, host boot id (u8 length, bytes), unit (u8 length, bytes), epoch u64,
//! u8 1 and the parent's epoch and digest or u8 0, u16 layers, u32 slots, then per layer the slots (u16
//! expert + 1) and the shares (u32); the last 8 bytes are the fingerprint of all before.
//!
//! The boot id names one run of the host's kernel. GPU memory does not survive a restart of the host, and
//! unsynced files may be torn by one, so state with another boot id is void.

use crate::backend::WorkerError;
use evenkeel_core::ids::{Digest, Epoch, ExpertId, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::topology::{LAYERS_MAX, RANKS_MAX, SLOTS_PER_RANK_MAX};
use evenkeel_kernels::fingerprint;
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"EVKCTRL1";

/// Replaces the control file.
pub(super) fn write(path: &Path, plan: &Plan) -> Result<(), WorkerError> {
    let aside = path.with_extension("tmp");
    fs::write(&aside, encode(plan, &boot_id()))
        .and_then(|()| fs::rename(&aside, path))
        .map_err(|error| WorkerError::Io { what: format!("writing {}", path.display()), error })
}

/// Removes the control file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), WorkerError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(WorkerError::Io { what: format!("removing {}", path.display()), error })
        }
        _ => Ok(()),
    }
}

/// The plan in service; `None` without a file, an error when there is one that cannot be used.
pub fn read(path: &Path) -> Result<Option<Plan>, String> {
    match fs::read(path) {
        Ok(bytes) => decode(&bytes, &boot_id()).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("reading {} failed: {error}", path.display())),
    }
}

/// Names this run of the host's kernel; `unknown` where the system does not tell.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |id| id.trim().chars().take(64).collect())
}

fn encode(plan: &Plan, boot_id: &str) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for text in [boot_id, plan.unit.as_str()] {
        bytes.push(u8::try_from(text.len()).expect("names are shorter than 256 bytes"));
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(&plan.epoch.0.to_le_bytes());
    bytes.push(u8::from(plan.parent.is_some()));
    if let Some((epoch, digest)) = plan.parent {
        bytes.extend_from_slice(&epoch.0.to_le_bytes());
        bytes.extend_from_slice(&digest.0);
    }
    let slots = plan.layers.first().map_or(0, |layer| layer.share.len());
    bytes.extend_from_slice(&u16::try_from(plan.layers.len()).expect("layers fit 16 bits").to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(slots).expect("slots fit 32 bits").to_le_bytes());
    for layer in &plan.layers {
        for expert in &layer.physical_to_logical {
            bytes.extend_from_slice(&expert.map_or(0, |e| e.0 + 1).to_le_bytes());
        }
        for share in &layer.share {
            bytes.extend_from_slice(&share.to_le_bytes());
        }
    }
    bytes.extend_from_slice(&fingerprint(&bytes).0.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], boot_id: &str) -> Result<Plan, String> {
    let torn = || "control.bin is torn".to_owned();
    let (content, checksum) = bytes.split_last_chunk::<8>().ok_or_else(torn)?;
    if fingerprint(content).0.to_le_bytes() != *checksum {
        return Err(torn());
    }
    let mut rest = Bytes(content);
    if rest.take(8) != Some(MAGIC) {
        return Err("control.bin is of another version".to_owned());
    }
    let found = rest.text().ok_or_else(torn)?;
    if found != boot_id {
        return Err("the host was restarted".to_owned());
    }
    rest.plan().ok_or_else(torn)
}

/// What is left to decode.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        let [length] = self.array()?;
        String::from_utf8(self.take(length.into())?.to_vec()).ok()
    }

    fn plan(&mut self) -> Option<Plan> {
        let unit = UnitId::new(self.text()?).ok()?;
        let epoch = Epoch(u64::from_le_bytes(self.array()?));
        let parent = match self.array()? {
            [0] => None,
            [_] => Some((Epoch(u64::from_le_bytes(self.array()?)), Digest(self.array()?))),
        };
        let layers = u16::from_le_bytes(self.array()?);
        let slots = u32::from_le_bytes(self.array()?);
        if layers > LAYERS_MAX || slots > u32::from(RANKS_MAX) * u32::from(SLOTS_PER_RANK_MAX) {
            return None;
        }
        let layers = (0..layers).map(|_| self.layer(slots as usize)).collect::<Option<_>>()?;
        self.0.is_empty().then_some(Plan { unit, epoch, parent, layers })
    }

    fn layer(&mut self, slots: usize) -> Option<LayerPlan> {
        let experts = self.take(slots * 2)?.as_chunks::<2>().0.iter();
        let experts = experts.map(|b| u16::from_le_bytes(*b).checked_sub(1).map(ExpertId)).collect();
        let share = self.take(slots * 4)?.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        Some(LayerPlan { physical_to_logical: experts, share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::topology::{Role, UnitShape};

    fn plan() -> Plan {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 6,
            top_k: 2,
            ranks: 4,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let boot = Plan::boot(UnitId::new("u").unwrap(), &shape);
        boot.child(boot.layers.clone())
    }

    #[test]
    fn a_plan_survives_the_file() {
        assert_eq!(decode(&encode(&plan(), "b"), "b"), Ok(plan()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let bytes = encode(&plan(), "b");
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at], "b").is_err(), "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(decode(&other, "b").is_err(), "changed at {at}");
        }
    }

    #[test]
    fn state_of_another_boot_is_void() {
        assert_eq!(decode(&encode(&plan(), "a"), "b"), Err("the host was restarted".to_owned()));
    }
}
