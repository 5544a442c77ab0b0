//! The file of the embedded store: records by path, each with its revisions, and a few numbers.
//!
//! redb takes nothing more after an input or output error: the file is then closed and opened again, and shows what was
//! done. So a full disk costs the transactions that do not fit, and nothing once there is room.

use super::super::{StoreError, codec};
use evenkeel_core::records::{Key, LeaseId, Record, Revision, Versioned};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};
use std::io::ErrorKind;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Path -> create revision, revision of the last change, lease (0: none), each as 8 little-endian bytes; then the record.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Path -> lease, of the records that have one: to delete them at the next start without reading all records.
const LEASED: TableDefinition<'_, &str, u64> = TableDefinition::new("leased");

/// Version of the tables; as that of the layout of keys, [`super::super::SCHEMA`].
const SCHEMA: u64 = super::super::SCHEMA;
/// Bytes before a record.
const HEADER: usize = 24;

/// A change of one key.
#[derive(Debug)]
pub(super) struct Write {
    /// The key's path.
    pub(super) path: String,
    /// What stands there from now on; `None`: nothing.
    pub(super) entry: Option<Entry>,
}

/// What stands under a path.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its revisions and its lease.
    pub(super) header: Header,
    /// The record's bytes.
    pub(super) record: Vec<u8>,
}

/// Revisions and lease of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The transaction that created the key.
    pub(super) created: Revision,
    /// The transaction that last changed it.
    pub(super) modified: Revision,
    /// The lease with which it ends.
    pub(super) lease: Option<LeaseId>,
}

impl Header {
    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |i: usize| Some(u64::from_le_bytes(bytes.get(i..i + 8)?.try_into().ok()?));
        let lease = number(16)?;
        Some(Self {
            created: Revision(number(0)?),
            modified: Revision(number(8)?),
            lease: (lease != 0).then_some(LeaseId(lease)),
        })
    }

    /// The record with its revisions.
    pub(super) fn with(self, record: Record) -> Versioned {
        let Self { created, modified, lease } = self;
        Versioned { record, created, modified, lease }
    }
}

impl Entry {
    fn to_bytes(&self) -> Vec<u8> {
        let Header { created, modified, lease } = self.header;
        let lease = lease.map_or(0, |lease| lease.0);
        let header = [created.0, modified.0, lease].map(u64::to_le_bytes).concat();
        [header, self.record.clone()].concat()
    }
}

/// Opens the database; called again after an input or output error.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// See the module.
pub(super) struct Disk {
    open: Opener,
    place: String,
    database: Option<Database>,
    reopened: bool,
}

impl Disk {
    /// Opens the file, or makes it. The number is how often it has been opened, this time included.
    pub(super) fn open(place: String, open: Opener) -> Result<(Self, u64), StoreError> {
        let mut disk = Self { open, place, database: None, reopened: false };
        let opening = disk.begin()?;
        disk.reopened = false;
        Ok((disk, opening))
    }

    fn begin(&mut self) -> Result<u64, StoreError> {
        let begin = |tx: &redb::WriteTransaction| -> Result<Result<u64, u64>, redb::Error> {
            // All tables exist from the first day, so that reading never has to tell missing from broken.
            tx.open_table(RECORDS)?;
            tx.open_table(LEASED)?;
            let mut meta = tx.open_table(META)?;
            let schema = meta.get("schema")?.map(|found| found.value());
            if let Some(other) = schema.filter(|schema| *schema != SCHEMA) {
                return Ok(Err(other));
            }
            meta.insert("schema", SCHEMA)?;
            let opening = meta.get("opening")?.map_or(0, |found| found.value()) + 1;
            meta.insert("opening", opening)?;
            Ok(Ok(opening))
        };
        // Looked at before anything is written: a file of another schema stays as it is.
        self.check_schema()?;
        match self.write(begin)? {
            Ok(opening) => Ok(opening),
            Err(other) => Err(self.other_schema(other)),
        }
    }

    fn check_schema(&mut self) -> Result<(), StoreError> {
        let found = self.view(|tx| match tx.open_table(META) {
            Ok(meta) => Ok(meta.get("schema")?.map(|found| found.value())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(other) => Err(other.into()),
        })?;
        found.filter(|found| *found != SCHEMA).map_or(Ok(()), |other| Err(self.other_schema(other)))
    }

    fn other_schema(&self, found: u64) -> StoreError {
        let hint = if found < SCHEMA {
            "move the file away and start again: units form anew from what their agents serve"
        } else {
            "run the version that wrote it"
        };
        self.broken(format!("has schema {found}, this program knows schema {SCHEMA}: {hint}"))
    }

    fn broken(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Broken { place: self.place.clone(), reason: reason.to_string() }
    }

    /// Whether the file was closed and opened since this was last asked: what is known of it is to be read again.
    pub(super) fn take_reopened(&mut self) -> Result<bool, StoreError> {
        self.database()?;
        Ok(std::mem::take(&mut self.reopened))
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let opened = (self.open)().map_err(|e| self.failed(e.into()))?;
            self.database = Some(opened);
            self.reopened = true;
        }
        Ok(self.database.as_ref().expect("opened above"))
    }

    /// What an error means. After one of input or output the file is closed.
    fn failed(&mut self, error: redb::Error) -> StoreError {
        let place = self.place.clone();
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: place },
            // What is no database reads as invalid data.
            redb::Error::Io(error) if error.kind() == ErrorKind::InvalidData => self.broken(error),
            redb::Error::Io(error) => {
                self.database = None;
                let reason = error.to_string();
                match full.contains(&error.kind()) {
                    true => StoreError::Full { place, reason },
                    false => StoreError::Away { place, reason },
                }
            }
            redb::Error::PreviousIo => {
                self.database = None;
                StoreError::Away { place, reason: "an earlier write failed".into() }
            }
            other => self.broken(other),
        }
    }

    fn write<T>(
        &mut self,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database()?;
        let done = (|| {
            let tx = database.begin_write()?;
            let value = body(&tx)?;
            tx.commit()?;
            Ok(value)
        })();
        done.map_err(|error| self.failed(error))
    }

    fn view<T>(
        &mut self,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database()?;
        let done = database.begin_read().map_err(redb::Error::from).and_then(|tx| body(&tx));
        done.map_err(|error| self.failed(error))
    }

    /// Looks at records, all at one revision.
    pub(super) fn read<T>(
        &mut self,
        body: impl FnOnce(&View) -> Result<Result<T, StoreError>, StorageError>,
    ) -> Result<T, StoreError> {
        self.view(|tx| {
            let revision = tx.open_table(META)?.get("revision")?.map_or(0, |found| found.value());
            let view = View { revision: Revision(revision), records: tx.open_table(RECORDS)? };
            Ok(body(&view)?)
        })?
    }

    /// The paths of records that have a lease, with it.
    pub(super) fn leased(&mut self) -> Result<Vec<(String, LeaseId)>, StoreError> {
        self.view(|tx| {
            let table = tx.open_table(LEASED)?;
            let entry = |entry: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, u64>), _>| {
                let (path, lease) = entry?;
                Ok((path.value().to_owned(), LeaseId(lease.value())))
            };
            table.iter()?.map(entry).collect()
        })
    }

    /// Makes changes at a revision. They are on the disk when this returns.
    pub(super) fn commit(&mut self, revision: Revision, writes: &[Write]) -> Result<(), StoreError> {
        let Err(error) = self.write(|tx| {
            tx.open_table(META)?.insert("revision", revision.0)?;
            let (mut records, mut leased) = (tx.open_table(RECORDS)?, tx.open_table(LEASED)?);
            for Write { path, entry } in writes {
                let path = path.as_str();
                match entry {
                    Some(entry) => records.insert(path, entry.to_bytes().as_slice())?,
                    None => records.remove(path)?,
                };
                match entry.as_ref().and_then(|entry| entry.header.lease) {
                    Some(lease) => leased.insert(path, lease.0)?,
                    None => leased.remove(path)?,
                };
            }
            Ok(())
        }) else {
            return Ok(());
        };
        // The error may have come after the point of no return: the file knows.
        match self.read(|view| Ok(Ok(view.revision))) {
            Ok(found) if found == revision => Ok(()),
            Ok(_) => Err(error),
            Err(_) => {
                tracing::warn!(code = error.code(), %error, "the store's file cannot be opened again yet");
                Err(StoreError::Unknown {
                    place: self.place.clone(),
                    operation: "a transaction",
                    waited_ms: 0,
                })
            }
        }
    }
}

/// Records at one revision.
pub(super) struct View {
    /// The revision.
    pub(super) revision: Revision,
    records: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl View {
    /// Revisions and lease of a record.
    pub(super) fn header(&self, key: &Key) -> Result<Result<Option<Header>, StoreError>, StorageError> {
        let path = super::super::path::of_key(key);
        let found = self.records.get(path.as_str())?;
        Ok(found.map(|bytes| header(&path, bytes.value())).transpose())
    }

    /// A record.
    pub(super) fn get(&self, key: &Key) -> Result<Result<Option<Versioned>, StoreError>, StorageError> {
        let path = super::super::path::of_key(key);
        let found = self.records.get(path.as_str())?;
        Ok(found.map(|bytes| versioned(key, &path, bytes.value())).transpose())
    }

    /// Calls `each` with every path that begins with `prefix`, and what makes its record.
    pub(super) fn scan(
        &self,
        prefix: &str,
        mut each: impl FnMut(&str, &[u8]) -> Result<(), StoreError>,
    ) -> Result<Result<(), StoreError>, StorageError> {
        for entry in self.records.range::<&str>(prefix..)? {
            let (path, bytes) = entry?;
            if !path.value().starts_with(prefix) {
                break;
            }
            if let Err(error) = each(path.value(), bytes.value()) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

/// Revisions and lease, from what stands under a path.
pub(super) fn header(path: &str, bytes: &[u8]) -> Result<Header, StoreError> {
    let broken = || StoreError::Broken { place: path.to_owned(), reason: "is cut short".into() };
    Header::of_bytes(bytes).ok_or_else(broken)
}

/// A record and its revisions, from what stands under its path.
pub(super) fn versioned(key: &Key, path: &str, bytes: &[u8]) -> Result<Versioned, StoreError> {
    let header = header(path, bytes)?;
    Ok(header.with(codec::decode(key, &bytes[HEADER..])?))
}
