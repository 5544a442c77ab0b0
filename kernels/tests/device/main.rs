//! Every kernel against its CPU reference, on a GPU. Without one each test says so and passes.
//!
//! Outputs are poisoned before each run and compared whole. `EVENKEEL_GPU_CASES` sets the random cases of each test.
#![allow(unsafe_code)] // Launches; every address is of a buffer that lives until the stream was waited for.

mod boundary;
mod bytes;
mod gpu;
mod map_record;
mod split;
