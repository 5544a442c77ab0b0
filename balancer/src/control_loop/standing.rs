//! Leading and standing by: what the election says, as the machine takes it.

use super::{ControlLoop, Event, recovery};
use crate::election::Standing;
use crate::records;
use crate::unit::Plans;
use evenkeel_core::ids::{Term, UnitId};
use evenkeel_core::protocol::reign::{self, Recovered, RecoveredUnit};
use evenkeel_core::topology::UnitTopology;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A standby looks for new heads this often: a window that closes before it knows its plan is lost to it, no more.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Before what a new leader has to know is read again, when the store did not answer.
const RECOVER_AGAIN: Duration = Duration::from_millis(250);
/// What nobody needs any more is deleted from the store this often.
const REPAIR_EVERY: Duration = Duration::from_secs(3600);

impl ControlLoop {
    /// Does as the election says now.
    pub(super) fn stand(&mut self) {
        let standing = self.standing.borrow().clone();
        match standing {
            Standing::Standby { .. } => {
                self.recovering = None;
                if self.reign.term().is_some() {
                    tracing::info!("this balancer stands by");
                    self.step(reign::Event::End);
                }
            }
            Standing::Leading { term, until } if self.reign.term() == Some(term) => {
                let until = self.millis(until);
                self.step(reign::Event::Extend { until });
            }
            Standing::Leading { term, .. } => self.recover(term),
            Standing::Frozen { term } if self.reign.term() == Some(term) => self.step(reign::Event::Freeze),
            Standing::Frozen { .. } => {}
        }
    }

    /// Reads what the leader of a new term has to know. Plans that a standby has read already are not read again.
    fn recover(&mut self, term: Term) {
        if self.recovering == Some(term) {
            return;
        }
        if self.reign.term().is_some() {
            self.step(reign::Event::End);
        }
        self.recovering = Some(term);
        self.read_state(term, Duration::ZERO);
    }

    fn read_state(&self, term: Term, after: Duration) {
        let (store, events, known) = (Arc::clone(&self.store), self.events.clone(), self.known_plans());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let read = recovery::read(store.as_ref(), &known);
            let (schema, state) = tokio::join!(records::check_schema(store.as_ref()), read);
            let state = schema.and(state).inspect_err(|error| {
                tracing::error!(code = error.code(), %error, "the store does not say what it holds");
            });
            let _ = events.send(Event::Recovered(term, state.ok().map(Box::new))).await;
        });
    }

    fn known_plans(&self) -> recovery::Known {
        let mut known = recovery::Known::default();
        for (id, unit) in &self.units {
            let Some(formed) = &unit.formed else { continue };
            for plan in [Some(&formed.plans.head), formed.plans.parent.as_ref()].into_iter().flatten() {
                known.insert((id.clone(), plan.epoch, plan.digest()), Arc::clone(plan));
            }
        }
        known
    }

    pub(super) fn recovered(&mut self, term: Term, state: Option<Recovered>) {
        if self.recovering != Some(term) {
            return;
        }
        let Some(state) = state else { return self.read_state(term, RECOVER_AGAIN) };
        let standing = self.standing.borrow().clone();
        let until = match standing {
            Standing::Leading { term: found, until } if found == term => self.millis(until),
            // Read while the lead was good; it begins frozen, and goes on when the store says so.
            Standing::Frozen { term: found } if found == term => self.now().at,
            _ => return self.recovering = None,
        };
        self.recovering = None;
        self.repair_at = Instant::now();
        tracing::info!(%term, units = state.units.len(), "this balancer leads");
        let units: Vec<UnitId> = state.units.iter().map(|unit| unit.unit.clone()).collect();
        self.step(reign::Event::Begin { term, until, state });
        for unit in units {
            self.take_up(&unit);
        }
    }

    /// The store's errands: a standby's look for new heads, a leader's tidying up.
    pub(super) fn look_after_store(&mut self) {
        let now = Instant::now();
        let Some(term) = self.reign.term() else {
            if self.recovering.is_none() && !self.refreshing && now >= self.refresh_at {
                self.refreshing = true;
                let (store, events, known) =
                    (Arc::clone(&self.store), self.events.clone(), self.known_plans());
                tokio::spawn(async move {
                    // A store that is away is the election's alarm.
                    let state = recovery::read(store.as_ref(), &known).await.ok();
                    let _ = events.send(Event::Refreshed(state.map(Box::new))).await;
                });
            }
            return;
        };
        if now >= self.repair_at && !self.reign.is_frozen(self.millis(now)) {
            self.repair_at = now + REPAIR_EVERY;
            let (store, unix_ms) = (Arc::clone(&self.store), self.now().unix_ms);
            tokio::spawn(async move {
                if let Err(error) = records::mark_schema(store.as_ref(), term).await {
                    tracing::warn!(code = error.code(), %error, "the store was not marked");
                }
                match records::repair::run(store.as_ref(), term, unix_ms).await {
                    Ok(0) => {}
                    Ok(deleted) => tracing::info!(deleted, "the store was tidied up"),
                    Err(error) => tracing::warn!(code = error.code(), %error, "the store was not tidied up"),
                }
            });
        }
    }

    /// A standby knows the heads now, so that it can read reports.
    pub(super) fn refreshed(&mut self, state: Option<Recovered>) {
        self.refreshing = false;
        self.refresh_at = Instant::now() + REFRESH_EVERY;
        if self.reign.term().is_some() {
            return;
        }
        let history = self.config.experts.history();
        for RecoveredUnit { unit: id, record, head, parent, .. } in state.into_iter().flat_map(|s| s.units) {
            let claims: BTreeMap<_, _> = record.nodes;
            let topology = UnitTopology::new(id.clone(), record.shape, &claims);
            let topology = Arc::new(topology.expect("checked when it was read"));
            self.routers.form(&id, topology.shape());
            self.unit(&id).take_up(&topology, Plans::new(head.plan, parent), history);
        }
    }

    /// Address of the leader, for people.
    pub(super) fn leader_address(&self) -> String {
        match &*self.standing.borrow() {
            Standing::Standby { leader: Some(leader) } => leader.address.clone(),
            _ => String::new(),
        }
    }
}
