//! A plan as the files have it in common.

use super::csv::LAYERS_MAX;
use super::error::{FileError, Place};
use super::evenkeel::SolvedLayer;
use evenkeel_core::ids::ExpertId;
use evenkeel_core::topology::EXPERTS_MAX;

/// What a plan's file tells of the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ranks {
    /// `[ranks]`: slots of each GPU, in the order of the plan's slots.
    pub(crate) slots: Vec<u16>,
    /// `[ranks]`: relative speeds.
    pub(crate) speeds: Vec<f64>,
    /// Nodes, which share the GPUs equally.
    pub(crate) nodes: usize,
}

impl Ranks {
    /// Equal GPUs in one node; `gpus` divides `slots`.
    pub(crate) fn equal(gpus: usize, slots: usize) -> Self {
        let each = u16::try_from(slots / gpus).unwrap_or(u16::MAX);
        Self { slots: vec![each; gpus], speeds: vec![1.0; gpus], nodes: 1 }
    }

    /// Slots of every GPU, if all have the same.
    pub(super) fn slots_each(&self) -> Option<u16> {
        let first = *self.slots.first()?;
        self.slots.iter().all(|slots| *slots == first).then_some(first)
    }
}

/// The solver's account, as it stands in Evenkeel's own files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Account {
    /// `[layers]`.
    pub(crate) layers: Vec<SolvedLayer>,
    /// Wall time of the solve.
    pub(crate) solve_ms: f64,
}

/// One plan of all layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlanTable {
    /// `[layers][slots]`; every row is equally long.
    pub(crate) physical_to_logical: Vec<Vec<Option<ExpertId>>>,
    /// `[layers][slots]`: part of its expert's load that a slot gets; `None`: replicas share evenly.
    pub(crate) share: Option<Vec<Vec<f64>>>,
    /// `[layers]`: the model's layer of each row, where the file tells; ascending.
    pub(crate) layer_ids: Option<Vec<usize>>,
    /// The GPUs, where the file tells.
    pub(crate) ranks: Option<Ranks>,
    /// How the plan was solved, where the file tells.
    pub(crate) account: Option<Account>,
}

/// How far the shares of an expert may be from 1 in sum: what rounding to six digits leaves.
const SHARE_SUM_TOLERANCE: f64 = 1e-5;

impl PlanTable {
    /// Takes rows of expert ids, -1 in empty slots.
    pub(super) fn from_rows(path: &str, rows: &[Vec<i64>]) -> Result<Self, FileError> {
        let slots = rows.first().map_or(0, Vec::len);
        if slots == 0 || rows.len() > LAYERS_MAX {
            let problem = format!(
                "{} layers of {slots} slots: 1 to {LAYERS_MAX} layers of at least one slot are read",
                rows.len()
            );
            return Err(FileError::plan(path, Place::Whole, problem));
        }
        let mut physical_to_logical = Vec::with_capacity(rows.len());
        for (layer, row) in rows.iter().enumerate() {
            if row.len() != slots {
                let problem =
                    format!("{} slots, and layer 0 has {slots}: every layer needs {slots}", row.len());
                return Err(FileError::plan(path, Place::Layer(layer), problem));
            }
            let expert = |(slot, &id): (usize, &i64)| match id {
                -1 => Ok(None),
                _ => match u16::try_from(id) {
                    Ok(expert) if expert < EXPERTS_MAX => Ok(Some(ExpertId(expert))),
                    _ => {
                        let accepted = EXPERTS_MAX - 1;
                        let problem =
                            format!("{id} is no expert: ids are 0 to {accepted}, and -1 is an empty slot");
                        Err(FileError::plan(path, Place::LayerSlot(layer, slot), problem))
                    }
                },
            };
            physical_to_logical.push(row.iter().enumerate().map(expert).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Self { physical_to_logical, share: None, layer_ids: None, ranks: None, account: None })
    }

    /// The rows with -1 in empty slots.
    pub(super) fn rows(&self) -> Vec<Vec<i64>> {
        let id = |held: &Option<ExpertId>| held.map_or(-1, |expert| i64::from(expert.0));
        self.physical_to_logical.iter().map(|row| row.iter().map(id).collect()).collect()
    }

    /// Takes the model's layer of each row.
    pub(super) fn set_layer_ids(&mut self, path: &str, ids: Vec<usize>) -> Result<(), FileError> {
        let ascending = ids.is_sorted_by(|a, b| a < b) && ids.last().is_none_or(|last| *last < LAYERS_MAX);
        if ids.len() != self.layers() || !ascending {
            let problem = format!(
                "the layers of the model must be {} ascending numbers below {LAYERS_MAX}",
                self.layers()
            );
            return Err(FileError::plan(path, Place::Whole, problem));
        }
        self.layer_ids = Some(ids);
        Ok(())
    }

    /// Takes shares, which must be parts of 1 per expert.
    pub(crate) fn set_share(&mut self, path: &str, share: Vec<Vec<f64>>) -> Result<(), FileError> {
        let experts = self.experts();
        let (layers, slots) = (self.layers(), self.slots());
        if share.len() != layers || share.iter().any(|row| row.len() != slots) {
            let problem = format!("the split needs {layers} layers of {slots} shares, as the placement has");
            return Err(FileError::plan(path, Place::Whole, problem));
        }
        for (layer, (row, held)) in share.iter().zip(&self.physical_to_logical).enumerate() {
            let mut sums = vec![None; experts];
            for (slot, (&part, held)) in row.iter().zip(held).enumerate() {
                let place = Place::LayerSlot(layer, slot);
                if !(0.0..=1.0 + SHARE_SUM_TOLERANCE).contains(&part) {
                    return Err(FileError::plan(
                        path,
                        place,
                        format!("the share is {part}: it must be 0 to 1"),
                    ));
                }
                match held {
                    Some(expert) => *sums[expert.index()].get_or_insert(0.0) += part,
                    None if part > 0.0 => {
                        return Err(FileError::plan(
                            path,
                            place,
                            format!("an empty slot has the share {part}"),
                        ));
                    }
                    None => {}
                }
            }
            let wrong =
                |sum: &Option<f64>| sum.is_some_and(|sum: f64| (sum - 1.0).abs() > SHARE_SUM_TOLERANCE);
            if let Some(expert) = sums.iter().position(wrong) {
                let sum = sums[expert].unwrap_or(0.0);
                let problem = format!("the shares sum to {sum}: they must sum to 1");
                return Err(FileError::plan(path, Place::LayerExpert(layer, expert), problem));
            }
        }
        self.share = Some(share);
        Ok(())
    }

    /// Layers.
    pub(crate) fn layers(&self) -> usize {
        self.physical_to_logical.len()
    }

    /// Physical slots of every layer.
    pub(crate) fn slots(&self) -> usize {
        self.physical_to_logical[0].len()
    }

    /// Experts that the plan can know of: one more than the largest id.
    pub(crate) fn experts(&self) -> usize {
        let ids = self.physical_to_logical.iter().flatten().flatten();
        ids.map(|expert| expert.index() + 1).max().unwrap_or(0)
    }

    /// The first expert below `experts` that a layer does not hold.
    pub(crate) fn missing(&self, experts: usize) -> Option<(usize, usize)> {
        self.physical_to_logical.iter().enumerate().find_map(|(layer, row)| {
            let mut there = vec![false; experts];
            row.iter().flatten().filter(|e| e.index() < experts).for_each(|e| there[e.index()] = true);
            there.iter().position(|there| !there).map(|expert| (layer, expert))
        })
    }

    /// Keeps some rows, in the given order.
    pub(crate) fn keep_rows(&mut self, rows: &[usize]) {
        let placement = rows.iter().map(|&row| self.physical_to_logical[row].clone()).collect();
        self.physical_to_logical = placement;
        if let Some(share) = &mut self.share {
            *share = rows.iter().map(|&row| share[row].clone()).collect();
        }
        if let Some(account) = &mut self.account {
            account.layers = rows.iter().filter_map(|&row| account.layers.get(row).cloned()).collect();
        }
    }

    /// `[layers][slots]`: every replica of an expert gets the same part.
    pub(crate) fn even_share(&self) -> Vec<Vec<f64>> {
        let experts = self.experts();
        let of_layer = |row: &Vec<Option<ExpertId>>| {
            let mut count = vec![0u32; experts];
            row.iter().flatten().for_each(|expert| count[expert.index()] += 1);
            row.iter().map(|held| held.map_or(0.0, |e| 1.0 / f64::from(count[e.index()]))).collect()
        };
        self.physical_to_logical.iter().map(of_layer).collect()
    }

    /// `[layers][slots]`: the plan's shares, or the even ones.
    pub(crate) fn effective_share(&self) -> Vec<Vec<f64>> {
        self.share.clone().unwrap_or_else(|| self.even_share())
    }

    /// Whether the plan sends the replicas of some expert unequal parts.
    pub(crate) fn is_weighted(&self) -> bool {
        let even = self.even_share();
        let differs = |(a, b): (&f64, &f64)| (a - b).abs() > SHARE_SUM_TOLERANCE;
        self.share.iter().flatten().flatten().zip(even.iter().flatten()).any(differs)
    }

    /// The first empty slot.
    pub(super) fn empty_slot(&self) -> Option<(usize, usize)> {
        let empty = |(layer, row): (usize, &Vec<Option<ExpertId>>)| {
            row.iter().position(Option::is_none).map(|slot| (layer, slot))
        };
        self.physical_to_logical.iter().enumerate().find_map(empty)
    }

    /// Engines without empty slots cannot take a plan that has some.
    pub(super) fn refuse_empty_slots(&self, engine: &str) -> Result<(), FileError> {
        match self.empty_slot() {
            None => Ok(()),
            Some((layer, slot)) => Err(FileError::not_representable(
                Place::LayerSlot(layer, slot),
                format!(
                    "the slot is empty, and {engine} has no empty slots: solve with fewer slots, or convert to vllm"
                ),
            )),
        }
    }

    /// Engines that cut the slots into equal blocks cannot take a plan for GPUs of unequal slots.
    pub(super) fn refuse_uneven_ranks(&self, engine: &str) -> Result<(), FileError> {
        match &self.ranks {
            Some(ranks) if ranks.slots_each().is_none() => Err(FileError::not_representable(
                Place::Whole,
                format!(
                    "the GPUs have unequal slots, and {engine} gives every GPU the same: solve with --slots"
                ),
            )),
            _ => Ok(()),
        }
    }
}
