//! The progress bar: virtual time of all runs in one measure, on a terminal only.

use evenkeel_simulate::cluster::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Virtual milliseconds of one run stand for so much of the bar.
const PER_RUN: u64 = 10_000;
/// Drawn so many times a second at most.
const HZ: u8 = 10;

/// Over all policies.
pub(super) struct Bar {
    bar: ProgressBar,
    done: u64,
}

impl Bar {
    /// For so many runs.
    pub(super) fn new(runs: usize) -> Self {
        // Indicatif draws nothing where stderr is no terminal.
        let target = ProgressDrawTarget::stderr_with_hz(HZ);
        let bar = ProgressBar::with_draw_target(Some(runs as u64 * PER_RUN), target);
        let template = "{spinner} [{elapsed_precise}] {bar:40} {percent:>3} %  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
        Self { bar, done: 0 }
    }

    /// A run begins.
    pub(super) fn begin(&self, name: &str) {
        self.bar.set_message(name.to_owned());
    }

    /// A run is so far.
    pub(super) fn at(&self, progress: Progress) {
        let part = progress.now_us.min(progress.end_us) * PER_RUN / progress.end_us.max(1);
        self.bar.set_position(self.done + part);
    }

    /// A run has ended.
    pub(super) fn end(&mut self) {
        self.done += PER_RUN;
        self.bar.set_position(self.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
