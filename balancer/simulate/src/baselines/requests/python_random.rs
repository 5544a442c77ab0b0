//! Draws of Python's `random.Random(seed)`: the peers' references draw with it, and must be met draw for draw.
//!
//! The generator is MT19937 (Matsumoto and Nishimura, 1998), seeded by its `init_by_array`; what is drawn from it follows the
//! documented behaviour of CPython's `random` module, which has been the same since Python 3.2.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// A generator of the same draws as Python's.
#[derive(Debug, Clone)]
pub struct PythonRandom {
    state: [u32; WORDS],
    next: usize,
}

impl PythonRandom {
    /// As `random.Random(seed)`, for an integer seed.
    pub fn new(seed: u64) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        // An integer is as many words as it needs, at least one.
        let key = if key[1] == 0 { &key[..1] } else { &key[..] };
        let mut state = [0; WORDS];
        state[0] = 19_650_218_u32;
        for i in 1..WORDS {
            state[i] = mixed(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let advance = |state: &mut [u32; WORDS], i: &mut usize| {
            *i += 1;
            if *i == WORDS {
                state[0] = state[WORDS - 1];
                *i = 1;
            }
        };
        for step in 0..WORDS {
            let j = step % key.len();
            state[i] = (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            advance(&mut state, &mut i);
        }
        for _ in 1..WORDS {
            state[i] = (state[i] ^ mixed(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            advance(&mut state, &mut i);
        }
        state[0] = 1 << 31;
        Self { state, next: WORDS }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// `random()`: a float from [0, 1).
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// A whole number below `end`, which is at least 1: bits are drawn until they are below.
    pub fn below(&mut self, end: u32) -> u32 {
        assert!(end > 0, "nothing is below zero");
        let unused = end.leading_zeros();
        loop {
            let drawn = self.word() >> unused;
            if drawn < end {
                return drawn;
            }
        }
    }

    /// `choice(items)`; `items` is not empty. One item draws too.
    pub fn choice(&mut self, items: &[usize]) -> usize {
        items[self.below(items.len() as u32) as usize]
    }

    /// `sample(range(end), 2)`; `end` is at least 2.
    pub fn two_below(&mut self, end: u32) -> (usize, usize) {
        // Up to here Python draws from a list that shrinks, above it again until the second differs.
        const LIST_UP_TO: u32 = 21;
        let first = self.below(end);
        let second = if end <= LIST_UP_TO {
            let place = self.below(end - 1);
            if place == first { end - 1 } else { place }
        } else {
            loop {
                let drawn = self.below(end);
                if drawn != first {
                    break drawn;
                }
            }
        };
        (first as usize, second as usize)
    }

    /// `shuffle(items)`.
    pub fn shuffle(&mut self, items: &mut [usize]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u32 + 1) as usize);
        }
    }

    /// `choices(range(weights.len()), weights)[0]`; the weights are not negative and not all zero. They are summed up in place.
    pub fn weighted(&mut self, weights: &mut [f64]) -> usize {
        let mut sum = 0.0;
        for weight in weights.iter_mut() {
            sum += *weight;
            *weight = sum;
        }
        let drawn = self.random() * sum;
        weights[..weights.len() - 1].partition_point(|&up_to| up_to <= drawn)
    }
}

fn mixed(word: u32) -> u32 {
    word ^ (word >> 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CPython 3.11 prints for `r = Random(seed); [r.random() for _ in range(700)][-1]`, and then for
    /// `r.choice(range(7)), r.sample(range(9), 2), r.sample(range(144), 2)` and a shuffled `list(range(6))`.
    #[track_caller]
    fn check(
        seed: u64,
        random: f64,
        choice: usize,
        few: (usize, usize),
        many: (usize, usize),
        shuffled: [usize; 6],
    ) {
        let mut drawn = PythonRandom::new(seed);
        assert_eq!((0..700).map(|_| drawn.random()).last(), Some(random));
        assert_eq!(drawn.choice(&[0, 1, 2, 3, 4, 5, 6]), choice);
        assert_eq!((drawn.two_below(9), drawn.two_below(144)), (few, many));
        let mut items = [0, 1, 2, 3, 4, 5];
        drawn.shuffle(&mut items);
        assert_eq!(items, shuffled);
    }

    #[test]
    fn the_draws_are_pythons() {
        check(0, 0.05699047999950346, 5, (2, 3), (76, 22), [0, 3, 1, 2, 4, 5]);
        check(1, 0.24309173409213014, 0, (2, 5), (109, 143), [3, 2, 1, 0, 4, 5]);
        check(5, 0.6699410301584264, 2, (5, 3), (123, 132), [4, 2, 3, 1, 5, 0]);
        check(4294967295, 0.34564689050697883, 5, (3, 0), (18, 19), [2, 5, 4, 1, 3, 0]);
        check(4294967296, 0.1357159377093965, 3, (2, 7), (113, 49), [1, 3, 2, 5, 4, 0]);
        check(18446744073709551557, 0.47427840028059276, 3, (7, 5), (113, 135), [5, 2, 3, 4, 1, 0]);
    }

    #[test]
    fn one_candidate_draws_too() {
        let (mut one, mut other) = (PythonRandom::new(1), PythonRandom::new(1));
        assert_eq!(one.choice(&[5]), 5);
        assert_ne!(one.random(), other.random());
    }

    #[test]
    fn weights_draw_as_often_as_they_weigh() {
        let mut drawn = PythonRandom::new(3);
        let picked: Vec<usize> = (0..12).map(|_| drawn.weighted(&mut [1.0, 0.0, 3.0])).collect();
        assert_eq!(picked, [0, 2, 2, 2, 2, 0, 0, 2, 2, 0, 2, 2]);
    }
}
