//! One GPU: its context, its compiled kernels, and the launch.

use super::cache::CubinCache;
use super::compile::{Resources, compile, compiler_version};
use super::error::DeviceError;
use super::program::Program;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result, sys};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// A GPU that kernels can be launched on.
#[derive(Debug, Clone)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    arch: String,
    multiprocessors: u32,
    cache: Option<CubinCache>,
}

/// A compiled kernel on its GPU.
#[derive(Debug, Clone)]
pub struct Kernel {
    function: CudaFunction,
    /// What a thread of it takes.
    pub resources: Resources,
}

/// The one argument of a kernel: a `repr(C)` structure whose size both sides assert.
///
/// # Safety
///
/// The implementor has the layout of the structure that the kernel of its name takes.
pub unsafe trait KernelParams {}

/// Grid and block of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x and y.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory besides the kernel's own.
    pub shared: u32,
}

/// GPUs of this machine; 0 where there is no driver.
pub fn gpu_count() -> usize {
    // SAFETY: the probe only opens the library.
    if !unsafe { sys::is_culib_present() } {
        return 0;
    }
    CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

impl Gpu {
    /// Opens GPU `ordinal`'s primary context, which PyTorch and the engines use too.
    pub fn open(ordinal: usize, cache: Option<CubinCache>) -> Result<Self, DeviceError> {
        // SAFETY: the probe only opens the library. Without it every later call would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let count = gpu_count();
        if ordinal >= count {
            return Err(DeviceError::NotFound { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(DeviceError::driver("opening the GPU"))?;
        let (major, minor) =
            context.compute_capability().map_err(DeviceError::driver("asking for its capability"))?;
        if major < 9 {
            return Err(DeviceError::TooOld { major, minor });
        }
        compiler_version()?;
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(DeviceError::driver("asking for its multiprocessors"))?;
        let stream = context.new_stream().map_err(DeviceError::driver("making a stream"))?;
        Ok(Self {
            context,
            stream,
            // The architecture-specific target: it also has what later families dropped.
            arch: format!("sm_{major}{minor}a"),
            multiprocessors: multiprocessors.unsigned_abs(),
            cache,
        })
    }

    /// Compiles a kernel, or takes it from the cache.
    pub fn kernel(&self, program: &Program) -> Result<Kernel, DeviceError> {
        let key = program.key(&self.arch, compiler_version()?);
        let kept = self.cache.as_ref().and_then(|cache| cache.read(&key));
        let compiled = match kept {
            Some(compiled) => compiled,
            None => {
                let compiled = compile(program, &self.arch)?;
                if let Some(cache) = &self.cache {
                    // Not kept: the next start compiles again, and nothing else changes.
                    let _ = cache.write(&key, &compiled);
                }
                compiled
            }
        };
        let module = self
            .context
            .load_module(Ptx::from_binary(compiled.cubin))
            .map_err(DeviceError::driver("loading a kernel"))?;
        let function = module.load_function(program.name).map_err(DeviceError::driver("finding a kernel"))?;
        Ok(Kernel { function, resources: compiled.resources })
    }

    /// Its context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A stream of its own.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }
}

impl Kernel {
    /// Launches into `stream`.
    ///
    /// # Safety
    ///
    /// `P` is the structure of this kernel, every address in it is valid on the device for the extent that the
    /// kernel documents, stays so until the launch has completed, and `stream` belongs to this GPU's context.
    pub unsafe fn launch<P: KernelParams>(
        &self,
        stream: sys::CUstream,
        launch: Launch,
        params: &P,
    ) -> Result<(), DeviceError> {
        let mut argument = [std::ptr::from_ref(params).cast_mut().cast()];
        let grid = (launch.grid.0, launch.grid.1, 1);
        // SAFETY: the driver copies the argument during the call and does not write through it; the rest is the
        // caller's promise.
        unsafe {
            result::launch_kernel(
                self.function.cu_function(),
                grid,
                (launch.block, 1, 1),
                launch.shared,
                stream,
                &mut argument,
            )
        }
        .map_err(DeviceError::driver("launching a kernel"))
    }
}
