//! What a router decides about requests whose prompt has run: where they join, and which move later.

use super::{Decision, REFUSED_NEVER_FITS, RequestId, Router, RoutingEvent};
use crate::decode::{Admission, MigrationPolicy, RankLoad, plan_migrations};
use crate::ids::Rank;
use crate::units::Tokens;
use std::collections::HashMap;

impl Router {
    /// Whether an empty rank has room for the KV.
    pub(super) fn fits_a_rank(&self, kv: Tokens) -> bool {
        self.policy.kv_capacity_tokens.is_none_or(|capacity| kv.0 <= capacity)
    }

    pub(super) fn refuse_unfit(&mut self, request: RequestId, kv: Tokens) -> Decision {
        let capacity = self.policy.kv_capacity_tokens.unwrap_or(0);
        let message = format!(
            "prompt_tokens is {}: a rank has room for {capacity} (kv_capacity_tokens); send the request to another unit",
            kv.0
        );
        self.refuse(request, REFUSED_NEVER_FITS, message)
    }

    /// Moves first, then the batch's arrivals: after all its other events, for a later one may say that a rank
    /// is down. `before`: requests that had arrived before the batch.
    pub(super) fn decide_decode(
        &mut self,
        events: &[RoutingEvent],
        before: u64,
        decisions: &mut Vec<Decision>,
    ) {
        if self.policy.migrations_per_step > 0
            && events.iter().any(|event| matches!(event, RoutingEvent::Steps { .. }))
        {
            self.migrate(decisions);
        }
        match self.policy.kv_capacity_tokens {
            None => self.admit_all(decisions),
            Some(capacity) => {
                self.admit_waiting(capacity, decisions);
                self.admit_fitting(capacity, events, before, decisions);
            }
        }
    }

    fn migrate(&mut self, decisions: &mut Vec<Decision>) {
        let policy =
            MigrationPolicy { per_step: self.policy.migrations_per_step, ..MigrationPolicy::default() };
        for moved in plan_migrations(&self.ledger, &policy) {
            let (from, to) = (Rank(moved.from as u16), Rank(moved.to as u16));
            let number = self.ledger.migrate(moved.id, to);
            self.counters.migrated += 1;
            decisions.push(Decision::Migrate { request: moved.id, number, from, to });
        }
    }

    fn admission(&self, loads: impl Iterator<Item = RankLoad>) -> Admission {
        if self.policy.migrations_per_step > 0 {
            Admission::before_migrations(loads)
        } else {
            Admission::new(loads)
        }
    }

    fn admit_all(&mut self, decisions: &mut Vec<Decision>) {
        let held: Vec<RequestId> = self.ledger.held_requests().collect();
        if held.is_empty() {
            return;
        }
        let kv: Vec<u64> = held.iter().map(|&request| self.ledger.rest(request).remaining).collect();
        let places = self.admission(self.ledger.loads()).admit_all(&kv);
        decisions.reserve(held.len());
        for (request, place) in held.into_iter().zip(places) {
            let index = place.expect("requests are held if a rank is up");
            decisions.push(self.join(request, Rank(index as u16)));
        }
    }

    fn join(&mut self, request: RequestId, rank: Rank) -> Decision {
        // The KV comes from a prefill unit: the rank has no prompt tokens to run.
        let number = self.ledger.dispatch(request, rank, 0, Some(0), 0);
        self.counters.dispatched += 1;
        Decision::Dispatch { request, number, rank, microbatch: 0, tokens: None }
    }

    /// Those that found no room before, in their order. The first that still finds none holds up the others: else
    /// a large one would wait for ever.
    fn admit_waiting(&mut self, capacity: u64, decisions: &mut Vec<Decision>) {
        while let Some(request) = self.holding.first() {
            let Some(rank) = self.place(request, capacity) else {
                return;
            };
            self.holding.serve(request);
            decisions.push(self.join(request, rank));
        }
    }

    /// The batch's arrivals that are still there.
    fn admit_fitting(
        &mut self,
        capacity: u64,
        events: &[RoutingEvent],
        before: u64,
        decisions: &mut Vec<Decision>,
    ) {
        let fresh: Vec<RequestId> = self.ledger.held_since(before).collect();
        if fresh.is_empty() {
            return;
        }
        let last_arrivals = last_arrivals(events);
        for request in fresh {
            // Nobody overtakes those that wait.
            let room = if self.holding.is_empty() { self.place(request, capacity) } else { None };
            if let Some(rank) = room {
                decisions.push(self.join(request, rank));
                continue;
            }
            let kv = self.ledger.rest(request).remaining;
            let refusal = self.holding.push(last_arrivals[&request], kv);
            self.turn_away(refusal, decisions);
        }
        decisions.extend(self.ledger.held_since(before).map(|request| Decision::Hold { request }));
    }

    /// The rank that a request joins, of those that have room for its KV.
    fn place(&self, request: RequestId, capacity: u64) -> Option<Rank> {
        let kv = self.ledger.rest(request).remaining;
        let room = |load: RankLoad| RankLoad { up: load.up && load.kv_tokens + kv <= capacity, ..load };
        self.admission(self.ledger.loads().map(room)).admit(kv).map(|index| Rank(index as u16))
    }
}

/// Each request's last arrival in the batch: earlier ones have ended in it.
fn last_arrivals(events: &[RoutingEvent]) -> HashMap<RequestId, &RoutingEvent> {
    let arrival = |event| match event {
        &RoutingEvent::Arrive { request, .. } => Some((request, event)),
        _ => None,
    };
    events.iter().filter_map(arrival).collect()
}
