//! Which requests arrive: a trace and what is made of it.

use super::refused;
use crate::cli::Failure;
use clap::Args;
use evenkeel_simulate::cluster::{Request, of_trace};
use evenkeel_simulate::trace::{Jitter, TraceError, TraceFormat, TraceOptions, load};
use std::path::PathBuf;

/// Most seconds of jitter, and of `--from` and `--until`: a year.
const SECONDS_MAX: u64 = 366 * 24 * 3600;

/// The trace.
#[derive(Args)]
#[command(next_help_heading = "Workload")]
pub(super) struct Workload {
    /// Request trace: Mooncake or agentic JSON lines, Azure CSV (each may be gzipped), ServeGen tables
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Format of the trace: mooncake, agentic, azure or servegen [default: told by its content]
    #[arg(long, value_name = "FORMAT")]
    format: Option<TraceFormat>,
    /// Replay so many times faster than recorded
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    speed: f64,
    /// So many copies of the trace, each begun at its own point, with prefixes of its own
    #[arg(long, value_name = "COPIES", default_value_t = 1)]
    scale: u32,
    /// Move each arrival by less than so many ms, drawn from the seed [default: the tick of stamps that come in ticks]
    #[arg(long, value_name = "MS")]
    jitter: Option<u64>,
    /// Begin so many recorded seconds into the trace
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=SECONDS_MAX))]
    from: u64,
    /// End so many recorded seconds into the trace [default: its end]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    until: Option<u64>,
    /// Of everything that is drawn: jitter, starts of copies, policies' choices
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

/// Requests in the order of time.
pub(super) struct Arrivals {
    pub(super) requests: Vec<Request>,
    /// What went in.
    pub(super) inputs: Vec<(&'static str, String)>,
    /// What must be known of it.
    pub(super) notes: Vec<String>,
}

impl Workload {
    /// Reads it all.
    pub(super) fn arrivals(&self) -> Result<Arrivals, Failure> {
        let options = TraceOptions {
            format: self.format,
            seed: self.seed,
            speed: self.speed,
            copies: self.scale,
            jitter: self.jitter.map_or(Jitter::Auto, Jitter::Ms),
            from_ms: self.from * 1000,
            until_ms: self.until.map(|seconds| seconds * 1000),
            ..TraceOptions::default()
        };
        let trace = load(&self.trace, &options).map_err(unusable)?;
        let requests = of_trace(&trace, u64::MAX);
        let seconds = requests.last().map_or(0.0, |last| last.at_us as f64 / 1e6);
        let tokens = |of: fn(&Request) -> u64| requests.iter().map(of).sum::<u64>();
        let mean = |sum: u64| sum as f64 / requests.len().max(1) as f64;
        let (prompts, outputs) =
            (tokens(|request| request.prompt_tokens), tokens(|request| request.output_tokens));
        let inputs = vec![
            ("trace", format!("{} ({})", self.trace.display(), trace.format)),
            ("copies, speed", format!("{} copies, {} times the recorded speed", trace.copies, self.speed)),
            (
                "requests",
                format!(
                    "{} in {seconds:.0} s; prompts of {:.0} and outputs of {:.0} tokens on average",
                    requests.len(),
                    mean(prompts),
                    mean(outputs)
                ),
            ),
            ("seed", self.seed.to_string()),
        ];
        Ok(Arrivals { requests, inputs, notes: trace.notes })
    }
}

fn unusable(error: TraceError) -> Failure {
    use std::error::Error;
    let reason = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    refused(error.code(), format!("{error}{reason}"))
}
