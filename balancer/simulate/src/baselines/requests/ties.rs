//! Ties go to the first candidate, as they do in Python's `min` and `max`.

/// The first of the candidates with the least key.
///
/// # Panics
/// When there is no candidate.
pub(super) fn first_least<T: Copy, K: PartialOrd>(
    candidates: impl IntoIterator<Item = T>,
    mut key: impl FnMut(T) -> K,
) -> T {
    let mut candidates = candidates.into_iter();
    let mut best = candidates.next().expect("a unit has ranks");
    let mut least = key(best);
    for candidate in candidates {
        let key = key(candidate);
        if key < least {
            (best, least) = (candidate, key);
        }
    }
    best
}

/// The first of the candidates with the greatest key.
///
/// # Panics
/// When there is no candidate.
pub(super) fn first_most<T: Copy, K: PartialOrd>(
    candidates: impl IntoIterator<Item = T>,
    mut key: impl FnMut(T) -> K,
) -> T {
    let mut candidates = candidates.into_iter();
    let mut best = candidates.next().expect("a unit has ranks");
    let mut most = key(best);
    for candidate in candidates {
        let key = key(candidate);
        if key > most {
            (best, most) = (candidate, key);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_wins() {
        let keys = [2, 1, 3, 1, 3];
        assert_eq!((first_least(0..5, |i| keys[i]), first_most(0..5, |i| keys[i])), (1, 2));
        assert_eq!(first_least([3, 1], |i| keys[i]), 3, "in the order given");
    }

    #[test]
    fn pairs_compare_by_their_first_and_then_their_second() {
        let keys = [(1.0, 5), (1.0, 4), (2.0, 0)];
        assert_eq!((first_least(0..3, |i| keys[i]), first_most(0..3, |i| keys[i])), (1, 2));
    }
}
