//! How often each expert is placed.

use super::problem::LayerProblem;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What the next redundant slot is worth at an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// Make the largest replica as small as possible: the expert with the largest `w / c` is next. Optimal
    /// for that objective, and what binds when a rank has one or two slots.
    LargestReplica,
    /// Make the load of the next window as certain as possible. When experts drift independently by the same
    /// relative amount, the ranks' loads vary by the sum of `c * (w/c)^2 = w^2 / c`; one more replica lowers it by
    /// `w^2 / (c (c + 1))`. With several experts per rank the largest replica does not bind and this does.
    Variance,
}

struct Candidate {
    worth: f64,
    count: u16,
    expert: u16,
}

impl Ord for Candidate {
    /// The most worth first; of equals the one with fewest replicas, then the lowest expert.
    fn cmp(&self, other: &Self) -> Ordering {
        self.worth
            .total_cmp(&other.worth)
            .then(other.count.cmp(&self.count))
            .then(other.expert.cmp(&self.expert))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// `[experts]`: replicas of each expert, at least 1 and at most one per rank. All slots are used unless every
/// expert is on every rank already.
pub(super) fn replica_counts(problem: &LayerProblem, worth: Worth) -> Vec<u16> {
    let (experts, ranks) = (problem.experts(), u16::try_from(problem.ranks).expect("ranks fit 16 bits"));
    let candidate = |expert: u16, count: u16| {
        let (load, count_f) = (problem.loads[usize::from(expert)], f64::from(count));
        let worth = match worth {
            Worth::LargestReplica => load / count_f,
            Worth::Variance => load / (count_f * (count_f + 1.0)).sqrt(),
        };
        Candidate { worth, count, expert }
    };
    let mut counts = vec![1u16; experts];
    let last = u16::try_from(experts).expect("experts fit 16 bits");
    let mut heap: BinaryHeap<Candidate> = (0..last).map(|expert| candidate(expert, 1)).collect();
    let mut left = problem.ranks * problem.slots - experts;
    while left > 0 {
        let Some(Candidate { expert, count, .. }) = heap.pop() else { break };
        if count == ranks {
            continue;
        }
        counts[usize::from(expert)] = count + 1;
        left -= 1;
        heap.push(candidate(expert, count + 1));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], ranks: usize, slots: usize, worth: Worth, expected: &[u16]) {
        let problem = LayerProblem::plain(ranks, slots, loads.to_vec());
        assert_eq!(replica_counts(&problem, worth), expected);
    }

    #[test]
    fn redundant_slots_go_where_they_are_worth_most() {
        check(&[3.0, 2.0, 1.0], 2, 2, Worth::LargestReplica, &[2, 1, 1]);
        check(&[9.0, 4.0, 1.0], 3, 2, Worth::LargestReplica, &[3, 2, 1]);
        check(&[9.0, 6.0, 1.0, 1.0, 1.0, 1.0], 4, 2, Worth::Variance, &[2, 2, 1, 1, 1, 1]);
        check(&[9.0, 3.0, 1.0, 1.0, 1.0, 1.0], 4, 2, Worth::Variance, &[3, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn no_expert_has_more_replicas_than_ranks() {
        check(&[9.0, 0.0], 2, 2, Worth::LargestReplica, &[2, 2]);
        check(&[9.0, 0.0], 2, 4, Worth::Variance, &[2, 2]);
    }

    #[test]
    fn without_load_the_slots_are_spread() {
        check(&[0.0, 0.0, 0.0], 2, 2, Worth::LargestReplica, &[2, 1, 1]);
    }
}
