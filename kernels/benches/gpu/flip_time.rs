//! flip: as a node of a graph, and from the host's store to the host's sight of it.

use crate::timing::{NODES, Timing};
use evenkeel_kernels::device::FlipKernel;
use std::time::Instant;

const LAYERS: usize = 61;
/// Round trips, of which the median counts.
const TRIPS: usize = 1001;

pub(crate) fn run(timing: &Timing) {
    let kernel = FlipKernel::load(&timing.gpu).expect("the kernel compiles");
    let context = timing.gpu.context();
    // SAFETY: filled before use; pinned memory is mapped at its own address.
    let mut armed = unsafe { context.alloc_pinned::<u32>(LAYERS) }.expect("pinned memory");
    // SAFETY: as above.
    let mut taken = unsafe { context.alloc_pinned::<u32>(LAYERS) }.expect("pinned memory");
    armed.as_mut_slice().expect("host memory").fill(0);
    taken.as_mut_slice().expect("host memory").fill(0);
    let (armed_at, taken_at) =
        (armed.as_mut_ptr().expect("host memory"), taken.as_mut_ptr().expect("host memory"));
    let active = timing.memory(4 * LAYERS);
    let launch = |_: usize| {
        let layers = LAYERS as u32;
        // SAFETY: a word for each layer in all three.
        unsafe { kernel.launch(timing.stream(), active.address, armed_at as u64, taken_at as u64, layers) }
            .expect("a launch");
    };
    let node = timing.per_node(false, launch);
    let graph = timing.graph(1, launch);
    let mut trips: Vec<f64> = (1..=TRIPS as u32)
        .map(|sequence| {
            let word = sequence << 1 | (sequence & 1);
            let start = Instant::now();
            for layer in 0..LAYERS {
                // SAFETY: inside the pinned words; the device reads each whole.
                unsafe { armed_at.add(layer).write_volatile(word) };
            }
            graph.launch().expect("a replay");
            // SAFETY: as above; the device writes each whole.
            while unsafe { taken_at.add(LAYERS - 1).read_volatile() } != word {
                assert!(start.elapsed().as_secs() < 5, "the flip is not seen");
                std::hint::spin_loop();
            }
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    trips.sort_by(f64::total_cmp);
    let last = TRIPS as u32;
    assert_eq!(timing.read::<u32>(&active, LAYERS), vec![last & 1; LAYERS], "active");
    println!("\nflip of {LAYERS} layers, words in mapped host memory");
    println!("  per node of a {NODES}-node graph: {node:.2} us");
    println!("  host store -> captured flip replayed -> host sees it: {:.2} us median", trips[TRIPS / 2]);
}
