//! `map_record` on the GPU: shape, forms, launch.

use super::error::{DeviceError, aligned, in_range};
use super::gpu::{Gpu, Kernel, KernelParams, Launch};
use super::program::Program;
use crate::device_table::{count_words, rank_counts_at, table_words};
use cudarc::driver::sys;

const NAME: &str = "map_record";
const SOURCE: &str = include_str!("../../cuda/map_record.cu");

/// Forms that a launch chooses from.
const FORMS: usize = 6;

/// Width of the engine's expert ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdType {
    /// 32 bits, as in vLLM.
    I32,
    /// 64 bits, as `torch.topk` gives and DeepEP takes.
    I64,
}

impl IdType {
    /// Bytes of an id.
    pub fn bytes(self) -> u32 {
        match self {
            IdType::I32 => 4,
            IdType::I64 => 8,
        }
    }
}

/// What of the dispatch's layout is written beside the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Nothing: slots and slot counts alone.
    None,
    /// Token-in-rank bits, `u32 [words][tokens]` with 32 ranks a word, and tokens per rank.
    Bitmask,
    /// Token-in-rank bytes of 0 or 1, `u8 [tokens][ranks]` as DeepEP takes them, and tokens per rank.
    BoolMatrix,
}

/// The shape that is compiled into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapShape {
    /// Logical experts of the layer, 8 to 1024.
    pub experts: u32,
    /// Ids of a token, 4 to 9.
    pub top_k: u32,
    /// Ranks, 1 to 320 (the largest published deployment, DeepSeek-V3's decode unit).
    pub ranks: u32,
    /// Physical slots of a rank, spare ones included; 3072 in all, so that tables and counters fit 48 KiB.
    pub slots_per_rank: u32,
    /// Width of the ids.
    pub ids: IdType,
    /// What is written beside the slots.
    pub layout: Layout,
}

/// How a launch divides the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapForm {
    /// Lanes that share a token: a power of two that divides `top_k`.
    pub lanes: u32,
    /// Tables and counters in shared memory; otherwise global loads and atomics, and no barrier.
    pub staged: bool,
    /// Threads of a block.
    pub block: u32,
}

/// The argument of the kernel; see `cuda/map_record.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct MapParams {
    ids: u64,
    physical: u64,
    in_rank: u64,
    counts: u64,
    tables: u64,
    active: u64,
    step: u64,
    faults: u64,
    tokens: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<MapParams>() == 72, "the CUDA side asserts the same");

// SAFETY: the layout of `MapRecord` in cuda/map_record.cu.
unsafe impl KernelParams for MapParams {}

/// Device addresses of one layer's batch. Those of arrays are multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct MapBuffers {
    /// `[tokens][top_k]` ids; negative ones are padding.
    pub ids: u64,
    /// `[tokens][top_k]` of the same width: written.
    pub physical: u64,
    /// Written as [`Layout`] says; 0 without a layout.
    pub in_rank: u64,
    /// `u32` [`MapShape::count_words`]: added to. Set all layers' to zero once a step.
    pub counts: u64,
    /// `u32 [2]` [`MapShape::table_words`]: the two table buffers.
    pub tables: u64,
    /// One `u32` whose lowest bit names the buffer in service.
    pub active: u64,
    /// `u32 [2]`: tokens that count (rows past it are a graph's padding), and the salt.
    pub step: u64,
    /// One `u32`, added to: ids that no expert has. They pass through.
    pub faults: u64,
}

impl MapShape {
    /// Refuses what the kernel is not made for.
    pub fn check(&self) -> Result<(), DeviceError> {
        let range = |field, value: u32, range, accepted| in_range(NAME, field, value.into(), range, accepted);
        range("experts", self.experts, 8..=1024, "8 to 1024")?;
        range("top_k", self.top_k, 4..=9, "4 to 9")?;
        range("ranks", self.ranks, 1..=320, "1 to 320")?;
        range("slots_per_rank", self.slots_per_rank, 1..=3072, "1 to 3072")?;
        let least = u64::from(self.experts);
        in_range(NAME, "slots", self.slots().into(), least..=3072, "the number of experts to 3072")
    }

    /// Physical slots of the layer.
    pub fn slots(&self) -> u32 {
        self.ranks * self.slots_per_rank
    }

    /// Words of one table buffer.
    pub fn table_words(&self) -> usize {
        table_words(self.experts as usize, self.slots() as usize)
    }

    /// Words of a layer's counters: slots, then (at [`MapShape::rank_counts_at`]) tokens of each rank.
    pub fn count_words(&self) -> usize {
        let ranks = if self.layout == Layout::None { 0 } else { self.ranks as usize };
        count_words(self.slots() as usize, ranks)
    }

    /// Where the tokens per rank begin in the counters.
    pub fn rank_counts_at(&self) -> usize {
        rank_counts_at(self.slots() as usize)
    }

    /// Bytes of the token-in-rank output.
    pub fn in_rank_bytes(&self, tokens: usize) -> usize {
        match self.layout {
            Layout::None => 0,
            Layout::Bitmask => 4 * tokens * self.ranks.div_ceil(32) as usize,
            Layout::BoolMatrix => tokens * self.ranks as usize,
        }
    }

    /// The most lanes that may share a token.
    fn lanes_max(&self) -> u32 {
        1 << self.top_k.trailing_zeros()
    }

    /// The forms that [`MapShape::launch`] chooses from, by rising number of tokens: the fastest of those measured on an
    /// H200 (README.md). Few tokens want many lanes, as a token's ids then do not wait for one another; many tokens
    /// want few, as every lane repeats what belongs to the token. The bool matrix of many ranks is bound by its stores,
    /// which neighbouring lanes make whole.
    pub fn forms(&self) -> [MapForm; FORMS] {
        let one_word = self.ranks <= 32;
        let bools = self.layout == Layout::BoolMatrix;
        let form = |lanes: u32, staged, block: u32| MapForm {
            lanes: lanes.min(self.lanes_max()),
            staged,
            // Many mask words need the registers of a smaller block.
            block: if self.ranks > 160 { block.min(512) } else { block },
        };
        let twice = |form: MapForm| (form, form);
        let (many, most) = match (self.layout, self.ids) {
            (Layout::None, IdType::I32) => twice(form(2, true, 1024)),
            (Layout::Bitmask, IdType::I32) => (form(1, true, 512), form(1, true, 1024)),
            (Layout::Bitmask, IdType::I64) if !one_word => twice(form(2, true, 512)),
            (Layout::BoolMatrix, _) if !one_word => twice(form(8, true, 512)),
            _ => (form(4, true, 1024), form(2, true, 1024)),
        };
        [
            form(8, false, 128),
            form(4, true, 256),
            form(4, true, if one_word { 512 } else { 256 }),
            form(if bools && !one_word { 4 } else { 2 }, true, 512),
            many,
            most,
        ]
    }

    /// Which form takes so many tokens, and with how many blocks, on a GPU of so many multiprocessors.
    pub fn launch(&self, tokens: u32, multiprocessors: u32) -> (usize, u32) {
        let form = match tokens {
            0..=256 => 0,
            257..=3072 => 1,
            3073..=8192 => 2,
            8193..=24576 => 3,
            24577..=98304 => 4,
            _ => 5,
        };
        (form, self.blocks(self.forms()[form], tokens, multiprocessors))
    }

    /// Blocks of a form.
    pub fn blocks(&self, form: MapForm, tokens: u32, multiprocessors: u32) -> u32 {
        let all = tokens.div_ceil(form.block / form.lanes).max(1);
        // A direct block makes one pass. Staged ones come as many as are resident at once, and stride.
        if form.staged { all.min(multiprocessors * (1024 / form.block)) } else { all }
    }

    /// What is compiled for a form.
    pub fn program(&self, form: MapForm) -> Program {
        let layout = match self.layout {
            Layout::None => 0,
            Layout::Bitmask => 1,
            Layout::BoolMatrix => 2,
        };
        Program::new(
            NAME,
            SOURCE,
            [
                ("ID_BYTES", self.ids.bytes()),
                ("TOP_K", self.top_k),
                ("EXPERTS", self.experts),
                ("RANKS", self.ranks),
                ("SLOTS_PER_RANK", self.slots_per_rank),
                ("LAYOUT", layout),
                ("LANES", form.lanes),
                ("STAGED", form.staged.into()),
                ("BLOCK", form.block),
            ],
        )
    }
}

/// The kernel, compiled for a shape in all its forms.
#[derive(Debug, Clone)]
pub struct MapRecordKernel {
    shape: MapShape,
    multiprocessors: u32,
    forms: [MapForm; FORMS],
    kernels: Vec<Kernel>,
}

impl MapRecordKernel {
    /// Compiles, or takes from the cache.
    pub fn load(gpu: &Gpu, shape: MapShape) -> Result<Self, DeviceError> {
        shape.check()?;
        let forms = shape.forms();
        let kernels: Result<_, _> = forms.iter().map(|&form| gpu.kernel(&shape.program(form))).collect();
        Ok(Self { shape, multiprocessors: gpu.multiprocessors(), forms, kernels: kernels? })
    }

    /// The same form for every number of tokens: for tests and for tuning.
    pub fn load_form(gpu: &Gpu, shape: MapShape, form: MapForm) -> Result<Self, DeviceError> {
        shape.check()?;
        let kernel = gpu.kernel(&shape.program(form))?;
        let kernels = vec![kernel; FORMS];
        Ok(Self { shape, multiprocessors: gpu.multiprocessors(), forms: [form; FORMS], kernels })
    }

    /// Maps one layer's batch in stream order.
    ///
    /// # Safety
    ///
    /// The addresses are valid for the extents that [`MapBuffers`] gives, and nothing else writes them until the
    /// launch has completed; the tables were made by [`crate::DispatchTable::device_words`] for this shape.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        buffers: &MapBuffers,
        tokens: u32,
    ) -> Result<(), DeviceError> {
        let (form, _) = self.shape.launch(tokens, self.multiprocessors);
        let blocks = self.shape.blocks(self.forms[form], tokens, self.multiprocessors);
        // SAFETY: passed on.
        unsafe { self.launch_blocks(stream, buffers, tokens, form, blocks) }
    }

    /// As [`MapRecordKernel::launch`], with the form and the number of blocks given: for tuning.
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn launch_blocks(
        &self,
        stream: sys::CUstream,
        buffers: &MapBuffers,
        tokens: u32,
        form: usize,
        blocks: u32,
    ) -> Result<(), DeviceError> {
        // More would wrap the index arithmetic of a grid that strides.
        in_range(NAME, "tokens", tokens.into(), 0..=1 << 24, "0 to 16777216")?;
        for (field, address) in [
            ("ids", buffers.ids),
            ("physical", buffers.physical),
            ("in_rank", buffers.in_rank),
            ("counts", buffers.counts),
            ("tables", buffers.tables),
        ] {
            aligned(NAME, field, address)?;
        }
        if tokens == 0 {
            return Ok(());
        }
        let params = MapParams {
            ids: buffers.ids,
            physical: buffers.physical,
            in_rank: buffers.in_rank,
            counts: buffers.counts,
            tables: buffers.tables,
            active: buffers.active,
            step: buffers.step,
            faults: buffers.faults,
            tokens,
            reserved: 0,
        };
        let launch = Launch { grid: (blocks, 1), block: self.forms[form].block, shared: 0 };
        // SAFETY: `MapParams` is this kernel's structure; the addresses are the caller's promise.
        unsafe { self.kernels[form].launch(stream, launch, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MapShape = MapShape {
        experts: 256,
        top_k: 8,
        ranks: 32,
        slots_per_rank: 9,
        ids: IdType::I32,
        layout: Layout::Bitmask,
    };

    #[track_caller]
    fn check_refused(shape: MapShape, field: &str) {
        match shape.check() {
            Err(DeviceError::OutOfRange { field: refused, .. }) => assert_eq!(refused, field),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn shapes_out_of_range_are_refused() {
        assert_eq!(SHAPE.check(), Ok(()));
        check_refused(MapShape { experts: 7, ..SHAPE }, "experts");
        check_refused(MapShape { experts: 1025, ..SHAPE }, "experts");
        check_refused(MapShape { top_k: 3, ..SHAPE }, "top_k");
        check_refused(MapShape { top_k: 10, ..SHAPE }, "top_k");
        check_refused(MapShape { ranks: 0, ..SHAPE }, "ranks");
        check_refused(MapShape { ranks: 321, ..SHAPE }, "ranks");
        check_refused(MapShape { slots_per_rank: 0, ..SHAPE }, "slots_per_rank");
        check_refused(MapShape { slots_per_rank: 7, ..SHAPE }, "slots");
        check_refused(MapShape { slots_per_rank: 97, ..SHAPE }, "slots");
        check_refused(MapShape { slots_per_rank: 3073, ..SHAPE }, "slots_per_rank");
    }

    #[track_caller]
    fn check_launch(tokens: u32, expected: (usize, u32)) {
        assert_eq!(SHAPE.launch(tokens, 132), expected, "{tokens} tokens");
    }

    #[test]
    fn the_form_follows_the_tokens() {
        check_launch(0, (0, 1));
        check_launch(1, (0, 1));
        check_launch(33, (0, 3));
        check_launch(256, (0, 16));
        check_launch(257, (1, 5));
        check_launch(3072, (1, 48));
        check_launch(4096, (2, 32));
        check_launch(16384, (3, 64));
        check_launch(65536, (4, 128));
        check_launch(131_072, (5, 128));
        check_launch(1_000_000, (5, 132));
    }

    #[track_caller]
    fn check_lanes(top_k: u32, expected: [u32; FORMS]) {
        let forms = MapShape { top_k, ..SHAPE }.forms();
        assert_eq!(forms.map(|form| form.lanes), expected);
        assert!(forms.iter().all(|form| top_k.is_multiple_of(form.lanes)));
    }

    #[test]
    fn lanes_divide_the_ids_of_a_token() {
        check_lanes(4, [4, 4, 4, 2, 1, 1]);
        check_lanes(5, [1; FORMS]);
        check_lanes(6, [2, 2, 2, 2, 1, 1]);
        check_lanes(8, [8, 4, 4, 2, 1, 1]);
        check_lanes(9, [1; FORMS]);
    }
}
