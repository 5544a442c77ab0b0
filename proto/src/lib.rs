//! The wire protocol `evenkeel.v1`: generated messages and services, the descriptor set for reflection, and
//! conversions to and from the core. This is the only external format; core types are not serialisable.
#![forbid(unsafe_code)]

mod convert;
pub mod plan_content;
mod routing;
mod version;

pub use convert::ConvertError;
pub use version::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, choose_protocol};

/// Messages and services of `evenkeel.v1`, generated from `proto/evenkeel/v1`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("evenkeel.v1");
}

/// The encoded descriptor set, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evenkeel_v1.bin"));

/// Largest message either side accepts: a plan of the largest accepted unit that today's models need
/// (1024 ranks x 4 slots x 128 layers at about 5 bytes a slot) with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Parts into which an agent cuts a load window, or fewer when the window has fewer steps. Parts show the solver
/// which experts rise and fall together, which a window's sum hides; four are enough to see it.
pub const WINDOW_PARTS: usize = 4;
