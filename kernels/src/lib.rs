#![doc = include_str!("../README.md")]

pub mod device;
mod device_table;
pub mod fingerprint;
pub mod flip;
pub mod layout;
pub mod map_record;
pub mod mix;
pub mod prefix;
pub mod slot_copy;
pub mod split;

pub use device_table::DEVICE_SLOTS_MAX;
pub use fingerprint::{Fingerprint, FingerprintStream, fingerprint};
pub use map_record::{DispatchTable, MapError, map_record};
