//! What happened, as lines: hashed, so that two runs of a seed can be compared, and the last ones kept for the report of a
//! failure.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

/// Lines that a failure prints: about a second of a busy run.
const TAIL: usize = 60;

/// See the module.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    lines: u64,
    tail: VecDeque<String>,
    printed: bool,
}

impl Trace {
    /// `printed`: every line goes to standard output as well.
    pub(super) fn new(printed: bool) -> Self {
        // The offset basis of 64-bit FNV-1a.
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, tail: VecDeque::with_capacity(TAIL), printed }
    }

    pub(super) fn note(&mut self, at: u64, what: fmt::Arguments<'_>) {
        let mut line = if self.tail.len() == TAIL { self.tail.pop_front() } else { None }.unwrap_or_default();
        line.clear();
        write!(line, "{:>8}.{:03} {what}", at / 1000, at % 1000).expect("strings take everything");
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.lines += 1;
        if self.printed {
            println!("{line}");
        }
        self.tail.push_back(line);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}
