//! A unit with its policy.

use super::decode::DecodeUnit;
use super::prefill::PrefillUnit;
use super::rank_state::UnitView;
use super::seat::{Seat, Told};
use super::setup::Kind;
use super::step_time::StepTime;

pub(super) enum Engine {
    Prefill(PrefillUnit),
    Decode(DecodeUnit),
}

impl Engine {
    pub(super) fn view(&mut self) -> UnitView<'_> {
        match self {
            Engine::Prefill(engine) => engine.view(),
            Engine::Decode(engine) => engine.view(),
        }
    }

    pub(super) fn begin_step(&mut self, now_us: u64, time: &dyn StepTime) -> Option<u64> {
        match self {
            Engine::Prefill(engine) => engine.begin_step(now_us, time),
            Engine::Decode(engine) => engine.begin_step(time),
        }
    }

    pub(super) fn die(&mut self, rank: u16, now_us: u64) -> Vec<u64> {
        match self {
            Engine::Prefill(engine) => engine.die(rank, now_us),
            Engine::Decode(engine) => engine.die(rank),
        }
    }

    pub(super) fn join(&mut self, rank: u16) {
        match self {
            Engine::Prefill(engine) => engine.join(rank),
            Engine::Decode(engine) => engine.join(rank),
        }
    }
}

pub(super) struct Unit<'a> {
    pub(super) kind: Kind,
    /// Among the units of its kind.
    pub(super) index: u16,
    pub(super) engine: Engine,
    pub(super) seat: Box<dyn Seat + 'a>,
    /// Not yet told.
    pub(super) told: Vec<Told<'a>>,
    /// The policy has something to think about.
    pub(super) touched: bool,
    /// Begin and duration of the running step.
    pub(super) stepping: Option<(u64, u64)>,
    /// The next step waits for orders that are on their way until then.
    pub(super) not_before_us: u64,
    /// By rank: when its network port is free.
    pub(super) port_free_us: Vec<u64>,
}

impl<'a> Unit<'a> {
    pub(super) fn new(kind: Kind, index: u16, ranks: u16, engine: Engine, seat: Box<dyn Seat + 'a>) -> Self {
        Self {
            kind,
            index,
            engine,
            seat,
            told: Vec::new(),
            touched: false,
            stepping: None,
            not_before_us: 0,
            port_free_us: vec![0; ranks.into()],
        }
    }

    pub(super) fn tell(&mut self, told: Told<'a>) {
        self.told.push(told);
        self.touched = true;
    }

    pub(super) fn prefill(&mut self) -> &mut PrefillUnit {
        match &mut self.engine {
            Engine::Prefill(engine) => engine,
            Engine::Decode(_) => unreachable!("a prefill unit has a prefill engine"),
        }
    }

    pub(super) fn decode(&mut self) -> &mut DecodeUnit {
        match &mut self.engine {
            Engine::Decode(engine) => engine,
            Engine::Prefill(_) => unreachable!("a decode unit has a decode engine"),
        }
    }

    /// A port sends for `transfer_us`, after what it sends already and not before `from_us`. Returns when it is done.
    pub(super) fn send(&mut self, rank: u16, from_us: u64, transfer_us: u64) -> u64 {
        let free = &mut self.port_free_us[usize::from(rank)];
        *free = from_us.max(*free) + transfer_us;
        *free
    }
}
