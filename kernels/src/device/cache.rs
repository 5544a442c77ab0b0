//! Compiled kernels on disk, so that a worker's start does not wait for the compiler twice.
//!
//! An entry is `SHA-256 of what follows | registers, shared, stack, spill as u32 | cubin`. It is written beside its
//! place and renamed into it, so a reader sees a whole entry or none, whoever else writes. Whatever is wrong with an
//! entry, it counts as absent; a cache that cannot be written only costs time.

use super::compile::{Compiled, Resources};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const DIGEST: usize = 32;
const RESOURCES: usize = 16;

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub struct CubinCache {
    folder: PathBuf,
}

impl CubinCache {
    /// Uses `folder`, which need not exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.cubin"))
    }

    /// The entry, if there is a whole one.
    pub fn read(&self, key: &str) -> Option<Compiled> {
        let bytes = std::fs::read(self.path(key)).ok()?;
        let (digest, body) = bytes.split_at_checked(DIGEST)?;
        let (resources, cubin) = body.split_at_checked(RESOURCES)?;
        if Sha256::digest(body).as_slice() != digest {
            return None;
        }
        let word = |at: usize| {
            u32::from_le_bytes(resources[4 * at..4 * at + 4].try_into().expect("four bytes of sixteen"))
        };
        let resources = Resources {
            registers: word(0),
            shared_bytes: word(1),
            stack_bytes: word(2),
            spill_bytes: word(3),
        };
        Some(Compiled { cubin: cubin.to_vec(), resources })
    }

    /// Keeps an entry.
    pub fn write(&self, key: &str, compiled: &Compiled) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let r = compiled.resources;
        let mut body = Vec::with_capacity(RESOURCES + compiled.cubin.len());
        for word in [r.registers, r.shared_bytes, r.stack_bytes, r.spill_bytes] {
            body.extend(word.to_le_bytes());
        }
        body.extend(&compiled.cubin);
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&Sha256::digest(&body))?;
        file.write_all(&body)?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Where the entries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled() -> Compiled {
        let resources = Resources { registers: 32, shared_bytes: 3456, stack_bytes: 0, spill_bytes: 0 };
        Compiled { cubin: vec![7; 100], resources }
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(folder.path().join("new"));
        assert_eq!(cache.read("a"), None);
        cache.write("a", &compiled()).unwrap();
        assert_eq!(cache.read("a"), Some(compiled()));
        assert_eq!(cache.read("b"), None);
        assert_eq!(std::fs::read_dir(cache.folder()).unwrap().count(), 1, "no temporary file stays");
    }

    #[track_caller]
    fn check_refused(damage: impl Fn(&mut Vec<u8>)) {
        let folder = tempfile::tempdir().unwrap();
        let cache = CubinCache::new(folder.path());
        cache.write("a", &compiled()).unwrap();
        let mut bytes = std::fs::read(cache.path("a")).unwrap();
        damage(&mut bytes);
        std::fs::write(cache.path("a"), bytes).unwrap();
        assert_eq!(cache.read("a"), None);
        cache.write("a", &compiled()).unwrap();
        assert_eq!(cache.read("a"), Some(compiled()), "a new entry replaces the damaged one");
    }

    #[test]
    fn a_damaged_entry_counts_as_absent() {
        check_refused(|bytes| bytes.truncate(60));
        check_refused(|bytes| bytes.truncate(10));
        check_refused(|bytes| bytes.clear());
        check_refused(|bytes| bytes[0] ^= 1);
        check_refused(|bytes| bytes[90] ^= 1);
        check_refused(|bytes| bytes.push(0));
    }
}
