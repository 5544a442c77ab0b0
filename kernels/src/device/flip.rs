//! `flip` on the GPU.

use super::error::{DeviceError, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use cudarc::driver::sys;

const NAME: &str = "flip";
const SOURCE: &str = include_str!("../../cuda/flip.cu");

/// Threads of a block: most models have fewer layers than one warp triple.
const BLOCK: u32 = 128;

/// The argument of the kernel; see `cuda/flip.cu`. The addresses may be of mapped host memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FlipParams {
    active: u64,
    armed: u64,
    taken: u64,
    layers: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<FlipParams>() == 32, "the CUDA side asserts the same");

// SAFETY: the layout of `Flip` in cuda/flip.cu.
unsafe impl KernelParams for FlipParams {}

/// What is compiled.
pub fn flip_program() -> Program {
    Program::new(NAME, SOURCE, [])
}

/// Blocks for so many layers.
fn blocks(layers: u32) -> u32 {
    layers.div_ceil(BLOCK)
}

/// The kernel.
#[derive(Debug, Clone)]
pub struct FlipKernel {
    kernel: Kernel,
}

impl FlipKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu) -> Result<Self, DeviceError> {
        Ok(Self { kernel: gpu.kernel(&flip_program())? })
    }

    /// Takes every layer's armed word, in stream order.
    ///
    /// # Safety
    ///
    /// Each address is valid for `layers` words of 32 bits until the launch has completed.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        active: u64,
        armed: u64,
        taken: u64,
        layers: u32,
    ) -> Result<(), DeviceError> {
        in_range(NAME, "layers", layers.into(), 1..=4096, "1 to 4096")?;
        let params = FlipParams { active, armed, taken, layers, reserved: 0 };
        let launch = Launch { grid: (blocks(layers), 1), block: BLOCK, shared: 0 };
        // SAFETY: `FlipParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.kernel.launch(stream, launch, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_a_thread() {
        assert_eq!([1, 128, 129].map(blocks), [1, 1, 2]);
    }
}
