//! The table of the policies: on the page and on the command line.

use super::{Report, Run, number};
use evenkeel_simulate::cluster::{PoolFigures, Spread};

/// The text of one column for a policy.
type Cell = Box<dyn Fn(&Run) -> String>;

/// Titles and a line for each policy, as text.
pub(crate) struct Lines {
    pub(crate) titles: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Lines {
    fn new(report: &Report, columns: Vec<(&'static str, Cell)>) -> Self {
        let (titles, cells): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let row =
            |run: &Run| std::iter::once(run.name.clone()).chain(cells.iter().map(|cell| cell(run))).collect();
        Self {
            rows: report.runs.iter().map(row).collect(),
            titles: std::iter::once("POLICY").chain(titles).collect(),
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

fn of_spread(of: fn(&Run) -> Spread, value: fn(&Spread) -> f64) -> Cell {
    Box::new(move |run| match of(run) {
        spread if spread.count == 0 => "-".to_owned(),
        spread => number(value(&spread)),
    })
}

fn of_pool(pool: fn(&Run) -> Option<&PoolFigures>, text: fn(&PoolFigures) -> String) -> Cell {
    Box::new(move |run| pool(run).map_or("-".to_owned(), text))
}

pub(crate) fn prefill(run: &Run) -> Option<&PoolFigures> {
    run.figures.prefill.as_ref()
}

pub(crate) fn decode(run: &Run) -> Option<&PoolFigures> {
    run.figures.decode.as_ref()
}

impl Report {
    /// What counts first: what requests saw, and how even the ranks were.
    pub(crate) fn summary(&self) -> Lines {
        let any = |pool: fn(&Run) -> Option<&PoolFigures>| self.runs.iter().any(|run| pool(run).is_some());
        let mut columns: Vec<(&'static str, Cell)> = vec![
            ("GOODPUT", Box::new(|run| percent(run.figures.goodput_part))),
            ("TTFT p50 ms", of_spread(|run| run.figures.ttft_ms, |spread| spread.p50)),
            ("p99", of_spread(|run| run.figures.ttft_ms, |spread| spread.p99)),
        ];
        if any(decode) {
            columns.push(("TPOT p50 ms", of_spread(|run| run.figures.tpot_ms, |spread| spread.p50)));
            columns.push(("p99", of_spread(|run| run.figures.tpot_ms, |spread| spread.p99)));
        }
        if any(prefill) {
            columns.push(("HIT TOKENS", Box::new(|run| percent(run.figures.hit_part()))));
            columns.push(("PREFILL STEP", of_pool(prefill, |pool| format!("{:.3}", pool.step_over_ideal))));
            columns.push(("IDLE", of_pool(prefill, |pool| percent(pool.idle_at_barrier))));
        }
        if any(decode) {
            columns.push(("DECODE STEP", of_pool(decode, |pool| format!("{:.3}", pool.step_over_ideal))));
            columns.push(("IDLE", of_pool(decode, |pool| percent(pool.idle_at_barrier))));
        }
        columns.push(("NOT SERVED", Box::new(|run| not_served(run).to_string())));
        Lines::new(self, columns)
    }

    /// How requests fared.
    pub(super) fn requests(&self) -> Lines {
        let ttft: fn(&Run) -> Spread = |run| run.figures.ttft_ms;
        let tpot: fn(&Run) -> Spread = |run| run.figures.tpot_ms;
        Lines::new(
            self,
            vec![
                ("requests", Box::new(|run| run.figures.measured.arrived.to_string())),
                ("finished", Box::new(|run| run.figures.measured.finished.to_string())),
                ("refused", Box::new(|run| run.figures.measured.refused.to_string())),
                ("lost", Box::new(|run| run.figures.measured.lost.to_string())),
                ("not done", Box::new(|run| run.figures.measured.unfinished.to_string())),
                ("TTFT met", Box::new(|run| percent(run.figures.ttft_met))),
                ("TPOT met", Box::new(|run| percent(run.figures.tpot_met))),
                ("both", Box::new(|run| percent(run.figures.goodput_part))),
                ("both /s", Box::new(|run| number(run.figures.goodput_per_s))),
                ("TTFT p50 ms", of_spread(ttft, |spread| spread.p50)),
                ("p90", of_spread(ttft, |spread| spread.p90)),
                ("p99", of_spread(ttft, |spread| spread.p99)),
                ("TPOT p50 ms", of_spread(tpot, |spread| spread.p50)),
                ("p90", of_spread(tpot, |spread| spread.p90)),
                ("p99", of_spread(tpot, |spread| spread.p99)),
                ("tokens in /s", Box::new(|run| number(run.figures.input_tokens_per_s))),
                ("out /s", Box::new(|run| number(run.figures.output_tokens_per_s))),
                ("hit tokens", Box::new(|run| percent(run.figures.hit_part()))),
            ],
        )
    }

    /// How the ranks of a kind of unit fared.
    pub(super) fn pool(&self, pool: fn(&Run) -> Option<&PoolFigures>) -> Lines {
        Lines::new(
            self,
            vec![
                ("steps", of_pool(pool, |pool| pool.steps.to_string())),
                ("step ms, mean", of_pool(pool, |pool| number(pool.step_ms.mean))),
                ("p99", of_pool(pool, |pool| number(pool.step_ms.p99))),
                ("step over ideal", of_pool(pool, |pool| format!("{:.4}", pool.step_over_ideal))),
                ("idle at barrier", of_pool(pool, |pool| percent(pool.idle_at_barrier))),
                ("idle, no work", of_pool(pool, |pool| percent(pool.idle_without_work))),
                ("tokens max/mean, mean", of_pool(pool, |pool| format!("{:.4}", pool.tokens_imbalance.mean))),
                ("p99", of_pool(pool, |pool| format!("{:.3}", pool.tokens_imbalance.p99))),
                ("second max/mean, mean", of_pool(pool, |pool| format!("{:.4}", pool.second_imbalance.mean))),
                ("p99", of_pool(pool, |pool| format!("{:.3}", pool.second_imbalance.p99))),
                ("migrations", of_pool(pool, |pool| pool.migrations.to_string())),
                ("waited again", of_pool(pool, |pool| pool.preemptions.to_string())),
                ("held at most", of_pool(pool, |pool| pool.held_max.to_string())),
            ],
        )
    }
}

/// Measured requests that did not end as they should.
fn not_served(run: &Run) -> u64 {
    let fates = &run.figures.measured;
    fates.refused + fates.lost + fates.unfinished
}
