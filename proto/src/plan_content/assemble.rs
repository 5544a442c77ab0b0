//! Chunks to a plan. One content at a time: what a stream can make an agent hold is bounded by
//! [`CHUNKS_MAX`] chunks, and by [`CONTENT_BYTES_MAX`] while it is read.

use super::{CHUNK_BYTES_MAX, CHUNKS_MAX, CONTENT_BYTES_MAX, ContentError, PlanId, delta, full, malformed};
use crate::v1::{self, PlanEncoding};
use bytes::Bytes;
use evenkeel_core::plan::Plan;
use prost::Message;
use std::io::Read as _;

/// Puts the chunks of one stream together.
#[derive(Debug, Default)]
pub struct Assembler {
    under_way: Option<UnderWay>,
    /// A plan of which a chunk was refused: the rest of it is passed over, so that it is refused once.
    refused: Option<PlanId>,
}

#[derive(Debug)]
struct UnderWay {
    id: PlanId,
    encoding: PlanEncoding,
    count: u32,
    chunks: Vec<Bytes>,
}

/// A whole content.
#[derive(Debug)]
pub struct Content {
    id: PlanId,
    encoding: PlanEncoding,
    chunks: Vec<Bytes>,
}

impl Assembler {
    /// Takes a chunk of the plan `id`; returns the content when it was the last. After an error the other
    /// chunks of that plan lead to nothing.
    pub fn push(&mut self, id: PlanId, chunk: v1::PlanChunk) -> Result<Option<Content>, ContentError> {
        if chunk.index == 0 {
            *self = Self::default();
        } else if self.refused == Some(id) {
            return Ok(None);
        }
        let taken = self.take(id, chunk);
        if taken.is_err() {
            *self = Self { under_way: None, refused: Some(id) };
        }
        taken
    }

    /// Forgets what is unfinished.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn take(&mut self, id: PlanId, chunk: v1::PlanChunk) -> Result<Option<Content>, ContentError> {
        let v1::PlanChunk { index, count, .. } = chunk;
        let encoding = check(&chunk)?;
        let mut under_way = match self.under_way.take().filter(|known| known.id == id) {
            Some(known) => known,
            None => UnderWay { id, encoding, count, chunks: Vec::new() },
        };
        let expected = under_way.chunks.len();
        if index as usize != expected {
            return Err(ContentError::ChunkOrder { found: index, count, expected });
        }
        if (encoding, count) != (under_way.encoding, under_way.count) {
            let reason = "has another encoding or count than the one before";
            return Err(ContentError::BadChunk { index, reason });
        }
        under_way.chunks.push(chunk.data);
        if under_way.chunks.len() < count as usize {
            self.under_way = Some(under_way);
            return Ok(None);
        }
        Ok(Some(Content { id, encoding, chunks: under_way.chunks }))
    }
}

fn check(chunk: &v1::PlanChunk) -> Result<PlanEncoding, ContentError> {
    let bad = |reason| Err(ContentError::BadChunk { index: chunk.index, reason });
    if chunk.count as usize > CHUNKS_MAX {
        return Err(ContentError::TooLarge { what: "chunks", most: CHUNKS_MAX });
    }
    if chunk.data.len() > CHUNK_BYTES_MAX {
        return Err(ContentError::TooLarge { what: "bytes in a chunk", most: CHUNK_BYTES_MAX });
    }
    if chunk.index >= chunk.count {
        return bad("its number is not below the count");
    }
    if chunk.data.is_empty() {
        return bad("is empty");
    }
    match chunk.encoding() {
        PlanEncoding::Unspecified => bad("has no known encoding"),
        encoding => Ok(encoding),
    }
}

impl Content {
    /// Whether it needs the base to be read.
    pub fn is_delta(&self) -> bool {
        self.encoding == PlanEncoding::Delta
    }

    /// The plan, which has the name that the command gave it. `base` is the plan that a difference starts
    /// from; the whole plan does not need it.
    pub fn plan(&self, base: Option<&Plan>) -> Result<Plan, ContentError> {
        let bytes = self.decompress()?;
        let undecodable = |error: prost::DecodeError| malformed("content", error.to_string());
        let plan = match (self.encoding, base) {
            (PlanEncoding::Delta, Some(base)) => {
                let delta = v1::PlanDelta::decode(bytes.as_slice()).map_err(undecodable)?;
                delta::read(&delta, base, self.id)?
            }
            (PlanEncoding::Delta, None) => return Err(malformed("content", "there is no base plan")),
            (PlanEncoding::Full | PlanEncoding::Unspecified, _) => {
                let content = v1::PlanContent::decode(bytes.as_slice()).map_err(undecodable)?;
                full::read(&content, self.id)?
            }
        };
        let found = (plan.epoch, plan.digest());
        if found != self.id {
            return Err(ContentError::OtherPlan { found, named: self.id });
        }
        Ok(plan)
    }

    /// Decompresses as far as is allowed, whatever the frame says of its size.
    fn decompress(&self) -> Result<Vec<u8>, ContentError> {
        let frame = self.chunks.concat();
        let corrupt = |error: std::io::Error| ContentError::Corrupt(error.to_string());
        let mut decoder = zstd::stream::read::Decoder::with_buffer(frame.as_slice()).map_err(corrupt)?;
        decoder.window_log_max(CONTENT_BYTES_MAX.ilog2()).map_err(corrupt)?;
        let mut bytes = Vec::new();
        decoder.take(CONTENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(corrupt)?;
        if bytes.len() > CONTENT_BYTES_MAX {
            return Err(ContentError::TooLarge { what: "bytes", most: CONTENT_BYTES_MAX });
        }
        Ok(bytes)
    }
}
