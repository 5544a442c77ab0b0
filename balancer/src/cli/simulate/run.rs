//! Runs the policies one after the other on the same requests.

use super::output::Output;
use super::policies::{Contender, Kinds, parse};
use super::progress::Bar;
use super::timeline::{decode_timeline, prefill_timeline};
use super::workload::Workload;
use super::{FittedTo, command, refused};
use crate::cli::Failure;
use crate::simulation_report::{Report, Run, Timeline, by_merit, number};
use clap::Args;
use evenkeel_simulate::cluster::{
    Figures, Kind, News, Objectives, Request, RunError, Setup, StepTime, Units, simulate,
};
use evenkeel_simulate::overlap::Overlap;
use evenkeel_simulate::step_time::DeepSeekV3;
use evenkeel_simulate::step_time::calibration::{Calibration, table};

/// Time after the last arrival in which requests may end, seconds: some minutes of a long output's steps.
const GRACE_S: u64 = 600;
/// Of the trace that is warm-up where nothing else is said.
const WARM_UP_PART: u64 = 10;
/// Tokens (prefill) or requests (decode) of a rank below which its stages are too short to draw.
const DRAWN_MIN: f64 = 4.0;
/// Longest of times that flags take, seconds and ms: a day.
const SECONDS_MAX: u64 = 24 * 3600;
const MS_MAX: u64 = SECONDS_MAX * 1000;

/// Policies and what they are measured by.
#[derive(Args)]
#[command(next_help_heading = "Policies and objectives")]
pub(super) struct Common {
    /// Policies, comma-separated: evenkeel, peers by their names, or all; PREFILL+DECODE names two for disaggregated units
    #[arg(long, value_name = "POLICY", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// How often Evenkeel hears from each rank, ms; peers hear as often as their originals do
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=MS_MAX))]
    report_interval: u64,
    /// Seconds at the beginning that are not measured [default: a tenth of the trace]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=SECONDS_MAX))]
    warm_up: Option<u64>,
    /// First token within so many ms, and 1 ms for every 10 uncached prompt tokens
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=MS_MAX))]
    ttft: u64,
    /// Each further token within so many ms, on average
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=MS_MAX))]
    tpot: u64,
    /// To what step times are fitted: see `evenkeel simulate calibration`
    #[arg(long, value_enum, default_value = "service")]
    calibration: FittedTo,
    /// Nothing runs beside anything: no microbatches
    #[arg(long)]
    no_overlap: bool,
}

/// Simulates and shows.
pub(super) fn run(
    kind: &'static str,
    kinds: Kinds,
    units: Units,
    workload: &Workload,
    common: &Common,
    output: &Output,
) -> Result<(), Failure> {
    output.check()?;
    let contenders = parse(&common.policy, kinds)?;
    let arrivals = workload.arrivals()?;
    let setup = setup(units, common, &arrivals.requests, workload.seed);
    setup.validate().map_err(|error| refused(error.code(), &error))?;
    let model = model(&setup, common);
    let mut runs = simulate_all(&setup, &arrivals.requests, &model, &contenders)?;
    by_merit(&mut runs);
    let calibration = Calibration::from(common.calibration);
    let report = Report {
        kind,
        command: command::given(),
        version: env!("CARGO_PKG_VERSION"),
        inputs: [arrivals.inputs, described(&setup, common)].concat(),
        notes: arrivals.notes,
        measured_from_ms: setup.warm_up_us as f64 / 1e3,
        objectives: setup.objectives,
        calibration,
        calibration_lines: table(calibration),
        timelines: runs.first().map_or(Vec::new(), |run| timelines(&run.figures)),
        runs,
    };
    output.write(&report)
}

fn setup(units: Units, common: &Common, requests: &[Request], seed: u64) -> Setup {
    let end_us = requests.last().map_or(0, |last| last.at_us) + 1;
    let warm_up_us = common.warm_up.map_or(end_us / WARM_UP_PART, |seconds| seconds * 1_000_000);
    Setup {
        units,
        news: News { report_interval_us: common.report_interval * 1000, ..News::default() },
        objectives: Objectives {
            ttft_us: common.ttft as f64 * 1e3,
            tpot_us: common.tpot as f64 * 1e3,
            ..Objectives::default()
        },
        incidents: Vec::new(),
        fill_us: 0,
        warm_up_us,
        end_us,
        grace_us: GRACE_S * 1_000_000,
        seed,
    }
}

fn model(setup: &Setup, common: &Common) -> DeepSeekV3 {
    let mut model = DeepSeekV3::new(common.calibration.into());
    if let (_, Some(decode)) = setup.pools() {
        model.decode_ranks = decode.pool.ranks;
    }
    if common.no_overlap {
        (model.prefill_overlap, model.decode_overlap) = (Overlap::None, Overlap::None);
    }
    model
}

fn simulate_all(
    setup: &Setup,
    requests: &[Request],
    model: &dyn StepTime,
    contenders: &[Contender],
) -> Result<Vec<Run>, Failure> {
    let mut bar = Bar::new(contenders.len());
    let mut runs = Vec::with_capacity(contenders.len());
    for contender in contenders {
        let (name, report_interval_s) = contender.shown(&setup.news);
        bar.begin(&name);
        let mut seat = |kind: Kind, unit, ranks| contender.seat(kind, (unit, ranks), setup);
        let figures = simulate(setup, requests, model, &mut seat, &mut |progress| bar.at(progress))
            .map_err(|error| failed(&name, &error))?;
        bar.end();
        let (key, ours) = (contender.key.clone(), contender.ours());
        runs.push(Run { key, name, ours, report_interval_s, figures });
    }
    Ok(runs)
}

fn failed(name: &str, error: &RunError) -> Failure {
    match error {
        RunError::Setup(_) => refused(error.code(), error),
        RunError::Policy(_) => Failure::new(error.code(), format!("{name}: {error}")),
    }
}

fn described(setup: &Setup, common: &Common) -> Vec<(&'static str, String)> {
    let mut inputs = Vec::new();
    let (prefill, decode) = setup.pools();
    if let Some(prefill) = prefill {
        let shared = match prefill.shared_cache_tokens {
            0 => String::new(),
            tokens => format!(", a shared cache of {} tokens", number(tokens as f64)),
        };
        let pool = &prefill.pool;
        let text = format!(
            "{} of {} ranks, {} new tokens a step and rank, {} KV tokens a rank{shared}",
            pool.units,
            pool.ranks,
            prefill.step_tokens,
            number(pool.kv_tokens as f64)
        );
        inputs.push(("prefill units", text));
    }
    if let Some(decode) = decode {
        let pool = &decode.pool;
        let text = format!(
            "{} of {} ranks, {} requests and {} KV tokens a rank",
            pool.units,
            pool.ranks,
            decode.slots,
            number(pool.kv_tokens as f64)
        );
        inputs.push(("decode units", text));
    }
    let overlap = if common.no_overlap { "no overlap" } else { "dual-batch and five-stage overlap" };
    let fitted = Calibration::from(common.calibration).name();
    inputs.push(("step times", format!("DeepSeek-V3 on H800, fitted to: {fitted}; {overlap}")));
    let (from, until) = (setup.warm_up_us as f64 / 1e6, setup.end_us as f64 / 1e6);
    inputs.push(("measured", format!("{from:.0} to {until:.0} s")));
    inputs
}

/// Pictures of the overlap at the mean load of a run, with and without, and with uneven halves.
fn timelines(figures: &Figures) -> Vec<Timeline> {
    let mut timelines = Vec::new();
    let uneven = |overlap| {
        [(overlap, 0.5, ""), (overlap, 0.6, ", uneven halves (60 and 40 %)"), (Overlap::None, 0.5, "")]
    };
    if let Some(pool) = figures.prefill.as_ref().filter(|pool| pool.tokens_per_rank >= DRAWN_MIN) {
        let (tokens, context) =
            (pool.tokens_per_rank as u64, (pool.second_per_rank / pool.tokens_per_rank) as u64);
        for (overlap, split, words) in uneven(Overlap::DualBatch) {
            let title = format!("prefill, {tokens} new tokens that see {context} on average{words}");
            timelines.push(prefill_timeline(title, overlap, tokens, context, split));
        }
    }
    if let Some(pool) = figures.decode.as_ref().filter(|pool| pool.second_per_rank >= DRAWN_MIN) {
        let (requests, context) = (pool.second_per_rank, pool.tokens_per_rank / pool.second_per_rank);
        for (overlap, split, words) in uneven(Overlap::FiveStage) {
            let title = format!("decode, {requests:.0} requests with {context:.0} tokens of KV each{words}");
            timelines.push(decode_timeline(title, overlap, requests, context, split));
        }
    }
    timelines
}
