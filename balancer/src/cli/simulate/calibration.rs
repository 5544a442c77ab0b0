//! `evenkeel simulate calibration`.

use super::FittedTo;
use super::output::{print, rows};
use crate::cli::Failure;
use clap::Args;
use evenkeel_simulate::step_time::calibration::{Calibration, Line, profile_speed, table};

/// Show the modelled step times beside what was published.
///
/// Kernels run at their published rates, stages overlap as DeepSeek draws them, and one factor for each of prefill and decode is
/// fitted. Everything else is held out. Tokens a second and node of 8 GPUs; prefill: new tokens.
#[derive(Args)]
#[command(after_help = "Examples:
  Fitted to DeepSeek's service over a day
    evenkeel simulate calibration
  Fitted to its published profiles
    evenkeel simulate calibration --calibration profile")]
pub(super) struct CalibrationCommand {
    /// To what the step times are fitted
    #[arg(long, value_enum, default_value = "service")]
    calibration: FittedTo,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl CalibrationCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let calibration = Calibration::from(self.calibration);
        let lines = table(calibration);
        let [prefill, decode] = calibration.stretches();
        if self.json {
            let lines: Vec<_> = lines.iter().map(crate::simulation_report::calibration_json).collect();
            let json = serde_json::json!({
                "calibration": calibration.name(),
                "prefill_stretch": prefill,
                "decode_stretch": decode,
                "lines": lines,
                "profile_tokens_per_s_and_user": profile_speed(),
            });
            return print(&format!("{json:#}\n"));
        }
        let titles = ["WHAT", "SOURCE", "", "STATED", "MODEL", "DIFFERENCE"];
        let shown: Vec<Vec<String>> = lines.iter().map(row).collect();
        let speed = profile_speed().map_or("never".to_owned(), |speed| format!("{speed:.1}"));
        print(&format!(
            "{}\nfitted: a step takes {prefill:.3} (prefill) and {decode:.3} (decode) times as long as its kernels at their published \
             rates\nheld out: fitted to the profiles, decode makes 14.8k tokens a second and node at {speed} tokens a second and user; \
             stated are 20 to 22\n",
            rows(3, &titles, &shown)
        ))
    }
}

fn row(line: &Line) -> Vec<String> {
    vec![
        line.point.name.to_owned(),
        line.point.source.to_owned(),
        if line.fitted { "fitted" } else { "held out" }.to_owned(),
        format!("{:.0}", line.point.stated),
        format!("{:.0}", line.modelled),
        format!("{:+.1} %", line.error_percent()),
    ]
}
