//! A peer's policy at a unit. It hears from the ranks at its own interval and sees their caches as of then; in between it sees what
//! it did itself, first tokens and ends. A policy without an interval runs inside the engine: it decides before each step, on all that
//! arrived since the last, with fresh reports, and its orders take no time.

use super::rank_state::{RankState, UnitView};
use super::seat::{Asking, Order, Seat, Told};
use super::setup::News;
use crate::dispatch::{Arrival, CachedBlocks, DispatchPolicy, RankView};
use crate::policy::SimulationError;
use evenkeel_core::prefix::KvChange;

/// A dispatch policy and what it may know.
pub struct PeerSeat {
    policy: Box<dyn DispatchPolicy>,
    interval_us: u64,
    next_report_us: u64,
    kv_event_delay_us: u64,
    /// Prefix blocks by rank, as the KV events told until the last report.
    cached: Vec<CachedBlocks>,
    /// Not yet put before the policy.
    waiting: Vec<Arrival>,
    /// Put before the policy and not dispatched.
    held: usize,
}

impl PeerSeat {
    /// The policy's seat at a unit of `ranks` ranks.
    pub fn new(policy: Box<dyn DispatchPolicy>, ranks: u16, news: &News) -> Self {
        Self {
            interval_us: (policy.report_interval_s() * 1e6).round() as u64,
            policy,
            next_report_us: 0,
            kv_event_delay_us: news.kv_event_delay_us,
            cached: vec![CachedBlocks::default(); ranks.into()],
            waiting: Vec::new(),
            held: 0,
        }
    }

    /// Hears from the ranks at this interval instead of its own; not 0.
    #[must_use]
    pub fn hearing_every(mut self, interval_us: u64) -> Self {
        self.interval_us = interval_us.max(1);
        self
    }

    fn hear(&mut self, now_us: u64, view: &mut UnitView<'_>) {
        while let Some(news) = view.next_change(now_us.saturating_sub(self.kv_event_delay_us)) {
            let cached = &mut self.cached[usize::from(news.rank)];
            match news.change {
                KvChange::Stored { blocks, .. } => blocks.iter().for_each(|block| cached.insert(block.0)),
                KvChange::Removed { blocks } => blocks.iter().for_each(|block| cached.remove(block.0)),
                KvChange::Cleared => *cached = CachedBlocks::default(),
            }
        }
        let views: Vec<RankView> =
            view.ranks.iter().zip(&self.cached).map(|(state, cached)| rank_view(state, cached)).collect();
        self.policy.on_reports(&views);
    }

    fn assign(&mut self, now_us: u64) -> Vec<Order> {
        let arrivals = std::mem::take(&mut self.waiting);
        let dispatched = self.policy.assign(&arrivals, now_us as f64 / 1e6);
        self.held = (self.held + arrivals.len()).saturating_sub(dispatched.len());
        let order = |d: &crate::dispatch::Dispatched| Order::Dispatch {
            id: d.id,
            rank: d.rank,
            number: 0,
            tokens: None,
        };
        dispatched.iter().map(order).collect()
    }
}

impl Seat for PeerSeat {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn next_report_us(&self) -> Option<u64> {
        (self.interval_us > 0).then_some(self.next_report_us)
    }

    fn report(&mut self, now_us: u64, view: &mut UnitView<'_>, arrives: bool) {
        self.next_report_us = now_us + self.interval_us;
        if arrives {
            self.hear(now_us, view);
        }
    }

    fn tell(
        &mut self,
        now_us: u64,
        told: &[Told<'_>],
        view: &mut UnitView<'_>,
    ) -> Result<Vec<Order>, SimulationError> {
        let mut ready = self.interval_us > 0;
        for told in told {
            match *told {
                Told::Arrived(asking) => self.waiting.push(arrival(&asking)),
                Told::FirstToken { id, rank } => self.policy.on_first_token(id, rank),
                Told::Finished { id, rank } => self.policy.on_finish(id, rank),
                Told::Ready => ready = true,
                Told::Stepped | Told::Changed { .. } => {}
            }
        }
        if !ready || (self.waiting.is_empty() && self.held == 0) {
            return Ok(Vec::new());
        }
        if self.interval_us == 0 {
            self.hear(now_us, view);
        }
        Ok(self.assign(now_us))
    }

    fn inside_engine(&self) -> bool {
        self.interval_us == 0
    }

    fn held(&self) -> usize {
        self.held + self.waiting.len()
    }
}

fn arrival(asking: &Asking<'_>) -> Arrival {
    Arrival {
        id: asking.id,
        prompt_tokens: asking.request.prompt_tokens,
        blocks: asking.request.blocks.clone(),
        room: Some(asking.room),
        pin: None,
        turn: asking.request.turn,
    }
}

fn rank_view(state: &RankState, cached: &CachedBlocks) -> RankView {
    RankView {
        running: state.running,
        waiting: state.waiting,
        used_tokens: state.used_tokens,
        queued_tokens: state.queued_tokens,
        waiting_uncached: state.waiting_uncached,
        capacity_tokens: state.capacity_tokens.max(1),
        generated_per_s: state.generated_per_s,
        cached: cached.clone(),
    }
}
