//! The admission rule with the true ends of the next steps: what no policy can know, as a reference.

use super::{StepPolicy, Unit};
use evenkeel_core::decode::{Admission, RankLoad};

/// Admits by what will be left of each rank's load after some steps.
pub struct LookAhead {
    steps: u32,
}

impl LookAhead {
    /// Sees the ends of so many steps.
    pub fn new(steps: u32) -> Self {
        Self { steps }
    }
}

impl StepPolicy for LookAhead {
    fn place(&mut self, unit: &Unit<'_>, arrived: &[u32], _now_s: f64) -> Vec<(u32, usize)> {
        let mut loads: Vec<RankLoad> = (0..unit.ranks()).map(|rank| unit.load(rank)).collect();
        for step in 1..=self.steps {
            for &request in unit.ends_after(unit.step() + step) {
                let load = &mut loads[unit.rank_of(request)];
                load.kv_tokens -= unit.kv_of(request);
                load.requests -= 1;
            }
        }
        let mut admission = Admission::new(loads);
        let kv: Vec<u64> = arrived.iter().map(|&request| unit.request(request).kv_at_start()).collect();
        let ranks = admission.admit_all(&kv).into_iter().map(|rank| rank.expect("all ranks are up"));
        arrived.iter().copied().zip(ranks).collect()
    }
}
