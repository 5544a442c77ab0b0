//! Who belongs to a unit: the claims of its nodes, checked one by one as they arrive.

use crate::ids::{NodeId, Rank, UnitId};
use crate::topology::{TopologyError, UnitShape, UnitTopology};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a node says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The unit's shape, as the node's workers have it.
    pub shape: UnitShape,
    /// The unit's ranks on this node.
    pub ranks: Vec<Rank>,
    /// Names the weights that the workers serve.
    pub weights_digest: Vec<u8>,
}

/// Why a node may not join. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another shape than the unit's.
    #[error("{field} is {have} on this node but {need} in the unit: start it with the unit's shape")]
    ShapeMismatch {
        /// The first field that differs.
        field: &'static str,
        /// This node's value.
        have: String,
        /// The unit's value.
        need: String,
    },
    /// Other weights than the unit's: their replicas must never mix.
    #[error("the node serves other weights than the unit: restart it with the unit's model")]
    WeightsMismatch,
    /// A rank outside the unit, given twice, or owned by a node that is connected.
    #[error(transparent)]
    Ranks(#[from] TopologyError),
    /// No rank at all.
    #[error("the node claims no rank: give it at least one")]
    NoRanks,
}

impl JoinError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            JoinError::ShapeMismatch { .. } => "unit_shape_mismatch",
            JoinError::WeightsMismatch => "weights_mismatch",
            JoinError::Ranks(_) | JoinError::NoRanks => "rank_conflict",
        }
    }
}

/// The nodes of one unit. The first claim fixes shape and weights.
#[derive(Debug, Clone)]
pub struct Membership {
    unit: UnitId,
    shape: UnitShape,
    weights_digest: Vec<u8>,
    claims: BTreeMap<NodeId, Vec<Rank>>,
}

impl Membership {
    /// A unit of this shape without nodes.
    pub fn new(unit: UnitId, shape: UnitShape, weights_digest: Vec<u8>) -> Self {
        Self { unit, shape, weights_digest, claims: BTreeMap::new() }
    }

    /// The unit's shape.
    pub fn shape(&self) -> &UnitShape {
        &self.shape
    }

    /// What names the unit's weights.
    pub fn weights_digest(&self) -> &[u8] {
        &self.weights_digest
    }

    /// The ranks of every node.
    pub fn claims(&self) -> &BTreeMap<NodeId, Vec<Rank>> {
        &self.claims
    }

    /// Takes a node in, in place of its former self and of disconnected nodes whose ranks it claims.
    /// Returns the nodes it replaced. On error nothing has changed.
    pub fn join(
        &mut self,
        node: &NodeId,
        claim: &Claim,
        connected: impl Fn(&NodeId) -> bool,
    ) -> Result<Vec<NodeId>, JoinError> {
        self.check_shape(&claim.shape)?;
        if claim.weights_digest != self.weights_digest {
            return Err(JoinError::WeightsMismatch);
        }
        if claim.ranks.is_empty() {
            return Err(JoinError::NoRanks);
        }
        let mut replaced = Vec::new();
        for (position, &rank) in claim.ranks.iter().enumerate() {
            if rank.0 >= self.shape.ranks {
                let last = self.shape.ranks - 1;
                return Err(TopologyError::UnknownRank { rank, node: node.clone(), last }.into());
            }
            if claim.ranks[..position].contains(&rank) {
                let (first, second) = (node.clone(), node.clone());
                return Err(TopologyError::DuplicateRank { rank, first, second }.into());
            }
            let owner = self.claims.iter().find(|(other, ranks)| *other != node && ranks.contains(&rank));
            match owner {
                Some((first, _)) if connected(first) => {
                    let (first, second) = (first.clone(), node.clone());
                    return Err(TopologyError::DuplicateRank { rank, first, second }.into());
                }
                Some((other, _)) if !replaced.contains(other) => replaced.push(other.clone()),
                _ => {}
            }
        }
        for other in &replaced {
            self.claims.remove(other);
        }
        self.claims.insert(node.clone(), claim.ranks.clone());
        Ok(replaced)
    }

    /// Forgets a node of a unit that has not formed: its ranks are free for others.
    pub fn leave(&mut self, node: &NodeId) {
        self.claims.remove(node);
    }

    /// The unit, once every rank is claimed.
    pub fn topology(&self) -> Result<Arc<UnitTopology>, TopologyError> {
        UnitTopology::new(self.unit.clone(), self.shape.clone(), &self.claims).map(Arc::new)
    }

    fn check_shape(&self, other: &UnitShape) -> Result<(), JoinError> {
        let (unit, node) = (&self.shape, other);
        let fields = [
            ("role", node.role.as_str().to_owned(), unit.role.as_str().to_owned()),
            ("layers", node.layers.to_string(), unit.layers.to_string()),
            ("experts", node.experts.to_string(), unit.experts.to_string()),
            ("top_k", node.top_k.to_string(), unit.top_k.to_string()),
            ("ranks", node.ranks.to_string(), unit.ranks.to_string()),
            ("slots_per_rank", node.slots_per_rank.to_string(), unit.slots_per_rank.to_string()),
            ("spare_per_rank", node.spare_per_rank.to_string(), unit.spare_per_rank.to_string()),
            ("expert_bytes", node.expert_bytes.to_string(), unit.expert_bytes.to_string()),
        ];
        match fields.into_iter().find(|(_, have, need)| have != need) {
            Some((field, have, need)) => Err(JoinError::ShapeMismatch { field, have, need }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Role;

    fn shape() -> UnitShape {
        UnitShape {
            role: Role::Decode,
            layers: 2,
            experts: 4,
            top_k: 1,
            ranks: 4,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 64,
        }
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid name")
    }

    fn claim(ranks: &[u16]) -> Claim {
        Claim {
            shape: shape(),
            ranks: ranks.iter().map(|&r| Rank(r)).collect(),
            weights_digest: b"w".to_vec(),
        }
    }

    /// A unit whose node `a` owns ranks 0 and 1; `connected` says whether `a` still is.
    #[track_caller]
    fn check(joiner: &str, claim: &Claim, connected: bool, expected: Result<&[&str], &str>) {
        let mut members = Membership::new(UnitId::new("u").expect("valid"), shape(), b"w".to_vec());
        members.join(&node("a"), &self::claim(&[0, 1]), |_| true).expect("the first node joins");
        let before = members.claims.clone();
        let found = members.join(&node(joiner), claim, |_| connected);
        let replaced = found.as_ref().map(|r| r.iter().map(NodeId::as_str).collect::<Vec<_>>());
        assert_eq!(replaced.map_err(JoinError::code), expected.map(<[_]>::to_vec));
        if found.is_err() {
            assert_eq!(members.claims, before, "a refused claim changes nothing");
        }
    }

    #[test]
    fn a_node_joins_returns_replaces_or_is_refused() {
        check("b", &claim(&[2, 3]), true, Ok(&[]));
        check("a", &claim(&[0, 1]), true, Ok(&[]));
        check("b", &claim(&[0, 1]), false, Ok(&["a"]));
        check("b", &claim(&[1, 2]), true, Err("rank_conflict"));
        check("b", &claim(&[2, 2]), true, Err("rank_conflict"));
        check("b", &claim(&[4]), true, Err("rank_conflict"));
        check("b", &claim(&[]), true, Err("rank_conflict"));
        check("b", &Claim { weights_digest: b"v".to_vec(), ..claim(&[2]) }, true, Err("weights_mismatch"));
        let other = UnitShape { slots_per_rank: 3, ..shape() };
        check("b", &Claim { shape: other, ..claim(&[2]) }, true, Err("unit_shape_mismatch"));
    }
}
