//! The operator's wishes, as plain values. Each default carries its reason.

/// How eagerly expert placement is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertPolicy {
    /// How far (as a ratio above the optimum) a split may stay from the best one in order to be nearer to
    /// the even split. An optimum from a vertex of the polytope fits its own window and fails in the next.
    pub split_tolerance: f64,
    /// Predicted relative gain in imbalance below which a weights-only plan is not worth a table flip.
    pub weights_gain_min: f64,
    /// Predicted relative gain in imbalance, over what new weights alone reach, below which no weights are
    /// moved: moves cost bandwidth that inference also wants.
    pub moves_gain_min: f64,
    /// A layer below this imbalance, after reweighting, is left as it is.
    pub imbalance_target: f64,
}

impl Default for ExpertPolicy {
    fn default() -> Self {
        Self {
            split_tolerance: 0.002,
            weights_gain_min: 0.002,
            moves_gain_min: 0.01,
            imbalance_target: 1.002,
        }
    }
}
