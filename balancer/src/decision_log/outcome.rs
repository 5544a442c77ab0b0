//! Decisions as lines have them.

use evenkeel_core::routing::{Decision, RoutingError};
use evenkeel_core::units::Millis;
use serde::{Deserialize, Serialize};

/// One decision of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DecisionLine {
    at_ms: u64,
    unit: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// The field `decision` names which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
enum Outcome {
    Dispatch {
        request: u64,
        number: u64,
        rank: u16,
        microbatch: u8,
    },
    Chunk {
        request: u64,
        number: u64,
        rank: u16,
        microbatch: u8,
        tokens: u64,
    },
    Migrate {
        request: u64,
        number: u64,
        from: u16,
        to: u16,
    },
    Hold {
        request: u64,
    },
    Refuse {
        request: u64,
        code: String,
        message: String,
    },
    Lost {
        request: u64,
        rank: u16,
    },
    /// The whole batch was refused, and had no effect.
    BatchRefused {
        code: String,
        message: String,
    },
}

impl DecisionLine {
    /// What became of one batch: its decisions, or the refusal of all of it.
    pub(super) fn all(
        at: Millis,
        unit: &str,
        decided: &Result<Vec<Decision>, RoutingError>,
    ) -> Vec<DecisionLine> {
        let line = |outcome| DecisionLine { at_ms: at.0, unit: unit.to_owned(), outcome };
        match decided {
            Ok(decisions) => decisions.iter().map(|decision| line(decision.into())).collect(),
            Err(error) => {
                let (code, message) = (error.code().to_owned(), error.to_string());
                vec![line(Outcome::BatchRefused { code, message })]
            }
        }
    }
}

impl std::fmt::Display for DecisionLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).expect("a decision is JSON"))
    }
}

impl From<&Decision> for Outcome {
    fn from(decision: &Decision) -> Self {
        let request = decision.request().0;
        match decision {
            Decision::Dispatch { number, rank, microbatch, tokens: None, .. } => {
                Outcome::Dispatch { request, number: number.0, rank: rank.0, microbatch: *microbatch }
            }
            Decision::Dispatch { number, rank, microbatch, tokens: Some(tokens), .. } => Outcome::Chunk {
                request,
                number: number.0,
                rank: rank.0,
                microbatch: *microbatch,
                tokens: tokens.0,
            },
            Decision::Migrate { number, from, to, .. } => {
                Outcome::Migrate { request, number: number.0, from: from.0, to: to.0 }
            }
            Decision::Hold { .. } => Outcome::Hold { request },
            Decision::Refuse { code, message, .. } => {
                Outcome::Refuse { request, code: (*code).to_owned(), message: message.clone() }
            }
            Decision::Lost { rank, .. } => Outcome::Lost { request, rank: rank.0 },
        }
    }
}
