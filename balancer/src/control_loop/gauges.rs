//! What the loop knows, as metrics.

use super::ControlLoop;
use crate::metrics as m;
use evenkeel_core::ids::UnitId;
use evenkeel_proto::v1;

impl ControlLoop {
    /// Agents of a unit that are connected, and all of them.
    fn agents_of(&self, id: &UnitId) -> (usize, usize) {
        if let Some(unit) = self.reign.units().get(id) {
            return (unit.present().len(), unit.membership().claims().len());
        }
        let here = self.reign.streams().values().filter(|stream| stream.unit() == id).count();
        let formed = self.units.get(id).and_then(|unit| unit.formed.as_ref());
        (here, formed.map_or(here, |formed| formed.topology.nodes().len()).max(here))
    }

    pub(super) fn publish_gauges(&self) {
        self.routers.publish();
        for (id, unit) in &self.units {
            let name = id.to_string();
            let (here, all) = self.agents_of(id);
            for (state, count) in [("connected", here), ("away", all - here)] {
                metrics::gauge!(m::AGENTS, "unit" => name.clone(), "state" => state).set(count as f64);
            }
            let sum = |f: fn(&v1::RankGauges) -> u64| unit.gauges.values().map(f).sum::<u64>();
            for (kind, total) in [
                ("in_hit", sum(|g| g.tokens_in_hit)),
                ("in_miss", sum(|g| g.tokens_in_miss)),
                ("out", sum(|g| g.tokens_out)),
            ] {
                metrics::counter!(m::TOKENS, "unit" => name.clone(), "kind" => kind).absolute(total);
            }
            let slowest = |f: fn(&v1::RankGauges) -> u32| unit.gauges.values().map(f).max();
            for (percentile, us) in [("50", slowest(|g| g.step_us_p50)), ("99", slowest(|g| g.step_us_p99))] {
                if let Some(us) = us {
                    metrics::gauge!(m::STEP_SECONDS, "unit" => name.clone(), "percentile" => percentile)
                        .set(f64::from(us) / 1e6);
                }
            }
        }
    }
}
