//! One write until it is known how it ended.
//!
//! ```text
//!            done
//!   WRITING ------> made            READING: was it made?
//!      |  refused                      | ours -> made
//!      +---------> READING             | no, and may still be -> WRITING again, on the same expectations
//!      |  unknown                      | no, and never will be -> lost
//!      +---------> READING             | no answer -> WAITING, then READING
//!      |  away, full
//!      +---------> WAITING, then WRITING; given up when the owner's patience ends and no attempt is in doubt
//! ```
//!
//! Writing again is safe because every attempt has the same expectations, and each of them is broken by the first
//! attempt that is made: however late an earlier one arrives, at most one is made.

use super::Trouble;
use crate::planted;
use crate::records::{Outcome, Revision, Transaction};
use crate::units::Millis;
use std::sync::Arc;

/// Between attempts while the store does not answer: four a second find it back soon and cost it nothing.
const RETRY_MS: u64 = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    Reading,
    /// Until then, and then this.
    Waiting(Millis, Call),
}

/// The next call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// Make the transactions.
    Write,
    /// Read whether they were made.
    Read,
}

/// What an answer of the store means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Call the store.
    Call(Call),
    /// Nothing to do before the next tick.
    Wait,
    /// It is made, at this revision.
    Made(Revision),
    /// It is not made, and never will be.
    Lost(Loss),
}

/// Why a write is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// An expectation does not hold any more.
    Refused,
    /// The store was away, or full, for longer than the owner wanted to wait.
    Trouble(Trouble),
}

/// What a read says of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is made, at this revision.
    Made(Revision),
    /// It is not, and its expectations hold: it can be made.
    Open,
    /// It is not, and cannot be any more.
    Closed,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Write {
    transactions: Arc<[Transaction]>,
    state: State,
    /// An attempt may still be made by the store.
    in_doubt: bool,
    give_up_at: Millis,
}

impl Write {
    /// A write whose first call is on its way. Until `give_up_at` a store that is away is asked again.
    pub(super) fn new(transactions: Vec<Transaction>, give_up_at: Millis) -> Self {
        let transactions = transactions.into();
        Self { transactions, state: State::Writing, in_doubt: false, give_up_at }
    }

    pub(super) fn transactions(&self) -> Arc<[Transaction]> {
        Arc::clone(&self.transactions)
    }

    /// The transactions were answered.
    pub(super) fn written(&mut self, now: Millis, outcome: Result<Outcome, Trouble>) -> Step {
        assert_eq!(self.state, State::Writing, "only what was asked is answered");
        match outcome {
            Ok(Outcome::Done(revision)) => Step::Made(revision),
            // Refused: perhaps by an earlier attempt of ours that was made after all.
            Ok(Outcome::Refused) if planted!(RefusedTakenForMade) => Step::Made(Revision(1)),
            Err(Trouble::Unknown) if planted!(UnknownTakenForLost) => {
                Step::Lost(Loss::Trouble(Trouble::Unknown))
            }
            Ok(Outcome::Refused) if !self.in_doubt => Step::Lost(Loss::Refused),
            Ok(Outcome::Refused) => self.call(Call::Read),
            Err(Trouble::Unknown) => {
                self.in_doubt = true;
                self.call(Call::Read)
            }
            Err(trouble) => self.wait(now, Call::Write, trouble),
        }
    }

    /// The read was answered.
    pub(super) fn read(&mut self, now: Millis, seen: Result<Seen, Trouble>) -> Step {
        assert_eq!(self.state, State::Reading, "only what was asked is answered");
        match seen {
            Ok(Seen::Made(revision)) => Step::Made(revision),
            Ok(Seen::Open) => self.call(Call::Write),
            Ok(Seen::Closed) => Step::Lost(Loss::Refused),
            Err(trouble) => self.wait(now, Call::Read, trouble),
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Millis) -> Step {
        match self.state {
            State::Waiting(at, call) if at <= now && !planted!(StoreNotAskedAgain) => self.call(call),
            _ => Step::Wait,
        }
    }

    fn call(&mut self, call: Call) -> Step {
        self.state = match call {
            Call::Write => State::Writing,
            Call::Read => State::Reading,
        };
        Step::Call(call)
    }

    fn wait(&mut self, now: Millis, call: Call, trouble: Trouble) -> Step {
        if now >= self.give_up_at && !self.in_doubt {
            return Step::Lost(Loss::Trouble(trouble));
        }
        self.state = State::Waiting(now.after(RETRY_MS), call);
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the answers lead to, in words. `w` and `r` are answers to writes and reads.
    #[track_caller]
    fn check(answers: &[&str], expected: &[&str]) {
        let mut write = Write::new(Vec::new(), Millis(1_000));
        let mut now = Millis(0);
        let mut found = Vec::new();
        for answer in answers {
            let revision = Revision(7);
            let step = match *answer {
                "w done" => write.written(now, Ok(Outcome::Done(revision))),
                "w refused" => write.written(now, Ok(Outcome::Refused)),
                "w unknown" => write.written(now, Err(Trouble::Unknown)),
                "w away" => write.written(now, Err(Trouble::Away)),
                "r made" => write.read(now, Ok(Seen::Made(revision))),
                "r open" => write.read(now, Ok(Seen::Open)),
                "r closed" => write.read(now, Ok(Seen::Closed)),
                "r away" => write.read(now, Err(Trouble::Away)),
                "later" => {
                    now = now.after(1_000);
                    write.tick(now)
                }
                "tick" => write.tick(now),
                other => panic!("{other}"),
            };
            found.push(match step {
                Step::Call(Call::Write) => "write",
                Step::Call(Call::Read) => "read",
                Step::Wait => "wait",
                Step::Made(_) => "made",
                Step::Lost(Loss::Refused) => "refused",
                Step::Lost(Loss::Trouble(_)) => "trouble",
            });
        }
        assert_eq!(found, expected, "{answers:?}");
    }

    #[test]
    fn a_write_whose_outcome_is_unknown_is_read_before_it_is_tried_again() {
        check(&["w done"], &["made"]);
        check(&["w refused"], &["refused"]);
        check(&["w unknown", "r made"], &["read", "made"]);
        check(&["w unknown", "r open", "w done"], &["read", "write", "made"]);
        check(&["w unknown", "r closed"], &["read", "refused"]);
        check(&["w unknown", "r open", "w refused", "r made"], &["read", "write", "read", "made"]);
    }

    #[test]
    fn a_store_that_is_away_is_waited_for_as_long_as_the_owner_wants() {
        check(&["w away", "tick", "later", "w done"], &["wait", "wait", "write", "made"]);
        check(&["w away", "later", "w away"], &["wait", "write", "trouble"]);
    }

    #[test]
    fn what_is_in_doubt_is_never_given_up() {
        check(
            &["w unknown", "r away", "later", "r away", "later", "r made"],
            &["read", "wait", "read", "wait", "read", "made"],
        );
        check(
            &["w unknown", "r open", "w away", "later", "w away"],
            &["read", "write", "wait", "write", "wait"],
        );
    }
}
