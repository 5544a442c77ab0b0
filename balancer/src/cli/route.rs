//! `evenkeel route`.

use super::Failure;
use crate::decision_log::{Check, Lines, LogError, Replay};
use clap::{ArgGroup, Args};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::PathBuf;

/// Decide routing events, or replay recorded decisions, without a balancer.
///
/// Events and decisions are JSON lines in virtual time; the same events give the same decisions. The schema, with every
/// field and its range, is in docs/decisions.md. A running balancer records the same lines into the directory that
/// [routing] record names.
///
/// Exit codes: 0 done, or all decisions equal; 1 decisions differ; 2 input that is not understood.
#[derive(Args)]
#[command(
    group(ArgGroup::new("input").required(true).args(["stdin", "replay"])),
    after_help = "Examples:
  Two requests for a decode unit of four ranks
    evenkeel route --stdin <<'END'
    {\"evenkeel\":\"decisions\",\"version\":1}
    {\"at_ms\":0,\"unit\":\"d\",\"event\":\"unit\",\"role\":\"decode\",\"ranks\":4}
    {\"at_ms\":5,\"unit\":\"d\",\"event\":\"arrive\",\"request\":1,\"prompt_tokens\":1500}
    {\"at_ms\":9,\"unit\":\"d\",\"event\":\"arrive\",\"request\":2,\"prompt_tokens\":900}
    END
  What a balancer decided, decided again
    evenkeel route --replay /var/lib/evenkeel/decisions/*.jsonl
  The same from a pipe
    zcat incident.jsonl.gz | evenkeel route --stdin --check"
)]
pub(super) struct Route {
    /// Read events from standard input and print the decisions
    #[arg(long)]
    stdin: bool,
    /// Compare with the decisions that the input holds, instead of printing any
    #[arg(long, requires = "stdin")]
    check: bool,
    /// Replay recordings, each from its beginning, and compare their decisions
    #[arg(long, value_name = "FILE", num_args = 1..)]
    replay: Vec<PathBuf>,
}

impl Route {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.stdin && !self.check {
            return decide();
        }
        let mut check = Check::default();
        if self.stdin {
            check.run(Lines::new("standard input".to_owned(), io::stdin().lock()))?;
        }
        for path in &self.replay {
            let file = path.display().to_string();
            let input = File::open(path).map_err(|source| LogError::Open { file: file.clone(), source })?;
            check.run(Lines::new(file, BufReader::new(input)))?;
        }
        println!("{}", json!({"evenkeel": "replay", "equal": true, "figures": check}));
        Ok(())
    }
}

/// Decisions on standard input go to standard output as they are made.
fn decide() -> Result<(), Failure> {
    let mut replay = Replay::default();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = replay.run(Lines::new("standard input".to_owned(), io::stdin().lock()), &mut out);
    for (unit, counted) in replay.counters() {
        for (count, what) in [
            (
                counted.stale_reports,
                "reports were dropped: older than one before them, or of a rank that is down",
            ),
            (counted.foreign_reports, "reports were dropped: they name a dispatch that was never made"),
            (counted.unknown_finishes, "requests finished that were not there"),
            (counted.unknown_first_tokens, "requests gave a first token that no rank has"),
        ] {
            if count > 0 {
                eprintln!("unit {unit}: {count} {what}");
            }
        }
    }
    Ok(done?)
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Failure { exit: error.exit(), ..Failure::new(error.code(), &error) }
    }
}
