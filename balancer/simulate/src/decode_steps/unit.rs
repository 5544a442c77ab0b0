//! The modelled unit: who runs where. Sums by rank are kept up to date, so a step costs what changes in it.

use super::workload::{OUTPUT_TOKENS, Request};
use evenkeel_core::decode::RankLoad;
use std::collections::VecDeque;

/// Steps after which every request that runs now has ended.
const HORIZON: usize = OUTPUT_TOKENS.1 as usize + 1;
/// No rank, or no step.
const NONE: u32 = u32::MAX;

/// Where a request is.
#[derive(Debug, Clone, Copy)]
struct Place {
    rank: u32,
    /// In the rank's list.
    position: u32,
    /// KV tokens minus the unit's steps.
    kv_base: i64,
    end: u32,
    /// The step before which it last moved.
    moved: u32,
}

/// What is on one rank.
#[derive(Debug, Clone, Default)]
pub struct RankState {
    kv: u64,
    running: Vec<u32>,
    /// Given to the rank and without a slot or KV there.
    waiting: VecDeque<u32>,
    waiting_tokens: u64,
}

impl RankState {
    /// KV tokens of the requests that run.
    pub fn kv(&self) -> u64 {
        self.kv
    }

    /// The requests that run, in no order.
    pub fn running(&self) -> &[u32] {
        &self.running
    }

    /// How many wait in the engine.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// KV tokens with which these will begin.
    pub fn waiting_tokens(&self) -> u64 {
        self.waiting_tokens
    }
}

/// The unit.
pub struct Unit<'a> {
    requests: &'a [Request],
    slots: usize,
    kv_capacity: u64,
    ranks: Vec<RankState>,
    places: Vec<Place>,
    /// What ends after a step, by the step modulo the horizon.
    ends: Vec<Vec<u32>>,
    step: u32,
}

impl<'a> Unit<'a> {
    pub(super) fn new(requests: &'a [Request], ranks: usize, slots: u32, kv_capacity: u64) -> Self {
        let nowhere = Place { rank: NONE, position: 0, kv_base: 0, end: NONE, moved: NONE };
        Self {
            requests,
            slots: slots as usize,
            kv_capacity,
            ranks: vec![RankState::default(); ranks],
            places: vec![nowhere; requests.len()],
            ends: vec![Vec::new(); HORIZON],
            step: 0,
        }
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.ranks.len()
    }

    /// What is on a rank.
    pub fn rank(&self, rank: usize) -> &RankState {
        &self.ranks[rank]
    }

    /// What a ledger has of a rank: all that was given to it, whether it waits or runs.
    pub fn load(&self, rank: usize) -> RankLoad {
        let rank = &self.ranks[rank];
        let requests = (rank.running.len() + rank.waiting.len()) as u64;
        RankLoad { kv_tokens: rank.kv + rank.waiting_tokens, requests, up: true }
    }

    /// KV tokens that fit on a rank.
    pub fn kv_capacity(&self) -> u64 {
        self.kv_capacity
    }

    /// Steps run.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// The request, as it arrived.
    pub fn request(&self, request: u32) -> Request {
        self.requests[request as usize]
    }

    /// KV tokens of a request that runs.
    pub fn kv_of(&self, request: u32) -> u64 {
        (self.places[request as usize].kv_base + i64::from(self.step)) as u64
    }

    /// Steps since the request moved; `None` if it never did.
    pub fn since_move(&self, request: u32) -> Option<u32> {
        let moved = self.places[request as usize].moved;
        (moved != NONE).then(|| self.step - moved)
    }

    /// The rank of a request that was given to one.
    pub fn rank_of(&self, request: u32) -> usize {
        self.places[request as usize].rank as usize
    }

    /// What will end after the step, which must lie within the longest output from now: what no policy knows.
    pub fn ends_after(&self, step: u32) -> &[u32] {
        &self.ends[step as usize % HORIZON]
    }

    /// The engine of `rank` takes a request: it runs (`true`), or waits for room.
    pub(super) fn give(&mut self, request: u32, rank: usize) -> bool {
        assert_eq!(self.places[request as usize].rank, NONE, "request {request} is dispatched once");
        self.places[request as usize].rank = rank as u32;
        let kv_at_start = self.requests[request as usize].kv_at_start();
        if self.ranks[rank].waiting.is_empty() && self.fits(rank, request) {
            self.start(request, rank);
            return true;
        }
        self.ranks[rank].waiting.push_back(request);
        self.ranks[rank].waiting_tokens += kv_at_start;
        false
    }

    fn fits(&self, rank: usize, request: u32) -> bool {
        let kv_at_start = self.requests[request as usize].kv_at_start();
        let RankState { kv, running, .. } = &self.ranks[rank];
        running.len() < self.slots && kv + kv_at_start <= self.kv_capacity
    }

    fn start(&mut self, request: u32, rank: usize) {
        let Request { output, age, .. } = self.requests[request as usize];
        let kv = self.requests[request as usize].kv_at_start();
        let end = self.step + (output - age);
        let place = &mut self.places[request as usize];
        place.position = self.ranks[rank].running.len() as u32;
        (place.kv_base, place.end) = (kv as i64 - i64::from(self.step), end);
        self.ranks[rank].kv += kv;
        self.ranks[rank].running.push(request);
        self.ends[end as usize % HORIZON].push(request);
    }

    /// Lets those that wait run where there is room now, first come first served; a request that alone exceeds an empty rank
    /// runs all the same.
    pub(super) fn start_waiting(&mut self, started: &mut Vec<(u32, usize)>) {
        for rank in 0..self.ranks.len() {
            while let Some(&request) = self.ranks[rank].waiting.front() {
                if !self.fits(rank, request) && !self.ranks[rank].running.is_empty() {
                    break;
                }
                let kv_at_start = self.requests[request as usize].kv_at_start();
                self.ranks[rank].waiting.pop_front();
                self.ranks[rank].waiting_tokens -= kv_at_start;
                self.start(request, rank);
                started.push((request, rank));
            }
        }
    }

    /// A running request goes on elsewhere; returns its KV tokens.
    pub(super) fn migrate(&mut self, request: u32, from: usize, to: usize) -> u64 {
        assert_eq!(self.rank_of(request), from, "request {request} runs on rank {from}");
        let kv = self.kv_of(request);
        self.leave(request, kv);
        let step = self.step;
        let place = &mut self.places[request as usize];
        (place.rank, place.position, place.moved) = (to as u32, self.ranks[to].running.len() as u32, step);
        self.ranks[to].kv += kv;
        self.ranks[to].running.push(request);
        kv
    }

    fn leave(&mut self, request: u32, kv: u64) {
        let Place { rank, position, .. } = self.places[request as usize];
        let rank = &mut self.ranks[rank as usize];
        rank.kv -= kv;
        rank.running.swap_remove(position as usize);
        if let Some(&moved) = rank.running.get(position as usize) {
            self.places[moved as usize].position = position;
        }
    }

    /// Every running request generates a token; returns those that generated their last.
    pub(super) fn run(&mut self) -> Vec<u32> {
        for rank in &mut self.ranks {
            rank.kv += rank.running.len() as u64;
        }
        self.step += 1;
        let ended = std::mem::take(&mut self.ends[self.step as usize % HORIZON]);
        for &request in &ended {
            self.leave(request, self.kv_of(request));
        }
        ended
    }
}
