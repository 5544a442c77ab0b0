//! `evenkeel experts diff`.

use super::gpus::{PlanGpus, deployment};
use super::moves::{Change, change};
use super::table::{add_row, bytes, show, table};
use super::{EXPERT_BYTES, Failure, Output, refused};
use crate::expert_files::read_plan;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show what a change from one plan to another moves.
///
/// A slot changes when it holds another expert. A GPU fetches an expert when none of its slots held it before; with
/// nodes, a fetch crosses nodes when no GPU of the same node held it. Releasing an expert moves nothing.
#[derive(Args)]
#[command(after_help = "Examples:
  What the next plan would move, and how much of that between 4 nodes
    evenkeel experts diff plan.json next.json --nodes 4
  Layer by layer, for experts of 22 MB
    evenkeel experts diff plan.json next.json --expert-bytes 22020096 --per-layer")]
pub(super) struct Diff {
    /// The plan in service, in any format
    from: PathBuf,
    /// The plan to come, in any format
    to: PathBuf,
    #[command(flatten)]
    gpus: PlanGpus,
    /// Bytes of one expert in one layer [default: DeepSeek-V3's 44040192 in FP8]
    #[arg(long, value_name = "BYTES", default_value_t = EXPERT_BYTES, hide_default_value = true)]
    expert_bytes: u64,
    /// Show every layer
    #[arg(long)]
    per_layer: bool,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl Diff {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (from, to) = (read_plan(&self.from, None)?, read_plan(&self.to, None)?);
        let (a, b) = (self.from.display().to_string(), self.to.display().to_string());
        let have = [(from.layers(), to.layers(), "layers"), (from.slots(), to.slots(), "slots")];
        if let Some((left, right, what)) = have.into_iter().find(|(left, right, _)| left != right) {
            let problem = format!("{a} has {left} {what}, and {b} has {right}: both need the same");
            return Err(refused("experts_plan_shape", problem));
        }
        // Either file may be the one that tells the GPUs.
        let ranks = match self.gpus.ranks(&a, &from) {
            Ok(ranks) => ranks,
            Err(failure) => self.gpus.ranks(&b, &to).map_err(|_| failure)?,
        };
        let deployment = deployment(&ranks, 1)?;
        let layers: Vec<Change> = (from.physical_to_logical.iter().zip(&to.physical_to_logical))
            .map(|(from, to)| change(&deployment, from, to))
            .collect();
        let report =
            Report { layers, slots: from.slots(), nodes: ranks.nodes, expert_bytes: self.expert_bytes };
        match self.output {
            Output::Json => show(&format!("{:#}", report.json())),
            Output::Table if self.per_layer => {
                show(&format!("{}\n\n{}", report.layers_table(), report.text()))
            }
            Output::Table => show(&report.text()),
        }
    }
}

struct Report {
    layers: Vec<Change>,
    slots: usize,
    nodes: usize,
    expert_bytes: u64,
}

impl Report {
    fn total(&self, of: impl Fn(&Change) -> usize) -> usize {
        self.layers.iter().map(of).sum()
    }

    fn bytes_of(&self, experts: usize) -> u64 {
        self.expert_bytes.saturating_mul(experts as u64)
    }

    /// `[ranks]`, over all layers.
    fn fetched(&self) -> Vec<usize> {
        let ranks = self.layers.first().map_or(0, |layer| layer.fetched.len());
        (0..ranks).map(|rank| self.layers.iter().map(|layer| layer.fetched[rank]).sum()).collect()
    }

    fn text(&self) -> String {
        let all = self.slots * self.layers.len();
        let changed = self.total(|layer| layer.slots);
        let fetched = self.total(Change::moves);
        let per_rank = self.fetched();
        let most = per_rank.iter().copied().max().unwrap_or(0);
        let busiest = per_rank.iter().position(|count| *count == most).unwrap_or(0);
        let layers = self.layers.iter().filter(|layer| layer.slots > 0).count();
        let part = 100.0 * changed as f64 / all as f64;
        let mut text = format!(
            "slots changed     {changed} of {all} ({part:.1} %), in {layers} of {} layers\n\
             experts fetched   {fetched}, {}\n\
             most on one GPU   {most}, {} (GPU {busiest})",
            self.layers.len(),
            bytes(self.bytes_of(fetched)),
            bytes(self.bytes_of(most)),
        );
        if self.nodes > 1 {
            let between = self.total(|layer| layer.between_nodes);
            text += &format!(
                "\nbetween nodes     {between}, {} ({} nodes)",
                bytes(self.bytes_of(between)),
                self.nodes
            );
        }
        text
    }

    fn layers_table(&self) -> String {
        let mut table = table(&["LAYER", "SLOTS", "FETCHED", "BYTES", "MOST ON ONE GPU", "BETWEEN NODES"]);
        for (at, layer) in self.layers.iter().enumerate() {
            let fetched = layer.moves();
            let cells = [
                at.to_string(),
                layer.slots.to_string(),
                fetched.to_string(),
                bytes(self.bytes_of(fetched)),
                layer.fetched.iter().max().unwrap_or(&0).to_string(),
                if self.nodes > 1 { layer.between_nodes.to_string() } else { "-".to_owned() },
            ];
            add_row(&mut table, cells);
        }
        table.to_string()
    }

    fn json(&self) -> Value {
        let nodes = |count: usize| (self.nodes > 1).then_some(count);
        let layer = |layer: &Change| {
            let fetched = layer.moves();
            json!({
                "slots_changed": layer.slots,
                "fetched": fetched,
                "bytes": self.bytes_of(fetched),
                "fetched_per_gpu": layer.fetched,
                "between_nodes": nodes(layer.between_nodes),
            })
        };
        let fetched = self.total(Change::moves);
        let between = self.total(|layer| layer.between_nodes);
        json!({
            "slots": self.slots * self.layers.len(),
            "slots_changed": self.total(|layer| layer.slots),
            "fetched": fetched,
            "bytes": self.bytes_of(fetched),
            "fetched_per_gpu": self.fetched(),
            "between_nodes": nodes(between),
            "bytes_between_nodes": nodes(between).map(|count| self.bytes_of(count)),
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
        })
    }
}
