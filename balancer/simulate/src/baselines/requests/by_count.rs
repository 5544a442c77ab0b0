//! Round robin and least requests, as request routers in front of EP ranks do them.

use crate::policy::RequestPolicy;
use evenkeel_core::ids::Rank;
use evenkeel_core::routing::{Decision, DispatchNumber, RequestId, RoutingEvent};
use evenkeel_core::units::Millis;
use std::collections::HashMap;
use std::convert::Infallible;

/// Baselines hear no reports, so their dispatches need no numbers.
fn dispatch(request: RequestId, rank: u16) -> Decision {
    Decision::Dispatch { request, number: DispatchNumber(0), rank: Rank(rank), microbatch: 0, tokens: None }
}

/// One rank after the other, whatever they have.
#[derive(Debug, Clone)]
pub struct RoundRobin {
    ranks: u16,
    next: u16,
}

impl RoundRobin {
    /// Over `ranks` ranks, at least one.
    pub fn new(ranks: u16) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self { ranks, next: 0 }
    }
}

impl RequestPolicy for RoundRobin {
    type Error = Infallible;

    fn decide(&mut self, _now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, Infallible> {
        let mut decisions = Vec::new();
        for event in events {
            if let RoutingEvent::Arrive { request, .. } = *event {
                decisions.push(dispatch(request, self.next));
                self.next = (self.next + 1) % self.ranks;
            }
        }
        Ok(decisions)
    }
}

/// The rank with fewest live requests; ties go to the lowest rank. Its counts are exact and fresh at every
/// step, which is more than a router with polled load reports has.
#[derive(Debug, Clone)]
pub struct LeastRequests {
    counts: Vec<u32>,
    rank_of: HashMap<RequestId, u16>,
}

impl LeastRequests {
    /// Over `ranks` ranks, at least one.
    pub fn new(ranks: u16) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self { counts: vec![0; ranks.into()], rank_of: HashMap::new() }
    }
}

impl RequestPolicy for LeastRequests {
    type Error = Infallible;

    fn decide(&mut self, _now: Millis, events: &[RoutingEvent]) -> Result<Vec<Decision>, Infallible> {
        let mut decisions = Vec::new();
        for event in events {
            match *event {
                RoutingEvent::Arrive { request, .. } => {
                    let (rank, count) =
                        (0u16..).zip(&mut self.counts).min_by_key(|(_, count)| **count).expect("ranks");
                    *count += 1;
                    self.rank_of.insert(request, rank);
                    decisions.push(dispatch(request, rank));
                }
                RoutingEvent::Finish { request } => {
                    if let Some(rank) = self.rank_of.remove(&request) {
                        self.counts[usize::from(rank)] -= 1;
                    }
                }
                _ => {}
            }
        }
        Ok(decisions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::units::Tokens;

    /// `+3` arrives as request 3, `-3` finishes it; the ranks that the arrivals got are compared.
    #[track_caller]
    fn check(mut policy: impl RequestPolicy, events: &[i64], expected: &[u16]) {
        let event = |&e: &i64| match RequestId(e.unsigned_abs()) {
            request if e > 0 => RoutingEvent::arrive(request, Tokens(9), Tokens(0)),
            request => RoutingEvent::Finish { request },
        };
        let events: Vec<RoutingEvent> = events.iter().map(event).collect();
        let Ok(decisions) = policy.decide(Millis(0), &events) else { panic!("baselines always decide") };
        let rank = |d: &Decision| match d {
            Decision::Dispatch { rank, .. } => rank.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(decisions.iter().map(rank).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn round_robin_takes_turns() {
        check(RoundRobin::new(3), &[1, 2, -1, 3, 4], &[0, 1, 2, 0]);
        check(RoundRobin::new(1), &[1, 2], &[0, 0]);
    }

    #[test]
    fn least_requests_fills_the_emptiest() {
        check(LeastRequests::new(3), &[1, 2, 3, -2, 4, 5], &[0, 1, 2, 1, 0]);
        check(LeastRequests::new(2), &[1, -9, 2, -1, 3], &[0, 1, 0]);
    }
}
