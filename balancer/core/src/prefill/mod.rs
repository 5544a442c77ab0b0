//! Prefill: cohorts of whole prompts, and chunks of long ones. See README.md.

mod chunks;
mod cohort;
mod work;

pub use chunks::{Chunk, Prompt, RankBacklog, Round, Source, plan_round};
pub use cohort::{Assignment, Cohort, assign};
pub use work::{Imbalance, Work};
