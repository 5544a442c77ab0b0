//! map_record, with and without the layout, beside an empty node and a plain copy of the ids.

use crate::ids::ids;
use crate::placements::{EXPERTS, SPLIT_CASES};
use crate::timing::{Memory, NODES, Timing};
use evenkeel_kernels::DispatchTable;
use evenkeel_kernels::device::{IdType, Layout, MapBuffers, MapForm, MapRecordKernel, MapShape};
use evenkeel_kernels::layout::{ExpertIndex, IdBatch, Mapped, bool_matrix, map_with_layout};

const TOP_K: usize = 8;
const SALT: u32 = 1;
pub(crate) const TOKENS: [usize; 9] = [1, 16, 128, 512, 1024, 4096, 16384, 65536, 131_072];
const COLD_TOKENS: [usize; 5] = [128, 1024, 4096, 16384, 131_072];

/// What all measurements of a deployment share.
struct Deployment {
    ranks: u32,
    slots_per_rank: u32,
    slots: Vec<(Option<usize>, u32)>,
    table: DispatchTable,
    ids: Vec<i32>,
}

/// Buffers of one node.
struct Node {
    ids: Memory,
    physical: Memory,
    in_rank: Memory,
    counts: Memory,
    tables: Memory,
    small: Memory,
}

impl Node {
    fn new(timing: &Timing, shape: &MapShape, of: &Deployment, tokens: usize) -> Self {
        let some = &of.ids[..tokens * TOP_K];
        let ids = match shape.ids {
            IdType::I32 => timing.upload(some),
            IdType::I64 => timing.upload(&some.iter().map(|&id| i64::from(id)).collect::<Vec<_>>()),
        };
        let words = of.table.device_words().expect("a table that fits");
        Self {
            ids,
            physical: timing.memory(tokens * TOP_K * shape.ids.bytes() as usize),
            in_rank: timing.memory(shape.in_rank_bytes(tokens)),
            counts: timing.memory(4 * shape.count_words()),
            tables: timing.upload(&[words.clone(), words].concat()),
            // active at 0, step at 16, faults at 32 bytes
            small: timing.upload(&[1u32, 0, 0, 0, u32::MAX >> 1, SALT, 0, 0, 0, 0, 0, 0]),
        }
    }

    fn buffers(&self) -> MapBuffers {
        MapBuffers {
            ids: self.ids.address,
            physical: self.physical.address,
            in_rank: self.in_rank.address,
            counts: self.counts.address,
            tables: self.tables.address,
            active: self.small.address,
            step: self.small.address + 16,
            faults: self.small.address + 32,
        }
    }

    /// One launch into poisoned outputs, compared with the reference.
    fn check(
        &mut self,
        timing: &Timing,
        kernel: &MapRecordKernel,
        shape: &MapShape,
        of: &Deployment,
        tokens: usize,
    ) {
        timing.poison(&mut self.physical);
        timing.poison(&mut self.in_rank);
        timing.zero(&mut self.counts);
        // SAFETY: buffers of this shape and number of tokens.
        unsafe { kernel.launch(timing.stream(), &self.buffers(), tokens as u32) }.expect("a launch");
        let some = &of.ids[..tokens * TOP_K];
        let ranks = of.ranks as usize;
        let (slot_counts, rank_counts, in_rank) = match shape.ids {
            IdType::I32 => {
                let mapped = mapped(of, some);
                assert_eq!(timing.read::<i32>(&self.physical, some.len()), mapped.physical, "slots");
                (mapped.slot_counts, mapped.rank_counts, mapped.in_rank)
            }
            IdType::I64 => {
                let wide: Vec<i64> = some.iter().map(|&id| id.into()).collect();
                let mapped = mapped(of, &wide);
                assert_eq!(timing.read::<i64>(&self.physical, some.len()), mapped.physical, "slots");
                (mapped.slot_counts, mapped.rank_counts, mapped.in_rank)
            }
        };
        let counts = timing.read::<u32>(&self.counts, shape.count_words());
        assert_eq!(counts[..slot_counts.len()], slot_counts, "slot counts");
        match shape.layout {
            Layout::None => return,
            Layout::Bitmask => assert!(timing.read::<u32>(&self.in_rank, in_rank.len()) == in_rank, "bits"),
            Layout::BoolMatrix => {
                let bytes = bool_matrix(&in_rank, tokens, ranks);
                assert!(timing.read::<u8>(&self.in_rank, bytes.len()) == bytes, "bytes");
            }
        }
        assert_eq!(counts[shape.rank_counts_at()..][..ranks], rank_counts, "rank counts");
    }
}

fn mapped<I: ExpertIndex>(of: &Deployment, ids: &[I]) -> Mapped<I> {
    map_with_layout(
        &of.table,
        of.ranks as usize,
        IdBatch { ids, top_k: TOP_K, valid: usize::MAX, salt: SALT },
    )
}

fn deployment(ranks: usize, slots_per_rank: usize, ids: &[i32]) -> Deployment {
    let case = SPLIT_CASES
        .iter()
        .find(|case| (case.ranks, case.slots_per_rank, case.sigma) == (ranks, slots_per_rank, 1.0))
        .expect("a case of the split");
    let slots = case.place(1).slots;
    let table = DispatchTable::new(EXPERTS, &slots).expect("a valid placement");
    Deployment { ranks: ranks as u32, slots_per_rank: slots_per_rank as u32, slots, table, ids: ids.to_vec() }
}

fn shape(of: &Deployment, ids: IdType, layout: Layout) -> MapShape {
    let (ranks, slots_per_rank) = (of.ranks, of.slots_per_rank);
    MapShape { experts: EXPERTS as u32, top_k: TOP_K as u32, ranks, slots_per_rank, ids, layout }
}

/// Warm: every node has the same buffers. Cold: each has its own, and the L2 is flushed.
fn time(timing: &Timing, nodes: &[Node], cold: bool, launch: impl Fn(&Node)) -> f64 {
    timing.per_node(cold, |node| launch(&nodes[if cold { node } else { 0 }]))
}

fn row(label: &str, values: impl Iterator<Item = f64>) {
    let cells: Vec<String> = values.map(|value| format!("{value:>7.2}")).collect();
    println!("  {label:<34} {}", cells.join(" "));
}

fn heading(title: &str, tokens: &[usize]) {
    println!("\n{title}");
    let cells: Vec<String> = tokens.iter().map(|tokens| format!("{tokens:>7}")).collect();
    println!("  {:<34} {}", "tokens", cells.join(" "));
}

fn table(timing: &Timing, of: &Deployment, cold: bool) {
    let tokens: &[usize] = if cold { &COLD_TOKENS } else { &TOKENS };
    let how = if cold { "cold" } else { "warm" };
    let (ranks, slots) = (of.ranks, of.slots_per_rank);
    heading(&format!("map_record, {ranks}x{slots}, {how}: us per node of a {NODES}-node graph"), tokens);
    // SAFETY: the stream is this GPU's.
    let empty = || unsafe { timing.floor.empty(timing.stream()) }.expect("a launch");
    row("empty node", tokens.iter().map(|_| timing.per_node(cold, |_| empty())));
    let variants = [
        ("i32", IdType::I32, Layout::None),
        ("i32, bitmask", IdType::I32, Layout::Bitmask),
        ("i64", IdType::I64, Layout::None),
        ("i64, bitmask", IdType::I64, Layout::Bitmask),
        ("i64, bool matrix", IdType::I64, Layout::BoolMatrix),
    ];
    for (label, ids, layout) in variants {
        let shape = shape(of, ids, layout);
        let kernel = MapRecordKernel::load(&timing.gpu, shape).expect("the kernel compiles");
        let mut copies = Vec::new();
        let mut maps = Vec::new();
        for &tokens in tokens {
            let count = if cold { NODES } else { 1 };
            let mut nodes: Vec<Node> = (0..count).map(|_| Node::new(timing, &shape, of, tokens)).collect();
            let bytes = (tokens * TOP_K) as u64 * u64::from(shape.ids.bytes());
            if layout == Layout::None {
                // SAFETY: both buffers have that many bytes.
                let copy = |node: &Node| unsafe {
                    timing.floor.copy(timing.stream(), node.ids.address, node.physical.address, bytes)
                };
                copies.push(time(timing, &nodes, cold, |node| copy(node).expect("a launch")));
            }
            // SAFETY: buffers of this shape and number of tokens.
            let map = |node: &Node| unsafe { kernel.launch(timing.stream(), &node.buffers(), tokens as u32) };
            maps.push(time(timing, &nodes, cold, |node| map(node).expect("a launch")));
            nodes[0].check(timing, &kernel, &shape, of, tokens);
        }
        if layout == Layout::None {
            row(&format!("plain copy of the {label} ids"), copies.into_iter());
        }
        row(&format!("map_record {label}"), maps.into_iter());
    }
}

pub(crate) fn run(timing: &Timing) {
    let ids = ids(TOKENS[TOKENS.len() - 1], EXPERTS, TOP_K, 11);
    for (ranks, slots) in [(32, 9), (144, 2)] {
        let of = deployment(ranks, slots, &ids);
        if let Some(folder) = std::env::var_os("EVENKEEL_PEER_DATA") {
            for_peers(&of, std::path::Path::new(&folder));
        }
        table(timing, &of, false);
        table(timing, &of, true);
    }
}

/// The same ids and placement for the peers, which run from Python.
fn for_peers(of: &Deployment, folder: &std::path::Path) {
    let name = |what: &str| folder.join(format!("{what}_{}x{}.i32", of.ranks, of.slots_per_rank));
    let held = of.slots.iter().map(|(expert, _)| expert.map_or(-1, |expert| expert as i32));
    let bytes = |words: &mut dyn Iterator<Item = i32>| words.flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    std::fs::create_dir_all(folder).expect("a folder for the peers' data");
    std::fs::write(name("ids"), bytes(&mut of.ids.iter().copied())).expect("the peers' ids");
    std::fs::write(name("slots"), bytes(&mut held.clone())).expect("the peers' placement");
}

/// Every form and grid, to choose the launch configuration from.
pub(crate) fn tune(timing: &Timing) {
    let ids = ids(131_072, EXPERTS, TOP_K, 11);
    let tokens = [1, 128, 256, 512, 1024, 2048, 4096, 16384, 32768, 65536, 131_072];
    for (ranks, slots, width, layout) in [
        (32, 9, IdType::I32, Layout::Bitmask),
        (32, 9, IdType::I32, Layout::None),
        (32, 9, IdType::I64, Layout::None),
        (32, 9, IdType::I64, Layout::Bitmask),
        (32, 9, IdType::I64, Layout::BoolMatrix),
        (144, 2, IdType::I32, Layout::Bitmask),
        (144, 2, IdType::I64, Layout::Bitmask),
        (144, 2, IdType::I64, Layout::BoolMatrix),
    ] {
        let of = deployment(ranks, slots, &ids);
        let shape = shape(&of, width, layout);
        let nodes: Vec<Node> = tokens.iter().map(|&t| Node::new(timing, &shape, &of, t)).collect();
        heading(&format!("tuning {ranks}x{slots} {width:?} {layout:?}"), &tokens);
        let mut best = vec![(f64::INFINITY, String::new()); tokens.len()];
        for lanes in [1, 2, 4, 8] {
            for (staged, block) in
                [(false, 64), (false, 128), (false, 256), (true, 256), (true, 512), (true, 1024)]
            {
                let form = MapForm { lanes, staged, block };
                let kernel =
                    MapRecordKernel::load_form(&timing.gpu, shape, form).expect("the kernel compiles");
                let multiprocessors = timing.gpu.multiprocessors();
                let resident = multiprocessors * (1024 / block);
                let grids: &[u32] = if staged { &[resident, resident * 2] } else { &[u32::MAX] };
                for &grid in grids {
                    let time = |(&tokens, node): (&usize, &Node)| {
                        let all = (tokens as u32).div_ceil(block / lanes);
                        if (all <= grid / 2 && grid == resident * 2) || (!staged && tokens > 4096) {
                            return f64::NAN;
                        }
                        timing.per_node(false, |_| {
                            let blocks = all.min(grid);
                            // SAFETY: buffers of this shape and number of tokens.
                            unsafe {
                                kernel.launch_blocks(
                                    timing.stream(),
                                    &node.buffers(),
                                    tokens as u32,
                                    0,
                                    blocks,
                                )
                            }
                            .expect("a launch");
                        })
                    };
                    let times: Vec<f64> = tokens.iter().zip(&nodes).map(time).collect();
                    let name = format!(
                        "l{lanes} {} b{block} g{}",
                        if staged { "staged" } else { "direct" },
                        grid.min(9999)
                    );
                    for (best, &time) in best.iter_mut().zip(&times) {
                        if time < best.0 {
                            *best = (time, name.clone());
                        }
                    }
                    row(&name, times.into_iter());
                }
            }
        }
        for (tokens, (time, name)) in tokens.iter().zip(best) {
            println!("  best at {tokens:>6}: {time:.2}  {name}");
        }
    }
}
