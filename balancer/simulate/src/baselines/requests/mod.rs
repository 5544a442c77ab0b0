//! Request policies of the serving systems that users would pick instead: each anew after the source that it names, with that
//! system's defaults and the age of its load reports.
//!
//! The reference of each is the Python of `tests/reference/request_policies.py`; `oracle_tests.rs` and `answers_tests.rs`
//! hold both to the same decisions.

mod active_blocks;
mod approximate_index;
pub mod bf_io;
mod by_count;
pub mod dynamo;
pub mod dyntra;
pub mod gates;
pub mod llmd;
pub mod llumnix;
pub mod lmetric;
pub mod microbatch_splits;
pub mod one_by_one;
mod peers;
pub mod python_random;
pub mod sglang;
pub mod smg;
pub mod staggered;
pub mod tensorrt_llm;
mod ties;
pub mod vllm;
pub mod vllm_router;

pub use by_count::{LeastRequests, RoundRobin};
pub use peers::{PEERS, Peer, Phase, by_name, decode_peers, prefill_peers};

#[cfg(test)]
mod answers_tests;
#[cfg(test)]
mod oracle_tests;
