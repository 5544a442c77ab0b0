//! What users would pick instead.

pub mod requests;
