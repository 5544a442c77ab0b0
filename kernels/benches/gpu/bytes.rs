//! slot_copy against the driver's device-to-device copy, and fingerprint against the read bandwidth.

use crate::timing::Timing;
use cudarc::driver::result;
use evenkeel_kernels::device::{CopyForm, CopyPlan, FingerprintKernel, SlotCopyKernel};
use evenkeel_kernels::fingerprint;
use evenkeel_kernels::slot_copy::SlotMove;

/// Bytes of an expert of DeepSeek-V3 in FP8: three matrices of 7168 x 2048, and their scales.
const EXPERT_BYTES: usize = 44_050_944;
const SLOTS: usize = 64;

/// Bytes that are not alike from slot to slot.
fn slot_words(slot: u64) -> Vec<u64> {
    (0..EXPERT_BYTES as u64 / 8).map(|at| evenkeel_kernels::mix::mix64(at + slot * 0x1_0000_0000)).collect()
}

pub(crate) fn run(timing: &Timing) {
    let words: Vec<Vec<u64>> = (0..4).map(slot_words).collect();
    let sources: Vec<_> = (0..SLOTS).map(|slot| timing.upload(&words[slot % 4])).collect();
    let mut destinations: Vec<_> = (0..SLOTS).map(|_| timing.memory(EXPERT_BYTES)).collect();
    let rate = |us: f64, bytes: usize| bytes as f64 / us / 1e6;

    println!(
        "\nslot_copy: {SLOTS} slots of {EXPERT_BYTES} bytes in one launch, TB/s read and written together"
    );
    let driver = |_: usize| {
        for (source, destination) in sources.iter().zip(&destinations) {
            // SAFETY: both have that many bytes.
            unsafe {
                result::memcpy_dtod_async(destination.address, source.address, EXPERT_BYTES, timing.stream())
            }
            .expect("a copy");
        }
    };
    let driver_us = timing.streamed(|| driver(0));
    let plain_us = {
        let launch = |_: usize| {
            for (source, destination) in sources.iter().zip(&destinations) {
                let bytes = EXPERT_BYTES as u64;
                // SAFETY: both have that many bytes.
                unsafe { timing.floor.copy(timing.stream(), source.address, destination.address, bytes) }
                    .expect("a launch");
            }
        };
        timing.replay(&timing.graph(1, launch), 1, true)
    };
    let kernel = SlotCopyKernel::load(&timing.gpu).expect("the kernel compiles");
    for slots in [1, 8, SLOTS] {
        let moves: Vec<SlotMove> = sources[..slots]
            .iter()
            .zip(&destinations)
            .map(|(source, destination)| SlotMove {
                source: source.address,
                destination: destination.address,
                bytes: EXPERT_BYTES as u64,
            })
            .collect();
        let plan = CopyPlan::new(&moves).expect("copies without an order");
        let segments = timing.upload(&plan.device_bytes());
        destinations.iter_mut().for_each(|memory| timing.poison(memory));
        // SAFETY: the plan's addresses are of live memory.
        let launch = |_: usize| {
            unsafe { kernel.launch(timing.stream(), &plan, segments.address) }.expect("a launch");
        };
        let us = timing.replay(&timing.graph(1, launch), 1, true);
        for (slot, destination) in destinations[..slots].iter().enumerate() {
            assert!(timing.read::<u64>(destination, EXPERT_BYTES / 8) == words[slot % 4], "slot {slot}");
        }
        let bytes = 2 * EXPERT_BYTES * slots;
        println!("  slot_copy, {slots:>2} slots   {:>9.1} us   {:.2}", us, rate(us, bytes));
    }
    let bytes = 2 * EXPERT_BYTES * SLOTS;
    println!("  driver's D2D copy     {driver_us:>9.1} us   {:.2}", rate(driver_us, bytes));
    println!("  plain copy kernel     {plain_us:>9.1} us   {:.2}", rate(plain_us, bytes));

    println!("\nfingerprint: slots of {EXPERT_BYTES} bytes, cold, TB/s read");
    let kernel = FingerprintKernel::load(&timing.gpu).expect("the kernel compiles");
    let addresses: Vec<u64> = sources.iter().map(|source| source.address).collect();
    let pointers = timing.upload(&addresses);
    let read_sums = timing.memory(528 * 512 * 4);
    let read = |_: usize| {
        for source in &sources {
            // SAFETY: the source has that many bytes, and there is a sum for each thread.
            unsafe {
                timing.floor.read(timing.stream(), source.address, read_sums.address, EXPERT_BYTES as u64)
            }
            .expect("a launch");
        }
    };
    let us = timing.replay(&timing.graph(1, read), 1, true);
    println!("  plain read, {SLOTS} launches {us:>6.1} us   {:.2}", rate(us, EXPERT_BYTES * SLOTS));
    for slots in [1, 8, SLOTS] {
        let mut sums = timing.memory(8 * SLOTS);
        let launch = |_: usize| {
            let (count, bytes) = (slots as u32, EXPERT_BYTES as u64);
            // SAFETY: `slots` pointers to live memory, and as many sums.
            unsafe { kernel.launch(timing.stream(), pointers.address, sums.address, count, bytes) }
                .expect("a launch");
        };
        let graph = timing.graph(1, launch);
        let us = timing.replay(&graph, 1, true);
        timing.zero(&mut sums);
        graph.launch().expect("a replay");
        let expected: Vec<u64> = (0..slots)
            .map(|slot| {
                let bytes: Vec<u8> = words[slot % 4].iter().flat_map(|word| word.to_le_bytes()).collect();
                if slot < 4 { fingerprint(&bytes).0 } else { 0 }
            })
            .collect();
        let got = timing.read::<u64>(&sums, slots);
        assert!((0..slots).all(|slot| got[slot] == expected[slot % 4]), "fingerprints");
        println!("  {slots:>2} slots   {us:>9.1} us   {:.2}", rate(us, EXPERT_BYTES * slots));
    }
}

/// Forms of slot_copy, to choose the one that is kept.
pub(crate) fn tune(timing: &Timing) {
    let words = slot_words(0);
    let sources: Vec<_> = (0..SLOTS).map(|_| timing.upload(&words)).collect();
    let destinations: Vec<_> = (0..SLOTS).map(|_| timing.memory(EXPERT_BYTES)).collect();
    let pairs = sources.iter().zip(&destinations).map(|(source, destination)| SlotMove {
        source: source.address,
        destination: destination.address,
        bytes: EXPERT_BYTES as u64,
    });
    let moves: Vec<SlotMove> = pairs.collect();
    println!("\ntuning slot_copy: block, vectors, blocks of a multiprocessor: TB/s for 1 and {SLOTS} slots");
    for (block, blocks) in [(128, 16), (256, 4), (256, 8), (512, 2), (512, 4), (1024, 2)] {
        for vectors in [1, 2, 4, 8] {
            let form = CopyForm { block, vectors, blocks };
            let kernel = SlotCopyKernel::load_form(&timing.gpu, form).expect("the kernel compiles");
            let rates = [1, SLOTS].map(|slots| {
                let plan = CopyPlan::with_form(&moves[..slots], form).expect("copies without an order");
                let segments = timing.upload(&plan.device_bytes());
                // SAFETY: the plan's addresses are of live memory.
                let launch = |_: usize| {
                    unsafe { kernel.launch(timing.stream(), &plan, segments.address) }.expect("a launch");
                };
                let us = timing.replay(&timing.graph(1, launch), 1, true);
                (2 * EXPERT_BYTES * slots) as f64 / us / 1e6
            });
            println!("  {block:>5} {vectors} {blocks:>2}   {:.2} {:.2}", rates[0], rates[1]);
        }
    }
}
