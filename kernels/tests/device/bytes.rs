//! The kernels that move or read the bytes of slots.

use crate::gpu::{Buffer, POISON, below, cases, gpu};
use evenkeel_kernels::device::{CopyPlan, FingerprintKernel, Gpu, SlotCopyKernel};
use evenkeel_kernels::fingerprint;
use evenkeel_kernels::slot_copy::{SlotMove, slot_copy};
use evenkeel_simulate::expert_loads::SplitMix64;

fn bytes(draw: &mut SplitMix64, count: usize) -> Vec<u8> {
    (0..count.div_ceil(8)).flat_map(|_| draw.next_u64().to_ne_bytes()).take(count).collect()
}

fn check_copy(gpu: &Gpu, kernel: &SlotCopyKernel, draw: &mut SplitMix64, copies: usize, most: usize) {
    let stride = most.next_multiple_of(16) + 16;
    // Sources in the first half, destinations, in another order, in the second.
    let memory = [bytes(draw, copies * stride), vec![POISON; copies * stride]].concat();
    let first = below(draw, copies);
    let moves: Vec<SlotMove> = (0..copies)
        .map(|copy| SlotMove {
            source: (copy * stride) as u64,
            destination: ((copies + (copy + first) % copies) * stride) as u64,
            bytes: 1 + below(draw, most) as u64,
        })
        .collect();
    let mut expected = memory.clone();
    slot_copy(&mut expected, &moves).unwrap();
    let on_device = Buffer::of(gpu, &memory);
    let at = on_device.address();
    let moved =
        |m: &SlotMove| SlotMove { source: at + m.source, destination: at + m.destination, bytes: m.bytes };
    let plan = CopyPlan::new(&moves.iter().map(moved).collect::<Vec<_>>()).unwrap();
    let segments = Buffer::of(gpu, &plan.device_bytes());
    unsafe { kernel.launch(gpu.stream().cu_stream(), &plan, segments.address()) }.unwrap();
    assert!(on_device.read(gpu) == expected, "{moves:?}");
}

#[test]
fn copies_arrive_whole_and_touch_nothing_else() {
    let Some(gpu) = gpu() else { return };
    let kernel = SlotCopyKernel::load(&gpu).unwrap();
    let mut draw = SplitMix64::new(4);
    for _ in 0..cases() {
        let (copies, most) = (1 + below(&mut draw, 20), 1 + below(&mut draw, 200_000));
        check_copy(&gpu, &kernel, &mut draw, copies, most);
    }
}

#[test]
fn fingerprints_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let kernel = FingerprintKernel::load(&gpu).unwrap();
    let mut draw = SplitMix64::new(5);
    for case in 0..cases() as usize {
        let length = if case < 20 { case } else { below(&mut draw, 3_000_000) };
        let slots: Vec<Vec<u8>> = (0..1 + below(&mut draw, 5)).map(|_| bytes(&mut draw, length)).collect();
        let on_device: Vec<Buffer<u8>> = slots.iter().map(|slot| Buffer::of(&gpu, slot)).collect();
        let addresses: Vec<u64> = on_device.iter().map(Buffer::address).collect();
        let pointers = Buffer::of(&gpu, &addresses);
        let sums = Buffer::of(&gpu, &vec![0u64; slots.len()]);
        let count = slots.len() as u32;
        let stream = gpu.stream().cu_stream();
        unsafe { kernel.launch(stream, pointers.address(), sums.address(), count, length as u64) }.unwrap();
        let expected: Vec<u64> = slots.iter().map(|slot| fingerprint(slot).0).collect();
        assert_eq!(sums.read(&gpu), expected, "{length} bytes");
    }
}
