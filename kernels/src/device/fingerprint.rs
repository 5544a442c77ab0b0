//! `fingerprint` on the GPU: many slots of equal size in one launch.

use super::error::{DeviceError, aligned, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use cudarc::driver::sys;

const NAME: &str = "fingerprint";
const SOURCE: &str = include_str!("../../cuda/fingerprint.cu");

/// Threads of a block.
const BLOCK: u32 = 512;
/// Bytes that a block takes at a time: four 16-byte loads a thread.
const CHUNK: u64 = BLOCK as u64 * 4 * 16;
/// Blocks of a multiprocessor.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;

/// The argument of the kernel; see `cuda/fingerprint.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FingerprintParams {
    slots: u64,
    sums: u64,
    bytes: u64,
}
const _: () = assert!(size_of::<FingerprintParams>() == 24, "the CUDA side asserts the same");

// SAFETY: the layout of `FingerprintSlots` in cuda/fingerprint.cu.
unsafe impl KernelParams for FingerprintParams {}

/// What is compiled.
pub fn fingerprint_program() -> Program {
    Program::new(NAME, SOURCE, [("BLOCK", BLOCK)])
}

/// Blocks per slot: all slots together fill the GPU, and no block is without a chunk.
fn grid(slots: u32, bytes: u64, multiprocessors: u32) -> (u32, u32) {
    let room = (multiprocessors * BLOCKS_PER_MULTIPROCESSOR).div_ceil(slots).max(1);
    let chunks = bytes.div_ceil(CHUNK).max(1);
    (u32::try_from(chunks.min(room.into())).expect("bounded by the room"), slots)
}

/// The kernel.
#[derive(Debug, Clone)]
pub struct FingerprintKernel {
    kernel: Kernel,
    multiprocessors: u32,
}

impl FingerprintKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu) -> Result<Self, DeviceError> {
        Ok(Self { kernel: gpu.kernel(&fingerprint_program())?, multiprocessors: gpu.multiprocessors() })
    }

    /// Adds the fingerprint of each slot to its sum, in stream order.
    ///
    /// # Safety
    ///
    /// `slots` holds `count` device addresses, each a multiple of 16 and valid for `bytes`; `sums` holds `count`
    /// words of 64 bits that are zero. All stay valid until the launch has completed.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        slots: u64,
        sums: u64,
        count: u32,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        in_range(NAME, "slots", count.into(), 1..=65535, "1 to 65535")?;
        in_range(NAME, "bytes", bytes, 0..=1 << 40, "up to 2^40")?;
        aligned(NAME, "slots", slots)?;
        aligned(NAME, "sums", sums)?;
        let params = FingerprintParams { slots, sums, bytes };
        let launch = Launch { grid: grid(count, bytes, self.multiprocessors), block: BLOCK, shared: 0 };
        // SAFETY: `FingerprintParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.kernel.launch(stream, launch, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_share_the_gpu() {
        assert_eq!(grid(1, 44 << 20, 132), (528, 1));
        assert_eq!(grid(64, 44 << 20, 132), (9, 64));
        assert_eq!(grid(4000, 44 << 20, 132), (1, 4000));
        assert_eq!(grid(1, 0, 132), (1, 1));
        assert_eq!(grid(2, CHUNK + 1, 132), (2, 2));
    }
}
