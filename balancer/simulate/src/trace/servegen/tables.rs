//! The tables of ServeGen's clients: `chunk-N-trace.csv` (window, rate, variation, fit and its shape and scale) and
//! `chunk-N-dataset.json` (histograms of lengths by the second that they hold from).

use super::super::lines::{Lines, Place, open};
use super::super::{TIMESTAMP_MS_MAX, TraceError};
use super::distribution::{Between, Histogram};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Most clients of one pool; the published ones have 27 to 2412.
const CLIENTS_MAX: usize = 10_000;
/// Most windows: a year of ten minutes each.
const WINDOWS_MAX: usize = 366 * 144;
/// Largest table; the largest published ones have a few megabytes.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Length of a window where there is only one.
const WINDOW_S: i64 = 600;
/// Highest rate of a client, requests a second: a bound on what one window holds.
const RATE_MAX: f64 = 1e6;
const TRACE_EXPECTED: &str = "second, rate, variation, Gamma or Weibull or nothing, shape, scale";
const DATASET_EXPECTED: &str = "an object of seconds, each with input_tokens and output_tokens";

/// A stretch of time in which a client keeps one rate.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) begin_ms: u64,
    pub(super) end_ms: u64,
    /// Requests a second.
    rate: f64,
    /// Times between requests; `None` when there are none.
    pub(super) between: Option<Between>,
}

impl Window {
    /// Requests that the rate says.
    pub(super) fn expected(&self) -> f64 {
        self.rate * (self.end_ms - self.begin_ms) as f64 / 1000.0
    }
}

/// Lengths of a client's requests.
#[derive(Debug, Clone)]
pub(super) struct Lengths {
    pub(super) input: Histogram,
    pub(super) output: Histogram,
}

/// A client: its rates, and its lengths by the ms from which they hold.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// The same times for all clients; not empty.
    pub(super) windows: Vec<Window>,
    lengths: BTreeMap<u64, Lengths>,
}

impl Client {
    /// A window with requests, and their lengths.
    pub(super) fn lengths_of(&self, window: usize) -> Option<(&Window, &Lengths)> {
        let window = &self.windows[window];
        let (_, lengths) = self.lengths.range(..=window.begin_ms).next_back()?;
        window.between.as_ref().map(|_| (window, lengths))
    }
}

/// The two tables of each client, as they are found.
#[derive(Default)]
struct Found {
    windows: BTreeMap<u32, Vec<Window>>,
    lengths: BTreeMap<u32, BTreeMap<u64, Lengths>>,
}

/// Reads all clients of a folder or an archive, in the order of their numbers.
pub(super) fn read(path: &Path) -> Result<Vec<Client>, TraceError> {
    let mut found = Found::default();
    if path.is_dir() {
        found.read_folder(path)?;
    } else {
        found.read_archive(path)?;
    }
    found.join(path)
}

impl Found {
    fn read_folder(&mut self, path: &Path) -> Result<(), TraceError> {
        let cannot = |path: &Path| {
            let path = path.to_owned();
            move |source| TraceError::Open { path, source }
        };
        let entries = std::fs::read_dir(path).map_err(cannot(path))?;
        let files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
        let mut files: Vec<PathBuf> = files.map_err(cannot(path))?;
        files.sort_unstable();
        for file in files {
            if Table::of(&file).is_some() {
                self.read_table(&file, File::open(&file).map_err(cannot(&file))?)?;
            }
        }
        Ok(())
    }

    fn read_archive(&mut self, path: &Path) -> Result<(), TraceError> {
        let cannot = |source| TraceError::Read { path: path.to_owned(), line: 1, source };
        let mut archive = tar::Archive::new(open(path)?);
        for entry in archive.entries().map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let member = path.join(entry.path().map_err(cannot)?);
            self.read_table(&member, entry)?;
        }
        Ok(())
    }

    fn read_table(&mut self, path: &Path, input: impl Read) -> Result<(), TraceError> {
        let Some((table, client)) = Table::of(path) else { return Ok(()) };
        let input = input.take(TABLE_BYTES_MAX);
        match table {
            Table::Trace => self.windows.insert(client, read_windows(path, input)?).map(|_| ()),
            Table::Dataset => self.lengths.insert(client, read_lengths(path, input)?).map(|_| ()),
        };
        let clients = self.windows.len().max(self.lengths.len());
        if clients > CLIENTS_MAX {
            let place = Place { path: path.to_owned(), line: 1 };
            return Err(place.out_of_range("clients", clients, format!("up to {CLIENTS_MAX}")));
        }
        Ok(())
    }

    fn join(mut self, path: &Path) -> Result<Vec<Client>, TraceError> {
        let missing = |table: String| TraceError::Incomplete { path: path.to_owned(), missing: table };
        let mut clients: Vec<Client> = Vec::new();
        for (number, windows) in self.windows {
            let dataset = format!("chunk-{number}-dataset.json");
            let lengths = self.lengths.remove(&number).ok_or_else(|| missing(dataset.clone()))?;
            if let Some(first) = clients.first() {
                same_times(path, number, &first.windows, &windows)?;
            }
            let unknown = |window: &&Window| {
                window.between.is_some() && lengths.range(..=window.begin_ms).next().is_none()
            };
            if let Some(window) = windows.iter().find(unknown) {
                return Err(missing(format!("what holds at second {} in {dataset}", window.begin_ms / 1000)));
            }
            clients.push(Client { windows, lengths });
        }
        match self.lengths.keys().next() {
            Some(number) => Err(missing(format!("chunk-{number}-trace.csv"))),
            None if clients.is_empty() => Err(missing("every client's table".to_owned())),
            None => Ok(clients),
        }
    }
}

enum Table {
    Trace,
    Dataset,
}

impl Table {
    /// Which table of which client a file is, by its name.
    fn of(path: &Path) -> Option<(Self, u32)> {
        let name = path.file_name()?.to_str()?.strip_prefix("chunk-")?;
        let (number, table) = name.split_once('-')?;
        let table = match table {
            "trace.csv" => Table::Trace,
            "dataset.json" => Table::Dataset,
            _ => return None,
        };
        Some((table, number.parse().ok()?))
    }
}

fn same_times(path: &Path, number: u32, one: &[Window], other: &[Window]) -> Result<(), TraceError> {
    let times = |windows: &[Window]| windows.iter().map(|w| (w.begin_ms, w.end_ms)).collect::<Vec<_>>();
    let place = Place { path: path.join(format!("chunk-{number}-trace.csv")), line: 1 };
    if times(one) == times(other) {
        return Ok(());
    }
    let value = format!("{} windows", other.len());
    Err(place.out_of_range("second", value, format!("the {} windows of the first client", one.len())))
}

/// A line of a client's rates, with the second that its window begins at.
struct Rate {
    at_s: i64,
    rate: f64,
    between: Option<Between>,
}

fn read_windows(path: &Path, input: impl Read) -> Result<Vec<Window>, TraceError> {
    let mut lines = Lines::new(path, BufReader::new(input));
    let mut rates: Vec<Rate> = Vec::new();
    while let Some((place, text)) = lines.next()? {
        let rate = read_rate(place, text)?;
        if let Some(last) = rates.last().filter(|last| last.at_s >= rate.at_s) {
            return Err(place.unsorted("second", rate.at_s, last.at_s));
        }
        if rates.len() == WINDOWS_MAX {
            return Err(place.out_of_range("windows", WINDOWS_MAX + 1, format!("up to {WINDOWS_MAX}")));
        }
        rates.push(rate);
    }
    if rates.is_empty() {
        return Err(TraceError::Empty { path: path.to_owned() });
    }
    // The last window is as long as the one before.
    let last_s = match rates[..] {
        [.., ref before, ref last] => last.at_s - before.at_s,
        _ => WINDOW_S,
    };
    let begins: Vec<i64> = rates.iter().map(|rate| rate.at_s).collect();
    let end_s = |place: usize| begins.get(place + 1).copied().unwrap_or(begins[place] + last_s);
    let window = |(place, Rate { at_s, rate, between }): (usize, Rate)| Window {
        begin_ms: at_s as u64 * 1000,
        end_ms: end_s(place) as u64 * 1000,
        rate,
        between,
    };
    Ok(rates.into_iter().enumerate().map(window).collect())
}

fn read_rate(place: &Place, text: &[u8]) -> Result<Rate, TraceError> {
    let text = str::from_utf8(text).map_err(|_| place.malformed("is no text".to_owned(), TRACE_EXPECTED))?;
    let columns: Vec<&str> = text.split(',').map(str::trim).collect();
    let [second, rate, _, fit, shape, scale] = columns[..] else {
        return Err(place.malformed(format!("has {} columns", columns.len()), TRACE_EXPECTED));
    };
    let number = |name: &str, text: &str| {
        let value: Result<f64, _> = text.parse();
        value.map_err(|_| place.malformed(format!("{name} is {text:?}, no number"), TRACE_EXPECTED))
    };
    let at_s = number("second", second)?;
    let latest_s = TIMESTAMP_MS_MAX / 1000;
    if !(0.0..=latest_s as f64).contains(&at_s) || at_s.fract() != 0.0 {
        return Err(place.out_of_range("second", second, format!("whole seconds of 0 to {latest_s}")));
    }
    let rate = number("rate", rate)?;
    if !(0.0..=RATE_MAX).contains(&rate) {
        return Err(place.out_of_range("rate", rate, format!("0 to {RATE_MAX} requests a second")));
    }
    let between = Between::of(place, fit, number("shape", shape)?, number("scale", scale)?)?;
    Ok(Rate { at_s: at_s as i64, rate, between })
}

#[derive(Deserialize)]
struct Histograms {
    input_tokens: String,
    output_tokens: String,
}

fn read_lengths(path: &Path, input: impl Read) -> Result<BTreeMap<u64, Lengths>, TraceError> {
    let mut place = Place { path: path.to_owned(), line: 1 };
    let read: Result<BTreeMap<u64, Histograms>, _> = serde_json::from_reader(BufReader::new(input));
    let table = read.map_err(|error| {
        place.line = error.line().max(1) as u64;
        match error.is_io() {
            true => TraceError::Read { path: path.to_owned(), line: place.line, source: error.into() },
            false => place.not_json(&error, DATASET_EXPECTED),
        }
    })?;
    let mut lengths = BTreeMap::new();
    for (second, histograms) in table {
        let begin_ms = second.saturating_mul(1000);
        let input = Histogram::parse(&place, "input_tokens", &histograms.input_tokens)?;
        let output = Histogram::parse(&place, "output_tokens", &histograms.output_tokens)?;
        // Nothing was recorded: what held before goes on, as in ServeGen's generator.
        if let (Some(input), Some(output)) = (input, output) {
            lengths.insert(begin_ms, Lengths { input, output });
        }
    }
    Ok(lengths)
}
