//! Least of the worse dimension, with the true ends of the next steps: what no policy can know, as a reference.

use super::{StepPolicy, Unit};

/// Admits by the mean load that each rank will have over the next steps, as far as requests that run now make it.
pub struct LookAhead {
    steps: u32,
}

impl LookAhead {
    /// Sees the ends of so many steps. 0: none, which leaves a rule that anyone could use.
    pub fn new(steps: u32) -> Self {
        Self { steps }
    }

    /// By rank: (KV tokens, requests), means over the steps seen. The growth of what runs on is left out: requests are
    /// nearly equal everywhere.
    fn loads(&self, unit: &Unit<'_>) -> Vec<(f64, f64)> {
        let load = |rank| (unit.load(rank).kv_tokens as f64, unit.load(rank).requests as f64);
        let mut loads: Vec<(f64, f64)> = (0..unit.ranks()).map(load).collect();
        for step in 1..=self.steps {
            let gone = f64::from(self.steps - step) / f64::from(self.steps);
            for &request in unit.ends_after(unit.step() + step) {
                let (kv, requests) = &mut loads[unit.rank_of(request)];
                *kv -= unit.kv_of(request) as f64 * gone;
                *requests -= gone;
            }
        }
        loads
    }
}

impl StepPolicy for LookAhead {
    fn place(&mut self, unit: &Unit<'_>, arrived: &[u32], _now_s: f64) -> Vec<(u32, usize)> {
        let mut loads = self.loads(unit);
        let start = |request: u32| unit.request(request).kv_at_start() as f64;
        let kv_sum: f64 = loads.iter().map(|load| load.0).chain(arrived.iter().map(|&r| start(r))).sum();
        let requests_sum = loads.iter().map(|load| load.1).sum::<f64>() + arrived.len() as f64;
        let mut order = arrived.to_vec();
        order.sort_by_key(|&request| std::cmp::Reverse(unit.request(request).kv_at_start()));
        let place = |request: u32| {
            let worse = |rank: &usize| {
                let (kv, requests) = loads[*rank];
                ((kv + start(request)) / kv_sum).max((requests + 1.0) / requests_sum)
            };
            let least = |x: &usize, y: &usize| worse(x).total_cmp(&worse(y));
            let rank = (0..loads.len()).min_by(least).expect("a unit has ranks");
            loads[rank].0 += start(request);
            loads[rank].1 += 1.0;
            (request, rank)
        };
        order.into_iter().map(place).collect()
    }
}
