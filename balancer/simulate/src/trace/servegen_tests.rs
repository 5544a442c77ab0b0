//! Requests that are drawn from clients' tables.

use super::{Scratch, check_error, gzip, recorded};
use crate::trace::{Trace, TraceError, TraceOptions, load};
use std::path::Path;

const TABLES: &str = "servegen_deepseek_r1_clients.tar.gz";
const RATES: &str = "0,2.5,1,Gamma,0.5,0.8\n600,0,0,,0,0\n1200,1,1,Weibull,0.7,0.9\n";
const LENGTHS: &str =
    r#"{"0": {"input_tokens": "{50: 0.25, 295: 0.75}", "output_tokens": "{7: 1.0}", "reason_ratio": "{}"}}"#;

/// An archive of these files.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("data/{name}"), content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn client(rates: &str, lengths: &str) -> Vec<u8> {
    archive(&[("chunk-4-trace.csv", rates), ("chunk-4-dataset.json", lengths)])
}

#[track_caller]
fn check(rates: &str, lengths: &str, code: &str, text: &[&str]) {
    let packed = client(rates, lengths);
    check_error(&Scratch::new("tar", &packed).0, code, text);
    check_error(&Scratch::new("tar.gz", &gzip(&packed)).0, code, text);
}

#[test]
fn a_bad_table_is_named_with_its_line_and_field() {
    let (malformed, range) = ("trace_malformed", "trace_out_of_range");
    let rates = |line: &str| format!("0,1,1,Gamma,1,1\n{line}\n");
    check(&rates("600,1,1,Gamma,1"), LENGTHS, malformed, &["data/chunk-4-trace.csv, line 2, has 5 columns"]);
    check(&rates("600,x,1,Gamma,1,1"), LENGTHS, malformed, &["line 2, rate is \"x\""]);
    check(&rates("600,-1,1,Gamma,1,1"), LENGTHS, range, &["line 2: rate is -1", "0 to 1000000"]);
    check(&rates("600,NaN,1,Gamma,1,1"), LENGTHS, range, &["line 2: rate is NaN"]);
    check(&rates("600,1,1,Gamma,0,1"), LENGTHS, range, &["line 2: shape is 0", "above 0"]);
    check(&rates("600,1,1,Poisson,1,1"), LENGTHS, range, &["line 2: pattern is \"Poisson\"", "Weibull"]);
    check(&rates("-600,1,1,Gamma,1,1"), LENGTHS, range, &["line 2: second is -600"]);
    check(&rates("0,1,1,Gamma,1,1"), LENGTHS, "trace_unsorted", &["line 2: second 0 is before 0"]);
    check("", LENGTHS, "trace_empty", &["chunk-4-trace.csv has no requests"]);
    let lengths = |input: &str| LENGTHS.replace("{50: 0.25, 295: 0.75}", input);
    check(RATES, "{\"0\": ", malformed, &["chunk-4-dataset.json, line 1, column 6: EOF"]);
    check(RATES, &lengths("50: 1.0"), malformed, &["input_tokens: is not in braces", "a histogram such as"]);
    check(RATES, &lengths("{50 1.0}"), malformed, &["input_tokens: \"50 1.0\" has no colon"]);
    check(RATES, &lengths("{a: 1.0}"), malformed, &["input_tokens: \"a: 1.0\" is no pair of numbers"]);
    check(RATES, &lengths("{-5: 1.0}"), range, &["input_tokens is -5", "0 to 4194304"]);
    check(RATES, &lengths("{5: -1.0}"), range, &["input_tokens is -1: accepted are probabilities"]);
    check(
        RATES,
        &lengths("{5: 0.4}"),
        range,
        &["input_tokens is 0.4: accepted are probabilities that sum to 1"],
    );
    check(RATES, &lengths("{}"), "trace_incomplete", &["what holds at second 0 in chunk-4-dataset.json"]);
}

#[test]
fn a_client_has_both_tables_and_the_times_of_the_others() {
    let check = |files: &[(&str, &str)], code: &str, text: &str| {
        check_error(&Scratch::new("tar", &archive(files)).0, code, &[text]);
    };
    let (trace, dataset) = (("chunk-4-trace.csv", RATES), ("chunk-4-dataset.json", LENGTHS));
    check(&[trace], "trace_incomplete", "chunk-4-dataset.json is missing");
    check(&[dataset], "trace_incomplete", "chunk-4-trace.csv is missing");
    check(&[("readme.txt", "")], "trace_incomplete", "every client's table is missing");
    let other =
        [trace, dataset, ("chunk-5-trace.csv", "0,1,1,Gamma,1,1\n"), ("chunk-5-dataset.json", LENGTHS)];
    check(&other, "trace_out_of_range", "chunk-5-trace.csv, line 1: second is 1 windows");
}

#[test]
fn a_truncated_archive_is_named() {
    let whole = std::fs::read(recorded(TABLES)).unwrap();
    check_error(&Scratch::new("tar.gz", &whole[..whole.len() / 2]).0, "trace_read", &["truncated"]);
}

fn draw(path: &Path, seed: u64, copies: u32, until_s: u64) -> Trace {
    let options = TraceOptions { seed, copies, until_ms: Some(until_s * 1000), ..TraceOptions::default() };
    load(path, &options).unwrap()
}

#[test]
fn rates_and_lengths_are_those_of_the_tables() {
    let file = Scratch::new("tar", &client(RATES, LENGTHS));
    let trace = draw(&file.0, 3, 4, 1800);
    let within = |from_s: u64, until_s: u64| {
        trace.requests.iter().filter(move |r| (from_s * 1000..until_s * 1000).contains(&r.at_ms))
    };
    // Rates of 2.5, 0 and 1 a second for ten minutes each, of four copies.
    assert_eq!(within(0, 600).count(), 6000);
    assert_eq!(within(600, 1200).count(), 0);
    assert_eq!(within(1200, 1800).count(), 2400);
    let short = trace.requests.iter().filter(|request| request.input_tokens == 50).count() as f64;
    assert!((short / 8400.0 - 0.25).abs() < 0.02, "{short} of 8400 are short, a quarter was due");
    assert!(trace.requests.iter().all(|r| [50, 295].contains(&r.input_tokens) && r.output_tokens == 7));
    assert!(trace.requests.iter().all(|r| r.client == 1 && r.blocks.is_empty()));
}

#[test]
fn gaps_are_as_uneven_as_the_fit_says() {
    // Squared variation of the gaps: 1 / shape of a Gamma distribution.
    for (shape, variation) in [("0.25", 4.0), ("1", 1.0), ("4", 0.25)] {
        let rates = format!("0,100,1,Gamma,{shape},1\n");
        let trace = draw(&Scratch::new("tar", &client(&rates, LENGTHS)).0, 1, 1, 600);
        let gaps: Vec<f64> = trace.requests.windows(2).map(|w| (w[1].at_ms - w[0].at_ms) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let found = square / mean.powi(2);
        assert!((found / variation - 1.0).abs() < 0.1, "shape {shape}: {found}, {variation} was due");
    }
}

#[test]
fn the_recorded_clients_send_what_their_tables_say() {
    let trace = draw(&recorded(TABLES), 5, 1, 1200);
    // Rates times lengths of all clients in the first 20 minutes, computed with another program from the same files.
    let close = |found: f64, due: f64| assert!((found / due - 1.0).abs() < 0.03, "{found}, {due} was due");
    close(trace.requests.len() as f64, 19_960.0);
    close(trace.requests.iter().map(|r| r.input_tokens as f64).sum(), 19_789_056.0);
    close(trace.requests.iter().map(|r| r.output_tokens as f64).sum(), 28_443_663.0);
    assert!(trace.drawn);
    assert!(trace.requests.is_sorted_by_key(|request| request.at_ms));
}

#[test]
fn a_seed_gives_the_same_requests_whatever_part_is_taken() {
    let file = Scratch::new("tar", &client(RATES, LENGTHS));
    let whole = draw(&file.0, 3, 1, 1800).requests;
    assert_eq!(whole, draw(&file.0, 3, 1, 1800).requests);
    assert_ne!(whole, draw(&file.0, 4, 1, 1800).requests);
    let options = TraceOptions { seed: 3, from_ms: 1_200_000, ..TraceOptions::default() };
    let part = load(&file.0, &options).unwrap().requests;
    let last: Vec<_> = whole.iter().filter(|r| r.at_ms >= 1_200_000).cloned().collect();
    let shifted = part.iter().cloned().map(|mut r| {
        r.at_ms += 1_200_000;
        r
    });
    assert!(shifted.eq(last));
}

#[test]
fn a_folder_is_read_as_an_archive_is() {
    let folder = std::env::temp_dir().join(format!("evenkeel-servegen-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("chunk-4-trace.csv"), RATES).unwrap();
    std::fs::write(folder.join("chunk-4-dataset.json"), LENGTHS).unwrap();
    let drawn = draw(&folder, 3, 1, 1800).requests;
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(drawn, draw(&Scratch::new("tar", &client(RATES, LENGTHS)).0, 3, 1, 1800).requests);
}

#[test]
fn a_window_of_too_many_requests_is_refused() {
    let file = Scratch::new("tar", &client("0,900000,1,Gamma,1,1\n", LENGTHS));
    let error = load(&file.0, &TraceOptions::default()).unwrap_err();
    assert!(matches!(error, TraceError::TooMany { .. }), "{error}");
}
