use super::*;
use crate::records::memory::MemoryStore;
use crate::records::{SCHEMA, comparison, conformance};
use evenkeel_core::ids::UnitId;
use evenkeel_core::records::{Change, LeaderRecord, Record, campaign};
use redb::backends::FileBackend;
use redb::{StorageBackend, TableDefinition};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PATIENCE: Duration = Duration::from_secs(30);

fn open(dir: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(dir).expect("opens"))
}

/// Opens a store that was closed a moment ago: a task may still hold it.
async fn reopen(dir: &Path) -> Arc<dyn Store> {
    let opened = async {
        loop {
            match EmbeddedStore::open(dir) {
                Ok(store) => return Arc::new(store) as Arc<dyn Store>,
                Err(StoreError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.expect("the file is let go")
}

fn put(version: u64) -> Transaction {
    let change = Change::Put(Key::Schema, Record::Schema(version), None);
    Transaction { expects: Vec::new(), changes: vec![change] }
}

async fn schema(store: &dyn Store) -> Option<Record> {
    let found = store.read(&[Key::Schema]).await.expect("readable").records;
    found.into_iter().next().flatten().map(|found| found.record)
}

#[tokio::test]
async fn it_conforms() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let count = AtomicU64::new(0);
    let next = || dir.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
    conformance::check(async || open(&next())).await;
}

#[tokio::test]
async fn the_store_in_memory_conforms() {
    conformance::check(async || Arc::new(MemoryStore::default()) as Arc<dyn Store>).await;
}

#[tokio::test]
async fn random_work_has_the_same_outcome_as_in_memory() {
    for seed in 1..=4 {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let stores: Vec<Arc<dyn Store>> = vec![Arc::new(MemoryStore::default()), open(dir.path())];
        comparison::check(stores, seed, 150).await;
    }
}

#[tokio::test]
async fn what_was_done_is_there_after_a_restart_and_leases_are_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let lease = store.grant(Duration::from_secs(600)).await.expect("a lease");
    let leader = LeaderRecord { balancer: "a".into(), address: "a:1".into(), lease };
    store.transact(&campaign(leader.clone())).await.expect("an outcome");
    let Ok(Outcome::Done(revision)) = store.transact(&put(7)).await else { panic!("done") };
    drop(store);
    let store = reopen(dir.path()).await;
    assert_eq!(store.keys(&Scope::All).await.expect("readable").records, [(Key::Schema, revision)]);
    assert_eq!(schema(store.as_ref()).await, Some(Record::Schema(7)));
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(lease)));
    let other = store.grant(Duration::from_secs(600)).await.expect("a lease");
    assert_ne!(other, lease);
    // The end of the old lease was a change of its own.
    let won = store.transact(&campaign(LeaderRecord { lease: other, ..leader })).await;
    assert_eq!(won, Ok(Outcome::Done(Revision(revision.0 + 2))));
}

#[tokio::test]
async fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _first = open(dir.path());
    assert_eq!(EmbeddedStore::open(dir.path()).map_err(|e| e.code()).err(), Some("store_in_use"));
}

#[tokio::test]
async fn a_file_of_another_schema_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("evenkeel.redb");
    let meta = TableDefinition::<&str, u64>::new("meta");
    for (schema, hint) in [(1, "move the file away"), (SCHEMA + 1, "run the version that wrote it")] {
        let database = Database::create(&path).expect("a file");
        let tx = database.begin_write().expect("writable");
        tx.open_table(meta).expect("a table").insert("schema", schema).expect("inserted");
        tx.commit().expect("committed");
        drop(database);
        let error = EmbeddedStore::open(dir.path()).expect_err("refused");
        assert_eq!(error.code(), "store_broken");
        assert!(error.to_string().contains(hint), "{error}");
        let database = Database::create(&path).expect("closed again");
        let tx = redb::ReadableDatabase::begin_read(&database).expect("readable");
        let found = tx.open_table(meta).expect("a table").get("schema").expect("readable");
        assert_eq!(found.map(|found| found.value()), Some(schema));
    }
}

#[tokio::test]
async fn what_is_no_database_is_broken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("evenkeel.redb"), [7; 10_000]).expect("written");
    assert_eq!(EmbeddedStore::open(dir.path()).map_err(|e| e.code()).err(), Some("store_broken"));
}

/// A file whose disk can be full.
#[derive(Debug)]
struct Filling {
    file: FileBackend,
    full: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    /// Writes that still succeed once the disk is full.
    left: AtomicU64,
}

impl Filling {
    fn check(&self) -> io::Result<()> {
        self.written.fetch_add(1, Ordering::Relaxed);
        let left = |left: u64| left.checked_sub(1);
        let room = !self.full.load(Ordering::Relaxed)
            || self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok();
        if room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

impl StorageBackend for Filling {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
}

fn open_filling(path: PathBuf, full: &Arc<AtomicBool>, left: u64) -> EmbeddedStore {
    let (full, written) = (Arc::clone(full), Arc::new(AtomicU64::new(0)));
    let open = move || {
        let file =
            std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let file = FileBackend::new(file)?;
        let (full, written) = (Arc::clone(&full), Arc::clone(&written));
        Database::builder().create_with_backend(Filling { file, full, written, left: left.into() })
    };
    EmbeddedStore::open_with("disk".into(), Box::new(open)).expect("opens")
}

/// The disk is full after so many more writes of the file: whatever is told then is true once there is room again.
async fn check_full(left: u64) -> &'static str {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let full = Arc::new(AtomicBool::new(false));
    let store = open_filling(dir.path().join("store"), &full, left);
    store.transact(&put(1)).await.expect("room");
    full.store(true, Ordering::Relaxed);
    let outcome = store.transact(&put(2)).await;
    full.store(false, Ordering::Relaxed);
    let found = schema(&store).await;
    let told = match outcome {
        Ok(outcome) => {
            assert!(matches!(outcome, Outcome::Done(_)));
            assert_eq!(found, Some(Record::Schema(2)), "{left} writes");
            "done"
        }
        Err(error) if error.may_be_done() => "unknown",
        Err(error) => {
            assert_eq!(found, Some(Record::Schema(1)), "{left} writes: {error}");
            error.code()
        }
    };
    store.transact(&put(3)).await.expect("it goes on by itself");
    assert_eq!(schema(&store).await, Some(Record::Schema(3)));
    told
}

#[tokio::test]
async fn a_full_disk_costs_what_did_not_fit_and_nothing_afterwards() {
    let mut told = std::collections::BTreeMap::<_, u64>::new();
    for left in 0..40 {
        *told.entry(check_full(left).await).or_default() += 1;
    }
    assert!(told.contains_key("done"), "{told:?}");
    assert!(told.keys().any(|told| ["store_full", "unknown"].contains(told)), "{told:?}");
    assert!(!told.contains_key("store_broken"), "{told:?}");
}

#[tokio::test]
async fn a_lease_that_could_not_be_ended_for_a_full_disk_ends_later() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let full = Arc::new(AtomicBool::new(false));
    let store = open_filling(dir.path().join("store"), &full, 0);
    let mut watch = store.watch(Scope::Leader);
    let lease = store.grant(Duration::from_millis(50)).await.expect("a lease");
    let leader = LeaderRecord { balancer: "a".into(), address: "a:1".into(), lease };
    store.transact(&campaign(leader)).await.expect("an outcome");
    full.store(true, Ordering::Relaxed);
    let failed = async { while store.read(&[]).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, failed).await.expect("its end does not fit");
    full.store(false, Ordering::Relaxed);
    let gone = async {
        loop {
            match watch.recv().await.expect("the watch goes on") {
                Told::Changed(changed) if changed.iter().any(|c| c.now.is_none()) => return,
                Told::Listed(listed) if listed.records.is_empty() && listed.revision > Revision(1) => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it ends once there is room");
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(lease)));
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut watch = store.watch(Scope::OfUnit(UnitId::new("u").expect("valid")));
    assert!(matches!(watch.recv().await, Some(Told::Listed(_))));
    drop(store);
    let ended = tokio::time::timeout(PATIENCE, watch.recv()).await;
    assert_eq!(ended.expect("ends in time"), None);
    reopen(dir.path()).await;
}
