//! A committed plan with its account and the loads it was made for, as the chunks that stand in the store: one zstd frame of
//! a `StoredPlan`, cut into pieces. The manifest says how many, and which plan they must be.

use super::{StoreError, path};
use evenkeel_core::ids::{Digest, Epoch, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::records::{CHUNK_BYTES_MAX, Key, Manifest, Opaque};
use evenkeel_proto::v1;
use prost::Message as _;
use std::io::Read as _;

/// Bytes of a content before it is compressed, at most: the largest plan that messages carry (8 MiB), and counts of 512
/// layers with 4096 experts at 10 bytes each (20 MiB). A DeepSeek-V3 plan with its loads has 300 KB.
pub const CONTENT_BYTES_MAX: usize = 32 << 20;
/// Chunks of a content at most: what does not shrink at all, and the frame around it.
const CHUNKS_MAX: usize = CONTENT_BYTES_MAX / CHUNK_BYTES_MAX + 1;
/// zstd's own default: what higher levels save of a plan of 300 KB is not worth their time.
const LEVEL: i32 = 3;

/// A committed plan, its account, and what it was made for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanContent {
    /// The plan.
    pub plan: Plan,
    /// When, why, and what it was to gain.
    pub summary: v1::PlanSummary,
    /// The counts it was solved on; `None` for the boot plan.
    pub loads: Option<v1::LoadTable>,
}

/// Why a plan cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plan and its loads have {bytes} bytes, the store keeps at most {CONTENT_BYTES_MAX}: the unit is too large"
)]
pub struct TooLarge {
    /// Bytes before compression.
    pub bytes: usize,
}

impl TooLarge {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        "plan_too_large"
    }
}

/// The chunks of a content: at least one, each of 1 to [`CHUNK_BYTES_MAX`] bytes.
pub fn encode(content: &PlanContent) -> Result<Vec<Opaque>, TooLarge> {
    let stored = v1::StoredPlan {
        plan: Some((&content.plan).into()),
        summary: Some(content.summary.clone()),
        loads: content.loads.clone(),
    };
    let bytes = stored.encode_to_vec();
    if bytes.len() > CONTENT_BYTES_MAX {
        return Err(TooLarge { bytes: bytes.len() });
    }
    let frame = zstd::bulk::compress(&bytes, LEVEL).expect("a buffer that is large enough takes any bytes");
    Ok(frame.chunks(CHUNK_BYTES_MAX).map(Opaque::from).collect())
}

/// The content that `chunks` are, if it is the plan that the manifest names.
pub fn decode(unit: &UnitId, manifest: &Manifest, chunks: &[Opaque]) -> Result<PlanContent, StoreError> {
    let place = || path::of_key(&Key::Manifest(unit.clone(), manifest.name.epoch));
    read(unit, manifest, chunks).map_err(|reason| StoreError::Broken { place: place(), reason })
}

fn read(unit: &UnitId, manifest: &Manifest, chunks: &[Opaque]) -> Result<PlanContent, String> {
    if chunks.len() != manifest.chunks as usize {
        return Err(format!("{} of {} chunks are there", chunks.len(), manifest.chunks));
    }
    if chunks.len() > CHUNKS_MAX || chunks.iter().any(|chunk| chunk.len() > CHUNK_BYTES_MAX) {
        return Err(format!("has more than {CHUNKS_MAX} chunks of {CHUNK_BYTES_MAX} bytes"));
    }
    let stored = v1::StoredPlan::decode(decompress(chunks)?.as_slice()).map_err(|e| e.to_string())?;
    let plan = stored.plan.as_ref().ok_or("holds no plan")?;
    let plan = Plan::try_from(plan).map_err(|e| e.to_string())?;
    let found: (Epoch, Digest) = (plan.epoch, plan.digest());
    if plan.unit != *unit || found != (manifest.name.epoch, manifest.name.digest) {
        return Err(format!("holds plan {} ({}) of unit {}", found.0, found.1.short(), plan.unit));
    }
    Ok(PlanContent { plan, summary: stored.summary.unwrap_or_default(), loads: stored.loads })
}

/// Decompresses as far as is allowed, whatever the frame says of its size.
fn decompress(chunks: &[Opaque]) -> Result<Vec<u8>, String> {
    let frame = chunks.concat();
    let failed = |e: std::io::Error| format!("cannot be decompressed: {e}");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame.as_slice()).map_err(failed)?;
    decoder.window_log_max(CONTENT_BYTES_MAX.ilog2()).map_err(failed)?;
    let mut bytes = Vec::new();
    decoder.take(CONTENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > CONTENT_BYTES_MAX {
        return Err(format!("decompresses to more than {CONTENT_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::Term;
    use evenkeel_core::records::PlanName;
    use evenkeel_core::topology::{Role, UnitShape};
    use proptest::prelude::*;

    fn unit() -> UnitId {
        UnitId::new("u").expect("valid")
    }

    fn content(layers: u16) -> PlanContent {
        let shape = UnitShape {
            role: Role::Decode,
            layers,
            experts: 256,
            top_k: 8,
            ranks: 32,
            slots_per_rank: 9,
            spare_per_rank: 1,
            expert_bytes: 64,
        };
        let plan = Plan::boot(unit(), &shape);
        // Counts that do not compress, so that there are several chunks.
        let counts = (1..=u64::from(layers) * 256).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let loads = Some(v1::LoadTable { layers: layers.into(), experts: 256, counts });
        PlanContent { plan, summary: v1::PlanSummary { moves: 3, ..Default::default() }, loads }
    }

    fn manifest(content: &PlanContent, chunks: usize) -> Manifest {
        let (epoch, digest) = (content.plan.epoch, content.plan.digest());
        let name = PlanName { term: Term::default(), epoch, digest };
        Manifest { name, chunks: u32::try_from(chunks).expect("few"), account: [].as_slice().into() }
    }

    #[test]
    fn a_plan_survives_its_chunks() {
        let content = content(300);
        let chunks = encode(&content).expect("small enough");
        assert!(chunks.len() > 1, "{}", chunks.len());
        assert_eq!(decode(&unit(), &manifest(&content, chunks.len()), &chunks), Ok(content));
    }

    #[track_caller]
    fn check_broken(reason: &str, break_it: impl FnOnce(&mut Manifest, &mut Vec<Opaque>)) {
        let content = content(300);
        let mut chunks = encode(&content).expect("small enough");
        let mut manifest = manifest(&content, chunks.len());
        break_it(&mut manifest, &mut chunks);
        let error = decode(&unit(), &manifest, &chunks).expect_err("broken");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains("units/u/plans/"), "{error}");
    }

    #[test]
    fn what_is_not_the_plan_of_the_manifest_is_refused() {
        check_broken("of 2 chunks", |_, chunks| {
            chunks.pop();
        });
        check_broken("cannot be decompressed", |_, chunks| chunks.swap(0, 1));
        check_broken("holds plan", |manifest, _| manifest.name.epoch = Epoch(9));
        check_broken("holds plan", |manifest, _| manifest.name.digest = Digest([0; 32]));
        check_broken("more than", |_, chunks| chunks[0] = vec![0; CHUNK_BYTES_MAX + 1].into());
    }

    #[test]
    fn a_bomb_is_refused_before_it_fills_the_memory() {
        let bomb = zstd::bulk::compress(&vec![0; CONTENT_BYTES_MAX + 1], LEVEL).expect("compresses");
        assert!(bomb.len() < CHUNK_BYTES_MAX);
        check_broken("decompresses to more than", |manifest, chunks| {
            *chunks = vec![bomb.into()];
            manifest.chunks = 1;
        });
    }

    proptest! {
        #[test]
        fn damage_is_an_error_and_never_a_panic(at in any::<prop::sample::Index>(), bit in 0..8u8, cut: bool) {
            let content = content(2);
            let frame = encode(&content).expect("small enough").concat();
            let at = at.index(frame.len());
            let mut damaged = frame;
            if cut { damaged.truncate(at) } else { damaged[at] ^= 1 << bit }
            // A flipped bit may change counts that no digest covers; the plan itself is the one named, or refused.
            if let Ok(found) = decode(&unit(), &manifest(&content, 1), &[damaged.into()]) {
                prop_assert_eq!(found.plan, content.plan);
            }
        }
    }
}
