//! Decode: which rank a request joins. See README.md.

mod admit;

pub use admit::{RankLoad, admit};
