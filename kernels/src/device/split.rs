//! `split` on the GPU.

use super::error::{DeviceError, aligned, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use crate::split::SplitPlan;
use cudarc::driver::sys;

const NAME: &str = "split";
const SOURCE: &str = include_str!("../../cuda/split.cu");

/// Threads: they share the loading; the first lanes sweep.
const BLOCK: u32 = 512;

/// The argument of the kernel; see `cuda/split.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SplitParams {
    counts: u64,
    single: u64,
    lanes: u64,
    quotas: u64,
    lane_count: u32,
    sweeps: u32,
    relaxation: f32,
    colours: u32,
}
const _: () = assert!(size_of::<SplitParams>() == 48, "the CUDA side asserts the same");

// SAFETY: the layout of `Split` in cuda/split.cu.
unsafe impl KernelParams for SplitParams {}

/// Device addresses of one layer's split, multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct SplitBuffers {
    /// `u32 [experts]`: the batch's count of each expert.
    pub counts: u64,
    /// [`SplitPlan::device_slots`].
    pub slots: u64,
    /// [`SplitPlan::device_lanes`]; may be 0 without colours.
    pub lanes: u64,
    /// `u32 [slots]`: written.
    pub quotas: u64,
}

/// What is compiled for plans of a shape; `one_warp` for those of 32 lanes.
pub fn split_program(experts: u32, ranks: u32, slots: u32, one_warp: bool) -> Program {
    let constants = [
        ("EXPERTS", experts),
        ("RANKS", ranks),
        ("SLOTS", slots),
        ("ONE_WARP", one_warp.into()),
        ("BLOCK", BLOCK),
    ];
    Program::new(NAME, SOURCE, constants)
}

/// Bytes of shared memory for a plan's records, besides what the kernel has of its own.
fn shared_bytes(plan: &SplitPlan) -> u32 {
    u32::try_from(plan.colours() * plan.lanes() * 16).expect("bounded when the plan was packed")
}

/// The kernel, compiled for the shape of a layer; every plan of that shape is served.
#[derive(Debug, Clone)]
pub struct SplitKernel {
    one_warp: Kernel,
    more_warps: Kernel,
    /// Experts, ranks, slots.
    shape: [usize; 3],
}

impl SplitKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu, plan: &SplitPlan) -> Result<Self, DeviceError> {
        let shape = [plan.experts(), plan.ranks(), plan.slots()];
        let [experts, ranks, slots] =
            shape.map(|value| u32::try_from(value).expect("a plan's numbers are small"));
        let kernel = |one_warp| gpu.kernel(&split_program(experts, ranks, slots, one_warp));
        Ok(Self { one_warp: kernel(true)?, more_warps: kernel(false)?, shape })
    }

    /// Splits one batch, in stream order; see [`crate::split::split`] for `sweeps` and `relaxation`.
    ///
    /// # Safety
    ///
    /// The addresses hold what [`SplitBuffers`] says of `plan` until the launch has completed.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        plan: &SplitPlan,
        buffers: &SplitBuffers,
        sweeps: u32,
        relaxation: f32,
    ) -> Result<(), DeviceError> {
        assert_eq!(self.shape, [plan.experts(), plan.ranks(), plan.slots()], "a kernel of this shape");
        in_range(NAME, "sweeps", sweeps.into(), 1..=1000, "1 to 1000")?;
        // Over-relaxation diverges from 2 on.
        in_range(NAME, "relaxation in hundredths", (relaxation * 100.0) as u64, 100..=199, "100 to 199")?;
        for (field, address) in [
            ("counts", buffers.counts),
            ("slots", buffers.slots),
            ("lanes", buffers.lanes),
            ("quotas", buffers.quotas),
        ] {
            aligned(NAME, field, address)?;
        }
        let params = SplitParams {
            counts: buffers.counts,
            single: buffers.slots,
            lanes: buffers.lanes,
            quotas: buffers.quotas,
            lane_count: u32::try_from(plan.lanes()).expect("at most 512"),
            sweeps,
            relaxation,
            colours: u32::try_from(plan.colours()).expect("at most 64"),
        };
        let kernel = if plan.lanes() == 32 { &self.one_warp } else { &self.more_warps };
        let launch = Launch { grid: (1, 1), block: BLOCK, shared: shared_bytes(plan) };
        // SAFETY: `SplitParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { kernel.launch(stream, launch, &params) }
    }
}
