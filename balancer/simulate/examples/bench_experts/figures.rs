//! Everything that was measured, by name: what the goals are compared with and what `--json` prints.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// (case, planner, quantity) -> value.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(String, String, String), f64>);

impl Figures {
    pub(crate) fn record(&mut self, case: &str, planner: &str, quantity: &str, value: f64) {
        let key = (case.to_owned(), planner.to_owned(), quantity.to_owned());
        assert!(self.0.insert(key, value).is_none(), "{case}, {planner}, {quantity} is measured twice");
    }

    pub(crate) fn get(&self, case: &str, planner: &str, quantity: &str) -> Option<f64> {
        self.0.get(&(case.to_owned(), planner.to_owned(), quantity.to_owned())).copied()
    }

    /// The least of the quantity in this case among planners that `among` names.
    pub(crate) fn least(
        &self,
        case: &str,
        quantity: &str,
        among: impl Fn(&str) -> bool,
    ) -> Option<(&str, f64)> {
        let of_case = self.0.iter().filter(|((c, p, q), _)| c == case && q == quantity && among(p));
        of_case.map(|((_, planner, _), &value)| (planner.as_str(), value)).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    pub(crate) fn json(&self) -> Value {
        let one = |((case, planner, quantity), value): (&(String, String, String), &f64)| json!({"case": case, "planner": planner, "quantity": quantity, "value": value});
        self.0.iter().map(one).collect()
    }
}

/// Mean, and the largest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spread {
    sum: f64,
    count: usize,
    most: f64,
}

impl Spread {
    pub(crate) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
        self.most = self.most.max(value);
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    pub(crate) fn worst(&self) -> f64 {
        self.most
    }
}

impl Extend<f64> for Spread {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, values: T) {
        values.into_iter().for_each(|value| self.add(value));
    }
}
