//! Expert bytes between nodes, over plain TCP: never in gRPC messages, which would copy them several times.
//!
//! ```text
//! request    64 bytes: magic "EVKXFER1", SHA-256 of the weights' identity, u32 layer, u32 slot, u32 expert,
//!                      u32 0, u64 length expected
//! response   24 bytes: magic "EVKXFER1", u32 status, u32 0, u64 fingerprint that the sender has registered
//! frames     u32 length, then as many bytes (1 to 4 MiB); they follow status 0 until the length is reached.
//!            A frame of length 0 says that the sender could not go on.
//! ```
//!
//! Integers are little-endian. A connection may carry one request after another. The server gives a slot
//! away only while it is registered to hold the expert asked for, and the receiver checks the fingerprint
//! of what it has written, so a slot that is staged over in the middle is noticed.

pub mod client;
pub mod server;

use evenkeel_core::ids::{ExpertId, LayerId};
use evenkeel_worker::SlotAddress;

/// SHA-256 over what decides every byte of the weights.
pub type WeightsDigest = [u8; 32];

const MAGIC: &[u8; 8] = b"EVKXFER1";
/// Bytes of a request.
pub const REQUEST_BYTES: usize = 64;
const RESPONSE_BYTES: usize = 24;
/// Large enough to keep a fast link busy, small enough to bound what a connection can make a side hold.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// Asks for all bytes of an expert in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Names the weights: replicas of different weights never mix.
    pub weights: WeightsDigest,
    /// The slot.
    pub slot: SlotAddress,
    /// The expert it must hold.
    pub expert: ExpertId,
    /// Bytes of an expert.
    pub length: u64,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    OtherWeights,
    WrongLength,
    NotHeld,
    Busy,
    Fault,
}

impl Status {
    const ALL: [Status; 7] = [
        Status::Ok,
        Status::BadRequest,
        Status::OtherWeights,
        Status::WrongLength,
        Status::NotHeld,
        Status::Busy,
        Status::Fault,
    ];

    fn code(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::BadRequest => "bad_request",
            Status::OtherWeights => "other_weights",
            Status::WrongLength => "wrong_length",
            Status::NotHeld => "not_held",
            Status::Busy => "busy",
            Status::Fault => "fault",
        }
    }
}

impl Request {
    /// As it goes over the wire.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..40].copy_from_slice(&self.weights);
        let place = [u32::from(self.slot.layer.0), self.slot.slot, u32::from(self.expert.0)];
        for (at, number) in place.into_iter().enumerate() {
            bytes[40 + 4 * at..44 + 4 * at].copy_from_slice(&number.to_le_bytes());
        }
        bytes[56..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// `None` for what is no request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if &bytes[..8] != MAGIC || number(52) != 0 {
            return None;
        }
        Some(Self {
            weights: bytes[8..40].try_into().expect("32 bytes"),
            slot: SlotAddress { layer: LayerId(u16::try_from(number(40)).ok()?), slot: number(44) },
            expert: ExpertId(u16::try_from(number(48)).ok()?),
            length: u64::from_le_bytes(bytes[56..].try_into().expect("eight bytes")),
        })
    }
}

fn encode_response(status: Status, fingerprint: u64) -> [u8; RESPONSE_BYTES] {
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    let number = Status::ALL.iter().position(|s| *s == status).expect("every status is listed") as u32;
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    bytes[16..].copy_from_slice(&fingerprint.to_le_bytes());
    bytes
}

fn decode_response(bytes: &[u8; RESPONSE_BYTES]) -> Option<(Status, u64)> {
    if &bytes[..8] != MAGIC {
        return None;
    }
    let number = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    let status = *Status::ALL.get(number as usize)?;
    Some((status, u64::from_le_bytes(bytes[16..].try_into().expect("eight bytes"))))
}
