//! The content of a plan on the wire: the whole plan or the difference to its parent, as one zstd frame that is
//! cut into chunks. Written once for all agents; read by each with every size bounded before memory is taken.

mod assemble;
mod delta;
mod full;
#[cfg(test)]
mod tests;

pub use assemble::{Assembler, Content};

use crate::ConvertError;
use crate::v1::{self, PlanEncoding};
use bytes::Bytes;
use evenkeel_core::ids::{Digest, Epoch};
use evenkeel_core::plan::Plan;
use prost::Message;

/// Bytes of a chunk at most, as in the store: far below the largest message, so that pings are not held up.
pub const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Chunks of a plan at most: 4 MiB compressed. The largest unit that today's models need (1024 ranks x 4 slots
/// x 128 layers) has 2.6 MiB before it is compressed.
pub const CHUNKS_MAX: usize = 8;
/// Bytes of a content before it is compressed, at most: as much as one message may have.
pub const CONTENT_BYTES_MAX: usize = crate::MESSAGE_BYTES_MAX;
/// zstd's own default: what higher levels save of a plan of 33 KB is not worth their time.
const LEVEL: i32 = 3;

/// Names a plan.
pub type PlanId = (Epoch, Digest);

/// Why a content is not accepted. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The content is too large to be sent, or grows too large when it is read.
    #[error("the plan has more than {most} {what}: the unit is too large")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// A chunk that does not follow the one before.
    #[error("chunk {found} of {count} came where chunk {expected} was due")]
    ChunkOrder {
        /// Its number.
        found: u32,
        /// How many it says there are.
        count: u32,
        /// The number that was due.
        expected: usize,
    },
    /// A chunk without a known encoding, of another encoding or count than the one before, or empty.
    #[error("chunk {index}: {reason}")]
    BadChunk {
        /// Its number.
        index: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// The bytes are no zstd frame.
    #[error("the content cannot be decompressed: {0}")]
    Corrupt(String),
    /// The bytes are no plan.
    #[error("{0}")]
    Malformed(ConvertError),
    /// The plan is not the one that was named.
    #[error("the content is plan {} ({}), the command names {} ({})", found.0, found.1.short(), named.0, named.1.short())]
    OtherPlan {
        /// What was found.
        found: PlanId,
        /// What was named.
        named: PlanId,
    },
}

impl ContentError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            ContentError::TooLarge { .. } => "content_too_large",
            ContentError::ChunkOrder { .. } => "content_chunk_order",
            ContentError::BadChunk { .. } => "content_bad_chunk",
            ContentError::Corrupt(_) => "content_corrupt",
            ContentError::Malformed(_) => "content_malformed",
            ContentError::OtherPlan { .. } => "content_other_plan",
        }
    }
}

fn malformed(field: &'static str, reason: impl Into<String>) -> ContentError {
    ContentError::Malformed(ConvertError::new(field, reason))
}

/// A content ready to be sent. Clones share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    encoding: PlanEncoding,
    chunks: Vec<Bytes>,
}

impl Encoded {
    /// The whole plan.
    pub fn full(plan: &Plan) -> Result<Self, ContentError> {
        Self::of(PlanEncoding::Full, &full::write(plan))
    }

    /// What `plan` changes in `base`; `None` when `base` is not its parent or has another shape.
    pub fn delta(plan: &Plan, base: &Plan) -> Option<Result<Self, ContentError>> {
        delta::write(plan, base).map(|delta| Self::of(PlanEncoding::Delta, &delta))
    }

    fn of(encoding: PlanEncoding, content: &impl Message) -> Result<Self, ContentError> {
        let bytes = content.encode_to_vec();
        if bytes.len() > CONTENT_BYTES_MAX {
            return Err(ContentError::TooLarge { what: "bytes", most: CONTENT_BYTES_MAX });
        }
        let frame = zstd::bulk::compress(&bytes, LEVEL).expect("a large enough buffer takes any bytes");
        // A copy of its own for each chunk would keep the same bytes twice.
        let frame = Bytes::from(frame);
        let starts = (0..frame.len()).step_by(CHUNK_BYTES_MAX);
        let chunks: Vec<_> =
            starts.map(|at| frame.slice(at..frame.len().min(at + CHUNK_BYTES_MAX))).collect();
        if chunks.len() > CHUNKS_MAX {
            return Err(ContentError::TooLarge { what: "chunks", most: CHUNKS_MAX });
        }
        Ok(Self { encoding, chunks })
    }

    /// Bytes to send.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> impl Iterator<Item = v1::PlanChunk> + '_ {
        let count = u32::try_from(self.chunks.len()).expect("few chunks");
        (0u32..).zip(&self.chunks).map(move |(index, data)| v1::PlanChunk {
            encoding: self.encoding.into(),
            index,
            count,
            data: data.clone(),
        })
    }
}
