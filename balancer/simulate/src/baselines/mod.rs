//! What others do with the same input, written anew from their published descriptions and sources.

mod assignment;
pub mod deployment;
pub mod eplb;
pub mod flashlb;
pub mod requests;
pub mod sglang_zigzag;
pub mod swift;
pub mod tensorrt_llm;
