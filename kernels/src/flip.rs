//! `flip`: at a step boundary every layer takes the table buffer that is armed for it.
//!
//! The host arms a layer by writing one word, `sequence << 1 | buffer`; a word of 32 bits is never seen torn. Words
//! that were taken before change nothing, so the step may be replayed from a captured graph.

/// Takes every layer's armed word: `active` gets its buffer, `taken` the word itself.
pub fn flip(armed: &[u32], active: &mut [u32], taken: &mut [u32]) {
    assert!(armed.len() == active.len() && armed.len() == taken.len(), "a word for each layer");
    for ((&word, active), taken) in armed.iter().zip(active).zip(taken) {
        *active = word & 1;
        *taken = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_takes_the_buffer_armed_for_it_and_a_replay_changes_nothing() {
        let (mut active, mut taken) = ([9, 9, 9], [9, 9, 9]);
        for _ in 0..2 {
            flip(&[2, 3, 1], &mut active, &mut taken);
            assert_eq!((active, taken), ([0, 1, 1], [2, 3, 1]));
        }
    }
}
