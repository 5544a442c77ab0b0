//! `evenkeel experts slots`.

use super::evaluate::{Balance, balance};
use super::gpus::Gpus;
use super::plan_input::loads;
use super::table::{add_row, bytes, show, table};
use super::verify::{Allowed, verify};
use super::{EXPERT_BYTES, Failure, Output, layers, refused};
use clap::Args;
use evenkeel_core::experts::{ExpertLoads, PlanOptions, plan_layers, resplit_layers};
use evenkeel_simulate::expert_loads::SplitMix64;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Per-batch noise that is tried: relative standard deviation of every expert's load.
const NOISE: [f64; 2] = [0.10, 0.20];

/// Show what more redundant slots would buy, and what they cost.
///
/// For the slots given and for some more on every GPU: the imbalance of a fresh plan in its own window, and the mean
/// over batches whose loads differ from it by independent log-normal noise, with the split solved again for each
/// batch and no weight moved. The noise is synthetic and the same for every row and every run of a seed. The cost is
/// the weights of the extra slots on each GPU.
#[derive(Args)]
#[command(after_help = "Examples:
  What a second and a third redundant expert per GPU would buy DeepSeek-V3 on 32 GPUs
    evenkeel experts slots --loads loads.npy --gpus 32 --slots 288
  A few sizes, for experts of 22 MB
    evenkeel experts slots --loads loads.npy --gpus 32 --slots 288 --more 1,2,4,8 --expert-bytes 22020096")]
pub(super) struct Slots {
    /// Loads (.npy, .csv or .json)
    #[arg(long, value_name = "FILE")]
    loads: PathBuf,
    #[command(flatten)]
    gpus: Gpus,
    /// Slots to add on every GPU
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2", num_args = 1..=16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    more: Vec<u16>,
    /// Noisy batches for each figure
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    batches: u64,
    /// Seed of the noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of one expert in one layer [default: DeepSeek-V3's 44040192 in FP8]
    #[arg(long, value_name = "BYTES", default_value_t = EXPERT_BYTES, hide_default_value = true)]
    expert_bytes: u64,
    /// Threads; the figures do not depend on them
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// Layers of the model that have experts, such as 3-60, where the loads have a row for every layer
    #[arg(long, value_name = "LAYERS")]
    moe_layers: Option<String>,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// One size.
struct Row {
    more: u16,
    slots: usize,
    in_sample: Balance,
    /// Mean over batches and layers, for each [`NOISE`].
    noisy: [f64; NOISE.len()],
    /// Weights of the extra slots of one GPU, all layers.
    bytes_per_gpu: u64,
}

impl Slots {
    pub(super) fn run(self) -> Result<(), Failure> {
        let moe_layers = self.moe_layers.as_deref().map(layers::parse).transpose()?;
        let base = self.gpus.deployment(&self.gpus.ranks(0)?)?;
        let loads = loads(&self.loads, moe_layers.as_deref())?;
        if base.slots() < loads.experts() {
            return Err(evenkeel_core::experts::InputError::TooFewSlots {
                experts: loads.experts(),
                slots: base.slots(),
            }
            .into());
        }
        let mut sizes = self.more.clone();
        sizes.push(0);
        sizes.sort_unstable();
        sizes.dedup();
        let rows = sizes.into_iter().map(|more| self.row(more, &loads)).collect::<Result<Vec<_>, _>>()?;
        match self.output {
            Output::Json => show(&format!("{:#}", Value::from_iter(rows.iter().map(Row::json)))),
            Output::Table => show(&rows_table(&rows)),
        }
    }

    fn row(&self, more: u16, loads: &ExpertLoads) -> Result<Row, Failure> {
        let deployment = self.gpus.deployment(&self.gpus.ranks(more)?)?;
        let options = PlanOptions { threads: self.threads as usize, ..PlanOptions::default() };
        let planned = plan_layers(&deployment, loads, None, &options)?;
        verify(
            &planned,
            &Allowed { deployment: &deployment, loads, current: None, moves_max: None, node_moves_max: None },
        )?;
        let placement: Vec<_> = planned.iter().map(|layer| layer.physical_to_logical.clone()).collect();
        let share: Vec<_> = planned.iter().map(|layer| layer.share.clone()).collect();
        let mut noisy = [0.0; NOISE.len()];
        for (sum, sigma) in noisy.iter_mut().zip(NOISE) {
            for batch in 0..self.batches {
                let batch = noisy_loads(loads, sigma, self.seed, batch)?;
                let split = resplit_layers(&deployment, &batch, &placement, &options)?;
                let share: Vec<_> = split.into_iter().map(|layer| layer.share).collect();
                *sum += balance(&deployment, &batch, &placement, &share).mean() / self.batches as f64;
            }
        }
        let experts = u64::from(more) * loads.layers() as u64;
        Ok(Row {
            more,
            slots: deployment.slots(),
            in_sample: balance(&deployment, loads, &placement, &share),
            noisy,
            bytes_per_gpu: self.expert_bytes.checked_mul(experts).ok_or_else(|| {
                refused(
                    "experts_flags",
                    format!("--expert-bytes {}: the sum exceeds 64 bits", self.expert_bytes),
                )
            })?,
        })
    }
}

/// One batch: every load times its own log-normal factor of mean-free exponent. The same for every placement.
fn noisy_loads(loads: &ExpertLoads, sigma: f64, seed: u64, batch: u64) -> Result<ExpertLoads, Failure> {
    // A generator per batch and sigma: figures do not depend on which others are computed.
    let mut draw = SplitMix64::new(seed ^ SplitMix64::new(batch + 1).next_u64() ^ sigma.to_bits());
    let rows: Vec<Vec<f64>> = (0..loads.layers())
        .map(|layer| loads.layer(layer).iter().map(|load| load * draw.log_normal(sigma)).collect())
        .collect();
    Ok(ExpertLoads::new(&rows)?)
}

impl Row {
    fn json(&self) -> Value {
        let figure = |(sigma, mean): (&f64, f64)| json!({"sigma": sigma, "mean": mean});
        let noise: Vec<Value> = NOISE.iter().zip(self.noisy).map(figure).collect();
        json!({
            "more_per_gpu": self.more,
            "slots": self.slots,
            "imbalance": {"mean": self.in_sample.mean(), "worst": self.in_sample.worst().1},
            "noise": noise,
            "bytes_per_gpu": self.bytes_per_gpu,
        })
    }
}

fn rows_table(rows: &[Row]) -> String {
    let mut table = table(&[
        "MORE PER GPU",
        "SLOTS",
        "IMBALANCE",
        "worst",
        "10 % NOISE",
        "20 % NOISE",
        "WEIGHTS PER GPU",
    ]);
    for row in rows {
        let mut cells = vec![format!("+{}", row.more), row.slots.to_string()];
        let figures = [row.in_sample.mean(), row.in_sample.worst().1].into_iter().chain(row.noisy);
        cells.extend(figures.map(|value| format!("{value:.4}")));
        cells.push(format!("+{}", bytes(row.bytes_per_gpu)));
        add_row(&mut table, cells);
    }
    table.to_string()
}
