//! A decode unit: ranks in lockstep, a barrier each step. Modelled.

use crate::cost::DecodeCost;
use crate::policy::{Batch, EngineModel, SimulationError};
use crate::replicate::Arrival;
use evenkeel_core::routing::{Decision, RequestId, RoutingEvent};
use evenkeel_core::units::{Millis, Tokens};
use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;

/// A decode unit and how long it is watched.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeUnit {
    /// Ranks.
    pub ranks: u16,
    /// Step time.
    pub cost: DecodeCost,
    /// `None`: requests arrive by the unit's own clock, so that under slower steps more of them run at once
    /// (as in a deployment, and without bound: KV capacity is not modelled). `Some(ms)`: each step lets as many
    /// arrive as a step of this length would, so that every policy has the same requests in each step.
    pub arrivals_per_step_ms: Option<f64>,
    /// Steps that begin before this time of the trace are not measured: the unit starts empty.
    pub warm_up_ms: u64,
    /// Virtual end, ms of the trace.
    pub end_ms: u64,
}

/// Means over the measured steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DecodeFigures {
    /// Steps measured.
    pub steps: u64,
    /// Requests running on a rank.
    pub requests_per_rank: f64,
    /// KV tokens of a rank.
    pub kv_per_rank: f64,
    /// Max over mean of the ranks' KV tokens.
    pub kv_imbalance: f64,
    /// Max over mean of the ranks' requests.
    pub requests_imbalance: f64,
    /// Modelled step time, ms.
    pub step_ms: f64,
    /// The same with means in place of maxima, ms.
    pub ideal_step_ms: f64,
}

#[derive(Default)]
struct Sums {
    steps: u64,
    requests: f64,
    kv: f64,
    kv_imbalance: f64,
    requests_imbalance: f64,
    step_ms: f64,
    ideal_ms: f64,
}

/// The model. Requests join at the end of the step in which they arrive with their prompt's KV (the
/// hand-off from prefill takes no time here), gain a token a step and leave after their last.
pub struct DecodeEngine<A: Iterator<Item = Arrival>> {
    unit: DecodeUnit,
    arrivals: Peekable<A>,
    clock_ms: f64,
    /// How far the arrivals have come, ms of the trace.
    arrived_ms: f64,
    step: u64,
    kv: Vec<u64>,
    requests: Vec<u64>,
    running: u64,
    /// What ends after a step: (request, rank, KV tokens it frees).
    ends: BTreeMap<u64, Vec<(RequestId, usize, u64)>>,
    /// Arrived and not dispatched: (prompt tokens, output tokens).
    waiting: HashMap<RequestId, (u64, u64)>,
    refused: u64,
    sums: Sums,
}

impl<A: Iterator<Item = Arrival>> DecodeEngine<A> {
    /// An empty unit.
    pub fn new(unit: DecodeUnit, arrivals: A) -> Self {
        let ranks = usize::from(unit.ranks);
        Self {
            unit,
            arrivals: arrivals.peekable(),
            clock_ms: 0.0,
            arrived_ms: 0.0,
            step: 0,
            kv: vec![0; ranks],
            requests: vec![0; ranks],
            running: 0,
            ends: BTreeMap::new(),
            waiting: HashMap::new(),
            refused: 0,
            sums: Sums::default(),
        }
    }

    /// Virtual time, ms.
    pub fn now(&self) -> Millis {
        Millis(self.clock_ms as u64)
    }

    /// KV tokens by rank.
    pub fn kv_by_rank(&self) -> &[u64] {
        &self.kv
    }

    /// Running requests by rank.
    pub fn requests_by_rank(&self) -> &[u64] {
        &self.requests
    }

    /// Requests that the policy refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What was measured so far.
    pub fn figures(&self) -> DecodeFigures {
        let steps = self.sums.steps.max(1) as f64;
        DecodeFigures {
            steps: self.sums.steps,
            requests_per_rank: self.sums.requests / steps,
            kv_per_rank: self.sums.kv / steps,
            kv_imbalance: self.sums.kv_imbalance / steps,
            requests_imbalance: self.sums.requests_imbalance / steps,
            step_ms: self.sums.step_ms / steps,
            ideal_step_ms: self.sums.ideal_ms / steps,
        }
    }

    /// Runs one step and returns the requests that ended with it.
    fn run_step(&mut self) -> Vec<RequestId> {
        let ranks = f64::from(self.unit.ranks);
        let max = |values: &[u64]| values.iter().copied().max().unwrap_or(0) as f64;
        let kv_mean = self.kv.iter().sum::<u64>() as f64 / ranks;
        let requests_mean = self.running as f64 / ranks;
        let (kv_max, requests_max) = (max(&self.kv), max(&self.requests));
        let step_ms = self.unit.cost.step_ms(kv_max, requests_max);
        if self.arrived_ms >= self.unit.warm_up_ms as f64 {
            let sums = &mut self.sums;
            sums.steps += 1;
            sums.requests += requests_mean;
            sums.kv += kv_mean;
            sums.kv_imbalance += kv_max / kv_mean;
            sums.requests_imbalance += requests_max / requests_mean;
            sums.step_ms += step_ms;
            sums.ideal_ms += self.unit.cost.step_ms(kv_mean, requests_mean);
        }
        self.clock_ms += step_ms;
        self.arrived_ms += self.unit.arrivals_per_step_ms.unwrap_or(step_ms);
        self.step += 1;
        for (kv, requests) in self.kv.iter_mut().zip(&self.requests) {
            *kv += requests;
        }
        let ended = self.ends.remove(&self.step).unwrap_or_default();
        for &(_, rank, kv) in &ended {
            self.kv[rank] -= kv;
            self.requests[rank] -= 1;
            self.running -= 1;
        }
        ended.into_iter().map(|(request, ..)| request).collect()
    }

    fn take_arrivals(&mut self, events: &mut Vec<RoutingEvent>) {
        while let Some(arrival) = self.arrivals.next_if(|a| a.at_ms as f64 <= self.arrived_ms) {
            let request = RequestId(arrival.request);
            self.waiting.insert(request, (arrival.input_tokens, arrival.output_tokens));
            events.push(RoutingEvent::arrive(request, Tokens(arrival.input_tokens), Tokens(0)));
        }
    }
}

impl<A: Iterator<Item = Arrival>> EngineModel for DecodeEngine<A> {
    fn advance(&mut self) -> Option<Batch> {
        let mut events = Vec::new();
        if self.running > 0 {
            let ended = self.run_step();
            // The ended ones generated their last token in this step: the count comes first.
            events.push(RoutingEvent::Steps { count: 1 });
            events.extend(ended.into_iter().map(|request| RoutingEvent::Finish { request }));
        } else {
            let idle_ms = (self.arrivals.peek()?.at_ms as f64 - self.arrived_ms).max(0.0);
            self.clock_ms += idle_ms;
            self.arrived_ms += idle_ms;
        }
        if self.arrived_ms >= self.unit.end_ms as f64 {
            return None;
        }
        self.take_arrivals(&mut events);
        Some(Batch { now: self.now(), events })
    }

    fn dispatch(&mut self, decisions: &[Decision]) -> Result<(), SimulationError> {
        for decision in decisions {
            let request = decision.request();
            let fail =
                |reason| SimulationError::Decision { now: self.clock_ms as u64, request: request.0, reason };
            match decision {
                Decision::Dispatch { rank, .. } => {
                    let rank = rank.index();
                    if rank >= self.kv.len() {
                        return Err(fail("the unit has no such rank"));
                    }
                    let Some((input, output)) = self.waiting.remove(&request) else {
                        return Err(fail("the request is not waiting"));
                    };
                    self.kv[rank] += input;
                    self.requests[rank] += 1;
                    self.running += 1;
                    self.ends.entry(self.step + output).or_default().push((request, rank, input + output));
                }
                Decision::Hold { .. } => {
                    if !self.waiting.contains_key(&request) {
                        return Err(fail("the request is not waiting"));
                    }
                }
                Decision::Refuse { .. } => {
                    if self.waiting.remove(&request).is_none() {
                        return Err(fail("the request is not waiting"));
                    }
                    self.refused += 1;
                }
                Decision::Migrate { .. } | Decision::Lost { .. } => {
                    return Err(fail("the engine moves and loses no requests"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "decode_engine_tests.rs"]
mod tests;
