//! Which ranks Llumnix migrates between.
//!
//! After AlibabaPAI/llumnix 24220fb8 (2025-08-13), `global_scheduler/migration_policy.py`.

use std::cmp::Ordering;

/// A rank as Llumnix sees it, in its units of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Now.
    pub now: f64,
    /// After a request migrated out.
    pub after_out: f64,
    /// After a request migrated in.
    pub after_in: f64,
}

/// Which pairs stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kept {
    /// All: `defrag`, the default policy.
    All,
    /// Those whose target stays at or under the threshold, and whose gap shrinks and stays positive: `balanced`.
    Balanced {
        /// The highest load of a target, infinite by default.
        threshold: f64,
    },
}

/// Pairs of source and target: the most loaded with the least loaded, the next with the next.
pub fn migration_pairs(ranks: &[Load], kept: Kept) -> Vec<(usize, usize)> {
    let order = |compare: &dyn Fn(f64, f64) -> Ordering| {
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by(|&a, &b| compare(ranks[a].now, ranks[b].now));
        order
    };
    let ascending = order(&|a, b| a.total_cmp(&b));
    let descending = order(&|a, b| b.total_cmp(&a));
    let keep = |&(source, target): &(usize, usize)| {
        let gap = ranks[source].after_out - ranks[target].after_in;
        source != target
            && match kept {
                Kept::All => true,
                Kept::Balanced { threshold } => {
                    ranks[target].after_in <= threshold
                        && gap > 0.0
                        && gap < ranks[source].now - ranks[target].now
                }
            }
    };
    descending.into_iter().zip(ascending).filter(keep).collect()
}
