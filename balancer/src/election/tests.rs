use super::*;
use crate::records::memory::MemoryStore;
use crate::records::{Found, StoreError, Told};
use evenkeel_core::records::{Key, LeaseId, Outcome, Revision, Scope, Transaction, Versioned};
use evenkeel_proto::v1::AttendRequest;
use evenkeel_proto::v1::peer_service_client::PeerServiceClient;
use evenkeel_proto::v1::peer_service_server::PeerServiceServer;
use evenkeel_transport::Security;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

/// What is waited for comes within this time on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// A lease that does not end within a test: what happens then does not happen because of its end.
const LONG_MS: u64 = 600_000;
/// A lease that a test can see end.
const SHORT_MS: u64 = 1_000;

/// A store in memory that can be away.
#[derive(Debug, Clone, Default)]
struct Shaky {
    store: MemoryStore,
    away: Arc<AtomicBool>,
}

impl Shaky {
    fn look(&self) -> Result<&MemoryStore, StoreError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Away { place: "memory".into(), reason: "a test says so".into() });
        }
        Ok(&self.store)
    }
}

#[tonic::async_trait]
impl Store for Shaky {
    async fn read(&self, keys: &[Key]) -> Result<Found<Vec<Option<Versioned>>>, StoreError> {
        self.look()?.read(keys).await
    }
    async fn keys(&self, scope: &Scope) -> Result<Found<Vec<(Key, Revision)>>, StoreError> {
        self.look()?.keys(scope).await
    }
    async fn list(&self, scope: &Scope) -> Result<Found<Vec<(Key, Versioned)>>, StoreError> {
        Store::list(self.look()?, scope).await
    }
    async fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.look()?.transact(transaction).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.look()?.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.look()?.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.look()?.revoke(lease).await
    }
    fn watch(&self, scope: Scope) -> mpsc::Receiver<Told> {
        self.store.watch(scope)
    }
    fn place(&self) -> String {
        self.store.place()
    }
}

/// A balancer's election with its port, on a runtime of its own, so that it can die.
struct Node {
    runtime: Runtime,
    standing: watch::Receiver<Standing>,
    handle: ElectionHandle,
    address: String,
}

impl Node {
    fn start(store: &Shaky, name: &str, ttl_ms: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (standing, handle, address) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound").to_string();
            let settings = ElectionSettings {
                name: name.to_owned(),
                address: address.clone(),
                admin_address: format!("admin-of-{name}:1"),
                ttl_ms,
            };
            let (standing, handle) = Election::start(Arc::new(store.clone()), settings, Security::Loopback);
            let service = PeerServiceServer::new(handle.peers());
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            (standing, handle, address)
        });
        Self { runtime, standing, handle, address }
    }

    /// As kill -9 does: its sockets close, and it does nothing more.
    fn die(self) {
        self.runtime.shutdown_background();
    }

    #[track_caller]
    fn until(&self, what: &str, is: impl FnMut(&Standing) -> bool) -> Standing {
        let mut standing = self.standing.clone();
        let found = self.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, standing.wait_for(is)).await.map(|found| found.map(|s| s.clone()))
        });
        found.unwrap_or_else(|_| panic!("waited for {what}")).expect("the election runs")
    }

    #[track_caller]
    fn until_leads(&self) -> Term {
        match self.until("it to lead", |standing| matches!(standing, Standing::Leading { .. })) {
            Standing::Leading { term, .. } => term,
            other => unreachable!("{other:?}"),
        }
    }

    /// Waits until it stands by for `leader` and is connected to it.
    #[track_caller]
    fn until_attends(&self, name: &str, leader: &Node) {
        self.until("it to stand by", |standing| {
            matches!(standing, Standing::Standby { leader: Some(found) } if found.address == leader.address)
        });
        let deadline = Instant::now() + DEADLINE;
        while !leader.handle.standbys().iter().any(|standby| standby.name == name)
            || self.handle.view().leader_admin.is_none()
        {
            assert!(Instant::now() < deadline, "waited for {name} to attend");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn one_leads_and_the_other_stands_by() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    let term = a.until_leads();
    let b = Node::start(&store, "b", LONG_MS);
    b.until_attends("b", &a);
    let view = b.handle.view();
    assert_eq!(view.leader_admin.as_deref(), Some("admin-of-a:1"));
    assert_eq!((view.leader_term, view.synced), (Some(term), true));
}

#[test]
fn a_leader_that_dies_is_followed_before_its_lease_ends() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    let before = a.until_leads();
    let (b, c) = (Node::start(&store, "b", LONG_MS), Node::start(&store, "c", LONG_MS));
    b.until_attends("b", &a);
    c.until_attends("c", &a);
    a.die();
    let standing = b.until("the next leader", |standing| match standing {
        Standing::Leading { .. } => true,
        Standing::Standby { leader } => leader.as_ref().is_some_and(|leader| leader.address == c.address),
        Standing::Frozen { .. } => false,
    });
    let after = if matches!(standing, Standing::Leading { .. }) { b.until_leads() } else { c.until_leads() };
    assert!(after > before);
}

#[test]
fn a_balancer_that_stops_hands_over_first() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    a.until_leads();
    let b = Node::start(&store, "b", LONG_MS);
    b.until_attends("b", &a);
    a.runtime.block_on(a.handle.stop());
    assert!(matches!(a.handle.standing(), Standing::Standby { .. }));
    b.until_leads();
}

#[test]
fn an_operator_chooses_the_next_leader() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    a.until_leads();
    let alone = a.runtime.block_on(a.handle.hand_over(None));
    assert_eq!(alone, Err(HandOverError::NoStandby));
    let (b, c) = (Node::start(&store, "b", LONG_MS), Node::start(&store, "c", LONG_MS));
    b.until_attends("b", &a);
    c.until_attends("c", &a);
    let refused = a.runtime.block_on(a.handle.hand_over(Some("d".into())));
    let seen = vec!["b".to_owned(), "c".to_owned()];
    assert_eq!(refused, Err(HandOverError::UnknownStandby { name: "d".into(), seen }));
    assert_eq!(b.runtime.block_on(b.handle.hand_over(None)), Err(HandOverError::NotLeader));
    assert_eq!(a.runtime.block_on(a.handle.hand_over(Some("c".into()))), Ok("c".to_owned()));
    c.until_leads();
}

#[test]
fn a_store_that_is_away_freezes_the_leader_until_it_is_back() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", SHORT_MS);
    let term = a.until_leads();
    store.away.store(true, Ordering::SeqCst);
    let frozen = Standing::Frozen { term };
    a.until("it to freeze", |standing| *standing == frozen);
    store.away.store(false, Ordering::SeqCst);
    // A machine that is busy may need longer than the lease lives: then the next term begins.
    a.until("it to lead again", |standing| matches!(standing, Standing::Leading { .. }));
}

#[test]
fn who_does_not_reign_says_so() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    a.until_leads();
    let lease = a.handle.view().leader.expect("it leads").record.lease.0;
    let attend = |lease, balancer: &str| {
        let request = AttendRequest { balancer: balancer.to_owned(), address: "x:1".to_owned(), lease };
        a.runtime.block_on(async {
            let mut client =
                PeerServiceClient::connect(format!("http://{}", a.address)).await.expect("connects");
            client.attend(request).await.map(drop).map_err(|status| status.message().to_owned())
        })
    };
    assert_eq!(attend(lease, "x"), Ok(()));
    assert!(attend(lease + 1, "x").unwrap_err().starts_with("not_reigning: "));
    assert!(attend(lease, "").unwrap_err().starts_with("invalid_standby: "));
}

#[test]
fn an_adoption_begins_a_higher_term_of_the_same_leader() {
    let store = Shaky::default();
    let a = Node::start(&store, "a", LONG_MS);
    let before = a.until_leads();
    let claimed = Term { generation: 6, revision: 1 };
    let adopted = a.runtime.block_on(async {
        a.handle.term_claimed(claimed).await;
        a.handle.adopt("somebody".to_owned()).await
    });
    let after = Term { generation: 7, revision: before.revision };
    assert_eq!(adopted, Ok(after));
    assert_eq!(a.until_leads(), after);
}
