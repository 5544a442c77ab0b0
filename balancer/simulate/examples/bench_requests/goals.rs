//! The goals, each beside what this run measured.

use crate::figures::Figures;
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

/// Which side of the bound is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    AtMost,
    AtLeast,
}

/// A figure with a bound.
pub(crate) struct Goal {
    what: String,
    ours: f64,
    bound: Bound,
    value: f64,
    /// Whether to reach the bound is not enough.
    beyond: bool,
    /// The best that a peer has of the same in this run.
    peer: Option<(String, f64)>,
}

impl Goal {
    /// One of our figures; `peer` is the best of the policies that `is_peer` names in the same case.
    pub(crate) fn of(
        figures: &Figures,
        (case, policy, quantity): (&str, &str, &str),
        bound: Bound,
        value: f64,
        is_peer: impl Fn(&str) -> bool,
    ) -> Self {
        let ours = figures.get(case, policy, quantity);
        let ours = ours.unwrap_or_else(|| panic!("{case}, {policy}, {quantity} is not measured"));
        let all = figures.all(case, quantity);
        let mut peers = all.into_iter().filter(|(policy, _)| is_peer(policy));
        let peer = match bound {
            Bound::AtMost => peers.next(),
            Bound::AtLeast => peers.next_back(),
        };
        let peer = peer.map(|(name, value)| (name.to_owned(), value));
        Self { what: format!("{case}: {policy}, {quantity}"), ours, bound, value, beyond: false, peer }
    }

    /// Better than every peer.
    pub(crate) fn best(
        figures: &Figures,
        names: (&str, &str, &str),
        bound: Bound,
        is_peer: impl Fn(&str) -> bool,
    ) -> Self {
        let mut goal = Self::of(figures, names, bound, f64::NAN, is_peer);
        goal.beyond = true;
        goal.value = goal.peer.as_ref().map_or(f64::NAN, |(_, value)| *value);
        goal
    }

    fn verdict(&self) -> &'static str {
        let met = match self.bound {
            _ if self.beyond && self.ours == self.value => return "EVEN",
            Bound::AtMost => self.ours <= self.value,
            Bound::AtLeast => self.ours >= self.value,
        };
        if met { "met" } else { "MISSED" }
    }

    fn bound(&self) -> &'static str {
        match self.bound {
            Bound::AtMost if self.beyond => "below",
            Bound::AtLeast if self.beyond => "above",
            Bound::AtMost => "at most",
            Bound::AtLeast => "at least",
        }
    }
}

pub(crate) fn table(goals: &[Goal]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "", "goal", "this run", "", "best peer"]);
    let number = |value: f64| Cell::new(format!("{value:.4}")).set_alignment(CellAlignment::Right);
    for goal in goals {
        let peer = goal.peer.as_ref().map_or(String::new(), |(name, value)| format!("{value:.4} {name}"));
        table.add_row([
            Cell::new(&goal.what),
            Cell::new(goal.bound()),
            number(goal.value),
            number(goal.ours),
            Cell::new(goal.verdict()),
            Cell::new(peer),
        ]);
    }
    table
}

pub(crate) fn json(goals: &[Goal]) -> Value {
    let one = |goal: &Goal| json!({"what": goal.what, "bound": goal.bound(), "goal": goal.value, "value": goal.ours, "verdict": goal.verdict()});
    goals.iter().map(one).collect()
}
