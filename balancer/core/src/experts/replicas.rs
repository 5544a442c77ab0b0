//! How often each expert is placed.

use super::problem::LayerProblem;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// An expert with several replicas; more are worth most where one of them carries most.
#[derive(PartialEq)]
struct Candidate {
    per_replica: f64,
    count: u16,
    expert: u16,
}

impl Ord for Candidate {
    /// The largest replica first; of equals the one with fewest replicas, then the lowest expert.
    fn cmp(&self, other: &Self) -> Ordering {
        self.per_replica
            .total_cmp(&other.per_replica)
            .then(other.count.cmp(&self.count))
            .then(other.expert.cmp(&self.expert))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Candidate {}

/// `[experts]`: replicas of each expert, at least 1 and at most one per rank that has slots. The largest replica
/// `w / c` is as small as it can be: every redundant slot goes to the expert whose replicas carry most. The same
/// counts connect ranks best, since replicas of equal size give every link of the replica graph the same strength.
/// All slots are used unless every expert is on every rank already.
pub(super) fn replica_counts(problem: &LayerProblem) -> Vec<u16> {
    let mut counts = vec![1u16; problem.experts()];
    let ranks = u16::try_from(problem.deployment.live()).expect("ranks fit 16 bits");
    let left = problem.deployment.slots() - problem.experts();
    let candidate = |expert: u16, count: u16| Candidate {
        per_replica: problem.loads[usize::from(expert)] / f64::from(count),
        count,
        expert,
    };
    // Few experts are ever replicated, so an expert enters the heap when its turn comes.
    let mut singles = problem.heaviest_first.iter().map(|&expert| candidate(expert, 1)).peekable();
    let mut several: BinaryHeap<Candidate> = BinaryHeap::new();
    for _ in 0..left {
        let from_singles = match (singles.peek(), several.peek()) {
            (Some(single), Some(other)) => single >= other,
            (single, _) => single.is_some(),
        };
        let next = if from_singles { singles.next() } else { several.pop() };
        let Some(Candidate { expert, count, .. }) = next else { break };
        if count >= ranks {
            // Only with a single rank can the first count be the last.
            continue;
        }
        counts[usize::from(expert)] = count + 1;
        if count + 1 < ranks {
            several.push(candidate(expert, count + 1));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], ranks: usize, slots: usize, expected: &[u16]) {
        let problem = LayerProblem::uniform(ranks, slots, loads.to_vec());
        assert_eq!(replica_counts(&problem), expected);
    }

    #[test]
    fn the_largest_replica_is_as_small_as_it_can_be() {
        check(&[3.0, 2.0, 1.0], 2, 2, &[2, 1, 1]);
        check(&[9.0, 4.0, 1.0], 3, 2, &[3, 2, 1]);
        check(&[9.0, 6.0, 1.0, 1.0, 1.0, 1.0], 4, 2, &[2, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn no_expert_has_more_replicas_than_ranks() {
        check(&[9.0, 0.0], 2, 2, &[2, 2]);
        check(&[9.0, 0.0], 2, 4, &[2, 2]);
        check(&[9.0, 1.0], 1, 4, &[1, 1]);
    }

    #[test]
    fn without_load_the_slots_are_spread() {
        check(&[0.0, 0.0, 0.0], 2, 2, &[2, 1, 1]);
    }
}
