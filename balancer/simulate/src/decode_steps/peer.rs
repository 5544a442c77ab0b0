//! A dispatch policy of someone else, told no more and no earlier than it would be.

use super::unit::RankState;
use super::{Request, StepPolicy, Unit};
use crate::dispatch::{Arrival, DispatchPolicy, RankView};
use std::sync::Arc;

/// Seats a dispatch policy.
pub struct Peer<'a> {
    policy: Box<dyn DispatchPolicy>,
    requests: &'a [Request],
    /// The engines' views when it was last told, and the time from which it is told again.
    views: Vec<RankView>,
    next_report_s: f64,
    blocks: Arc<[u64]>,
    last_s: f64,
}

impl<'a> Peer<'a> {
    /// The policy for these requests.
    pub fn new(policy: Box<dyn DispatchPolicy>, requests: &'a [Request]) -> Self {
        let (views, blocks) = (Vec::new(), Arc::new([]));
        Self { policy, requests, views, next_report_s: 0.0, blocks, last_s: 0.0 }
    }

    /// Reports come at multiples of the interval, each with the state at the first step boundary from then on.
    fn report(&mut self, unit: &Unit<'_>, now_s: f64) {
        let step_s = now_s - self.last_s;
        self.last_s = now_s;
        if now_s < self.next_report_s {
            return;
        }
        let interval = self.policy.report_interval_s();
        if interval > 0.0 {
            self.next_report_s = ((now_s / interval).floor() + 1.0) * interval;
        }
        let view = |rank: &RankState| RankView {
            running: rank.running().len() as u32,
            waiting: rank.waiting() as u32,
            used_tokens: rank.kv(),
            queued_tokens: rank.waiting_tokens(),
            capacity_tokens: unit.kv_capacity(),
            generated_per_s: if step_s > 0.0 { rank.running().len() as f64 / step_s } else { 0.0 },
            ..RankView::default()
        };
        self.views.clear();
        self.views.extend((0..unit.ranks()).map(|rank| view(unit.rank(rank))));
        self.policy.on_reports(&self.views);
    }
}

impl StepPolicy for Peer<'_> {
    fn place(&mut self, unit: &Unit<'_>, arrived: &[u32], now_s: f64) -> Vec<(u32, usize)> {
        self.report(unit, now_s);
        let arrival = |&request: &u32| Arrival {
            id: request.into(),
            prompt_tokens: self.requests[request as usize].prompt.into(),
            blocks: self.blocks.clone(),
            room: None,
            pin: None,
            turn: 0,
        };
        let arrivals: Vec<Arrival> = arrived.iter().map(arrival).collect();
        let dispatched = self.policy.assign(&arrivals, now_s);
        dispatched.into_iter().map(|d| (d.id as u32, d.rank.into())).collect()
    }

    fn first_token(&mut self, request: u32, rank: usize) {
        self.policy.on_first_token(request.into(), rank as u16);
    }

    fn finish(&mut self, request: u32, rank: usize) {
        self.policy.on_finish(request.into(), rank as u16);
    }
}
