//! The demo's progress bar: virtual time of all engines and load windows of all units in one measure.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Without a terminal a line is printed each time this share of the work is done.
const LINES: u64 = 10;
/// How often the bar is drawn.
const DRAW: Duration = Duration::from_millis(100);

/// Counts work in milliseconds of virtual time; a window counts as much as its share of the whole.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    done: Arc<AtomicU64>,
    total: u64,
}

impl Progress {
    /// A bar for `total` virtual milliseconds.
    pub(super) fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        let style =
            ProgressStyle::with_template("{spinner} [{elapsed_precise}] {bar:40} {percent:>3} %  {msg}")
                .expect("the template is well-formed");
        bar.set_style(style);
        Self { bar, done: Arc::new(AtomicU64::new(0)), total }
    }

    /// The counter that workers add to.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Says what is being done.
    pub(super) fn say(&self, what: impl Into<String>) {
        let what = what.into();
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
        }
        self.bar.set_message(what);
    }

    /// Draws until dropped.
    pub(super) async fn draw(self) {
        let mut printed = 0;
        loop {
            let done = self.done.load(Ordering::Relaxed).min(self.total);
            self.bar.set_position(done);
            let tenth = done * LINES / self.total.max(1);
            if tenth > printed && !std::io::stderr().is_terminal() {
                printed = tenth;
                eprintln!("{} %", tenth * 100 / LINES);
            }
            tokio::time::sleep(DRAW).await;
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
