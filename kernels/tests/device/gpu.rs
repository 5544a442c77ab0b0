//! The GPU of the tests, and buffers on it.

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use evenkeel_kernels::device::{CubinCache, DeviceError, Gpu};

/// What outputs hold before a run: no count, id or slot that a test expects.
pub(crate) const POISON: u8 = 0xA5;

/// The GPU, or the printed reason why the test is skipped. A machine that has a GPU but cannot use it fails.
pub(crate) fn gpu() -> Option<Gpu> {
    let cache = std::env::var_os("EVENKEEL_CUBIN_CACHE").map(CubinCache::new);
    match Gpu::open(0, cache) {
        Ok(gpu) => Some(gpu),
        Err(reason @ (DeviceError::NoDriver | DeviceError::NotFound { .. })) => {
            println!("skipped: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Random cases of a test.
pub(crate) fn cases() -> u64 {
    std::env::var("EVENKEEL_GPU_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

/// Words of a plain type on the device.
pub(crate) struct Buffer<T> {
    words: CudaSlice<T>,
    address: u64,
}

impl<T: DeviceRepr + Clone + Default> Buffer<T> {
    pub(crate) fn of(gpu: &Gpu, words: &[T]) -> Self {
        // One word more: an empty buffer has an address too.
        let padded: Vec<T> = words.iter().cloned().chain([T::default()]).collect();
        let words = gpu.stream().clone_htod(&padded).expect("memory on the device");
        let address = words.device_ptr(gpu.stream()).0;
        Self { words, address }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Waits for the stream, and reads.
    pub(crate) fn read(&self, gpu: &Gpu) -> Vec<T> {
        gpu.stream().synchronize().expect("no kernel failed");
        let mut words = gpu.stream().clone_dtoh(&self.words).expect("a copy from the device");
        words.pop();
        words
    }
}

/// A random number below `bound`.
pub(crate) fn below(draw: &mut evenkeel_simulate::expert_loads::SplitMix64, bound: usize) -> usize {
    (draw.next_u64() % bound as u64) as usize
}

/// A random placement: every expert somewhere, the other slots at random or empty; and shares that sum to one.
pub(crate) fn placement(
    draw: &mut evenkeel_simulate::expert_loads::SplitMix64,
    experts: usize,
    slots: usize,
) -> Vec<(Option<usize>, u32)> {
    let mut held: Vec<Option<usize>> = (0..slots)
        .map(|slot| {
            // A tenth of the free slots is empty; a few hot experts take many of the others.
            let any = below(draw, experts);
            let hot = below(draw, 3.min(experts));
            (slot < experts).then_some(slot).or(match below(draw, 10) {
                0 => None,
                1..=4 => Some(hot),
                _ => Some(any),
            })
        })
        .collect();
    for last in (1..slots).rev() {
        held.swap(last, below(draw, last + 1));
    }
    let mut left = vec![1u32 << 16; experts];
    let mut replicas = vec![0usize; experts];
    held.iter().flatten().for_each(|&expert| replicas[expert] += 1);
    let share = |expert: usize, left: &mut [u32], replicas: &mut [usize], draw: &mut _| {
        replicas[expert] -= 1;
        let share = match replicas[expert] {
            0 => left[expert],
            _ => below(draw, left[expert] as usize + 1) as u32,
        };
        left[expert] -= share;
        share
    };
    held.iter()
        .map(|&slot| (slot, slot.map_or(0, |expert| share(expert, &mut left, &mut replicas, draw))))
        .collect()
}
