//! Time per node of a CUDA graph: what a kernel costs inside an engine's captured step.

use cudarc::driver::{CudaGraph, CudaSlice, DevicePtr, DeviceRepr, result, sys};
use evenkeel_kernels::device::{FloorKernels, Gpu};

/// Nodes of a graph: the MoE layers of DeepSeek-V3.
pub(crate) const NODES: usize = 58;
/// Replays, of which the median counts.
const REPLAYS: usize = 101;
/// More than any L2: written between replays to make them cold.
const FLUSH_BYTES: usize = 256 << 20;

pub(crate) struct Timing {
    pub(crate) gpu: Gpu,
    pub(crate) floor: FloorKernels,
    flush: CudaSlice<u8>,
}

/// Memory on the device that frees itself.
pub(crate) struct Memory {
    bytes: CudaSlice<u8>,
    pub(crate) address: u64,
}

impl Timing {
    pub(crate) fn new(gpu: Gpu) -> Self {
        let floor = FloorKernels::load(&gpu).expect("the floor compiles");
        let flush = gpu.stream().alloc_zeros(FLUSH_BYTES).expect("memory on the device");
        Self { gpu, floor, flush }
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.gpu.stream().cu_stream()
    }

    pub(crate) fn memory(&self, bytes: usize) -> Memory {
        let bytes = self.gpu.stream().alloc_zeros(bytes.max(16)).expect("memory on the device");
        let address = bytes.device_ptr(self.gpu.stream()).0;
        Memory { bytes, address }
    }

    pub(crate) fn upload<T: DeviceRepr>(&self, words: &[T]) -> Memory {
        let memory = self.memory(size_of_val(words));
        // SAFETY: the memory has that many bytes; the copy is waited for.
        unsafe { result::memcpy_htod_sync(memory.address, words) }.expect("a copy to the device");
        memory
    }

    fn fill(&self, memory: &Memory, byte: u8) {
        // SAFETY: the whole of the memory.
        unsafe { result::memset_d8_async(memory.address, byte, memory.bytes.len(), self.stream()) }
            .expect("a fill");
    }

    pub(crate) fn poison(&self, memory: &mut Memory) {
        self.fill(memory, 0xA5);
    }

    pub(crate) fn zero(&self, memory: &mut Memory) {
        self.fill(memory, 0);
    }

    pub(crate) fn read<T: DeviceRepr + Clone + Default>(&self, memory: &Memory, count: usize) -> Vec<T> {
        self.gpu.stream().synchronize().expect("no kernel failed");
        let mut words = vec![T::default(); count];
        assert!(size_of_val(&words[..]) <= memory.bytes.len());
        // SAFETY: the memory has at least as many bytes.
        unsafe { result::memcpy_dtoh_sync(&mut words, memory.address) }.expect("a copy from the device");
        words
    }

    /// Captures what `launch` does for each node.
    pub(crate) fn graph(&self, nodes: usize, mut launch: impl FnMut(usize)) -> CudaGraph {
        let stream = self.gpu.stream();
        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .expect("a capture");
        (0..nodes).for_each(&mut launch);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        stream.end_capture(flags).expect("a captured graph").expect("a graph that is not empty")
    }

    /// Median microseconds per node over many replays; cold: the L2 is flushed before each.
    pub(crate) fn replay(&self, graph: &CudaGraph, nodes: usize, cold: bool) -> f64 {
        self.median(cold, || graph.launch().expect("a replay")) / nodes as f64
    }

    /// Median microseconds of what `enqueue` puts into the stream, cold.
    pub(crate) fn streamed(&self, enqueue: impl Fn()) -> f64 {
        self.median(true, enqueue)
    }

    fn median(&self, cold: bool, run: impl Fn()) -> f64 {
        let stream = self.gpu.stream();
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            self.gpu.context().new_event(Some(flags)).expect("an event")
        };
        let (before, after) = (event(), event());
        (0..3).for_each(|_| run());
        let mut times: Vec<f64> = (0..REPLAYS)
            .map(|_| {
                if cold {
                    let address = self.flush.device_ptr(stream).0;
                    // SAFETY: the whole of the flush buffer.
                    unsafe { result::memset_d8_async(address, 1, FLUSH_BYTES, self.stream()) }
                        .expect("a fill");
                }
                before.record(stream).expect("an event");
                run();
                after.record(stream).expect("an event");
                after.synchronize().expect("no kernel failed");
                f64::from(before.elapsed_ms(&after).expect("a time")) * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// Both in one.
    pub(crate) fn per_node(&self, cold: bool, launch: impl FnMut(usize)) -> f64 {
        let graph = self.graph(NODES, launch);
        self.replay(&graph, NODES, cold)
    }
}
