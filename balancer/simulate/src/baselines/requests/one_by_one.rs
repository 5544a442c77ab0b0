//! Peers that decide on one request after the other, and the seat that they share.

use crate::dispatch::{Arrival, DispatchPolicy, Dispatched, RankView};

/// A rule that picks a rank for one request. It keeps its own books of what it sent.
pub trait Rule {
    /// As tables show it.
    const NAME: &'static str;

    /// How old its view of the engines may be, in seconds.
    const REPORT_INTERVAL_S: f64;

    /// The engines' reports, one per rank.
    fn on_reports(&mut self, _ranks: &[RankView]) {}

    /// The rank for the request. `inflight` are the open requests of each rank, all that were sent there and did not finish.
    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize;

    /// A request's first token came out.
    fn on_first_token(&mut self, _id: u64, _rank: usize) {}

    /// A request ended.
    fn on_finish(&mut self, _id: u64, _rank: usize) {}
}

/// A rule in its seat. A forced rank is obeyed and counted, but the rule does not hear of it.
#[derive(Debug, Clone)]
pub struct OneByOne<R> {
    rule: R,
    inflight: Vec<i64>,
}

impl<R: Rule> OneByOne<R> {
    /// Over `ranks` ranks, at least one.
    pub fn new(ranks: u16, rule: R) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self { rule, inflight: vec![0; ranks.into()] }
    }
}

impl<R: Rule> DispatchPolicy for OneByOne<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn report_interval_s(&self) -> f64 {
        R::REPORT_INTERVAL_S
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        assert_eq!(ranks.len(), self.inflight.len(), "one report per rank");
        self.rule.on_reports(ranks);
    }

    fn assign(&mut self, arrivals: &[Arrival], _now_s: f64) -> Vec<Dispatched> {
        let mut dispatch = |arrival: &Arrival| {
            let rank = match arrival.pin {
                Some(rank) => rank.into(),
                None => self.rule.pick(arrival, &self.inflight),
            };
            self.inflight[rank] += 1;
            Dispatched { id: arrival.id, rank: rank as u16 }
        };
        arrivals.iter().map(&mut dispatch).collect()
    }

    fn on_first_token(&mut self, id: u64, rank: u16) {
        self.rule.on_first_token(id, rank.into());
    }

    fn on_finish(&mut self, id: u64, rank: u16) {
        self.inflight[usize::from(rank)] -= 1;
        self.rule.on_finish(id, rank.into());
    }
}
