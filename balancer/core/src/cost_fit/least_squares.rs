//! Least squares in three unknowns that are not negative, with a prior and forgetting.
//!
//! Recursive least squares in its information form: sums of products instead of their inverse. Forgetting then fades the sums
//! only and never the prior, so a direction that no longer varies falls back to the prior instead of blowing up.

/// A vector of the three unknowns.
pub(super) type Vector = [f64; 3];
type Matrix = [Vector; 3];

/// The sums.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct LeastSquares {
    prior: Vector,
    prior_weight: f64,
    keep: f64,
    products: Matrix,
    with_target: Vector,
}

impl LeastSquares {
    /// Believes `prior` as much as `prior_weight` observations of each unknown alone; of what is known of old, each new
    /// observation leaves the share `keep`.
    pub(super) fn new(prior: Vector, prior_weight: f64, keep: f64) -> Self {
        assert!(prior_weight > 0.0 && keep > 0.0 && keep < 1.0 && prior.iter().all(|&p| p >= 0.0));
        Self { prior, prior_weight, keep, products: [[0.0; 3]; 3], with_target: [0.0; 3] }
    }

    /// Takes `weight` times: the unknowns times `inputs` are `target`.
    pub(super) fn add(&mut self, inputs: &Vector, target: f64, weight: f64) {
        for i in 0..3 {
            for j in 0..3 {
                self.products[i][j] = self.keep * self.products[i][j] + weight * inputs[i] * inputs[j];
            }
            self.with_target[i] = self.keep * self.with_target[i] + weight * inputs[i] * target;
        }
    }

    /// The unknowns of the least squares that are not negative: the best of the eight ways to hold some of them at 0 (the
    /// problem is strictly convex, so its solution is among those).
    pub(super) fn solve(&self) -> Vector {
        let (matrix, right) = (self.with_prior(), self.right());
        let mut best = ([0.0; 3], 0.0);
        for held in 0..8u8 {
            let is_free = |i: usize| held >> i & 1 == 0;
            let (mut reduced, mut target) = (matrix, right);
            for i in (0..3).filter(|&i| !is_free(i)) {
                reduced.iter_mut().for_each(|row| row[i] = 0.0);
                reduced[i] = [0.0; 3];
                (reduced[i][i], target[i]) = (1.0, 0.0);
            }
            let found = solve_positive(&reduced, &target);
            if found.iter().any(|&x| x < 0.0) {
                continue;
            }
            // The sum of squares, less what no choice changes.
            let square: f64 = (0..3).map(|i| found[i] * (dot(&matrix[i], &found) - 2.0 * right[i])).sum();
            if square < best.1 {
                best = (found, square);
            }
        }
        best.0
    }

    /// Per unknown: the share of the prior's variance that the observations took away. 0: the unknown is what was believed; 1: it
    /// is what was seen. Where two inputs move together only, each gets its part of the one thing that is known.
    pub(super) fn learned(&self) -> Vector {
        let matrix = self.with_prior();
        [0, 1, 2].map(|i| {
            let mut unit = [0.0; 3];
            unit[i] = 1.0;
            (1.0 - self.prior_weight * solve_positive(&matrix, &unit)[i]).clamp(0.0, 1.0)
        })
    }

    fn with_prior(&self) -> Matrix {
        let mut matrix = self.products;
        (0..3).for_each(|i| matrix[i][i] += self.prior_weight);
        matrix
    }

    fn right(&self) -> Vector {
        [0, 1, 2].map(|i| self.with_target[i] + self.prior_weight * self.prior[i])
    }
}

pub(super) fn dot(x: &Vector, y: &Vector) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Solves a symmetric positive definite system by Cholesky's factors.
fn solve_positive(matrix: &Matrix, right: &Vector) -> Vector {
    let mut lower = [[0.0; 3]; 3];
    for i in 0..3 {
        for j in 0..=i {
            let rest = matrix[i][j] - (0..j).map(|k| lower[i][k] * lower[j][k]).sum::<f64>();
            // Rounding must not turn a pivot that is almost nothing negative.
            lower[i][j] = if i == j { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / lower[j][j] };
        }
    }
    let mut x = [0.0; 3];
    for i in 0..3 {
        x[i] = (right[i] - (0..i).map(|k| lower[i][k] * x[k]).sum::<f64>()) / lower[i][i];
    }
    for i in (0..3).rev() {
        x[i] = (x[i] - (i + 1..3).map(|k| lower[k][i] * x[k]).sum::<f64>()) / lower[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(rows: &[(Vector, f64)]) -> LeastSquares {
        let mut squares = LeastSquares::new([1.0, 0.5, 0.0], 0.04, 0.99);
        rows.iter().for_each(|(inputs, target)| squares.add(inputs, *target, 1.0));
        squares
    }

    /// Half the gradient of the sum of squares.
    fn gradient(squares: &LeastSquares, at: &Vector) -> Vector {
        let (matrix, right) = (squares.with_prior(), squares.right());
        [0, 1, 2].map(|i| dot(&matrix[i], at) - right[i])
    }

    proptest! {
        /// Optimal where no unknown is negative (Karush, Kuhn and Tucker): the sum of squares does not fall along any
        /// unknown that is 0, and is level along all others.
        #[test]
        fn the_solution_is_the_best_without_negative_unknowns(
            rows in proptest::collection::vec(([0.0..8.0, 0.0..8.0, 0.0..8.0], 0.0..20.0), 0..20)
        ) {
            let squares = filled(&rows);
            let found = squares.solve();
            for (x, slope) in found.iter().zip(gradient(&squares, &found)) {
                prop_assert!(*x >= 0.0);
                prop_assert!(slope > -1e-6 && (*x == 0.0 || slope < 1e-6), "{found:?}: slope {slope}");
            }
            prop_assert!(squares.learned().iter().all(|share| (0.0..=1.0).contains(share)));
        }
    }

    #[test]
    fn nothing_seen_is_the_prior() {
        assert_eq!(filled(&[]).solve().map(|x| (x * 1e9).round() / 1e9), [1.0, 0.5, 0.0]);
        assert!(filled(&[]).learned().iter().all(|share| *share < 1e-9));
    }

    #[test]
    fn only_what_varies_is_learned() {
        let [first, second, third] = filled(&vec![([0.0, 2.0, 0.0], 6.0); 400]).learned();
        assert!(first < 1e-9 && second > 0.999 && third < 1e-9);
        // Two that move together share what is known of their sum.
        let together = filled(&vec![([1.0, 1.0, 0.0], 6.0); 400]);
        assert!(together.learned()[..2].iter().all(|share| (0.49..0.51).contains(share)));
        // 1.5 was expected, 6 is seen: each takes half of the difference.
        let [first, second, third] = together.solve();
        assert!((first - 3.25).abs() < 0.01 && (second - 2.75).abs() < 0.01 && third.abs() < 1e-9);
    }
}
