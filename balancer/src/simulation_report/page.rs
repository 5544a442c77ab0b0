//! The page: what is simulated, plots with a table behind each, inputs, and the figures as JSON.

use super::rows::{Limit, Name, bars, spreads};
use super::svg::{STYLE, escape};
use super::table::{Lines, decode, prefill};
use super::{Report, Run, heat, lines, number};
use evenkeel_simulate::cluster::{PoolFigures, Spread};
use std::fmt::Write;

const CSS: &str = include_str!("page.css");

pub(super) fn page(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("Simulation of {} balancing", report.kind);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Evenkeel: {title}</title><style>{STYLE}\n{CSS}</style></head><body><main>\
         <h1>{title}</h1><p class=\"simulated\">Simulated: nothing on this page was measured on hardware.</p>"
    )
    .expect("a string takes everything");
    for section in [head, requests, prefill_units, decode_units, overlaps, inputs] {
        page.push_str(&section(report));
    }
    let json = report.json().to_string().replace('<', "\\u003c");
    page.push_str(&format!(
        "</main><script type=\"application/json\" id=\"figures\">{json}</script></body></html>\n"
    ));
    page
}

fn names(report: &Report) -> impl Iterator<Item = (Name<'_>, &Run)> {
    report.runs.iter().map(|run| (Name { text: &run.name, ours: run.ours }, run))
}

fn table(report: &Report, lines: &Lines) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| -> String {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(&cell))).collect()
    };
    let head = cells("th", &mut lines.titles.iter().map(|&title| title.to_owned()));
    let row = |(cell, run): (&Vec<String>, &Run)| {
        let class = if run.ours { " class=\"ours\"" } else { "" };
        format!("<tr{class}>{}</tr>", cells("td", &mut cell.iter().cloned()))
    };
    let rows: String = lines.rows.iter().zip(&report.runs).map(row).collect();
    format!("<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
}

fn folded(report: &Report, lines: &Lines) -> String {
    format!("<details><summary>The figures as a table</summary>{}</details>", table(report, lines))
}

fn figure(picture: &str, caption: &str) -> String {
    format!("<figure>{picture}<figcaption>{caption}</figcaption></figure>")
}

/// A plot under its title.
fn plot(title: &str, picture: &str, caption: &str) -> String {
    format!("<section><h3>{}</h3>{}</section>", escape(title), figure(picture, caption))
}

fn head(report: &Report) -> String {
    format!(
        "<pre>{}</pre><p class=\"soft\">Policies stand in the order of their goodput. Peers are re-implementations of published \
         policies and hear from the engines as often as the originals do. Step is the time of the steps over what it would be if \
         the ranks were even; idle is the part of the GPUs' time that is spent waiting for the slowest.</p>{}",
        escape(&report.command),
        table(report, &report.summary())
    )
}

fn requests(report: &Report) -> String {
    let mut plots = goodput(report);
    if report.runs.iter().any(|run| run.figures.ttft_ms.count > 0) {
        plots += &spread(report, "Time to first token (TTFT), ms", 1e-3, None, |run| run.figures.ttft_ms);
    }
    if report.runs.iter().any(|run| run.figures.tpot_ms.count > 0) {
        let title = "Time per further token (TPOT), mean of a request, ms";
        let limit = Some((report.objectives.tpot_us / 1e3, "objective"));
        plots += &spread(report, title, 1e-3, limit, |run| run.figures.tpot_ms);
    }
    let table = folded(report, &report.requests());
    format!("<h2>What requests saw</h2><div class=\"pair\">{plots}</div>{table}")
}

fn goodput(report: &Report) -> String {
    let rows: Vec<_> =
        names(report).map(|(name, run)| (name, 100.0 * run.figures.goodput_part, 0.0)).collect();
    let objectives = &report.objectives;
    let tpot = match report.runs.iter().any(|run| run.figures.decode.is_some()) {
        true => {
            format!(", and on average at most {} ms for each further token", number(objectives.tpot_us / 1e3))
        }
        false => String::new(),
    };
    let caption = format!(
        "Requests that were served well, of all that arrived in the measured time: first token within {} s and {} ms for each \
         uncached prompt token{tpot}.",
        number(objectives.ttft_us / 1e6),
        number(objectives.ttft_us_per_uncached_token / 1e3),
    );
    plot("Goodput", &bars("Goodput by policy", " %", &rows), &caption)
}

fn spread(report: &Report, title: &str, least: f64, limit: Limit<'_>, of: impl Fn(&Run) -> Spread) -> String {
    let rows: Vec<_> = names(report).map(|(name, run)| (name, of(run))).collect();
    let caption = "Dot: median; thick line: to the 90th percentile; thin line and number: to the 99th; stroke: the largest.";
    plot(title, &spreads(title, least, limit, &rows), caption)
}

fn prefill_units(report: &Report) -> String {
    units(report, "Prefill units", prefill, ["new tokens", "attention pairs"])
}

fn decode_units(report: &Report) -> String {
    units(report, "Decode units", decode, ["KV tokens", "requests"])
}

fn units(
    report: &Report,
    title: &str,
    pool: fn(&Run) -> Option<&PoolFigures>,
    [first, second]: [&str; 2],
) -> String {
    if report.runs.iter().all(|run| pool(run).is_none()) {
        return String::new();
    }
    let mut section = format!("<h2>{title}</h2>");
    let idle: Vec<_> = names(report)
        .map(|(name, run)| {
            let part = |of: fn(&PoolFigures) -> f64| pool(run).map_or(0.0, of);
            let without = part(|pool| pool.idle_without_work);
            // The barrier's part is of the time in steps; both are shown of all time.
            (name, 100.0 * (1.0 - without) * part(|pool| pool.idle_at_barrier), 100.0 * without)
        })
        .collect();
    let caption = "Of the measured time: waiting at the barrier for the slowest rank (dark, and the number), and no step at all (light).";
    let mut plots = plot("GPU idle", &bars("GPU idle by policy", " %", &idle), caption);
    for (what, of) in [
        (first, (|pool: &PoolFigures| pool.tokens_imbalance) as fn(&PoolFigures) -> Spread),
        (second, |pool: &PoolFigures| pool.second_imbalance),
    ] {
        let title = format!("Max over mean of the ranks' {what}, step by step");
        plots += &spread(report, &title, 1.0, None, |run| pool(run).map(of).unwrap_or_default());
    }
    plots += &distribution(report, pool, [first, second]);
    section += &format!("<div class=\"pair\">{plots}</div>");
    section += &maps(report, pool, [first, second]);
    section + &folded(report, &report.pool(pool))
}

/// Max over mean of the measured moments that have load.
fn imbalances(at_ms: &[f64], from_ms: f64, series: &[Vec<f32>]) -> Vec<f64> {
    let of = |loads: &Vec<f32>| {
        let sum: f64 = loads.iter().map(|&load| f64::from(load)).sum();
        let most = loads.iter().copied().fold(0.0f32, f32::max);
        (sum > 0.0).then(|| f64::from(most) * loads.len() as f64 / sum)
    };
    let measured = at_ms.iter().zip(series).filter(|&(&at_ms, _)| at_ms >= from_ms);
    measured.filter_map(|(_, loads)| of(loads)).collect()
}

fn distribution(report: &Report, pool: fn(&Run) -> Option<&PoolFigures>, whats: [&str; 2]) -> String {
    let mut section = String::new();
    for (which, what) in whats.into_iter().enumerate() {
        let values = |run: &Run| {
            let series = |pool: &PoolFigures| {
                let loads = if which == 0 { &pool.series.tokens } else { &pool.series.second };
                imbalances(&pool.series.at_ms, report.measured_from_ms, loads)
            };
            pool(run).map_or(Vec::new(), series)
        };
        let rows: Vec<_> = names(report).map(|(name, run)| (name, values(run))).collect();
        if rows.iter().all(|(_, values)| values.is_empty()) {
            continue;
        }
        let title = format!("Distribution of max over mean of the ranks' {what}");
        let caption = "Part of the measured moments at which max over mean was at most so high. The dashed line is the peer \
                       with the most goodput.";
        section += &plot(&title, &lines::distributions(&title, 1.0, &rows), caption);
    }
    section
}

fn maps(report: &Report, pool: fn(&Run) -> Option<&PoolFigures>, whats: [&str; 2]) -> String {
    let mut section = String::new();
    for (which, what) in whats.into_iter().enumerate() {
        let map = |run: &Run| {
            let pool = pool(run)?;
            let (series, imbalance) = match which {
                0 => (&pool.series.tokens, pool.tokens_imbalance),
                _ => (&pool.series.second, pool.second_imbalance),
            };
            (!series.is_empty())
                .then(|| heat::map(&run.name, run.ours, &format!("mean {:.3}", imbalance.mean), series))
        };
        let maps: String = report.runs.iter().filter_map(map).collect();
        if maps.is_empty() {
            continue;
        }
        section += &format!(
            "<h3>Loads of the ranks over time: {what}</h3><p class=\"soft\">A line is a rank (or the highest of several), from left to \
             right the run. The number is the mean of max over mean.</p>{}<div class=\"maps\">{maps}</div>",
            heat::legend()
        );
    }
    section
}

fn overlaps(report: &Report) -> String {
    if report.timelines.is_empty() {
        return String::new();
    }
    let pictures: String = report.timelines.iter().map(|timeline| figure(&timeline.inline(), "")).collect();
    format!(
        "<h2>Overlap</h2><p class=\"soft\">Three layers of a rank, to scale, kernels at their published rates. The orders are those that \
         DeepSeek draws in its profile-data.</p>{pictures}"
    )
}

fn inputs(report: &Report) -> String {
    let mut section = String::from("<h2>Inputs</h2><table class=\"text\"><tbody>");
    for (name, value) in &report.inputs {
        section += &format!("<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    }
    section += "</tbody></table>";
    if !report.notes.is_empty() {
        let notes: String = report.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        section += &format!("<h3>Of the trace</h3><ul>{notes}</ul>");
    }
    section + &policies(report) + &calibration(report)
}

fn policies(report: &Report) -> String {
    let row = |run: &Run| {
        let interval = match run.report_interval_s {
            None => "as configured".to_owned(),
            Some(0.0) => "before each decision, inside the engine".to_owned(),
            Some(seconds) => format!("every {} s", number(seconds)),
        };
        format!(
            "<tr><td>{}</td><td><code>{}</code></td><td>{interval}</td></tr>",
            escape(&run.name),
            escape(&run.key)
        )
    };
    let rows: String = report.runs.iter().map(row).collect();
    format!(
        "<h3>Policies</h3><table class=\"text\"><thead><tr><th>policy</th><th>--policy</th><th>hears from the engines</th></tr></thead>\
         <tbody>{rows}</tbody></table>"
    )
}

fn calibration(report: &Report) -> String {
    let row = |line: &evenkeel_simulate::step_time::calibration::Line| {
        format!(
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{:.0}</td><td class=\"n\">{:.0}</td><td class=\"n\">{:+.1} %</td><td>{}</td></tr>",
            escape(line.point.source),
            escape(line.point.name),
            line.point.stated,
            line.modelled,
            line.error_percent(),
            if line.fitted { "fitted" } else { "held out" }
        )
    };
    let rows: String = report.calibration_lines.iter().map(row).collect();
    format!(
        "<h3>Step times: calibration <code>{}</code></h3><p class=\"soft\">Tokens a second and node of 8 GPUs; prefill: new tokens. One \
         factor a phase is fitted; what is held out shows how far the model carries.</p><table class=\"text\"><thead><tr><th>source</th>\
         <th>what</th><th class=\"n\">stated</th><th class=\"n\">model</th><th class=\"n\">difference</th><th></th></tr></thead>\
         <tbody>{rows}</tbody></table>",
        report.calibration.name()
    )
}
