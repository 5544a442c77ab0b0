//! `slot_copy` on the GPU.

use super::error::{DeviceError, aligned, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use crate::slot_copy::{CopyError, SlotMove, check_moves};
use cudarc::driver::sys;

const NAME: &str = "slot_copy";
const SOURCE: &str = include_str!("../../cuda/slot_copy.cu");

/// How the kernel divides the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyForm {
    /// Threads of a block.
    pub block: u32,
    /// 16-byte vectors that a thread has in flight.
    pub vectors: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
}

impl CopyForm {
    /// The fastest of those measured on an H200; see README.md.
    pub const BEST: CopyForm = CopyForm { block: 512, vectors: 2, blocks: 4 };

    /// Bytes that a block copies at a time.
    fn chunk(self) -> u64 {
        u64::from(self.block * self.vectors * 16)
    }
}

/// One copy as the kernel reads it from device memory; see `cuda/slot_copy.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    source: u64,
    destination: u64,
    bytes: u64,
    first_chunk: u64,
}
const _: () = assert!(size_of::<Segment>() == 32, "the CUDA side asserts the same");

/// The argument of the kernel; see `cuda/slot_copy.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SlotCopyParams {
    segments: u64,
    chunks: u64,
    count: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<SlotCopyParams>() == 24, "the CUDA side asserts the same");

// SAFETY: the layout of `SlotCopy` in cuda/slot_copy.cu.
unsafe impl KernelParams for SlotCopyParams {}

/// Copies that go together, ready to be put on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    segments: Vec<Segment>,
    chunks: u64,
    form: CopyForm,
}

/// Why copies were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyPlanError {
    /// They depend on an order.
    #[error(transparent)]
    Order(#[from] CopyError),
    /// An address or a number that the kernel is not made for.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CopyPlan {
    /// Plans copies between device addresses, all multiples of 16 bytes.
    pub fn new(moves: &[SlotMove]) -> Result<Self, CopyPlanError> {
        Self::with_form(moves, CopyForm::BEST)
    }

    /// The same for another form: for tuning.
    pub fn with_form(moves: &[SlotMove], form: CopyForm) -> Result<Self, CopyPlanError> {
        in_range(NAME, "copies", moves.len() as u64, 1..=65536, "1 to 65536")?;
        check_moves(moves)?;
        let mut chunks = 0;
        let mut segments = Vec::with_capacity(moves.len());
        for m in moves {
            aligned(NAME, "source", m.source)?;
            aligned(NAME, "destination", m.destination)?;
            let (source, destination, bytes) = (m.source, m.destination, m.bytes);
            segments.push(Segment { source, destination, bytes, first_chunk: chunks });
            chunks += m.bytes.div_ceil(form.chunk());
        }
        Ok(Self { segments, chunks, form })
    }

    /// What to put on the device, as bytes.
    pub fn device_bytes(&self) -> Vec<u8> {
        let words = self.segments.iter().flat_map(|s| [s.source, s.destination, s.bytes, s.first_chunk]);
        words.flat_map(u64::to_ne_bytes).collect()
    }

    /// Blocks on a GPU of so many multiprocessors.
    fn blocks(&self, multiprocessors: u32) -> u32 {
        let room = u64::from(multiprocessors * self.form.blocks);
        u32::try_from(self.chunks.min(room)).expect("bounded by the room")
    }
}

/// What is compiled.
pub fn slot_copy_program(form: CopyForm) -> Program {
    Program::new(NAME, SOURCE, [("BLOCK", form.block), ("VECTORS", form.vectors)])
}

/// The kernel.
#[derive(Debug, Clone)]
pub struct SlotCopyKernel {
    kernel: Kernel,
    form: CopyForm,
    multiprocessors: u32,
}

impl SlotCopyKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu) -> Result<Self, DeviceError> {
        Self::load_form(gpu, CopyForm::BEST)
    }

    /// The same in another form: for tuning.
    pub fn load_form(gpu: &Gpu, form: CopyForm) -> Result<Self, DeviceError> {
        let kernel = gpu.kernel(&slot_copy_program(form))?;
        Ok(Self { kernel, form, multiprocessors: gpu.multiprocessors() })
    }

    /// Copies, in stream order.
    ///
    /// # Safety
    ///
    /// `segments` holds [`CopyPlan::device_bytes`] of `plan`, and the plan's addresses are valid on the device, until
    /// the launch has completed.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        plan: &CopyPlan,
        segments: u64,
    ) -> Result<(), DeviceError> {
        assert_eq!(plan.form, self.form, "a plan of this kernel's form");
        aligned(NAME, "segments", segments)?;
        let count = u32::try_from(plan.segments.len()).expect("at most 65536");
        let params = SlotCopyParams { segments, chunks: plan.chunks, count, reserved: 0 };
        let launch =
            Launch { grid: (plan.blocks(self.multiprocessors), 1), block: self.form.block, shared: 0 };
        // SAFETY: `SlotCopyParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.kernel.launch(stream, launch, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(bytes: &[u64]) -> CopyPlan {
        let mut at = 0;
        let mut place = |bytes: u64| {
            at += bytes.next_multiple_of(16);
            at - bytes.next_multiple_of(16)
        };
        let moves: Vec<SlotMove> = bytes
            .iter()
            .map(|&bytes| SlotMove { source: place(bytes), destination: place(bytes), bytes })
            .collect();
        CopyPlan::new(&moves).unwrap()
    }

    #[test]
    fn chunks_follow_one_another() {
        let chunk = CopyForm::BEST.chunk();
        let plan = plan(&[chunk, chunk + 1, 1]);
        let first: Vec<u64> = plan.segments.iter().map(|s| s.first_chunk).collect();
        assert_eq!((first, plan.chunks), (vec![0, 1, 3], 4));
    }

    #[test]
    fn blocks_are_no_more_than_chunks_or_room() {
        assert_eq!(plan(&[1]).blocks(132), 1);
        assert_eq!(plan(&[CopyForm::BEST.chunk() * 10_000]).blocks(132), 528);
    }

    #[test]
    fn addresses_and_orders_are_checked() {
        let one = |source, destination| CopyPlan::new(&[SlotMove { source, destination, bytes: 16 }]);
        assert!(matches!(one(8, 64), Err(CopyPlanError::Device(_))));
        assert!(matches!(one(0, 0), Err(CopyPlanError::Order(_))));
        assert!(matches!(CopyPlan::new(&[]), Err(CopyPlanError::Device(_))));
    }
}
