//! What others do with the same input, written anew from their published descriptions and sources.

pub mod eplb;
pub mod requests;
