//! BF-IO, after the abstract of arXiv 2601.17855: at each step the waiting requests go where the gap of all ranks to the fullest is
//! least. An approximation: longest first to the rank with the fewest KV tokens, then requests leave the fullest rank for the
//! emptiest while that helps; no look-ahead.

use super::ties::{first_least, first_most};
use crate::dispatch::{Arrival, DispatchPolicy, Dispatched, RankView};
use std::cmp::Reverse;

/// The approximation.
#[derive(Debug, Clone)]
pub struct BfIo {
    slots: i64,
    inflight: Vec<i64>,
    /// `[ranks]`: KV tokens, as reported before the step.
    reported: Vec<u64>,
}

impl BfIo {
    /// Over `ranks` ranks, at least one, each with `slots` open requests as long as another has fewer; by default without bound.
    pub fn new(ranks: u16, slots: Option<u32>) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self {
            slots: slots.map_or(i64::MAX, i64::from),
            inflight: vec![0; ranks.into()],
            reported: vec![0; ranks.into()],
        }
    }

    fn place(&mut self, arrivals: &[&Arrival], load: &mut [u64]) -> Vec<usize> {
        let mut requests = self.inflight.clone();
        let mut place = |arrival: &&Arrival| {
            let rank = match arrival.pin {
                Some(rank) => rank.into(),
                None => {
                    let full = requests.iter().all(|&requests| requests >= self.slots);
                    let open = (0..load.len()).filter(|&rank| full || requests[rank] < self.slots);
                    first_least(open, |rank| load[rank])
                }
            };
            load[rank] += arrival.prompt_tokens;
            requests[rank] += 1;
            rank
        };
        arrivals.iter().map(&mut place).collect()
    }
}

/// Moves requests from the fullest rank to the emptiest, each time the one that comes closest to half of the gap.
fn improve(arrivals: &[&Arrival], rank_of: &mut [usize], load: &mut [u64]) {
    for _ in 0..2 * arrivals.len() {
        let fullest = first_most(0..load.len(), |rank| load[rank]);
        let emptiest = first_least(0..load.len(), |rank| load[rank]);
        let gap = load[fullest] - load[emptiest];
        let movable = |&at: &usize| rank_of[at] == fullest && arrivals[at].pin.is_none();
        let mut movable = (0..arrivals.len()).filter(movable).peekable();
        if movable.peek().is_none() {
            return;
        }
        let miss = |at: usize| (gap as f64 / 2.0 - arrivals[at].prompt_tokens as f64).abs();
        let best = first_least(movable, miss);
        let tokens = arrivals[best].prompt_tokens;
        if tokens >= gap {
            return;
        }
        rank_of[best] = emptiest;
        load[fullest] -= tokens;
        load[emptiest] += tokens;
    }
}

impl DispatchPolicy for BfIo {
    fn name(&self) -> &'static str {
        "BF-IO"
    }

    /// Before each step.
    fn report_interval_s(&self) -> f64 {
        0.0
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        assert_eq!(ranks.len(), self.inflight.len(), "one report per rank");
        self.reported.clear();
        self.reported.extend(ranks.iter().map(|rank| rank.used_tokens + rank.queued_tokens));
    }

    fn assign(&mut self, arrivals: &[Arrival], _now_s: f64) -> Vec<Dispatched> {
        let mut longest_first: Vec<&Arrival> = arrivals.iter().collect();
        longest_first.sort_by_key(|arrival| Reverse(arrival.prompt_tokens));
        let mut load = self.reported.clone();
        let mut rank_of = self.place(&longest_first, &mut load);
        improve(&longest_first, &mut rank_of, &mut load);
        let dispatched = |(arrival, rank): (&Arrival, usize)| {
            self.inflight[rank] += 1;
            Dispatched { id: arrival.id, rank: rank as u16 }
        };
        longest_first.into_iter().zip(rank_of).map(dispatched).collect()
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, _id: u64, rank: u16) {
        self.inflight[usize::from(rank)] -= 1;
    }
}
