//! The event loop.

use super::SetupError;
use super::decode::DecodeUnit;
use super::figures::{Course, Fate, Figures, Meter, of_courses};
use super::front::{DecodeFront, PrefillFront, mix};
use super::prefill::{PrefillUnit, PromptDone};
use super::request::Request;
use super::schedule::{Event, Schedule};
use super::seat::{Asking, Order, Seat, Told};
use super::setup::{Change, Kind, Setup};
use super::shared_cache::SharedCache;
use super::step_time::StepTime;
use super::unit::{Engine, Unit};
use crate::dispatch::BLOCK_TOKENS;
use crate::policy::SimulationError;
use evenkeel_core::routing::PROMPT_TOKENS_MAX;

/// How far a simulation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Virtual time.
    pub now_us: u64,
    /// When no more requests arrive.
    pub end_us: u64,
    /// Requests that are there.
    pub open: u64,
}

/// Virtual time between two calls of the progress callback.
const PROGRESS_US: u64 = 1_000_000;

/// How much faster prefill is while caches fill, steps and the orders between them alike: so much that even sessions of 100k tokens,
/// which a rank prefills one a minute, are all there after a minute.
const FILL_SPEED: u64 = 50;

/// How long something of prefill takes that begins now and would take `us` after the fill. What is not done when the fill ends goes on
/// at its own pace: else whoever has the longest steps would get most for nothing.
fn prefill_us(setup: &Setup, now_us: u64, us: u64) -> u64 {
    let faster = us.min(setup.fill_us.saturating_sub(now_us) * FILL_SPEED);
    faster / FILL_SPEED + us - faster
}

/// Simulates `requests`, in the order of time, on the units of `setup`. `seat` makes the policy of a unit: its kind, its number
/// among these, its ranks. `progress` is called about once a virtual second.
pub fn simulate<'a>(
    setup: &'a Setup,
    requests: &'a [Request],
    time: &'a dyn StepTime,
    seat: &mut dyn FnMut(Kind, u16, u16) -> Box<dyn Seat + 'a>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Figures, super::RunError> {
    setup.validate()?;
    check_requests(requests)?;
    let mut run = Run::new(setup, requests, time, seat);
    run.play(progress)?;
    Ok(run.figures())
}

fn check_requests(requests: &[Request]) -> Result<(), SetupError> {
    let mut last_us = 0;
    for (index, request) in requests.iter().enumerate() {
        let name = index as u64 + 1;
        if request.at_us < last_us {
            return Err(SetupError::Unsorted { request: name, at_us: request.at_us, last_us });
        }
        last_us = request.at_us;
        for (field, value, min, max) in [
            ("prompt_tokens", request.prompt_tokens, 1, PROMPT_TOKENS_MAX),
            ("output_tokens", request.output_tokens, 1, PROMPT_TOKENS_MAX),
            ("blocks", request.blocks.len() as u64, 0, request.prompt_tokens / BLOCK_TOKENS),
        ] {
            if !(min..=max).contains(&value) {
                return Err(SetupError::Request { request: name, field, value, min, max });
            }
        }
    }
    Ok(())
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Standing {
    prefill: Option<usize>,
    decode: Option<usize>,
    /// Rank that runs its prompt.
    prefill_rank: u16,
    /// Rank that generates its output.
    decode_rank: u16,
    dispatched: [bool; 2],
    shared_cached: u64,
}

struct Run<'a> {
    setup: &'a Setup,
    requests: &'a [Request],
    time: &'a dyn StepTime,
    units: Vec<Unit<'a>>,
    prefill_units: usize,
    prefill_front: Option<PrefillFront>,
    decode_front: Option<DecodeFront>,
    meters: [Option<Meter>; 2],
    shared: SharedCache,
    schedule: Schedule,
    now_us: u64,
    /// Requests that have arrived are those before it.
    arrived: usize,
    open: u64,
    courses: Vec<Course>,
    standing: Vec<Standing>,
}

impl<'a> Run<'a> {
    fn new(
        setup: &'a Setup,
        requests: &'a [Request],
        time: &'a dyn StepTime,
        seat: &mut dyn FnMut(Kind, u16, u16) -> Box<dyn Seat + 'a>,
    ) -> Self {
        let (prefill, decode) = setup.pools();
        let mut units = Vec::new();
        let (mut prefill_front, mut decode_front, mut meters) = (None, None, [None, None]);
        let window = (setup.warm_up_us, setup.end_us);
        if let Some(prefill) = prefill {
            let (count, ranks) = (prefill.pool.units, prefill.pool.ranks);
            prefill_front = Some(PrefillFront::new((count, ranks), prefill.pool.kv_tokens));
            meters[0] = Some(Meter::new(window, count, ranks, true));
            units.extend((0..count).map(|index| {
                let engine = Engine::Prefill(PrefillUnit::new(prefill));
                Unit::new(Kind::Prefill, index, ranks, engine, seat(Kind::Prefill, index, ranks))
            }));
        }
        let prefill_units = units.len();
        if let Some(decode) = decode {
            let (count, ranks) = (decode.pool.units, decode.pool.ranks);
            decode_front = Some(DecodeFront::new(count));
            meters[1] = Some(Meter::new(window, count, ranks, false));
            units.extend((0..count).map(|index| {
                let engine = Engine::Decode(DecodeUnit::new(decode));
                Unit::new(Kind::Decode, index, ranks, engine, seat(Kind::Decode, index, ranks))
            }));
        }
        let mut schedule = Schedule::default();
        for (unit, place) in units.iter().enumerate() {
            if let Some(at) = place.seat.next_report_us() {
                schedule.at(at, Event::Report { unit });
            }
        }
        for (index, incident) in setup.incidents.iter().enumerate() {
            schedule.at(incident.at_us, Event::Incident { index });
        }
        let requests = &requests[..requests.partition_point(|request| request.at_us < setup.end_us)];
        Self {
            setup,
            requests,
            time,
            units,
            prefill_units,
            prefill_front,
            decode_front,
            meters,
            shared: SharedCache::new(prefill.map_or(0, |p| p.shared_cache_tokens / BLOCK_TOKENS) as usize),
            schedule,
            now_us: 0,
            arrived: 0,
            open: 0,
            courses: Vec::with_capacity(requests.len()),
            standing: Vec::with_capacity(requests.len()),
        }
    }

    fn play(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), SimulationError> {
        let stop_us = self.setup.stop_us();
        let mut next_progress_us = 0;
        while let Some(now_us) = self.next_us().filter(|&at| at <= stop_us) {
            self.now_us = now_us;
            self.at_one_time()?;
            for meter in self.meters.iter_mut().flatten() {
                meter.sample(now_us);
            }
            if now_us >= next_progress_us {
                next_progress_us = now_us + PROGRESS_US;
                progress(Progress { now_us, end_us: self.setup.end_us, open: self.open });
            }
        }
        Ok(())
    }

    /// When something happens next; `None` when all is done. Reports alone are nothing to wait for.
    fn next_us(&self) -> Option<u64> {
        let arrival = self.requests.get(self.arrived).map(|request| request.at_us);
        if arrival.is_none() && self.open == 0 {
            return None;
        }
        [arrival, self.schedule.next_us()].into_iter().flatten().min()
    }

    /// Everything that happens now, then what the policies say to it, until nothing more happens now; then steps begin.
    fn at_one_time(&mut self) -> Result<(), SimulationError> {
        loop {
            while let Some(event) = self.schedule.take(self.now_us) {
                self.handle(event)?;
            }
            while self.requests.get(self.arrived).is_some_and(|request| request.at_us <= self.now_us) {
                self.arrive();
            }
            for unit in 0..self.units.len() {
                if self.units[unit].touched {
                    self.ask(unit)?;
                }
            }
            if self.schedule.next_us() != Some(self.now_us) {
                break;
            }
        }
        for unit in 0..self.units.len() {
            self.begin_step(unit);
            if self.units[unit].touched {
                self.ask(unit)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), SimulationError> {
        match event {
            Event::Orders { unit, orders } => {
                for order in orders {
                    self.carry_out(unit, order)?;
                }
            }
            Event::StepEnd { unit } => match self.units[unit].kind {
                Kind::Prefill => self.end_prefill_step(unit),
                Kind::Decode => self.end_decode_step(unit),
            },
            Event::Report { unit } => self.report(unit),
            Event::HandedOver { id, unit, number } => self.hand_over(id, unit, number)?,
            Event::Copied { id, unit, to } => self.units[unit].decode().copied(id, to),
            Event::Incident { index } => self.incident(index),
            Event::Wake { .. } => {}
        }
        Ok(())
    }

    fn request(&self, id: u64) -> &'a Request {
        &self.requests[id as usize - 1]
    }

    fn is_open(&self, id: u64) -> bool {
        self.courses[id as usize - 1].fate == Fate::Open
    }

    fn arrive(&mut self) {
        let request = &self.requests[self.arrived];
        self.arrived += 1;
        self.open += 1;
        let id = self.arrived as u64;
        self.courses.push(Course {
            arrived_us: request.at_us,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            ..Course::default()
        });
        let shared = self.shared.matched(&request.blocks) as u64 * BLOCK_TOKENS;
        let shared_cached = shared.min(request.prompt_tokens - 1);
        self.standing.push(Standing { shared_cached, ..Standing::default() });
        self.join_unit(id, if self.prefill_units > 0 { Kind::Prefill } else { Kind::Decode });
    }

    /// Puts a request before the policy of one of the units.
    fn join_unit(&mut self, id: u64, kind: Kind) {
        let request = self.request(id);
        let standing = &mut self.standing[id as usize - 1];
        let unit = match kind {
            Kind::Prefill => {
                let front = self.prefill_front.as_mut().expect("prefill units have a front");
                *standing.prefill.insert(usize::from(front.choose(id, request)))
            }
            Kind::Decode => {
                let front = self.decode_front.as_mut().expect("decode units have a front");
                *standing.decode.insert(self.prefill_units + usize::from(front.choose(request)))
            }
        };
        let room = mix(id ^ self.setup.seed) >> 1;
        let asking = Asking { id, request, shared_cached: standing.shared_cached, room };
        self.units[unit].tell(Told::Arrived(asking));
    }

    /// Tells a policy what it has not heard yet, and sends its orders on their way.
    fn ask(&mut self, unit: usize) -> Result<(), SimulationError> {
        let now_us = self.now_us;
        let place = &mut self.units[unit];
        place.touched = false;
        let idle = place.stepping.is_none() && place.not_before_us <= now_us;
        let arrived = place.told.iter().any(|told| matches!(told, Told::Arrived(_)));
        let ready = place.told.iter().any(|told| matches!(told, Told::Ready));
        if idle && !ready && (arrived || place.seat.held() > 0) {
            place.told.push(Told::Ready);
        }
        let told = std::mem::take(&mut place.told);
        let orders = place.seat.tell(now_us, &told, &mut place.engine.view())?;
        let held = place.seat.held();
        let meter = self.meters[place.kind as usize].as_mut().expect("units of the kind have a meter");
        meter.held_max = meter.held_max.max(held);
        if orders.is_empty() {
            return Ok(());
        }
        let delay = match place.kind {
            _ if place.seat.inside_engine() => 0,
            // Who plans step by step waits for orders between two steps: at full length that would be most of a fill.
            Kind::Prefill => prefill_us(self.setup, now_us, self.setup.news.order_delay_us),
            Kind::Decode => self.setup.news.order_delay_us,
        };
        if place.seat.plans_steps() {
            place.not_before_us = now_us + delay;
            self.schedule.at(now_us + delay, Event::Wake { unit });
        }
        self.schedule.at(now_us + delay, Event::Orders { unit, orders });
        Ok(())
    }

    fn report(&mut self, unit: usize) {
        let (now_us, arrives) = (self.now_us, self.setup.news.arrives(self.now_us));
        let place = &mut self.units[unit];
        place.seat.report(now_us, &mut place.engine.view(), arrives);
        place.touched = true;
        if let Some(at) = place.seat.next_report_us() {
            self.schedule.at(at.max(now_us + 1), Event::Report { unit });
        }
    }

    fn wrong(&self, id: u64, reason: &'static str) -> SimulationError {
        SimulationError::Decision { now: self.now_us / 1000, request: id, reason }
    }

    fn carry_out(&mut self, unit: usize, order: Order) -> Result<(), SimulationError> {
        let (Order::Dispatch { id, .. } | Order::Move { id, .. } | Order::Refuse { id }) = order;
        let kind = self.units[unit].kind;
        let Some(&standing) = self.standing.get((id as usize).wrapping_sub(1)) else {
            return Err(self.wrong(id, "there is no such request"));
        };
        // It may have run whole, or be over, while the order was on its way.
        let ran = kind == Kind::Prefill && self.courses[id as usize - 1].first_token_us > 0;
        if ran || !self.is_open(id) {
            if let Order::Dispatch { rank, .. } = order
                && !standing.dispatched[kind as usize]
            {
                self.units[unit].tell(Told::Finished { id, rank });
            }
            return Ok(());
        }
        if [standing.prefill, standing.decode][kind as usize] != Some(unit) {
            return Err(self.wrong(id, "the request is not at this unit"));
        }
        match order {
            Order::Dispatch { id, rank, number, tokens } => match kind {
                Kind::Prefill => self.dispatch_prompt(unit, (id, rank, number), tokens),
                Kind::Decode => self.dispatch_output(unit, (id, rank, number)),
            },
            Order::Move { id, from, to } => self.start_move(unit, (id, from, to)),
            Order::Refuse { id } => {
                self.close(id, Fate::Refused);
                Ok(())
            }
        }
    }

    fn dispatch_prompt(
        &mut self,
        unit: usize,
        (id, rank, number): (u64, u16, u64),
        tokens: Option<u64>,
    ) -> Result<(), SimulationError> {
        let standing = &mut self.standing[id as usize - 1];
        if tokens.is_none() && standing.dispatched[0] {
            return Err(self.wrong(id, "the prompt is dispatched a second time"));
        }
        standing.dispatched[0] = true;
        standing.prefill_rank = rank;
        let given = (id, &self.requests[id as usize - 1], standing.shared_cached);
        let taken = self.units[unit].prefill().deliver(given, (rank, number), tokens);
        if !taken.map_err(|reason| self.wrong(id, reason))? {
            self.close(id, Fate::Refused);
        }
        Ok(())
    }

    fn dispatch_output(
        &mut self,
        unit: usize,
        (id, rank, number): (u64, u16, u64),
    ) -> Result<(), SimulationError> {
        if usize::from(rank) >= self.units[unit].port_free_us.len() {
            return Err(self.wrong(id, "the unit has no such rank"));
        }
        let standing = &mut self.standing[id as usize - 1];
        if std::mem::replace(&mut standing.dispatched[1], true) {
            return Err(self.wrong(id, "the request is dispatched a second time"));
        }
        standing.decode_rank = rank;
        let at = match standing.prefill {
            None => self.now_us,
            Some(prefill) => {
                let way = self.setup.hand_off();
                let transfer_us = way.transfer_us(self.requests[id as usize - 1].prompt_tokens);
                let from_us = self.now_us + way.latency_us;
                self.units[prefill].send(standing.prefill_rank, from_us, transfer_us)
            }
        };
        self.schedule.at(at, Event::HandedOver { id, unit, number });
        Ok(())
    }

    fn start_move(&mut self, unit: usize, (id, from, to): (u64, u16, u16)) -> Result<(), SimulationError> {
        let place = &mut self.units[unit];
        if place.kind == Kind::Prefill || usize::from(from.max(to)) >= place.port_free_us.len() {
            return Err(self.wrong(id, "the unit has no such rank to move between"));
        }
        // Its KV may be on the way still: then it goes to the other rank at once.
        if !place.decode().has(id) {
            self.standing[id as usize - 1].decode_rank = to;
            return Ok(());
        }
        // It may wait, or an earlier move of it found no room: an engine refuses to move what does not run where it is said to.
        let Some((kv, _)) = place.decode().running(id).filter(|&(_, rank)| rank == from) else {
            return Ok(());
        };
        let way = self.setup.hand_off();
        let at = place.send(from, self.now_us + way.latency_us, way.transfer_us(kv));
        self.schedule.at(at, Event::Copied { id, unit, to });
        Ok(())
    }

    fn hand_over(&mut self, id: u64, unit: usize, number: u64) -> Result<(), SimulationError> {
        if !self.is_open(id) {
            return Ok(());
        }
        let request = self.request(id);
        let standing = self.standing[id as usize - 1];
        let (from_prefill, rank) = (standing.prefill.is_some(), standing.decode_rank);
        // Prefill made the first token already.
        let left = request.output_tokens - u64::from(from_prefill);
        let given = (id, request.prompt_tokens, left);
        let taken = self.units[unit].decode().deliver(given, (rank, number));
        if !taken.map_err(|reason| self.wrong(id, reason))? {
            self.close(id, Fate::Refused);
            return Ok(());
        }
        if from_prefill {
            self.leave_prefill(id);
        }
        Ok(())
    }

    /// The prompt's KV has left its prefill rank, or is not needed any more.
    fn leave_prefill(&mut self, id: u64) {
        let standing = &mut self.standing[id as usize - 1];
        let Some(unit) = standing.prefill.take() else { return };
        self.prefill_front.as_mut().expect("prefill units have a front").leave(id);
        let rank = standing.prefill_rank;
        if standing.dispatched[0] {
            self.units[unit].prefill().release(id);
            self.units[unit].tell(Told::Finished { id, rank });
        }
    }

    fn leave_decode(&mut self, id: u64) {
        let request = self.request(id);
        let standing = &mut self.standing[id as usize - 1];
        let Some(unit) = standing.decode.take() else { return };
        let front = self.decode_front.as_mut().expect("decode units have a front");
        front.leave((unit - self.prefill_units) as u16, request);
        let rank = standing.decode_rank;
        if standing.dispatched[1] {
            self.units[unit].tell(Told::Finished { id, rank });
        }
    }

    /// A request is over, wherever it was.
    fn close(&mut self, id: u64, fate: Fate) {
        let course = &mut self.courses[id as usize - 1];
        assert_eq!(course.fate, Fate::Open, "request {id} is over already");
        course.fate = fate;
        course.ended_us = self.now_us;
        self.open -= 1;
        self.leave_prefill(id);
        self.leave_decode(id);
    }

    fn begin_step(&mut self, unit: usize) {
        let now_us = self.now_us;
        let place = &mut self.units[unit];
        if place.stepping.is_some() || place.not_before_us > now_us {
            return;
        }
        if let Some(mut step_us) = place.engine.begin_step(now_us, self.time) {
            if place.kind == Kind::Prefill {
                step_us = prefill_us(self.setup, now_us, step_us).max(1);
            }
            place.stepping = Some((now_us, step_us));
            if place.seat.plans_steps() {
                place.tell(Told::Stepped);
            }
            self.schedule.at(now_us + step_us, Event::StepEnd { unit });
        }
    }

    fn end_prefill_step(&mut self, unit: usize) {
        let now_us = self.now_us;
        let place = &mut self.units[unit];
        let span = place.stepping.take().expect("a step that ends had begun");
        let index = place.index;
        let engine = place.prefill();
        let done = engine.end_step(now_us);
        let loads = engine.last_step().iter();
        let loads = loads.map(|step| (step.work.tokens as f64, step.work.attention as f64, step.own_us));
        self.meters[0].as_mut().expect("prefill units have a meter").step(index, span, loads);
        for PromptDone { id, rank, hit } in done {
            self.units[unit].tell(Told::FirstToken { id, rank });
            let course = &mut self.courses[id as usize - 1];
            course.first_token_us = now_us;
            course.hit = hit;
            self.shared.keep(&self.requests[id as usize - 1].blocks);
            let generates = self.units.len() > self.prefill_units;
            if generates && self.request(id).output_tokens > 1 {
                self.join_unit(id, Kind::Decode);
            } else {
                self.close(id, Fate::Finished);
            }
        }
        self.units[unit].tell(Told::Ready);
    }

    fn end_decode_step(&mut self, unit: usize) {
        let now_us = self.now_us;
        let place = &mut self.units[unit];
        let span = place.stepping.take().expect("a step that ends had begun");
        let index = place.index;
        let engine = place.decode();
        let loads = engine.loads().map(|(kv, requests, own_us)| (kv as f64, f64::from(requests), own_us));
        self.meters[1].as_mut().expect("decode units have a meter").step(index, span, loads);
        let ended = engine.end_step(span.1);
        place.tell(Told::Stepped);
        for (id, rank) in ended.first {
            place.tell(Told::FirstToken { id, rank });
            let course = &mut self.courses[id as usize - 1];
            if course.first_token_us == 0 {
                course.first_token_us = now_us;
            }
        }
        for id in ended.finished {
            self.close(id, Fate::Finished);
        }
        self.units[unit].tell(Told::Ready);
    }

    fn incident(&mut self, index: usize) {
        let incident = self.setup.incidents[index];
        let first = if incident.kind == Kind::Decode { self.prefill_units } else { 0 };
        let unit = first + usize::from(incident.unit);
        let (rank, change) = (incident.rank, incident.change);
        let place = &mut self.units[unit];
        place.tell(Told::Changed { rank, change });
        match change {
            Change::Joins => place.engine.join(rank),
            Change::Drains => {}
            Change::Dies => {
                for id in place.engine.die(rank, self.now_us) {
                    self.close(id, Fate::Lost);
                }
            }
        }
    }

    fn figures(mut self) -> Figures {
        let window = (self.setup.warm_up_us, self.setup.end_us, self.setup.stop_us());
        let generates = self.units.len() > self.prefill_units;
        let mut figures = of_courses(&self.courses, window, &self.setup.objectives, generates);
        let mut names: Vec<String> = Vec::new();
        for unit in self.units.iter().filter(|unit| unit.index == 0) {
            let name = unit.seat.name().to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        figures.policy = names.join(" + ");
        let (mut moved, mut preempted) = (0, 0);
        for unit in &self.units {
            if let Engine::Decode(engine) = &unit.engine {
                moved += engine.moved();
                preempted += engine.preempted();
            }
        }
        let [prefill, decode] = std::mem::take(&mut self.meters);
        figures.prefill = prefill.map(|meter| meter.figures(0, 0));
        figures.decode = decode.map(|meter| meter.figures(moved, preempted));
        figures
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
