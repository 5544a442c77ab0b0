//! The kernels on a GPU: compiled at run time for the device's own architecture, kept on disk, launched.
//!
//! Nothing of CUDA is linked. [`Gpu::open`] says in an error value what is missing; every other function needs what
//! it returned. Launchers take raw device addresses and raw streams, as a worker inside an engine has them.
#![allow(unsafe_code)] // Calls of the driver and the compiler; each block says why it is sound.

mod cache;
mod compile;
mod error;
mod fingerprint;
mod flip;
mod floor;
mod gpu;
mod map_record;
mod prefix;
mod program;
mod slot_copy;
mod split;

pub use cache::CubinCache;
pub use compile::{Compiled, Resources, compile, compiler_version};
pub use error::DeviceError;
pub use fingerprint::{FingerprintKernel, fingerprint_program};
pub use flip::{FlipKernel, flip_program};
pub use floor::{FloorKernels, empty_program, plain_copy_program, plain_read_program};
pub use gpu::{Gpu, Kernel, KernelParams, Launch, gpu_count};
pub use map_record::{IdType, Layout, MapBuffers, MapForm, MapRecordKernel, MapShape};
pub use prefix::{PrefixKernel, PrefixShape, prefix_program};
pub use program::Program;
pub use slot_copy::{CopyForm, CopyPlan, CopyPlanError, Segment, SlotCopyKernel, slot_copy_program};
pub use split::{SplitBuffers, SplitKernel, split_program};
