use crate::gpu::{Buffer, POISON, below, cases, gpu, placement};
use cudarc::driver::DeviceRepr;
use evenkeel_kernels::DispatchTable;
use evenkeel_kernels::device::{
    DeviceError, Gpu, IdType, Layout, MapBuffers, MapForm, MapRecordKernel, MapShape,
};
use evenkeel_kernels::layout::{ExpertIndex, IdBatch, bool_matrix, map_with_layout};
use evenkeel_simulate::expert_loads::SplitMix64;

/// An id of the width under test.
trait Id: ExpertIndex + DeviceRepr + Default {
    const TYPE: IdType;
    const POISONED: Self;
    fn of(id: i64) -> Self;
}

impl Id for i32 {
    const TYPE: IdType = IdType::I32;
    const POISONED: i32 = i32::from_ne_bytes([POISON; 4]);
    fn of(id: i64) -> i32 {
        id as i32
    }
}

impl Id for i64 {
    const TYPE: IdType = IdType::I64;
    const POISONED: i64 = i64::from_ne_bytes([POISON; 8]);
    fn of(id: i64) -> i64 {
        id
    }
}

/// A batch in which some ids are padding, a few name no expert, and some experts are hot.
fn batch<I: Id>(draw: &mut SplitMix64, experts: usize, ids: usize) -> Vec<I> {
    let mut id = || match below(draw, 64) {
        0 => I::of(-1),
        1 => I::of(-(below(draw, 1000) as i64)),
        2 => I::of((experts + below(draw, 3)) as i64),
        3 if I::TYPE == IdType::I64 => I::of(1 << (31 + below(draw, 30))),
        4..20 => I::of(0),
        _ => I::of(below(draw, experts) as i64),
    };
    (0..ids).map(|_| id()).collect()
}

#[derive(Debug, Clone, Copy)]
struct Batch {
    tokens: usize,
    valid: usize,
    salt: u32,
    second_buffer: bool,
}

/// Runs `kernel` on a random batch and compares everything it writes.
fn check<I: Id>(gpu: &Gpu, kernel: &MapRecordKernel, shape: MapShape, of: Batch, draw: &mut SplitMix64) {
    let (experts, top_k, ranks) = (shape.experts as usize, shape.top_k as usize, shape.ranks as usize);
    let slots = shape.slots() as usize;
    let table = DispatchTable::new(experts, &placement(draw, experts, slots)).unwrap();
    let other = DispatchTable::new(experts, &placement(draw, experts, slots)).unwrap();
    let mut tables = [table.device_words().unwrap(), other.device_words().unwrap()];
    assert_eq!(tables[0].len(), shape.table_words());
    if of.second_buffer {
        tables.swap(0, 1);
    }
    let ids: Vec<I> = batch(draw, experts, of.tokens * top_k);
    // Counters are added to: what they hold before must still be in them.
    let before: Vec<u32> = (0..shape.count_words()).map(|_| below(draw, 1000) as u32).collect();

    let on_device = Buffer::of(gpu, &ids);
    let physical = Buffer::of(gpu, &vec![I::POISONED; ids.len()]);
    let in_rank = Buffer::of(gpu, &vec![POISON; shape.in_rank_bytes(of.tokens) + 64]);
    let counts = Buffer::of(gpu, &before);
    let tables = Buffer::of(gpu, &tables.concat());
    let active = Buffer::of(gpu, &[u32::from(of.second_buffer) | 6]);
    let step = Buffer::of(gpu, &[of.valid as u32, of.salt]);
    let faults = Buffer::of(gpu, &[7u32]);
    let buffers = MapBuffers {
        ids: on_device.address(),
        physical: physical.address(),
        in_rank: in_rank.address(),
        counts: counts.address(),
        tables: tables.address(),
        active: active.address(),
        step: step.address(),
        faults: faults.address(),
    };
    unsafe { kernel.launch(gpu.stream().cu_stream(), &buffers, of.tokens as u32) }.unwrap();

    let batch = IdBatch { ids: &ids, top_k, valid: of.valid, salt: of.salt };
    let expected = map_with_layout(&table, ranks, batch);
    let case = format!("{shape:?} {of:?}");
    assert_eq!(physical.read(gpu), expected.physical, "{case}");
    assert_eq!(faults.read(gpu), [7 + expected.faults], "{case}");
    let mut sums = before;
    sums.iter_mut().zip(&expected.slot_counts).for_each(|(sum, count)| *sum += count);
    if shape.layout != Layout::None {
        sums[shape.rank_counts_at()..].iter_mut().zip(&expected.rank_counts).for_each(|(s, c)| *s += c);
    }
    assert_eq!(counts.read(gpu), sums, "{case}");
    let mut bytes: Vec<u8> = match shape.layout {
        Layout::None => Vec::new(),
        Layout::Bitmask => expected.in_rank.iter().flat_map(|word| word.to_ne_bytes()).collect(),
        Layout::BoolMatrix => bool_matrix(&expected.in_rank, of.tokens, ranks),
    };
    bytes.extend([POISON; 64]);
    assert!(in_rank.read(gpu) == bytes, "token in rank: {case}");
}

fn check_shape(
    gpu: &Gpu,
    kernel: &MapRecordKernel,
    shape: MapShape,
    tokens: &[usize],
    draw: &mut SplitMix64,
) {
    for &tokens in tokens {
        let valid = if below(draw, 2) == 0 { tokens } else { below(draw, tokens + 1) };
        let of = Batch { tokens, valid, salt: draw.next_u64() as u32, second_buffer: below(draw, 2) == 1 };
        match shape.ids {
            IdType::I32 => check::<i32>(gpu, kernel, shape, of, draw),
            IdType::I64 => check::<i64>(gpu, kernel, shape, of, draw),
        }
    }
}

fn random_shape(draw: &mut SplitMix64) -> MapShape {
    const EXPERTS: [u32; 8] = [8, 60, 64, 128, 160, 256, 384, 1024];
    const RANKS: [u32; 10] = [1, 2, 7, 8, 32, 36, 64, 72, 144, 320];
    let (experts, ranks) = (EXPERTS[below(draw, 8)], RANKS[below(draw, 10)]);
    let slots_per_rank = experts.div_ceil(ranks) + below(draw, 3) as u32;
    MapShape {
        experts,
        top_k: 4 + below(draw, 6) as u32,
        ranks,
        slots_per_rank,
        ids: [IdType::I32, IdType::I64][below(draw, 2)],
        layout: [Layout::None, Layout::Bitmask, Layout::BoolMatrix][below(draw, 3)],
    }
}

#[test]
fn random_shapes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let mut draw = SplitMix64::new(1);
    for _ in 0..cases() {
        let shape = random_shape(&mut draw);
        let kernel = MapRecordKernel::load(&gpu, shape).unwrap();
        let any = 1 + below(&mut draw, 5000);
        check_shape(&gpu, &kernel, shape, &[0, 1, 33, 512, 513, any, 16385 + any], &mut draw);
    }
}

/// The model shapes of the benchmark, in every form the launcher could choose.
#[test]
fn every_form_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    let mut draw = SplitMix64::new(2);
    let full = cases() >= 24;
    for (ranks, slots_per_rank) in [(32, 9), (144, 2)] {
        for (ids, layout) in [
            (IdType::I32, Layout::None),
            (IdType::I32, Layout::Bitmask),
            (IdType::I64, Layout::Bitmask),
            (IdType::I64, Layout::BoolMatrix),
        ] {
            let shape = MapShape { experts: 256, top_k: 8, ranks, slots_per_rank, ids, layout };
            for lanes in [1, 2, 4, 8] {
                for (staged, block) in [(false, 256), (true, 1024), (true, 512)] {
                    if !full && (lanes == 4 || lanes == 1) {
                        continue;
                    }
                    let form = MapForm { lanes, staged, block };
                    let kernel = MapRecordKernel::load_form(&gpu, shape, form).unwrap();
                    check_shape(&gpu, &kernel, shape, &[1, 1000, 20_000], &mut draw);
                }
            }
        }
    }
}

#[test]
fn what_is_out_of_range_is_refused_at_the_launcher() {
    let Some(gpu) = gpu() else { return };
    let shape = MapShape {
        experts: 64,
        top_k: 6,
        ranks: 8,
        slots_per_rank: 9,
        ids: IdType::I32,
        layout: Layout::None,
    };
    let kernel = MapRecordKernel::load(&gpu, shape).unwrap();
    let buffers = MapBuffers {
        ids: 16,
        physical: 16,
        in_rank: 0,
        counts: 16,
        tables: 16,
        active: 4,
        step: 4,
        faults: 4,
    };
    let refused = |buffers: MapBuffers, tokens| match unsafe {
        kernel.launch(gpu.stream().cu_stream(), &buffers, tokens)
    } {
        Err(DeviceError::OutOfRange { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(buffers, (1 << 24) + 1), "tokens");
    assert_eq!(refused(MapBuffers { ids: 20, ..buffers }, 4), "ids");
    assert_eq!(refused(MapBuffers { counts: 20, ..buffers }, 4), "counts");
    assert!(MapRecordKernel::load(&gpu, MapShape { top_k: 10, ..shape }).is_err());
}
