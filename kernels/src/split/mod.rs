//! `split`: divides one batch's counts over the replicas of each expert, in whole tokens.
//!
//! A plan's shares are for the average of a window; a batch differs. For a fixed placement the best split is a flow
//! problem whose optimum also minimises the sum of the squares of the ranks' loads, and that sum falls when one
//! expert after another water-fills its count over its ranks. So: experts that share no rank form a colour and go at
//! once, a sweep is all colours, sweeps are over-relaxed, and the last one is plain and cuts whole tokens. Where no
//! two replicated experts share a rank, one sweep is exact.
//!
//! [`SplitPlan`] packs a placement once per plan; [`split`] is the reference of `cuda/split.cu`, equal to it bit for
//! bit: the same single-precision operations in the same order.

mod pack;
mod solve;

pub use pack::{LANES_MAX, RECORDS_MAX, SplitError, SplitPlan};
pub use solve::{RELAXATION, split};
