//! Evenkeel's router at a unit: the same events and decisions as on the wire, with reports and KV events as late as the setup says.

use super::rank_state::{RankState, UnitView};
use super::request::Request;
use super::seat::{Asking, Order, Seat, Told};
use super::setup::{Change, News};
use crate::policy::SimulationError;
use evenkeel_core::ids::Rank;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::prefix::BlockHash;
use evenkeel_core::routing::{
    Decision, DispatchNumber, Priority, RequestId, Router, RoutingError, RoutingEvent, StepReport, TenantId,
};
use evenkeel_core::topology::Role;
use evenkeel_core::units::{Millis, Tokens};
use std::collections::VecDeque;

/// The router and the news on their way to it.
pub struct RouterSeat {
    name: String,
    router: Router,
    news: News,
    next_report_us: u64,
    /// Reports on their way: when they arrive, and what they say.
    reports: VecDeque<(u64, RoutingEvent)>,
    /// By rank: the last report's number.
    report_numbers: Vec<u64>,
    /// By rank: the last KV event's number.
    kv_numbers: Vec<u64>,
}

impl RouterSeat {
    /// A router for a unit of `ranks` ranks of this role.
    pub fn new(
        name: impl Into<String>,
        (role, ranks): (Role, u16),
        policy: RoutingPolicy,
        news: &News,
    ) -> Result<Self, RoutingError> {
        Ok(Self {
            name: name.into(),
            router: Router::new(role, ranks, policy)?,
            news: news.clone(),
            next_report_us: 0,
            reports: VecDeque::new(),
            report_numbers: vec![0; ranks.into()],
            kv_numbers: vec![0; ranks.into()],
        })
    }

    fn hear(&mut self, now_us: u64, view: &mut UnitView<'_>, events: &mut Vec<RoutingEvent>) {
        while let Some((_, report)) = self.reports.pop_front_if(|(at_us, _)| *at_us <= now_us) {
            events.push(report);
        }
        while let Some(news) = view.next_change(now_us.saturating_sub(self.news.kv_event_delay_us)) {
            let number = &mut self.kv_numbers[usize::from(news.rank)];
            *number += 1;
            events.push(RoutingEvent::Kv { rank: Rank(news.rank), sequence: *number, change: news.change });
        }
    }

    fn event(&mut self, told: &Told<'_>) -> RoutingEvent {
        match *told {
            Told::Arrived(asking) => arrive(&asking),
            Told::FirstToken { id, .. } => RoutingEvent::FirstToken { request: RequestId(id) },
            Told::Finished { id, .. } => RoutingEvent::Finish { request: RequestId(id) },
            Told::Stepped => RoutingEvent::Steps { count: 1 },
            Told::Ready => RoutingEvent::Tick,
            Told::Changed { rank, change } => {
                let index = usize::from(rank);
                let rank = Rank(rank);
                match change {
                    Change::Dies => {
                        // What it sent before has no meaning any more, and it counts anew when it is back.
                        self.report_numbers[index] = 0;
                        let of_rank = |event: &RoutingEvent| matches!(event, RoutingEvent::Report { rank: r, .. } if *r == rank);
                        self.reports.retain(|(_, event)| !of_rank(event));
                        RoutingEvent::RankDown { rank }
                    }
                    Change::Drains => RoutingEvent::Drain { rank },
                    Change::Joins => RoutingEvent::RankUp { rank },
                }
            }
        }
    }
}

impl Seat for RouterSeat {
    fn name(&self) -> &str {
        &self.name
    }

    fn next_report_us(&self) -> Option<u64> {
        Some(self.next_report_us)
    }

    fn report(&mut self, now_us: u64, view: &mut UnitView<'_>, arrives: bool) {
        self.next_report_us = now_us + self.news.report_interval_us;
        for (index, state) in view.ranks.iter().enumerate().filter(|(_, state)| state.up) {
            let number = &mut self.report_numbers[index];
            *number += 1;
            if arrives {
                let event = report(Rank(index as u16), *number, state);
                self.reports.push_back((now_us + self.news.report_delay_us, event));
            }
        }
    }

    fn tell(
        &mut self,
        now_us: u64,
        told: &[Told<'_>],
        view: &mut UnitView<'_>,
    ) -> Result<Vec<Order>, SimulationError> {
        let mut events = Vec::with_capacity(told.len());
        self.hear(now_us, view, &mut events);
        for told in told {
            let event = self.event(told);
            events.push(event);
        }
        let now = Millis(now_us / 1000);
        let decisions = self.router.apply(now, &events);
        let decisions =
            decisions.map_err(|error| SimulationError::Policy { now: now.0, reason: error.to_string() })?;
        Ok(decisions.into_iter().filter_map(order).collect())
    }

    fn plans_steps(&self) -> bool {
        self.router.role() == Role::Prefill
    }

    fn held(&self) -> usize {
        self.router.held()
    }
}

fn arrive(asking: &Asking<'_>) -> RoutingEvent {
    let Request { prompt_tokens, ref blocks, tenant, .. } = *asking.request;
    RoutingEvent::Arrive {
        request: RequestId(asking.id),
        prompt_tokens: Tokens(prompt_tokens),
        cached_tokens: Tokens(asking.shared_cached),
        tenant: TenantId(tenant),
        priority: Priority::Interactive,
        blocks: blocks.iter().copied().map(BlockHash).collect(),
        expected_output: None,
    }
}

fn report(rank: Rank, sequence: u64, state: &RankState) -> RoutingEvent {
    let step = state.last_step.map(|step| StepReport {
        tokens: Tokens(step.tokens),
        pairs: step.pairs,
        requests: step.requests,
        kv_tokens: Tokens(step.kv_tokens),
        micros: step.own_us.round() as u64,
    });
    RoutingEvent::Report {
        rank,
        sequence,
        as_of: state.last_dispatch.map(DispatchNumber),
        kv_used_tokens: Tokens(state.used_tokens + state.queued_tokens),
        requests: state.running + state.waiting,
        step,
    }
}

fn order(decision: Decision) -> Option<Order> {
    match decision {
        Decision::Dispatch { request, number, rank, tokens, .. } => Some(Order::Dispatch {
            id: request.0,
            rank: rank.0,
            number: number.0,
            tokens: tokens.map(|Tokens(tokens)| tokens),
        }),
        Decision::Migrate { request, from, to, .. } => {
            Some(Order::Move { id: request.0, from: from.0, to: to.0 })
        }
        Decision::Refuse { request, .. } => Some(Order::Refuse { id: request.0 }),
        // What is lost with its rank the simulation knows already.
        Decision::Hold { .. } | Decision::Lost { .. } => None,
    }
}
