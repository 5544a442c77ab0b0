//! Work divided by what no assignment can undercut, so that tokens and attention compare.

use super::work::Work;
use std::ops::{Add, AddAssign, Sub};

/// Loads of a bin or an item; 1 is the bound: the mean bin, or the largest item where that is more.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Load {
    pub(super) n: f64,
    pub(super) a: f64,
}

impl Load {
    pub(super) fn worst(self) -> f64 {
        self.n.max(self.a)
    }

    /// `n^8 + a^8`: so steep that the sum over bins follows the fullest, and smooth where the maximum
    /// itself would not tell two ways to lower a bin apart.
    pub(super) fn potential(self) -> f64 {
        power_8(self.n) + power_8(self.a)
    }
}

fn power_8(x: f64) -> f64 {
    let square = x * x;
    let fourth = square * square;
    fourth * fourth
}

impl Add for Load {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { n: self.n + other.n, a: self.a + other.a }
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Load {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { n: self.n - other.n, a: self.a - other.a }
    }
}

/// What work is divided by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    n: f64,
    a: f64,
}

impl Scale {
    /// Of the work of all `bins` bins and their largest item. A dimension without work counts nothing.
    pub(super) fn of(bins: usize, all: impl Iterator<Item = Work>, largest: Work) -> Self {
        let (n, a) = all.fold((0.0, 0.0), |(n, a), w| (n + w.tokens as f64, a + w.attention as f64));
        let part = |sum: f64, largest: u64| {
            let bound = (sum / bins as f64).max(largest as f64);
            if bound > 0.0 { 1.0 / bound } else { 0.0 }
        };
        Self { n: part(n, largest.tokens), a: part(a, largest.attention) }
    }

    pub(super) fn load(&self, work: Work) -> Load {
        Load { n: work.tokens as f64 * self.n, a: work.attention as f64 * self.a }
    }
}
