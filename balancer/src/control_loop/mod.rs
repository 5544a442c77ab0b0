//! The one task between agents, operators, store and election. What is decided, [`Reign`] decides; the loop hands events
//! to it and carries its actions out, in order. It owns what the machine has no use for: the streams' sending halves,
//! load windows, solves and gauges.
//!
//! The loop never waits: store calls, solves and plans that are written down are tasks, and their ends are events. So a
//! store that is away stops commands and changes, while reports, windows, status and dry runs go on.

mod actions;
mod gauges;
mod hello;
mod messages;
mod notices;
mod planning;
pub(crate) mod recovery;
mod standing;
mod store_calls;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::draft::{Drafted, unix_ms};
use crate::election::{ElectionHandle, Standing};
use crate::push::AgentLink;
use crate::records::{Store, StoreError};
use crate::routing::Routers;
use crate::unit::{Kept, SolveResult, Unit};
use evenkeel_core::ids::{NodeId, Term, UnitId};
use evenkeel_core::protocol::reign::{
    self, Admin, Answer, OrderError, Recovered, Reign, Settings, StreamId, Ticket,
};
use evenkeel_core::protocol::unit::Limits;
use evenkeel_core::units::Millis;
use evenkeel_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Events waiting for the loop. Senders wait when it is full, which slows streams down, never drops.
pub const EVENTS_MAX: usize = 4096;
/// How often time is looked at: a fraction of the shortest limit.
const TICK: Duration = Duration::from_millis(200);

/// Everything that triggers work.
pub enum Event {
    /// An agent's first message.
    Hello {
        /// The stream.
        stream: u64,
        /// What it says.
        hello: Box<v1::Hello>,
        /// The way back.
        link: AgentLink,
    },
    /// A later message of an agent.
    Message {
        /// The stream.
        stream: u64,
        /// What it says.
        message: Box<v1::sync_request::Message>,
    },
    /// An agent's stream ended.
    Closed(u64),
    /// A solve is done.
    Solved(UnitId, Box<SolveResult>),
    /// A solve ended in a bug.
    SolvePanicked(UnitId),
    /// A plan that no solve has made is written down.
    Drafted(Box<Drafted>),
    /// The store answered what the machine asked.
    Store(Box<reign::Event>),
    /// What the store holds was read in this term; nothing was read when the store is away.
    Recovered(Term, Option<Box<Recovered>>),
    /// What a standby has learned of changed heads.
    Refreshed(Option<Box<Recovered>>),
    /// An operator asks or orders.
    Query(Query),
}

/// An operator's question or order, with the way back for its answer.
pub enum Query {
    /// See `AdminService.GetStatus`.
    Status(oneshot::Sender<v1::GetStatusResponse>),
    /// See `AdminService.GetLoads`.
    Loads(UnitId, oneshot::Sender<Option<v1::GetLoadsResponse>>),
    /// See `AdminService.GetRankLoads`.
    RankLoads(UnitId, oneshot::Sender<Option<v1::GetRankLoadsResponse>>),
    /// An order; its ticket is the loop's to choose.
    Order(Box<Admin>, oneshot::Sender<Result<Answer, OrderError>>),
    /// Stop: agents are told by the end of their streams.
    Stop(oneshot::Sender<()>),
}

/// The sending half of a stream, and what only the wire needs to know of it.
struct Link {
    link: AgentLink,
    protocol: u32,
    transfer_address: String,
}

/// See the module.
pub struct ControlLoop {
    pub(crate) config: Config,
    pub(crate) reign: Reign,
    pub(crate) units: BTreeMap<UnitId, Unit>,
    pub(crate) routers: Arc<Routers>,
    links: BTreeMap<StreamId, Link>,
    store: Arc<dyn Store>,
    standing: watch::Receiver<Standing>,
    election: ElectionHandle,
    /// The term whose state is being read.
    recovering: Option<Term>,
    /// A standby's look at the store is under way, or when the next is due.
    refreshing: bool,
    refresh_at: Instant,
    repair_at: Instant,
    askers: HashMap<Ticket, oneshot::Sender<Result<Answer, OrderError>>>,
    asked: u64,
    began: Instant,
    events: mpsc::Sender<Event>,
}

impl ControlLoop {
    /// A standby until `standing` says otherwise. `events` is the sending half of the queue that [`Self::run`] will be
    /// given: tasks report back through it. `election` is told what concerns the lead.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        routers: Arc<Routers>,
        events: mpsc::Sender<Event>,
        standing: watch::Receiver<Standing>,
        election: ElectionHandle,
    ) -> Self {
        let now = Instant::now();
        Self {
            reign: Reign::new(settings(&config)),
            config,
            units: BTreeMap::new(),
            routers,
            links: BTreeMap::new(),
            store,
            standing,
            election,
            recovering: None,
            refreshing: false,
            refresh_at: now,
            repair_at: now,
            askers: HashMap::new(),
            asked: 0,
            began: now,
            events,
        }
    }

    pub(crate) fn now(&self) -> reign::Now {
        reign::Now { at: self.millis(Instant::now()), unix_ms: unix_ms() }
    }

    fn millis(&self, at: Instant) -> Millis {
        let since = at.saturating_duration_since(self.began).as_millis();
        Millis(u64::try_from(since).expect("uptime fits 64 bits"))
    }

    /// Runs until told to stop.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut standing = self.standing.clone();
        self.stand();
        loop {
            let event = tokio::select! {
                // First: nothing is to be commanded that the election has ended.
                biased;
                Ok(()) = standing.changed() => {
                    self.stand();
                    continue;
                }
                _ = ticks.tick() => {
                    self.tick();
                    continue;
                }
                event = events.recv() => event.expect("the loop holds a sender itself"),
            };
            match event {
                Event::Query(Query::Stop(done)) => {
                    let _ = done.send(());
                    return;
                }
                event => self.take(event),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Hello { stream, hello, link } => self.hello(StreamId(stream), &hello, link),
            Event::Message { stream, message } => self.message(StreamId(stream), *message),
            Event::Closed(stream) => {
                self.links.remove(&StreamId(stream));
                self.step(reign::Event::Closed(StreamId(stream)));
            }
            Event::Solved(unit, result) => self.solved(&unit, *result),
            Event::SolvePanicked(unit) => self.solve_panicked(&unit),
            Event::Drafted(drafted) => self.propose(*drafted),
            Event::Store(event) => self.step(*event),
            Event::Recovered(term, state) => self.recovered(term, state.map(|state| *state)),
            Event::Refreshed(state) => self.refreshed(state.map(|state| *state)),
            Event::Query(query) => self.query(query),
        }
    }

    fn tick(&mut self) {
        // The machine freezes by itself when the lead's time is over; a late word of the election changes nothing.
        self.step(reign::Event::Tick);
        self.look_after_store();
        for id in self.units.keys().cloned().collect::<Vec<_>>() {
            self.maybe_solve(&id);
        }
        self.publish_gauges();
    }

    /// What a solve of the unit has to keep.
    pub(crate) fn kept(&self, id: &UnitId) -> Kept {
        let unit = self.reign.units().get(id);
        unit.map(|unit| Kept { drained: unit.drained_ranks(), pins: unit.holds().pins.clone() })
            .unwrap_or_default()
    }

    fn unit(&mut self, id: &UnitId) -> &mut Unit {
        self.units.entry(id.clone()).or_insert_with(|| Unit::new(id.clone()))
    }

    fn query(&mut self, query: Query) {
        // An asker that has gone away needs no answer.
        match query {
            Query::Status(reply) => drop(reply.send(crate::status::status(self))),
            Query::Loads(unit, reply) => {
                drop(reply.send(self.units.get(&unit).and_then(crate::status::loads)));
            }
            Query::RankLoads(unit, reply) => {
                drop(reply.send(self.units.get(&unit).and_then(crate::status::rank_loads)));
            }
            Query::Order(admin, reply) => {
                self.asked += 1;
                let ticket = Ticket(self.asked);
                self.askers.insert(ticket, reply);
                self.step(reign::Event::Admin(Admin { ticket, ..*admin }));
            }
            Query::Stop(_) => unreachable!("handled by the loop itself"),
        }
    }

    /// Where experts of a unit's nodes can be fetched.
    fn address_of(&self, unit: &UnitId, node: &NodeId) -> Option<String> {
        let stream = self.reign.units().get(unit)?.present().get(node)?;
        self.links.get(stream).map(|link: &Link| link.transfer_address.clone())
    }

    /// Where a node's experts can be fetched.
    pub(crate) fn transfer_address(&self, stream: StreamId) -> Option<&str> {
        self.links.get(&stream).map(|link| link.transfer_address.as_str())
    }
}

fn settings(config: &Config) -> Settings {
    let control = &config.control;
    let limits = Limits {
        prepare_ms: control.prepare_timeout_ms,
        commit_ms: control.commit_timeout_ms,
        ..Limits::default()
    };
    Settings {
        limits,
        streams_max: control.agents_max as usize,
        ping_ms: control.ping_interval_ms.into(),
        // Three pings, as the agents' own limit has it.
        suspect_ms: 3 * u64::from(control.ping_interval_ms),
        silence_ms: control.silence_limit_ms.into(),
    }
}

/// What the machine makes of an error of the store; the error itself is logged where the call was made.
fn trouble(error: &StoreError) -> reign::Trouble {
    match error {
        StoreError::Unknown { .. } => reign::Trouble::Unknown,
        StoreError::Full { .. } => reign::Trouble::Full,
        _ => reign::Trouble::Away,
    }
}
