//! What the peers' planners know of the GPUs: equal slots on equal GPUs, and nodes that routing groups may stay on.

/// The deployment, named as in EPLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployment {
    /// Physical slots of a layer, a multiple of `gpus`.
    pub replicas: usize,
    /// Expert groups of the model; 1 when there are none.
    pub groups: usize,
    /// Nodes.
    pub nodes: usize,
    /// GPUs, a multiple of `nodes`.
    pub gpus: usize,
}

/// Why no placement exists for such a deployment. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentError {
    /// A count that has to divide another does not.
    #[error(
        "{what} is {value}: must be a multiple of {divisor_name}, which is {divisor}; choose another {what}"
    )]
    NotDivisible {
        /// The count.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What has to divide it.
        divisor_name: &'static str,
        /// The divisor.
        divisor: usize,
    },
    /// Fewer slots than experts.
    #[error("replicas is {replicas}: must be at least {experts}, the number of experts")]
    TooFewReplicas {
        /// Slots.
        replicas: usize,
        /// Experts.
        experts: usize,
    },
    /// More experts than a placement can name.
    #[error("experts is {experts}: must be at most {EXPERTS_MAX}")]
    TooManyExperts {
        /// Experts.
        experts: usize,
    },
    /// A layer with another number of loads than the first.
    #[error("layer {layer} has {have} loads: the first layer has {need}")]
    UnevenLayers {
        /// The layer.
        layer: usize,
        /// Its loads.
        have: usize,
        /// Loads of the first layer.
        need: usize,
    },
}

/// Placements name experts in 16 bits.
pub const EXPERTS_MAX: usize = 1 << 16;

impl DeploymentError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            DeploymentError::NotDivisible { .. } => "baseline_not_divisible",
            DeploymentError::TooFewReplicas { .. } => "baseline_too_few_replicas",
            DeploymentError::TooManyExperts { .. } => "baseline_too_many_experts",
            DeploymentError::UnevenLayers { .. } => "baseline_uneven_layers",
        }
    }
}

impl Deployment {
    /// The same deployment as one node and one group: the peers' global policy.
    pub fn global(self) -> Self {
        Self { groups: 1, nodes: 1, ..self }
    }

    /// Whole groups stay on a node only where they divide over the nodes; elsewhere the peers plan globally.
    pub fn effective(self) -> Self {
        if self.nodes > 0 && self.groups.is_multiple_of(self.nodes) { self } else { self.global() }
    }

    /// Slots of one GPU.
    pub fn slots_per_gpu(self) -> usize {
        self.replicas / self.gpus
    }

    /// Checks that everything divides and every expert gets a slot.
    pub fn validate(self, experts: usize) -> Result<(), DeploymentError> {
        divides("experts", experts, "groups", self.groups)?;
        divides("gpus", self.gpus, "nodes", self.nodes)?;
        divides("replicas", self.replicas, "gpus", self.gpus)?;
        if self.replicas < experts {
            return Err(DeploymentError::TooFewReplicas { replicas: self.replicas, experts });
        }
        if experts > EXPERTS_MAX {
            return Err(DeploymentError::TooManyExperts { experts });
        }
        Ok(())
    }
}

pub(super) fn divides(
    what: &'static str,
    value: usize,
    divisor_name: &'static str,
    divisor: usize,
) -> Result<(), DeploymentError> {
    if divisor > 0 && value.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(DeploymentError::NotDivisible { what, value, divisor_name, divisor })
    }
}
