//! Expert-dispatch kernels. Today this crate holds their CPU references only: they are what the simulated
//! worker runs, and what the CUDA kernels will be compared with. See `README.md` for what is not there.

pub mod fingerprint;
pub mod map_record;
pub mod mix;

pub use fingerprint::{Fingerprint, FingerprintStream, fingerprint};
pub use map_record::{DispatchTable, MapError, map_record};
