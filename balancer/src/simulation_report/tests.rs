use super::*;
use evenkeel_simulate::cluster::{Fates, PoolFigures, Series, Spread};
use evenkeel_simulate::overlap::Overlap;
use evenkeel_simulate::step_time::{DeepSeekV3, calibration};

fn spread(from: f64) -> Spread {
    let at = |part: f64| from * part;
    Spread { count: 100, mean: at(1.1), p50: from, p90: at(1.3), p95: at(1.5), p99: at(1.8), max: at(2.2) }
}

fn pool(ranks: usize, skew: f64) -> PoolFigures {
    let wave = |moment: usize, rank: usize| {
        let phase = (moment * 7 + rank * 13) % 29;
        (100.0 * (1.0 + skew * (phase as f64 / 29.0 - 0.5))) as f32
    };
    let series = |shift: usize| (0..240).map(|m| (0..ranks).map(|r| wave(m + shift, r)).collect()).collect();
    PoolFigures {
        steps: 1000,
        step_ms: spread(40.0),
        step_over_ideal: 1.0 + skew / 4.0,
        idle_at_barrier: skew / 5.0,
        idle_without_work: 0.1,
        tokens_imbalance: spread(1.0 + skew),
        second_imbalance: spread(1.0 + skew / 2.0),
        series: Series {
            at_ms: (0..240).map(|m| m as f64 * 500.0).collect(),
            tokens: series(0),
            second: series(5),
        },
        ..PoolFigures::default()
    }
}

/// Made up, in the shape of a simulation's.
fn report(policies: usize) -> Report {
    let run = |index: usize| {
        let skew = 0.04 + 0.08 * index as f64;
        let fates = Fates { arrived: 1000, finished: 990, unfinished: 10, ..Fates::default() };
        Run {
            key: if index == 0 { "evenkeel".to_owned() } else { format!("peer-{index}") },
            name: if index == 0 { "Evenkeel".to_owned() } else { format!("Peer <{index}> with a long name") },
            ours: index == 0,
            report_interval_s: (index > 0).then_some(index as f64),
            figures: Figures {
                fates,
                measured: fates,
                ttft_ms: spread(300.0 + 90.0 * index as f64),
                tpot_ms: spread(38.0 + index as f64),
                goodput_part: 0.98 - 0.03 * index as f64,
                prefill: Some(pool(32, skew)),
                decode: Some(pool(144, skew)),
                ..Figures::default()
            },
        }
    };
    let model = DeepSeekV3::UNSTRETCHED;
    let stages = model.decode_stages(440_000.0, 88.0);
    Report {
        kind: "disaggregated",
        command: "evenkeel simulate disaggregated --trace t.jsonl --policy </script>".into(),
        version: "0",
        inputs: vec![("trace", "t.jsonl".into())],
        notes: vec!["jitter of 3 s".into()],
        measured_from_ms: 10_000.0,
        objectives: Objectives::default(),
        calibration: Calibration::Service,
        calibration_lines: calibration::table(Calibration::Service),
        timelines: vec![Timeline {
            title: "decode".into(),
            overlap: Overlap::FiveStage,
            microbatches: stages,
        }],
        runs: (0..policies).map(run).collect(),
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_says_that_it_is_simulated() {
    let html = report(20).html();
    for foreign in ["http://", "https://", "src=", "@import", "url("] {
        let without_names = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_names.contains(foreign), "{foreign}");
    }
    assert!(html.contains("Simulated: nothing on this page was measured"));
    assert_eq!(html.matches("<script").count(), 1);
    assert_eq!(html.matches("</script>").count(), 1, "the command's text stays text");
}

#[test]
fn every_plot_has_a_title_and_every_policy_its_rows_and_maps() {
    let report = report(20);
    let html = report.html();
    let pictures = html.matches("<svg").count();
    assert_eq!(html.matches("role=\"img\" aria-label=\"").count(), pictures);
    // Goodput, TTFT, TPOT; for each kind of unit: idle, two spreads, two distributions, two legends; the overlap; the maps.
    assert_eq!(pictures, 3 + 2 * 7 + 1 + 20 * 2 * 2);
    for index in 1..20 {
        assert!(html.contains(&format!("Peer &lt;{index}&gt; with a long name")));
    }
    assert!(html.len() < 6 << 20, "{} bytes", html.len());
}

#[test]
fn the_json_on_the_page_is_the_json() {
    let report = report(3);
    let html = report.html();
    let (_, rest) = html.split_once("id=\"figures\">").expect("figures");
    let (json, _) = rest.split_once("</script>").expect("an end");
    let found: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(found, report.json());
    assert_eq!(found["policies"][0]["policy"], "evenkeel");
    assert_eq!(
        found["policies"][2]["decode"]["series"]["requests"]["max"].as_array().map(Vec::len),
        Some(240)
    );
    assert_eq!(found["simulated"], true);
}

#[test]
fn runs_stand_in_the_order_of_goodput_then_of_steps() {
    let mut runs = report(3).runs;
    runs[2].figures.goodput_part = 1.0;
    runs[1].figures.goodput_part = 1.0;
    by_merit(&mut runs);
    let keys: Vec<&str> = runs.iter().map(|run| run.key.as_str()).collect();
    assert_eq!(keys, ["peer-1", "peer-2", "evenkeel"]);
}
