//! Requests drawn from ServeGen's client tables (Xiang et al., "ServeGen", arXiv:2505.09999).
//!
//! Per client and window of ten minutes there is a rate and a fit of the times between its requests (Gamma or
//! Weibull); per quarter of a day there are histograms of its prompt and output lengths. As ServeGen's own
//! generator does, a window gets as many requests as its rate says, with times between them drawn from the
//! fit and stretched to fill the window. Two things are otherwise: a fraction of a request is drawn instead of
//! rounded, so that rare clients are not lost; and both lengths are drawn independently, where the
//! generator takes one random number for both, for the paper finds their correlation weak.

mod distribution;
mod tables;

use super::load::REQUESTS_MAX;
use super::{TraceError, TraceOptions, TraceRequest};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::path::Path;
use tables::{Client, Window};

/// Where a tar archive says that it is one.
const USTAR: std::ops::Range<usize> = 257..262;

/// Whether a file is an archive; takes its beginning.
pub(super) fn is_archive(path: &Path, input: &mut dyn BufRead) -> Result<bool, TraceError> {
    let mut begin = Vec::new();
    let read = input.take(USTAR.end as u64).read_to_end(&mut begin);
    read.map_err(|source| TraceError::Read { path: path.to_owned(), line: 1, source })?;
    Ok(begin.get(USTAR) == Some(b"ustar"))
}

/// Draws the requests of one window of all clients after the other; holds those of one window.
pub(super) struct ServeGen {
    clients: Vec<Client>,
    seed: u64,
    copies: u32,
    /// The windows that are left.
    windows: std::ops::Range<usize>,
    drawn: VecDeque<TraceRequest>,
}

impl ServeGen {
    /// Reads the tables of a folder or an archive.
    pub(super) fn open(path: &Path, options: &TraceOptions) -> Result<Self, TraceError> {
        let clients = tables::read(path)?;
        let windows = &clients[0].windows;
        let first = windows.partition_point(|window| window.end_ms <= options.from_ms);
        let until_ms = options.until_ms.unwrap_or(u64::MAX);
        let end = windows.partition_point(|window| window.begin_ms < until_ms).max(first);
        let copies = options.copies;
        let drawn = Self { clients, seed: options.seed, copies, windows: first..end, drawn: VecDeque::new() };
        // A window is drawn whole.
        if drawn.windows.clone().any(|window| drawn.expected(window) > REQUESTS_MAX as f64) {
            return Err(TraceError::TooMany { path: path.to_owned(), line: 1 });
        }
        Ok(drawn)
    }

    fn expected(&self, window: usize) -> f64 {
        let rates: f64 = self.clients.iter().map(|client| client.windows[window].expected()).sum();
        rates * f64::from(self.copies)
    }

    /// The next request in the order of time.
    pub(super) fn next(&mut self) -> Option<TraceRequest> {
        while self.drawn.is_empty() {
            let window = self.windows.next()?;
            let mut requests = Vec::new();
            for (client, number) in self.clients.iter().zip(1..) {
                // A client's window is the same whatever else is drawn.
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream((u64::from(number) << 32) | window as u64);
                draw_window(client, number, window, self.copies, &mut rng, &mut requests);
            }
            requests.sort_by_key(|request| request.at_ms);
            self.drawn = requests.into();
        }
        self.drawn.pop_front()
    }
}

fn draw_window(
    client: &Client,
    number: u32,
    window: usize,
    copies: u32,
    rng: &mut ChaCha8Rng,
    requests: &mut Vec<TraceRequest>,
) {
    let Some((window, lengths)) = client.lengths_of(window) else { return };
    for at_ms in stamps(window, copies, rng) {
        let input_tokens = lengths.input.draw(rng.random()).max(1);
        let output_tokens = lengths.output.draw(rng.random()).max(1);
        requests.push(TraceRequest {
            at_ms,
            input_tokens,
            output_tokens,
            client: number,
            ..TraceRequest::default()
        });
    }
}

/// Times of a window's requests, ms.
fn stamps(window: &Window, copies: u32, rng: &mut ChaCha8Rng) -> Vec<u64> {
    let expected = window.expected() * f64::from(copies);
    let count = expected.floor() as usize + usize::from(rng.random::<f64>() < expected.fract());
    let Some(between) = window.between.as_ref().filter(|_| count > 0) else { return Vec::new() };
    // One more than there are requests: the last one goes to the end of the window.
    let gaps: Vec<f64> = (0..=count).map(|_| between.draw(rng)).collect();
    let total: f64 = gaps.iter().sum();
    let length_ms = (window.end_ms - window.begin_ms) as f64;
    // A fit of extreme shape can draw nothing but zeros.
    let stretch = if total > 0.0 { length_ms / total } else { 0.0 };
    let mut at = 0.0;
    let place = |gap: &f64| {
        at += gap * stretch;
        window.begin_ms + (at as u64).min(window.end_ms - window.begin_ms - 1)
    };
    gaps[..count].iter().map(place).collect()
}
