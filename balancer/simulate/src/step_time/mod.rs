//! Step times.
