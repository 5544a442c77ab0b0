//! What a node says of itself, as the machine takes it.

use super::{ControlLoop, Link};
use crate::push::AgentLink;
use evenkeel_core::ids::{NodeId, Rank, UnitId};
use evenkeel_core::protocol::membership::Claim;
use evenkeel_core::protocol::reign::{self, Introduction, StreamId};
use evenkeel_proto::{ConvertError, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, choose_protocol, v1};

/// The first version in which an agent takes another Welcome on its stream.
const REINTRODUCES_SINCE: u32 = 2;

/// A refusal on its way to an agent.
struct Refused {
    code: &'static str,
    message: String,
}

impl Refused {
    fn new(code: &'static str, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }
}

impl From<ConvertError> for Refused {
    fn from(e: ConvertError) -> Self {
        Self::new("invalid_hello", e)
    }
}

impl ControlLoop {
    /// The first message of a stream.
    pub(super) fn hello(&mut self, stream: StreamId, hello: &v1::Hello, link: AgentLink) {
        match self.introduction(hello) {
            Ok((protocol, introduction)) => {
                link.speak(protocol);
                let transfer_address = hello.transfer_address.clone();
                self.links.insert(stream, Link { link, protocol, transfer_address });
                self.step(reign::Event::Hello { stream, hello: introduction });
            }
            Err(Refused { code, message }) => {
                tracing::warn!(node = hello.node, unit = hello.unit, code, "agent refused");
                let refusal = v1::Refusal { code: code.to_owned(), message };
                let _ = link.send(v1::sync_response::Message::Refusal(refusal));
            }
        }
    }

    /// A node says again what it serves.
    pub(super) fn hello_again(&mut self, stream: StreamId, hello: &v1::Hello) {
        match self.introduction(hello) {
            Ok((_, hello)) => self.step(reign::Event::Hello { stream, hello }),
            Err(Refused { code, .. }) => self.end_stream(stream, code),
        }
    }

    fn introduction(&self, hello: &v1::Hello) -> Result<(u32, Introduction), Refused> {
        if hello.cluster != self.config.cluster {
            let ours = &self.config.cluster;
            let text = format!("the agent belongs to cluster {}, this is {ours}", hello.cluster);
            return Err(Refused::new("cluster_mismatch", text));
        }
        let (min, max) = (hello.protocol_min, hello.protocol_max);
        let Some(protocol) = choose_protocol(min, max) else {
            let text = format!(
                "the agent speaks protocol {min} to {max}, this balancer {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
            );
            return Err(Refused::new("protocol_unsupported", text));
        };
        let invalid = |e: &dyn std::fmt::Display| Refused::new("invalid_hello", e);
        let shape = hello.shape.as_ref().ok_or_else(|| invalid(&"shape is required"))?;
        let introduction = Introduction {
            node: NodeId::new(hello.node.as_str()).map_err(|e| invalid(&e))?,
            incarnation: hello.incarnation,
            unit: UnitId::new(hello.unit.as_str()).map_err(|e| invalid(&e))?,
            claim: Claim {
                shape: shape.try_into()?,
                ranks: ranks_of(&hello.ranks)?,
                weights_digest: hello.weights_digest.clone(),
            },
            applied: hello.applied.as_ref().map(TryInto::try_into).transpose()?,
            term: hello.term.map(Into::into).unwrap_or_default(),
            reintroduces: protocol >= REINTRODUCES_SINCE,
        };
        Ok((protocol, introduction))
    }
}

fn ranks_of(ranks: &[u32]) -> Result<Vec<Rank>, ConvertError> {
    let narrow = |&r: &u32| {
        let rank = u16::try_from(r).map_err(|_| ConvertError::new("ranks", format!("{r} is no rank")))?;
        Ok(Rank(rank))
    };
    ranks.iter().map(narrow).collect()
}
