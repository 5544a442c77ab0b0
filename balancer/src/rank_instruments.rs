//! What a rank says of itself, as metrics.

use crate::metrics as m;
use evenkeel_core::ids::{Rank, UnitId};
use evenkeel_proto::v1;
use metrics::Gauge;

/// A rank's gauges. Kept, since a look-up by labels costs more than all else of a report.
#[derive(Clone)]
pub(crate) struct RankInstruments {
    kv_used: Gauge,
    kv_capacity: Gauge,
    requests: Gauge,
}

impl RankInstruments {
    /// Of a unit's rank.
    pub(crate) fn new(unit: &UnitId, rank: Rank) -> Self {
        let gauge = |name| metrics::gauge!(name, "unit" => unit.to_string(), "rank" => rank.to_string());
        Self { kv_used: gauge(m::KV_USED), kv_capacity: gauge(m::KV_CAPACITY), requests: gauge(m::REQUESTS) }
    }

    /// Shows what the rank says of itself.
    pub(crate) fn show(&self, said: &v1::RankGauges) {
        self.kv_used.set(said.kv_used_tokens as f64);
        self.kv_capacity.set(said.kv_total_tokens as f64);
        self.requests.set(f64::from(said.requests));
    }
}
