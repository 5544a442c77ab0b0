//! The deployments and the synthetic loads of the tables.

use evenkeel_core::experts::{Deployment, ExpertLoads};
use std::path::{Path, PathBuf};

/// Seeds of the tables.
pub(crate) const SEEDS: std::ops::Range<u32> = 0..3;
/// Nothing was ever tuned on this one.
pub(crate) const HELD_OUT: u32 = 3;

/// A model on GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit {
    /// As the tables name it: slots / GPUs.
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) experts: usize,
    pub(crate) ranks: usize,
    pub(crate) slots: usize,
    pub(crate) nodes: usize,
    pub(crate) groups: usize,
}

const V3: Unit = Unit { name: "", layers: 58, experts: 256, ranks: 32, slots: 288, nodes: 4, groups: 1 };

/// DeepSeek-V3 prefill, planned globally.
pub(crate) const PREFILL: Unit = Unit { name: "V3 prefill 288/32", ..V3 };
/// The same with whole groups on nodes.
pub(crate) const PREFILL_GROUPS: Unit = Unit { name: "V3 prefill 288/32, 8 groups", groups: 8, ..V3 };
/// DeepSeek-V3 decode. Its 8 groups do not divide over 18 nodes.
pub(crate) const DECODE: Unit = Unit { name: "V3 decode 288/144", ranks: 144, nodes: 18, ..V3 };
/// Two redundant experts per GPU.
pub(crate) const TWO_REDUNDANT: Unit = Unit { name: "two redundant 320/32", slots: 320, ..V3 };
/// 64 GPUs with 5 slots.
pub(crate) const WIDE: Unit = Unit { name: "wide 320/64", ranks: 64, slots: 320, nodes: 8, ..V3 };
/// Qwen3-235B.
pub(crate) const QWEN3: Unit =
    Unit { name: "Qwen3 160/32", layers: 94, experts: 128, ranks: 32, slots: 160, nodes: 4, groups: 1 };
/// Kimi-K2.
pub(crate) const KIMI: Unit =
    Unit { name: "Kimi-K2 448/64", layers: 60, experts: 384, ranks: 64, slots: 448, nodes: 8, groups: 1 };
/// Many redundant slots: replica counts and placement have to be chosen together.
pub(crate) const LARGE: Unit = Unit { name: "large 512/256", ranks: 256, slots: 512, nodes: 32, ..V3 };

impl Unit {
    pub(crate) fn deployment(&self) -> Deployment {
        Deployment::uniform(self.ranks, self.slots, self.nodes, self.groups)
            .expect("the tables' units divide")
    }
}

/// A unit under one distribution of loads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) unit: Unit,
    /// As the files name it: `ln0.5`, `zipf1.2`.
    pub(crate) loads: &'static str,
}

impl Case {
    pub(crate) const fn new(unit: Unit, loads: &'static str) -> Self {
        Self { unit, loads }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}, {}", self.unit.name, self.loads)
    }

    fn file(&self, seed: u32, variant: &str) -> String {
        format!("{}x{}-{}-seed{seed}{variant}.npy", self.unit.layers, self.unit.experts, self.loads)
    }
}

/// The folder of generated loads.
pub(crate) struct Inputs {
    folder: PathBuf,
}

impl Inputs {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The window that is planned for.
    pub(crate) fn base(&self, case: &Case, seed: u32) -> ExpertLoads {
        self.read(case, seed, "").remove(0)
    }

    /// The next window: every load drifted by this many percent.
    pub(crate) fn drifted(&self, case: &Case, seed: u32, percent: u32) -> ExpertLoads {
        self.read(case, seed, &format!("-drift{percent}")).remove(0)
    }

    /// Batches whose loads differ by this many percent.
    pub(crate) fn batches(&self, case: &Case, seed: u32, percent: u32) -> Vec<ExpertLoads> {
        self.read(case, seed, &format!("-noise{percent}"))
    }

    /// One table or several, one below the other.
    fn read(&self, case: &Case, seed: u32, variant: &str) -> Vec<ExpertLoads> {
        let path = self.folder.join(case.file(seed, variant));
        let counts: Vec<i64> = std::fs::read(&path)
            .and_then(|bytes| npyz::NpyFile::new(&bytes[..])?.into_vec())
            .unwrap_or_else(|error| panic!("{}: {error}; make it with loads/prepare", path.display()));
        let Unit { layers, experts, .. } = case.unit;
        assert!(counts.len().is_multiple_of(layers * experts), "{}: another shape", path.display());
        counts
            .chunks(layers * experts)
            .map(|table| loads_of(table.iter().map(|&n| n as f64), experts))
            .collect()
    }
}

/// Rows of `experts` counts.
pub(crate) fn loads_of(counts: impl Iterator<Item = f64>, experts: usize) -> ExpertLoads {
    let counts: Vec<f64> = counts.collect();
    let rows: Vec<Vec<f64>> = counts.chunks(experts).map(<[f64]>::to_vec).collect();
    ExpertLoads::new(&rows).expect("counts are finite and not negative")
}
