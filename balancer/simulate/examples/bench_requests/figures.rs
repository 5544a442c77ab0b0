//! Everything that was measured, by name: what the goals are compared with and what `--json` prints.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// (case, policy, quantity) -> value.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(String, String, String), f64>);

impl Figures {
    pub(crate) fn record(&mut self, case: &str, policy: &str, quantity: &str, value: f64) {
        let key = (case.to_owned(), policy.to_owned(), quantity.to_owned());
        assert!(self.0.insert(key, value).is_none(), "{case}, {policy}, {quantity} is measured twice");
    }

    pub(crate) fn get(&self, case: &str, policy: &str, quantity: &str) -> Option<f64> {
        self.0.get(&(case.to_owned(), policy.to_owned(), quantity.to_owned())).copied()
    }

    /// The quantity of everybody in this case, least first.
    pub(crate) fn all(&self, case: &str, quantity: &str) -> Vec<(&str, f64)> {
        let of_case = self.0.iter().filter(|((c, _, q), _)| c == case && q == quantity);
        let mut all: Vec<(&str, f64)> =
            of_case.map(|((_, policy, _), &value)| (policy.as_str(), value)).collect();
        all.sort_by(|x, y| x.1.total_cmp(&y.1));
        all
    }

    pub(crate) fn json(&self) -> Value {
        let one = |((case, policy, quantity), value): (&(String, String, String), &f64)| json!({"case": case, "policy": policy, "quantity": quantity, "value": value});
        self.0.iter().map(one).collect()
    }
}
