//! What it takes to know of the ranks: prefix index, cost fit and fair queue, on one thread.
//!
//!     cargo run --release -p evenkeel-simulate --example signals
//!
//! Everything is synthetic: prompts of 100 blocks, of which the first 20 are one of 16 beginnings that every rank has.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use evenkeel_core::cost_fit::{CostFit, CostModel};
use evenkeel_core::fair_queue::{Admission, FairPolicy, FairQueue, HeldRequest};
use evenkeel_core::ids::Rank;
use evenkeel_core::prefix::{BlockHash, KvChange, PrefixIndex, PrefixPolicy};
use evenkeel_core::routing::{Priority, RequestId, StepReport, TenantId};
use evenkeel_core::units::Tokens;
use evenkeel_simulate::expert_loads::SplitMix64;
use std::hint::black_box;
use std::time::Instant;

/// Blocks of a prompt, and how many of them are its beginning.
const PROMPT: usize = 100;
const BEGINNING: usize = 20;
const BEGINNINGS: u64 = 16;
/// Prompts that are looked up: enough that their rows are not in the processor's caches.
const LOOKUPS: usize = 20_000;

/// The hash of a block, as even as an engine's.
fn block(family: u64, number: usize) -> BlockHash {
    BlockHash(SplitMix64::new(family << 20 | number as u64).next_u64())
}

/// Prompt `number`: a beginning, and blocks of its own.
fn prompt(number: u64) -> Vec<BlockHash> {
    let family = |i| if i < BEGINNING { number % BEGINNINGS } else { BEGINNINGS + number };
    (0..PROMPT).map(|i| block(family(i), i)).collect()
}

/// Microseconds of one of `count` calls: the mean of the fastest twentieth in a row, because whoever else is on the machine
/// makes the others slower.
fn micros_each(count: usize, mut call: impl FnMut(usize)) -> f64 {
    let batch = count.div_ceil(20);
    let mut best = f64::INFINITY;
    for begin in (0..count).step_by(batch) {
        let (start, end) = (Instant::now(), count.min(begin + batch));
        (begin..end).for_each(&mut call);
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / (end - begin) as f64);
    }
    best
}

/// An index of so many distinct blocks: each prompt is on three ranks, the beginnings are everywhere.
fn filled(ranks: u16, prompts: u64) -> PrefixIndex {
    let blocks_max = prompts as usize * (PROMPT - BEGINNING) + BEGINNINGS as usize * BEGINNING;
    let mut index =
        PrefixIndex::new(ranks, PrefixPolicy { blocks_max, ..PrefixPolicy::default() }).expect("bounds");
    let mut sequences = vec![0; usize::from(ranks)];
    let mut store = |rank: u16, parent: Option<BlockHash>, blocks: &[BlockHash]| {
        sequences[usize::from(rank)] += 1;
        let change = KvChange::Stored { parent, blocks: blocks.into() };
        index.apply(Rank(rank), sequences[usize::from(rank)], &change);
    };
    for family in 0..BEGINNINGS {
        (0..ranks).for_each(|rank| store(rank, None, &prompt(family)[..BEGINNING]));
    }
    for number in 0..prompts {
        let prompt = prompt(number);
        for copy in 0..3 {
            let rank = ((number * 7 + copy * 5) % u64::from(ranks)) as u16;
            store(rank, Some(prompt[BEGINNING - 1]), &prompt[BEGINNING..]);
        }
    }
    index
}

fn prefix(ranks: u16, prompts: u64, table: &mut Table) {
    let mut index = filled(ranks, prompts);
    let (blocks, bytes) = (index.blocks(), index.bytes());
    let mut random = SplitMix64::new(1);
    let known: Vec<_> = (0..LOOKUPS).map(|_| prompt(random.next_u64() % prompts)).collect();
    let unknown: Vec<_> = (0..LOOKUPS as u64).map(|n| prompt(prompts + n)).collect();
    let mut hits = Vec::new();
    let mut lookup = |prompts: &[Vec<BlockHash>]| {
        micros_each(prompts.len(), |n| {
            index.hits(&prompts[n], &mut hits);
            black_box(&hits);
        })
    };
    let (whole, beginning) = (lookup(&known), lookup(&unknown));
    let expect = micros_each(LOOKUPS, |n| index.expect(Rank((n % usize::from(ranks)) as u16), &known[n]));
    let forget = micros_each(20, |n| index.forget(Rank(n as u16)));
    row(
        table,
        &format!("{ranks} ranks, {:.1} M blocks", blocks as f64 / 1e6),
        &[
            format!("{whole:.1} us"),
            format!("{:.0} ns", whole * 1000.0 / PROMPT as f64),
            format!("{beginning:.1} us"),
            format!("{expect:.1} us"),
            format!("{:.1} ms", forget / 1000.0),
            format!("{:.1} B", bytes as f64 / blocks as f64),
            format!("{:.1} B", index.bytes_max() as f64 / blocks as f64),
        ],
    );
}

fn cost_fit() -> f64 {
    let mut random = SplitMix64::new(2);
    let mut fit = CostFit::new(CostModel::Prefill);
    let steps: Vec<StepReport> = (0..1000)
        .map(|_| {
            let (tokens, context) = (1 + random.next_u64() % 8192, random.next_u64() % 16_384);
            let pairs = tokens * context;
            let micros = 4000 + 90 * tokens + pairs / 100;
            StepReport { tokens: Tokens(tokens), pairs, micros, ..StepReport::default() }
        })
        .collect();
    let each = micros_each(200_000, |n| _ = black_box(fit.observe(&steps[n % steps.len()])));
    black_box(fit.cost());
    each
}

fn fair_queue(tenants: u64, table: &mut Table) {
    let held = 65_536;
    let mut random = SplitMix64::new(3);
    let mut requests = (1u64..).map(|number| HeldRequest {
        request: RequestId(number),
        tenant: TenantId((random.next_u64() % tenants) as u32),
        priority: if number % 4 == 0 { Priority::Batch } else { Priority::Interactive },
        cost: 1 + random.next_u64() % 8192,
    });
    let mut next = || requests.next().expect("they do not end");
    let policy = FairPolicy { held_max: held, tenant_held_max: held, ..FairPolicy::default() };
    let mut queue = FairQueue::new(policy).expect("bounds");
    let push = micros_each(held, |_| assert_eq!(queue.push(next()), Admission::Held));
    let full = micros_each(held, |_| assert_ne!(queue.push(next()), Admission::Held));
    let cohort = micros_each(100, |_| _ = black_box(queue.in_order().take(1024).count()));
    let turn = micros_each(held, |_| {
        black_box(queue.pop());
        queue.push(next());
    });
    row(
        table,
        &format!("{tenants} tenants"),
        &[
            format!("{push:.2} us"),
            format!("{full:.2} us"),
            format!("{turn:.2} us"),
            format!("{cohort:.0} us"),
        ],
    );
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

fn row(table: &mut Table, name: &str, cells: &[String]) {
    let right = |cell: &String| Cell::new(cell).set_alignment(CellAlignment::Right);
    table.add_row(std::iter::once(Cell::new(name)).chain(cells.iter().map(right)));
}

fn main() {
    let mut index = table(&[
        "prefix index",
        "hits, all 100 there",
        "a block",
        "hits, first 20 there",
        "expect 100",
        "forget a rank",
        "a block has",
        "at most",
    ]);
    for (ranks, prompts) in [(32, 12_500), (144, 12_500), (144, 50_000), (320, 125_000)] {
        prefix(ranks, prompts, &mut index);
    }
    println!("{index}\n\ncost fit: {:.2} us a report\n", cost_fit());
    let mut queue =
        table(&["fair queue, 65536 held", "push", "push when full", "pop and push", "first 1024 in order"]);
    [1, 100, 10_000].into_iter().for_each(|tenants| fair_queue(tenants, &mut queue));
    println!("{queue}");
}
