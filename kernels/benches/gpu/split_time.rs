//! The split on the GPU: time per node, every batch compared with the reference.

use crate::placements::{SPLIT_CASES, SplitCase};
use crate::split_quality::median_p99;
use crate::timing::{Memory, Timing};
use evenkeel_kernels::device::{SplitBuffers, SplitKernel};
use evenkeel_kernels::split::{RELAXATION, split};

/// Nodes of a graph, one batch each, half of them with 10 % noise and half with 20 %; and layers, one graph each.
const BATCHES: usize = 64;
const LAYERS: u64 = 4;

/// The plan and batches of one layer on the device.
struct OnDevice {
    slots: Memory,
    lanes: Memory,
    batches: Vec<(Memory, Memory)>,
}

fn layer(timing: &Timing, case: &SplitCase, seed: u64, cold: bool) -> (f64, Vec<f64>) {
    let placed = case.place(seed);
    let kernel = SplitKernel::load(&timing.gpu, &placed.plan).expect("the kernel compiles");
    let noise = |batch: usize| if batch < BATCHES / 2 { 0.1 } else { 0.2 };
    let counts: Vec<Vec<u32>> =
        (0..BATCHES).map(|batch| case.batch(&placed, noise(batch), 7000 * seed + batch as u64)).collect();
    let of = OnDevice {
        slots: timing.upload(&placed.plan.device_slots()),
        lanes: timing.upload(&placed.plan.device_lanes()),
        batches: counts.iter().map(|c| (timing.upload(c), timing.memory(4 * placed.slots.len()))).collect(),
    };
    let launch = |batch: usize| {
        let (counts, quotas) = &of.batches[batch];
        let buffers = SplitBuffers {
            counts: counts.address,
            slots: of.slots.address,
            lanes: of.lanes.address,
            quotas: quotas.address,
        };
        // SAFETY: buffers of this plan.
        unsafe { kernel.launch(timing.stream(), &placed.plan, &buffers, case.sweeps, RELAXATION) }
            .expect("a launch");
    };
    let graph = timing.graph(BATCHES, launch);
    let time = timing.replay(&graph, BATCHES, cold);
    let gaps = counts.iter().zip(&of.batches).map(|(counts, (_, quotas))| {
        let got = timing.read::<u32>(quotas, placed.slots.len());
        assert_eq!(got, split(&placed.plan, counts, case.sweeps, RELAXATION), "{}", case.name());
        (placed.most(&got) as f64 / placed.optimum(counts) as f64 - 1.0) * 100.0
    });
    let gaps = gaps.collect();
    (time, gaps)
}

pub(crate) fn run(timing: &Timing) {
    println!(
        "\nsplit on the GPU: us per node of a {BATCHES}-node graph, {LAYERS} layers; gap of the same batches to"
    );
    println!("the exact whole-token optimum in percent, noise .1 and .2 together");
    println!("  case          sweeps   us median   us worst layer   us cold   gap median / p99");
    for case in SPLIT_CASES {
        let mut times = Vec::new();
        let mut gaps = Vec::new();
        for seed in 1..=LAYERS {
            let (time, of_layer) = layer(timing, &case, seed, false);
            times.push(time);
            gaps.extend(of_layer);
        }
        let cold = layer(timing, &case, 1, true).0;
        times.sort_by(f64::total_cmp);
        let (median, p99) = median_p99(&mut gaps);
        println!(
            "  {:<13} {:>6} {:>11.2} {:>16.2} {cold:>9.2}   {median:>8.4} / {p99:.4}",
            case.name(),
            case.sweeps,
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
}
