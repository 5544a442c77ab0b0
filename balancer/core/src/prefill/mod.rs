//! Prefill: cohorts of whole prompts, and chunks of long ones. See README.md.

mod backlog;
mod chunks;
mod cohort;
mod cut;
mod fill;
mod halves;
mod home;
mod insertion;
mod item;
mod load;
mod repair;
mod supply;
mod target;
mod work;

pub use backlog::assign_each;
pub use chunks::{Chunk, HELD_PER_RANK, Prompt, RankBacklog, Round, RoundBudget, Source, plan_round};
pub use cohort::{Assignment, Cohort, MICROBATCHES, assign};
pub use home::{HomeRank, Homes, Way};
pub use item::{Hit, Item};
pub use work::{Imbalance, Work};
