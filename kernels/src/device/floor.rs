//! What the benchmarks measure against: an empty kernel, a plain copy and a plain read.

use super::error::{DeviceError, aligned};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use cudarc::driver::sys;

const NAME: &str = "plain_copy";
const SOURCE: &str = include_str!("../../cuda/floor.cu");
/// Threads of a block, and the most blocks: eight on each of an H200's multiprocessors.
const BLOCK: u32 = 256;
const BLOCKS_MAX: u64 = 1056;

/// The argument of the kernel; see `cuda/floor.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PlainCopyParams {
    from: u64,
    to: u64,
    vectors: u64,
}
const _: () = assert!(size_of::<PlainCopyParams>() == 24, "the CUDA side asserts the same");

// SAFETY: the layout of `PlainCopy` in cuda/floor.cu.
unsafe impl KernelParams for PlainCopyParams {}

/// The empty kernel ignores its argument list, so a plain copy's may be passed.
fn empty_params() -> PlainCopyParams {
    PlainCopyParams { from: 0, to: 0, vectors: 0 }
}

/// What is compiled for the copy.
pub fn plain_copy_program() -> Program {
    Program::new(NAME, SOURCE, [])
}

/// What is compiled for the empty kernel.
pub fn empty_program() -> Program {
    Program::new("empty", SOURCE, [])
}

/// What is compiled for the read.
pub fn plain_read_program() -> Program {
    Program::new("plain_read", SOURCE, [])
}

/// The three kernels.
#[derive(Debug, Clone)]
pub struct FloorKernels {
    copy: Kernel,
    read: Kernel,
    empty: Kernel,
}

impl FloorKernels {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu) -> Result<Self, DeviceError> {
        let (copy, read) = (gpu.kernel(&plain_copy_program())?, gpu.kernel(&plain_read_program())?);
        Ok(Self { copy, read, empty: gpu.kernel(&empty_program())? })
    }

    /// Does nothing, in stream order.
    ///
    /// # Safety
    ///
    /// `stream` belongs to this GPU's context.
    pub unsafe fn empty(&self, stream: sys::CUstream) -> Result<(), DeviceError> {
        // SAFETY: the kernel takes no argument and touches no memory; the stream is the caller's promise.
        unsafe { self.empty.launch(stream, Launch { grid: (1, 1), block: 32, shared: 0 }, &empty_params()) }
    }

    /// Copies whole 16-byte vectors, in stream order.
    ///
    /// # Safety
    ///
    /// Both addresses are valid for `bytes` until the launch has completed, and do not overlap.
    pub unsafe fn copy(
        &self,
        stream: sys::CUstream,
        from: u64,
        to: u64,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        aligned(NAME, "from", from)?;
        aligned(NAME, "to", to)?;
        let vectors = bytes / 16;
        let blocks = vectors.div_ceil(BLOCK.into()).clamp(1, BLOCKS_MAX);
        let launch = Launch { grid: (u32::try_from(blocks).expect("bounded"), 1), block: BLOCK, shared: 0 };
        // SAFETY: `PlainCopyParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.copy.launch(stream, launch, &PlainCopyParams { from, to, vectors }) }
    }

    /// Reads whole 16-byte vectors, in stream order, with 528 blocks of 512 threads; `sums` gets a word of each thread.
    ///
    /// # Safety
    ///
    /// `from` is valid for `bytes` and `sums` for 528 * 512 words until the launch has completed.
    pub unsafe fn read(
        &self,
        stream: sys::CUstream,
        from: u64,
        sums: u64,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        aligned(NAME, "from", from)?;
        let launch = Launch { grid: (528, 1), block: 512, shared: 0 };
        let params = PlainCopyParams { from, to: sums, vectors: bytes / 16 };
        // SAFETY: `PlainCopyParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.read.launch(stream, launch, &params) }
    }
}
