//! `prefix` on the GPU: all layers of a step in one launch.

use super::error::{DeviceError, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use cudarc::driver::sys;

const NAME: &str = "prefix";
const SOURCE: &str = include_str!("../../cuda/prefix.cu");

/// The argument of the kernel; see `cuda/prefix.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrefixParams {
    counts: u64,
    offsets: u64,
    layers: u32,
    slots: u32,
    stride: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<PrefixParams>() == 32, "the CUDA side asserts the same");

// SAFETY: the layout of `Prefix` in cuda/prefix.cu.
unsafe impl KernelParams for PrefixParams {}

/// What is compiled.
pub fn prefix_program() -> Program {
    Program::new(NAME, SOURCE, [])
}

/// Counters of all layers.
#[derive(Debug, Clone, Copy)]
pub struct PrefixShape {
    /// Layers.
    pub layers: u32,
    /// Slots of a layer.
    pub slots: u32,
    /// Words from one layer's counters to the next; see [`super::MapShape::count_words`].
    pub stride: u32,
}

/// The kernel.
#[derive(Debug, Clone)]
pub struct PrefixKernel {
    kernel: Kernel,
}

impl PrefixKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu) -> Result<Self, DeviceError> {
        Ok(Self { kernel: gpu.kernel(&prefix_program())? })
    }

    /// Writes `offsets`, `u32 [layers][slots + 1]`, in stream order.
    ///
    /// # Safety
    ///
    /// `counts` is valid for `[layers][stride]` words and `offsets` for the above until the launch has completed.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        counts: u64,
        offsets: u64,
        shape: PrefixShape,
    ) -> Result<(), DeviceError> {
        let PrefixShape { layers, slots, stride } = shape;
        in_range(NAME, "layers", layers.into(), 1..=4096, "1 to 4096")?;
        in_range(NAME, "slots", slots.into(), 1..=65536, "1 to 65536")?;
        in_range(NAME, "stride", stride.into(), slots.into()..=1 << 20, "the number of slots to 1048576")?;
        let params = PrefixParams { counts, offsets, layers, slots, stride, reserved: 0 };
        let launch = Launch { grid: (layers, 1), block: 32, shared: 0 };
        // SAFETY: `PrefixParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.kernel.launch(stream, launch, &params) }
    }
}
