//! The seat of a policy at a unit: it is told what happened, hears from the ranks when it is due, and gives orders.

use super::rank_state::UnitView;
use super::request::Request;
use super::setup::Change;
use crate::policy::SimulationError;

/// A request that asks for a rank.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Its name, from 1.
    pub id: u64,
    /// As it came in. How long its output becomes is nothing that a policy may use.
    pub request: &'a Request,
    /// Prompt tokens that the shared cache has.
    pub shared_cached: u64,
    /// SGLang's bootstrap room.
    pub room: u64,
}

/// Something that a policy is told at once.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// A request arrived.
    Arrived(Asking<'a>),
    /// A request's first token came out: its prompt has run whole, or its first decode step.
    FirstToken {
        /// The request.
        id: u64,
        /// Its rank.
        rank: u16,
    },
    /// A request ended here and its KV is free.
    Finished {
        /// The request.
        id: u64,
        /// Its rank.
        rank: u16,
    },
    /// A decode step of the unit ended, or a prefill step of it began.
    Stepped,
    /// The ranks are about to need work.
    Ready,
    /// Something happened to a rank.
    Changed {
        /// The rank.
        rank: u16,
        /// What.
        change: Change,
    },
}

/// What a policy wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The request, or so many more tokens of its prompt, goes to a rank.
    Dispatch {
        /// The request.
        id: u64,
        /// The rank.
        rank: u16,
        /// Of the dispatch, growing; 0 where a policy does not number them.
        number: u64,
        /// Prompt tokens to run now; `None`: the engine cuts as it likes.
        tokens: Option<u64>,
    },
    /// A running request changes its rank.
    Move {
        /// The request.
        id: u64,
        /// Its rank.
        from: u16,
        /// Its next one.
        to: u16,
    },
    /// The request is not served.
    Refuse {
        /// The request.
        id: u64,
    },
}

/// A policy at a unit. The same words in the same order give the same orders.
pub trait Seat {
    /// As tables show it.
    fn name(&self) -> &str;

    /// When it hears from the ranks next; `None`: never.
    fn next_report_us(&self) -> Option<u64>;

    /// It is time to hear from the ranks. `arrives`: whether the report is not lost.
    fn report(&mut self, now_us: u64, view: &mut UnitView<'_>, arrives: bool);

    /// Takes what happened and answers with orders. Requests that no order names are held.
    fn tell(
        &mut self,
        now_us: u64,
        told: &[Told<'_>],
        view: &mut UnitView<'_>,
    ) -> Result<Vec<Order>, SimulationError>;

    /// Whether the ranks run what they are told step by step, so that a step waits for its orders.
    fn plans_steps(&self) -> bool {
        false
    }

    /// Whether it runs inside the engine, so that orders take no time.
    fn inside_engine(&self) -> bool {
        false
    }

    /// Requests that it keeps for itself now.
    fn held(&self) -> usize;
}
