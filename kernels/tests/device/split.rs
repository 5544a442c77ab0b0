use crate::gpu::{Buffer, below, cases, gpu, placement};
use evenkeel_kernels::device::{Gpu, SplitBuffers, SplitKernel};
use evenkeel_kernels::split::{RELAXATION, SplitPlan, split};
use evenkeel_simulate::expert_loads::SplitMix64;

fn check(gpu: &Gpu, kernel: &SplitKernel, plan: &SplitPlan, counts: &[u32], sweeps: u32) {
    let on_device = Buffer::of(gpu, counts);
    let slots = Buffer::of(gpu, &plan.device_slots());
    let lanes = Buffer::of(gpu, &plan.device_lanes());
    let quotas = Buffer::of(gpu, &vec![0xA5A5_A5A5u32; plan.slots()]);
    let buffers = SplitBuffers {
        counts: on_device.address(),
        slots: slots.address(),
        lanes: lanes.address(),
        quotas: quotas.address(),
    };
    unsafe { kernel.launch(gpu.stream().cu_stream(), plan, &buffers, sweeps, RELAXATION) }.unwrap();
    let expected = split(plan, counts, sweeps, RELAXATION);
    assert_eq!(
        quotas.read(gpu),
        expected,
        "{} experts, {} ranks, {} slots, {} colours, {} lanes, {sweeps} sweeps",
        plan.experts(),
        plan.ranks(),
        plan.slots(),
        plan.colours(),
        plan.lanes()
    );
}

#[test]
fn random_placements_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let mut draw = SplitMix64::new(3);
    for case in 0..cases() {
        let ranks = [2, 8, 32, 64, 144, 320][below(&mut draw, 6)];
        let experts = [8, 64, 128, 256, 384][below(&mut draw, 5)];
        let slots_per_rank = (experts + experts / 8 + below(&mut draw, experts)).div_ceil(ranks).max(2);
        let slots = placement(&mut draw, experts, ranks * slots_per_rank);
        let plan = match SplitPlan::new(experts, ranks, &slots) {
            Ok(plan) => plan,
            Err(refused) => {
                assert_eq!(refused.code(), "split_out_of_range", "case {case}: {refused}");
                continue;
            }
        };
        let kernel = SplitKernel::load(&gpu, &plan).unwrap();
        for sweeps in [1, 2, 9] {
            let scale = [3, 1000, 200_000][below(&mut draw, 3)];
            let counts: Vec<u32> = (0..experts).map(|_| below(&mut draw, scale) as u32).collect();
            check(&gpu, &kernel, &plan, &counts, sweeps);
        }
        check(&gpu, &kernel, &plan, &vec![0; experts], 3);
        check(&gpu, &kernel, &plan, &vec![(1 << 24) + 1; experts], 3);
    }
}
