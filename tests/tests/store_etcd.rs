//! The shared store on a real etcd: what it must do as every store must, and what happens to it when members fail.

use evenkeel::certificates::{Authority, Issue};
use evenkeel::records::memory::MemoryStore;
use evenkeel::records::settings::StoreKind;
use evenkeel::records::{Store, StoreError, StoreSettings, Told, comparison, conformance, open};
use evenkeel_core::ids::{Epoch, NodeId, Term, UnitId};
use evenkeel_core::records::{
    CHUNK_BYTES_MAX, Change, Expect, Key, LeaderRecord, Outcome, Record, Revision, Scope, Transaction,
    campaign, guarded,
};
use evenkeel_tests::etcd::{Etcd, EtcdSettings, EtcdTls};
use evenkeel_tests::fault_proxy::{FaultProxy, Faults};
use evenkeel_tests::process::{DEADLINE, wait_for};
use evenkeel_transport::PeerRole;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

const TTL: Duration = Duration::from_secs(60);
/// How long a call may take in these tests.
const TIMEOUT_MS: u64 = 2000;

fn store_under(etcd: &Etcd, prefix: &str) -> Arc<dyn Store> {
    let settings = StoreSettings {
        kind: StoreKind::Etcd,
        endpoints: etcd.endpoints(),
        prefix: prefix.into(),
        timeout_ms: TIMEOUT_MS,
        ..StoreSettings::default()
    };
    open(&settings, Path::new("/nowhere"), "tests", false).expect("settings that can be used")
}

fn store(etcd: &Etcd) -> Arc<dyn Store> {
    store_under(etcd, "")
}

fn three() -> Etcd {
    Etcd::start(EtcdSettings { members: 3, ..EtcdSettings::default() })
}

fn unit() -> UnitId {
    UnitId::new("u").expect("valid")
}

fn drains(node: &str) -> Change {
    let nodes = [NodeId::new(node).expect("valid")].into();
    Change::Put(Key::Drains(unit()), Record::Drains(nodes), None)
}

fn free(changes: Vec<Change>) -> Transaction {
    Transaction { expects: Vec::new(), changes }
}

async fn reign(store: &dyn Store) -> Term {
    let lease = store.grant(TTL).await.expect("a lease");
    let leader = LeaderRecord { balancer: "a".into(), address: "a:1".into(), lease };
    match store.transact(&campaign(leader)).await {
        Ok(Outcome::Done(Revision(revision))) => Term { generation: 0, revision },
        other => panic!("not won: {other:?}"),
    }
}

/// Makes the transaction however often it takes, and says how many tries failed and how.
async fn insist(store: &dyn Store, transaction: &Transaction) -> (Revision, Vec<StoreError>) {
    let until = Instant::now() + DEADLINE;
    let mut failed = Vec::new();
    loop {
        match store.transact(transaction).await {
            Ok(Outcome::Done(revision)) => return (revision, failed),
            Ok(Outcome::Refused) => panic!("refused"),
            Err(error) => failed.push(error),
        }
        assert!(Instant::now() < until, "{failed:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn told(watch: &mut mpsc::Receiver<Told>) -> Told {
    timeout(DEADLINE, watch.recv()).await.expect("told in time").expect("the watch goes on")
}

/// Waits until the watch has told of a revision, by change or by listing; whether by listing at the end.
async fn told_of(watch: &mut mpsc::Receiver<Told>, revision: Revision) -> bool {
    loop {
        match told(watch).await {
            Told::Listed(listed) if listed.revision >= revision => return true,
            Told::Changed(changed) if changed.iter().any(|c| c.revision >= revision) => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let etcd = Etcd::start(EtcdSettings::default());
    let count = AtomicU64::new(0);
    let next = || format!("/case-{}/", count.fetch_add(1, Ordering::Relaxed));
    conformance::check(async || store_under(&etcd, &next())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_work_has_the_same_outcome_as_in_memory_and_in_a_file() {
    let etcd = Etcd::start(EtcdSettings::default());
    for seed in 11..=13 {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let embedded = open(&StoreSettings::default(), dir.path(), "tests", false).expect("opens");
        let shared = store_under(&etcd, &format!("/seed-{seed}/"));
        comparison::check(vec![Arc::new(MemoryStore::default()), embedded, shared], seed, 120).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_any_member_costs_at_most_what_was_under_way() {
    let mut etcd = three();
    let store = store(&etcd);
    let term = reign(store.as_ref()).await;
    let mut watch = store.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    for i in 0..3 {
        etcd.kill(i);
        let (revision, failed) = insist(store.as_ref(), &guarded(term, vec![drains(&format!("n{i}"))])).await;
        eprintln!("member {i} killed: {failed:?}");
        told_of(&mut watch, revision).await;
        store.read(&[Key::Leader]).await.expect("reads go to the others");
        etcd.restart(i);
        etcd.wait_until_it_answers();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_a_member_costs_at_most_what_was_under_way() {
    let mut etcd = three();
    let store = store(&etcd);
    let term = reign(store.as_ref()).await;
    let lease = store.grant(TTL).await.expect("a lease");
    let leader = etcd.leader();
    for (node, member) in [("leader", leader), ("follower", (leader + 1) % 3)] {
        etcd.fill_disk(member);
        let (revision, failed) = insist(store.as_ref(), &guarded(term, vec![drains(node)])).await;
        eprintln!("the {node}'s disk full: {failed:?}");
        let found = store.read(&[Key::Drains(unit())]).await.expect("reads go to the others");
        assert_eq!(found.records[0].as_ref().map(|found| found.modified), Some(revision));
        store.keep_alive(lease).await.expect("the lease lives on");
        // There is room again.
        etcd.kill(member);
        etcd.restart(member);
        etcd.wait_until_it_answers();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_follower_is_passed_over_without_a_wait() {
    let mut etcd = three();
    let follower = (etcd.leader() + 1) % 3;
    // The follower is asked first.
    let mut endpoints = etcd.endpoints();
    endpoints.rotate_left(follower);
    let settings = StoreSettings {
        kind: StoreKind::Etcd,
        endpoints,
        timeout_ms: TIMEOUT_MS,
        ..StoreSettings::default()
    };
    let store = open(&settings, Path::new("/nowhere"), "tests", false).expect("settings that can be used");
    let term = reign(store.as_ref()).await;
    let lease = store.grant(TTL).await.expect("a lease");
    etcd.kill(follower);
    let began = Instant::now();
    store.keep_alive(lease).await.expect("another member keeps it alive");
    eprintln!("keep-alive after the loss of a member: {} ms", began.elapsed().as_millis());
    let began = Instant::now();
    let (_, failed) = insist(store.as_ref(), &guarded(term, vec![drains("n")])).await;
    eprintln!("transaction after the loss of a member: {} ms, {failed:?}", began.elapsed().as_millis());
    assert!(failed.is_empty(), "it was known by then: {failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_is_left_for_another() {
    let etcd = three();
    let store = store(&etcd);
    let term = reign(store.as_ref()).await;
    let mut watch = store.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    etcd.freeze(0);
    store.read(&[Key::Leader]).await.expect("a read is asked of another");
    let (revision, _) = insist(store.as_ref(), &guarded(term, vec![drains("n")])).await;
    told_of(&mut watch, revision).await;
    etcd.thaw(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_it_is_away_and_then_back() {
    let mut etcd = three();
    let store = store(&etcd);
    let term = reign(store.as_ref()).await;
    let before = store.read(&[Key::Leader]).await.expect("readable");
    etcd.kill(1);
    etcd.kill(2);
    let change = guarded(term, vec![drains("n")]);
    let away = async {
        loop {
            match store.transact(&change).await {
                Err(StoreError::Away { .. }) => return,
                Err(StoreError::Unknown { .. }) => {}
                other => panic!("no majority, and {other:?}"),
            }
        }
    };
    timeout(DEADLINE, away).await.expect("the member that is left knows it in time");
    assert!(matches!(store.read(&[Key::Leader]).await, Err(StoreError::Away { .. })));
    etcd.restart(1);
    etcd.restart(2);
    insist(store.as_ref(), &change).await;
    assert_eq!(store.read(&[Key::Leader]).await.expect("readable").records, before.records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_away_at_once_and_surely_not_done() {
    let mut etcd = Etcd::start(EtcdSettings::default());
    let store = store(&etcd);
    let change = free(vec![drains("n")]);
    insist(store.as_ref(), &change).await;
    etcd.kill(0);
    let away = async {
        // What was under way when the connection broke may be unknown; what comes after is not.
        while !matches!(store.transact(&change).await, Err(StoreError::Away { .. })) {}
    };
    timeout(DEADLINE, away).await.expect("refused connections are told");
    assert!(matches!(store.grant(TTL).await, Err(StoreError::Away { .. })));
    etcd.restart(0);
    insist(store.as_ref(), &change).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_quota_is_full_and_goes_on_when_there_is_room() {
    let etcd = Etcd::start(EtcdSettings { quota_bytes: 8 << 20, ..EtcdSettings::default() });
    let store = store(&etcd);
    let term = reign(store.as_ref()).await;
    let chunk = |i: u32| {
        // Bytes that do not repeat: nothing on the way may make them fewer.
        let bytes: Vec<u8> =
            (0..CHUNK_BYTES_MAX as u64).map(|b| ((b * u64::from(i + 7)) >> 3) as u8).collect();
        guarded(term, vec![Change::Put(Key::Chunk(unit(), Epoch(0), 0), Record::Chunk(bytes.into()), None)])
    };
    let filled = async {
        for i in 0.. {
            match store.transact(&chunk(i)).await {
                Ok(Outcome::Done(_)) => {}
                Err(StoreError::Full { reason, .. }) => return reason,
                other => panic!("{other:?}"),
            }
        }
        unreachable!("the loop has no end")
    };
    let reason = timeout(DEADLINE, filled).await.expect("the quota is used up");
    assert!(reason.contains("space exceeded"), "{reason}");
    store.read(&[Key::Leader]).await.expect("it still answers");
    etcd.make_room();
    insist(store.as_ref(), &chunk(0)).await;
}

/// The store through a network that can fail.
fn store_behind(proxy: &FaultProxy) -> Arc<dyn Store> {
    let settings = StoreSettings {
        kind: StoreKind::Etcd,
        endpoints: vec![format!("http://{}", proxy.address())],
        timeout_ms: 500,
        ..StoreSettings::default()
    };
    open(&settings, Path::new("/nowhere"), "tests", false).expect("settings that can be used")
}

fn proxy(etcd: &Etcd) -> FaultProxy {
    let target = etcd.endpoints()[0].trim_start_matches("http://").parse().expect("an address");
    FaultProxy::start(target)
}

fn part(proxy: &FaultProxy, parted: bool) {
    proxy.set(Faults { refusing: parted, ..Faults::default() });
    proxy.cut();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_it_was_after_a_broken_connection() {
    let etcd = Etcd::start(EtcdSettings::default());
    let proxy = proxy(&etcd);
    let (near, far) = (store(&etcd), store_behind(&proxy));
    insist(near.as_ref(), &free(vec![drains("a")])).await;
    let mut watch = far.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    part(&proxy, true);
    let (revision, _) = insist(near.as_ref(), &free(vec![drains("b")])).await;
    part(&proxy, false);
    assert!(!told_of(&mut watch, revision).await, "nothing was lost, so nothing is listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_changes_were_compacted_lists() {
    let etcd = Etcd::start(EtcdSettings::default());
    let proxy = proxy(&etcd);
    let (near, far) = (store(&etcd), store_behind(&proxy));
    insist(near.as_ref(), &free(vec![drains("a")])).await;
    let mut watch = far.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    part(&proxy, true);
    insist(near.as_ref(), &free(vec![drains("b")])).await;
    let (revision, _) = insist(near.as_ref(), &free(vec![drains("c")])).await;
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    part(&proxy, false);
    assert!(told_of(&mut watch, revision).await, "b is gone, so everything is listed");
    let (revision, _) = insist(near.as_ref(), &free(vec![drains("d")])).await;
    etcd.ctl(&["compact", &etcd.revision().to_string()]);
    assert!(!told_of(&mut watch, revision).await, "a compaction alone breaks no watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_watch_is_noticed() {
    let etcd = Etcd::start(EtcdSettings::default());
    let proxy = proxy(&etcd);
    let (near, far) = (store(&etcd), store_behind(&proxy));
    let mut watch = far.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    let connections = proxy.accepted();
    // Connections stay open, and nothing moves on them, for ever; those made from now on work.
    proxy.set(Faults { stalled: true, ..Faults::default() });
    let (revision, _) = insist(near.as_ref(), &free(vec![drains("a")])).await;
    wait_for("the watch to try again", || (proxy.accepted() > connections).then_some(()));
    proxy.set(Faults::default());
    told_of(&mut watch, revision).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_without_an_answer_is_unknown() {
    let etcd = Etcd::start(EtcdSettings::default());
    let proxy = proxy(&etcd);
    let far = store_behind(&proxy);
    insist(far.as_ref(), &free(vec![drains("a")])).await;
    proxy.set(Faults { stalled: true, ..Faults::default() });
    let lost = far.transact(&free(vec![drains("b")])).await;
    assert!(matches!(lost, Err(StoreError::Unknown { waited_ms: 500.., .. })), "{lost:?}");
    let read = far.read(&[Key::Leader]).await;
    assert!(matches!(read, Err(StoreError::Away { .. })), "a read changes nothing: {read:?}");
    proxy.set(Faults::default());
    insist(far.as_ref(), &free(vec![drains("c")])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_restored_from_a_backup_is_listed_anew() {
    let mut etcd = Etcd::start(EtcdSettings::default());
    let store = store(&etcd);
    insist(store.as_ref(), &free(vec![drains("kept")])).await;
    let backup = etcd.back_up();
    let (lost, _) = insist(store.as_ref(), &free(vec![drains("lost")])).await;
    let mut watch = store.watch(Scope::OfUnit(unit()));
    told_of(&mut watch, lost).await;
    etcd.restore(&backup);
    let Told::Listed(listed) = told(&mut watch).await else { panic!("what it told is gone") };
    assert!(listed.revision < lost);
    let expected = drains("kept");
    assert!(matches!(&expected, Change::Put(_, record, _) if *record == listed.records[0].1.record));
    let (again, _) = insist(store.as_ref(), &free(vec![drains("new")])).await;
    assert!(!told_of(&mut watch, again).await, "and goes on by changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_store_that_has_caught_up_is_listed_anew_all_the_same() {
    let mut etcd = Etcd::start(EtcdSettings::default());
    let proxy = proxy(&etcd);
    let (near, far) = (store(&etcd), store_behind(&proxy));
    insist(near.as_ref(), &free(vec![drains("kept")])).await;
    let backup = etcd.back_up();
    let (lost, _) = insist(near.as_ref(), &free(vec![drains("lost")])).await;
    let mut watch = far.watch(Scope::OfUnit(unit()));
    told_of(&mut watch, lost).await;
    part(&proxy, true);
    etcd.restore(&backup);
    // Others write meanwhile: the watch's position is no longer beyond the store's end.
    for i in 0..5 {
        etcd.ctl(&["put", "other", &i.to_string()]);
    }
    part(&proxy, false);
    let Told::Listed(listed) = told(&mut watch).await else { panic!("what it told is gone") };
    assert!(listed.revision > lost);
    let expected = drains("kept");
    assert!(matches!(&expected, Change::Put(_, record, _) if *record == listed.records[0].1.record));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_users_are_shown_and_needed() {
    let secrets = Secrets::new();
    let mut etcd = Etcd::start(EtcdSettings { tls: Some(secrets.tls()), ..EtcdSettings::default() });
    for arguments in [&["user", "add", "root:of-tests"][..], &["user", "grant-role", "root", "root"]] {
        etcd.ctl(arguments);
    }
    etcd.ctl(&["auth", "enable"]);
    let good = secrets.settings(&etcd);
    let opened =
        |settings: &StoreSettings| open(settings, Path::new("/nowhere"), "tests", false).expect("opens");
    let store = opened(&good);
    let mut watch = store.watch(Scope::OfUnit(unit()));
    assert!(matches!(told(&mut watch).await, Told::Listed(_)));
    let (revision, _) = insist(store.as_ref(), &free(vec![drains("a")])).await;
    told_of(&mut watch, revision).await;
    let lease = store.grant(TTL).await.expect("a lease");
    store.keep_alive(lease).await.expect("kept alive");

    // Tokens end with the member that gave them.
    etcd.kill(0);
    etcd.restart(0);
    let (revision, _) = insist(store.as_ref(), &free(vec![drains("b")])).await;
    told_of(&mut watch, revision).await;

    let nobody = StoreSettings { user: String::new(), password_file: "".into(), ..good.clone() };
    let wrong = StoreSettings { password_file: secrets.file("wrong", "guessed"), ..good.clone() };
    let bare = StoreSettings { certificate: "".into(), key: "".into(), ..good.clone() };
    let stranger = StoreSettings { ca: secrets.other_authority(), ..good };
    for (settings, hint) in [
        (nobody, "permission denied"),
        (wrong, "password"),
        (bare, "store.certificate"),
        (stranger, "ertificate"),
    ] {
        match opened(&settings).read(&[Key::Leader]).await {
            Err(StoreError::Away { reason, .. }) => assert!(reason.contains(hint), "{reason}"),
            other => panic!("{hint}: {other:?}"),
        }
    }
}

/// Certificates of a small cluster of which etcd's member is a part, and a password.
struct Secrets(tempfile::TempDir);

impl Secrets {
    fn new() -> Self {
        let secrets = Self(tempfile::tempdir().expect("a temporary directory"));
        Authority::init(secrets.0.path(), "tests", false).expect("an authority");
        let authority = Authority::open(secrets.0.path()).expect("an authority");
        let also = ["127.0.0.1".to_owned()];
        let issue = Issue { role: PeerRole::Balancer, name: "", also: &also, days: 1, force: false };
        let (_, pair) = authority.issue(secrets.0.path(), &issue).expect("a certificate");
        std::fs::rename(pair.certificate, secrets.path("member.crt")).expect("renamed");
        std::fs::rename(pair.key, secrets.path("member.key")).expect("renamed");
        secrets.file("password", "of-tests\n");
        secrets
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).expect("written");
        self.path(name)
    }

    fn other_authority(&self) -> PathBuf {
        Authority::init(&self.path("other"), "tests", false).expect("an authority");
        self.path("other").join("ca.crt")
    }

    fn tls(&self) -> EtcdTls {
        EtcdTls {
            ca: self.path("ca.crt"),
            certificate: self.path("member.crt"),
            key: self.path("member.key"),
            user: Some("root:of-tests".into()),
        }
    }

    fn settings(&self, etcd: &Etcd) -> StoreSettings {
        StoreSettings {
            kind: StoreKind::Etcd,
            endpoints: etcd.endpoints(),
            timeout_ms: TIMEOUT_MS,
            ca: self.path("ca.crt"),
            certificate: self.path("member.crt"),
            key: self.path("member.key"),
            user: "root".into(),
            password_file: self.path("password"),
            ..StoreSettings::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_write_at_once_never_both_win() {
    let etcd = three();
    let (one, two) = (store(&etcd), store(&etcd));
    let (mut revision, _) = insist(one.as_ref(), &free(vec![drains("first")])).await;
    for i in 0..20 {
        let expects = vec![Expect::Modified(Key::Drains(unit()), revision)];
        let change =
            |who: &str| Transaction { expects: expects.clone(), changes: vec![drains(&format!("{who}{i}"))] };
        let (a, b) = (change("a"), change("b"));
        let (a, b) = tokio::join!(one.transact(&a), two.transact(&b));
        match (a.expect("an outcome"), b.expect("an outcome")) {
            (Outcome::Done(at), Outcome::Refused) | (Outcome::Refused, Outcome::Done(at)) => revision = at,
            other => panic!("{other:?}"),
        }
    }
}
