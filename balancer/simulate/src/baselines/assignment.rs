//! The assignment problem, exactly: each row gets a column of its own at the least total cost.

/// Columns of the rows. `cost` is `[n * n]`, row-major.
///
/// Shortest augmenting paths with potentials (Kuhn 1955, Munkres 1957, in the cubic form of Edmonds and Karp 1972).
pub(super) fn cheapest_assignment(cost: &[i32], n: usize) -> Vec<usize> {
    assert_eq!(cost.len(), n * n);
    const FREE: usize = usize::MAX;
    let (mut of_row, mut of_column) = (vec![0i32; n], vec![0i32; n]);
    let mut row_at = vec![FREE; n];
    let (mut least, mut before, mut done) = (vec![0i32; n], vec![FREE; n], vec![false; n]);
    for start in 0..n {
        least.fill(i32::MAX);
        before.fill(FREE);
        done.fill(false);
        let (mut row, mut over) = (start, FREE);
        let end = loop {
            let (mut next, mut step) = (FREE, i32::MAX);
            for column in (0..n).filter(|&column| !done[column]) {
                let reduced = cost[row * n + column] - of_row[row] - of_column[column];
                if reduced < least[column] {
                    (least[column], before[column]) = (reduced, over);
                }
                if least[column] < step {
                    (next, step) = (column, least[column]);
                }
            }
            of_row[start] += step;
            for column in 0..n {
                if done[column] {
                    of_row[row_at[column]] += step;
                    of_column[column] -= step;
                } else {
                    least[column] -= step;
                }
            }
            done[next] = true;
            if row_at[next] == FREE {
                break next;
            }
            (row, over) = (row_at[next], next);
        };
        let mut column = end;
        while before[column] != FREE {
            row_at[column] = row_at[before[column]];
            column = before[column];
        }
        row_at[column] = start;
    }
    let mut column_of = vec![0; n];
    row_at.into_iter().enumerate().for_each(|(column, row)| column_of[row] = column);
    column_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn least_by_trying(cost: &[i32], n: usize, row: usize, used: &mut Vec<bool>) -> i32 {
        if row == n {
            return 0;
        }
        let mut least = i32::MAX;
        for column in 0..n {
            if !std::mem::replace(&mut used[column], true) {
                least = least.min(cost[row * n + column] + least_by_trying(cost, n, row + 1, used));
                used[column] = false;
            }
        }
        least
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_cheaper((n, cost) in (1usize..7).prop_flat_map(|n| {
            (Just(n), prop::collection::vec(0i32..9, n * n))
        })) {
            let column_of = cheapest_assignment(&cost, n);
            let mut used = vec![false; n];
            column_of.iter().for_each(|&column| assert!(!std::mem::replace(&mut used[column], true)));
            let total: i32 = (0..n).map(|row| cost[row * n + column_of[row]]).sum();
            prop_assert_eq!(total, least_by_trying(&cost, n, 0, &mut vec![false; n]));
        }
    }
}
