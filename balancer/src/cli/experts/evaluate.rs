//! How evenly a plan balances loads. Looks at the plan's tables alone, and knows nothing of how they were made.

use evenkeel_core::experts::{Deployment, ExpertLoads};
use evenkeel_core::ids::ExpertId;

/// `[layers]` of max over mean.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Balance {
    pub(super) layers: Vec<f64>,
}

impl Balance {
    /// Over all layers.
    pub(super) fn mean(&self) -> f64 {
        self.layers.iter().sum::<f64>() / self.layers.len() as f64
    }

    /// The worst layer (the first of equals) and its imbalance.
    pub(super) fn worst(&self) -> (usize, f64) {
        let pick =
            |best: (usize, f64), (at, &value): (usize, &f64)| if value > best.1 { (at, value) } else { best };
        self.layers.iter().enumerate().fold((0, f64::NEG_INFINITY), pick)
    }
}

/// The imbalance of every layer when slot `p` carries the part `share[p]` of its expert's load.
pub(super) fn balance(
    deployment: &Deployment,
    loads: &ExpertLoads,
    placement: &[Vec<Option<ExpertId>>],
    share: &[Vec<f64>],
) -> Balance {
    let of_layer =
        |layer: usize| layer_balance(deployment, loads.layer(layer), &placement[layer], &share[layer]);
    Balance { layers: (0..loads.layers()).map(of_layer).collect() }
}

/// Max over mean of the GPUs' loads by speed; 1 when there is no load.
fn layer_balance(deployment: &Deployment, loads: &[f64], held: &[Option<ExpertId>], share: &[f64]) -> f64 {
    let (mut highest, mut total, mut speed) = (0f64, 0.0, 0.0);
    for (rank, spec) in deployment.ranks().iter().enumerate() {
        let slots = deployment.slots_of(rank);
        let load: f64 =
            slots.map(|slot| held[slot].map_or(0.0, |expert| loads[expert.index()] * share[slot])).sum();
        highest = highest.max(load / spec.speed);
        total += load;
        // A GPU without slots can carry nothing, and is no part of the mean.
        speed += if spec.slots > 0 { spec.speed } else { 0.0 };
    }
    if total > 0.0 { highest / (total / speed) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::experts::RankSpec;

    #[track_caller]
    fn check(ranks: &[(u16, f64)], loads: &[f64], held: &[i32], share: &[f64], expected: f64) {
        let spec = |&(slots, speed): &(u16, f64)| RankSpec { slots, speed, node: 0 };
        let deployment = Deployment::new(ranks.iter().map(spec).collect(), 1).unwrap();
        let held: Vec<Option<ExpertId>> = held.iter().map(|&e| u16::try_from(e).ok().map(ExpertId)).collect();
        let found = layer_balance(&deployment, loads, &held, share);
        assert!((found - expected).abs() < 1e-12, "{found}");
    }

    #[test]
    fn the_imbalance_is_that_of_the_fullest_gpu_by_its_speed() {
        let two = [(2, 1.0), (2, 1.0)];
        check(&two, &[6.0, 2.0], &[0, -1, 1, -1], &[1.0, 0.0, 1.0, 0.0], 1.5);
        check(&two, &[6.0, 2.0], &[0, -1, 1, 0], &[0.5, 0.0, 1.0, 0.5], 1.25);
        check(&two, &[0.0, 0.0], &[0, 1, 0, 1], &[0.5; 4], 1.0);
        check(&[(1, 3.0), (1, 1.0)], &[6.0, 2.0], &[0, 1], &[1.0, 1.0], 1.0);
        check(&[(1, 1.0), (0, 1.0), (1, 1.0)], &[4.0, 4.0], &[0, 1], &[1.0, 1.0], 1.0);
    }

    #[test]
    fn mean_and_worst_are_over_layers() {
        let balance = Balance { layers: vec![1.0, 1.5, 1.25, 1.5] };
        assert_eq!((balance.mean(), balance.worst()), (1.3125, (1, 1.5)));
    }
}
