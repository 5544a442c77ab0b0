//! Why a kernel could not be compiled or launched.

/// `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine has no NVIDIA driver.
    #[error(
        "[gpu_no_driver] libcuda cannot be loaded: install the NVIDIA driver, or use the simulated worker"
    )]
    NoDriver,
    /// The machine has no run-time compiler.
    #[error(
        "[gpu_no_compiler] libnvrtc cannot be loaded: install CUDA 13's NVRTC or put the folder of libnvrtc.so.13 (PyTorch brings one) into LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// There is no such GPU.
    #[error("[gpu_not_found] there is no GPU {ordinal}: this machine has {count}")]
    NotFound {
        /// What was asked for.
        ordinal: usize,
        /// GPUs of the machine.
        count: usize,
    },
    /// A GPU that the kernels are not written for.
    #[error("[gpu_too_old] the GPU has compute capability {major}.{minor}: 9.0 (Hopper) or newer is needed")]
    TooOld {
        /// Of its compute capability.
        major: i32,
        /// Of its compute capability.
        minor: i32,
    },
    /// A call of the driver failed.
    #[error("[gpu_driver] {call}: the driver says {reason}")]
    Driver {
        /// What was being done.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// The compiler refused a kernel: a fault of this build.
    #[error("[gpu_compile] kernel {kernel} does not compile for {arch}:\n{log}")]
    Compile {
        /// Name of the kernel.
        kernel: &'static str,
        /// Target.
        arch: String,
        /// What the compiler wrote.
        log: String,
    },
    /// A value that the kernel is not made for.
    #[error("[gpu_out_of_range] {kernel}: {field} is {value}: accepted is {accepted}")]
    OutOfRange {
        /// Name of the kernel.
        kernel: &'static str,
        /// Which value.
        field: &'static str,
        /// The value.
        value: u64,
        /// What is accepted.
        accepted: &'static str,
    },
}

impl DeviceError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            DeviceError::NoDriver => "gpu_no_driver",
            DeviceError::NoCompiler => "gpu_no_compiler",
            DeviceError::NotFound { .. } => "gpu_not_found",
            DeviceError::TooOld { .. } => "gpu_too_old",
            DeviceError::Driver { .. } => "gpu_driver",
            DeviceError::Compile { .. } => "gpu_compile",
            DeviceError::OutOfRange { .. } => "gpu_out_of_range",
        }
    }

    /// Wraps a driver's error with what was being done.
    pub(super) fn driver(call: &'static str) -> impl Fn(cudarc::driver::DriverError) -> DeviceError {
        move |error| DeviceError::Driver { call, reason: error.to_string() }
    }
}

/// Refuses `value` outside `range`.
pub(super) fn in_range(
    kernel: &'static str,
    field: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    accepted: &'static str,
) -> Result<(), DeviceError> {
    if range.contains(&value) {
        Ok(())
    } else {
        Err(DeviceError::OutOfRange { kernel, field, value, accepted })
    }
}

/// Refuses a device address that is no multiple of 16 bytes, the width of the kernels' accesses.
pub(super) fn aligned(kernel: &'static str, field: &'static str, address: u64) -> Result<(), DeviceError> {
    if address.is_multiple_of(16) {
        Ok(())
    } else {
        Err(DeviceError::OutOfRange { kernel, field, value: address, accepted: "a multiple of 16 bytes" })
    }
}
