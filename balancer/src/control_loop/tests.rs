//! The loop over a store in memory, with the election's word and an agent's stream in the test's hands.

use super::*;
use crate::election::{Election, ElectionSettings};
use crate::push::COMMANDS_MAX;
use crate::records;
use crate::records::memory::MemoryStore;
use evenkeel_core::records::{Change, Key, LeaderRecord, Outcome, Record, Transaction, campaign};
use evenkeel_proto::v1::sync_response::Message as Out;
use evenkeel_proto::{PROTOCOL_VERSION, v1};
use evenkeel_transport::security::SecuritySettings;

/// Any wait in these tests ends by then: the loop answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    store: MemoryStore,
    standing: watch::Sender<Standing>,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<Result<v1::SyncResponse, tonic::Status>>,
    _open: oneshot::Receiver<()>,
}

impl Bench {
    /// A standby, and node `a`, which has the whole unit, on stream 1.
    async fn new() -> Self {
        let store = MemoryStore::default();
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let (standing, standing_seen) = watch::channel(Standing::Standby { leader: None });
        let settings = ElectionSettings {
            name: "x".into(),
            address: "127.0.0.1:1".into(),
            admin_address: "127.0.0.1:2".into(),
            ttl_ms: 4_000,
        };
        let security = SecuritySettings::default().resolve(None).expect("plaintext on loopback");
        // It runs over a store of its own: what the loop hears of the lead is what the test says.
        let (_, election) = Election::start(Arc::new(MemoryStore::default()), settings, security);
        let routers = Arc::new(Routers::new(Config::default().routing.policy(), None));
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let control =
            ControlLoop::new(Config::default(), shared, routers, events.clone(), standing_seen, election);
        tokio::spawn(control.run(queue));
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (open, closed) = oneshot::channel();
        let link = AgentLink::new(sender, open);
        let bench = Self { store, standing, events, commands, _open: closed };
        bench.send(Event::Hello { stream: 1, hello: Box::new(hello()), link }).await;
        bench
    }

    async fn send(&self, event: Event) {
        self.events.send(event).await.expect("the loop runs");
    }

    async fn message(&self, message: v1::sync_request::Message) {
        self.send(Event::Message { stream: 1, message: Box::new(message) }).await;
    }

    /// The next message but pings.
    async fn told(&mut self) -> Out {
        loop {
            let told = tokio::time::timeout(PATIENCE, self.commands.recv()).await.expect("in time");
            match told.expect("the stream is open").expect("a message").message {
                Some(Out::Ping(_)) => {}
                other => return other.expect("a message"),
            }
        }
    }

    /// Wins an election of the store the test's way.
    async fn lead(&self) -> Term {
        let lease = self.store.grant(Duration::from_secs(3600)).await.expect("granted");
        let leader = LeaderRecord { balancer: "x".into(), address: "127.0.0.1:1".into(), lease };
        let Ok(Outcome::Done(revision)) = self.store.transact(&campaign(leader)).await else {
            panic!("nobody leads")
        };
        let term = Term { generation: 0, revision: revision.0 };
        let until = Instant::now() + Duration::from_secs(3600);
        self.standing.send_replace(Standing::Leading { term, until });
        term
    }

    async fn status(&self) -> v1::GetStatusResponse {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Query(Query::Status(reply))).await;
        tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("answered")
    }

    async fn order(&self, order: reign::Order, dry_run: bool) -> Result<Answer, OrderError> {
        let (reply, answer) = oneshot::channel();
        let admin = Admin {
            ticket: Ticket(0),
            who: "kim".into(),
            request: evenkeel_core::records::RequestId::new("r").expect("valid"),
            content: evenkeel_core::ids::Digest([0; 32]),
            order,
            dry_run,
        };
        self.send(Event::Query(Query::Order(Box::new(admin), reply))).await;
        tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("answered")
    }

    /// Until the status is as wanted.
    async fn until(&self, wanted: impl Fn(&v1::GetStatusResponse) -> bool) -> v1::GetStatusResponse {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn hello() -> v1::Hello {
    let boot = boot();
    v1::Hello {
        cluster: Config::default().cluster,
        node: "a".into(),
        incarnation: 1,
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        unit: "u".into(),
        shape: Some((&shape()).into()),
        ranks: vec![0, 1],
        applied: Some((boot.epoch, boot.digest()).into()),
        ..v1::Hello::default()
    }
}

fn shape() -> evenkeel_core::topology::UnitShape {
    evenkeel_core::topology::UnitShape {
        role: evenkeel_core::topology::Role::Decode,
        layers: 1,
        experts: 4,
        top_k: 1,
        ranks: 2,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes: 64,
    }
}

fn boot() -> evenkeel_core::plan::Plan {
    evenkeel_core::plan::Plan::boot(unit(), &shape())
}

fn unit() -> UnitId {
    UnitId::new("u").expect("valid")
}

fn role(told: Out) -> v1::BalancerRole {
    match told {
        Out::Welcome(welcome) => welcome.role(),
        other => panic!("{other:?} is no welcome"),
    }
}

#[tokio::test]
async fn a_stream_is_welcomed_anew_when_the_standby_leads_and_the_unit_forms_then() {
    let mut bench = Bench::new().await;
    assert_eq!(role(bench.told().await), v1::BalancerRole::Standby);
    let term = bench.lead().await;
    let Out::Welcome(welcome) = bench.told().await else { panic!("a welcome") };
    assert_eq!((welcome.role(), welcome.term), (v1::BalancerRole::Leader, Some(term.into())));
    bench.message(v1::sync_request::Message::Hello(hello())).await;
    let status = bench.until(|status| status.units.iter().any(|unit| unit.head.is_some())).await;
    assert_eq!(status.units[0].state(), v1::UnitState::Steady);
    bench.standing.send_replace(Standing::Standby { leader: None });
    assert_eq!(role(bench.told().await), v1::BalancerRole::Standby);
    let status = bench.until(|status| !status.units.is_empty()).await;
    assert!(status.units[0].head.is_some(), "what is committed is known to a standby too");
    assert_eq!(bench.order(reign::Order::Resume(unit()), false).await, Err(OrderError::NotLeader));
}

#[tokio::test]
async fn a_lead_that_is_not_confirmed_changes_nothing_while_questions_are_answered() {
    let mut bench = Bench::new().await;
    bench.told().await;
    let term = bench.lead().await;
    bench.told().await;
    bench.message(v1::sync_request::Message::Hello(hello())).await;
    bench.until(|status| status.units.iter().any(|unit| unit.head.is_some())).await;
    bench.standing.send_replace(Standing::Frozen { term });
    bench.until(|status| status.units.iter().any(|unit| unit.held == "not_leading")).await;
    let pause = || reign::Order::Pause { unit: unit(), for_ms: None };
    assert_eq!(bench.order(pause(), false).await, Err(OrderError::Frozen));
    let until = Instant::now() + Duration::from_secs(3600);
    bench.standing.send_replace(Standing::Leading { term, until });
    bench.until(|status| status.units.iter().any(|unit| unit.held != "not_leading")).await;
    assert!(bench.order(pause(), false).await.is_ok());
    let status = bench.status().await;
    assert_eq!((status.units[0].paused_by.as_str(), status.units[0].held.as_str()), ("kim", "paused"));
}

#[tokio::test]
async fn a_new_store_is_marked_with_the_version_of_its_layout() {
    let bench = Bench::new().await;
    bench.lead().await;
    let marked = async {
        while bench.store.read(&[Key::Schema]).await.expect("read").records[0].is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, marked).await.expect("in time");
    records::check_schema(&bench.store).await.expect("it is ours");
}

#[tokio::test]
async fn nobody_leads_from_a_store_of_another_layout() {
    let mut bench = Bench::new().await;
    bench.told().await;
    let newer = Change::Put(Key::Schema, Record::Schema(records::SCHEMA + 1), None);
    let written = Transaction { expects: Vec::new(), changes: vec![newer] };
    bench.store.transact(&written).await.expect("written");
    bench.lead().await;
    // Read and refused several times by then.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(bench.order(reign::Order::Resume(unit()), false).await, Err(OrderError::NotLeader));
}
