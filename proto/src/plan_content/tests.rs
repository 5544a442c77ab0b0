use super::*;
use evenkeel_core::ids::{ExpertId, UnitId};
use evenkeel_core::plan::LayerPlan;
use evenkeel_core::topology::{Role, UnitShape};
use proptest::prelude::*;

fn boot(layers: u16, ranks: u16) -> Plan {
    let shape = UnitShape {
        role: Role::Decode,
        layers,
        experts: 256,
        top_k: 8,
        ranks,
        slots_per_rank: 9,
        spare_per_rank: 1,
        expert_bytes: 64,
    };
    Plan::boot(UnitId::new("u").expect("valid"), &shape)
}

/// One expert of one layer moves to a spare slot.
fn child(base: &Plan) -> Plan {
    let mut layers = base.layers.clone();
    let slots = &mut layers[1].physical_to_logical;
    (slots[9], slots[0]) = (slots[0], None);
    layers[1] = LayerPlan::even(layers[1].physical_to_logical.clone(), 256);
    base.child(layers)
}

fn id(plan: &Plan) -> PlanId {
    (plan.epoch, plan.digest())
}

/// Puts chunks together and reads the plan; the code of the first error.
fn read(id: PlanId, chunks: Vec<v1::PlanChunk>, base: Option<&Plan>) -> Result<Plan, &'static str> {
    let mut assembler = Assembler::default();
    let mut content = None;
    for chunk in chunks {
        content = assembler.push(id, chunk).map_err(|e| e.code())?;
    }
    content.ok_or("unfinished")?.plan(base).map_err(|e| e.code())
}

/// A plan that does not compress, in several chunks.
fn noise() -> Plan {
    let mut plan = boot(300, 128);
    let mut bits = 1u32;
    for share in plan.layers.iter_mut().flat_map(|layer| &mut layer.share) {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *share = bits >> 15;
    }
    plan
}

#[test]
fn a_plan_survives_whole_and_as_a_difference() {
    let base = boot(58, 32);
    let plan = child(&base);
    let (full, delta) = (Encoded::full(&plan).unwrap(), Encoded::delta(&plan, &base).unwrap().unwrap());
    assert_eq!(read(id(&plan), full.chunks().collect(), None), Ok(plan.clone()));
    assert_eq!(read(id(&plan), delta.chunks().collect(), Some(&base)), Ok(plan.clone()));
    assert!(delta.bytes() < 100 && full.bytes() > 500, "{} and {}", delta.bytes(), full.bytes());
    let plan = noise();
    let full = Encoded::full(&plan).unwrap();
    assert!(full.chunks().count() > 1);
    assert_eq!(read(id(&plan), full.chunks().collect(), None), Ok(plan));
}

#[test]
fn only_a_child_has_a_difference() {
    let base = boot(2, 32);
    let plan = child(&base);
    assert!(Encoded::delta(&child(&plan), &base).is_none());
    assert!(Encoded::delta(&plan, &boot(3, 32)).is_none());
    let same = base.child(base.layers.clone());
    let delta = Encoded::delta(&same, &base).unwrap().unwrap();
    assert_eq!(read(id(&same), delta.chunks().collect(), Some(&base)), Ok(same));
}

#[test]
fn clones_share_their_bytes() {
    let encoded = Encoded::full(&boot(2, 32)).unwrap();
    let (one, other) = (encoded.chunks().next().unwrap(), encoded.chunks().next().unwrap());
    assert_eq!(one.data.as_ptr(), other.data.as_ptr());
}

#[track_caller]
fn check_chunks(code: &str, break_them: impl FnOnce(&mut Vec<v1::PlanChunk>)) {
    let plan = noise();
    let mut chunks: Vec<_> = Encoded::full(&plan).unwrap().chunks().collect();
    break_them(&mut chunks);
    assert_eq!(read(id(&plan), chunks, None), Err(code));
}

#[test]
fn chunks_that_are_not_those_that_were_sent_are_refused() {
    check_chunks("unfinished", |c| drop(c.pop()));
    check_chunks("content_chunk_order", |c| drop(c.remove(0)));
    check_chunks("content_chunk_order", |c| c.insert(1, c[1].clone()));
    check_chunks("unfinished", |c| c[1].index = 0);
    check_chunks("content_bad_chunk", |c| c[1].index = c[1].count);
    check_chunks("content_bad_chunk", |c| c[1].count += 1);
    check_chunks("content_bad_chunk", |c| c[0].count = 0);
    check_chunks("content_bad_chunk", |c| c[0].data.clear());
    check_chunks("content_bad_chunk", |c| c[0].encoding = 9);
    check_chunks("content_bad_chunk", |c| c[1].set_encoding(PlanEncoding::Delta));
    check_chunks("content_too_large", |c| c[0].count = 9);
    check_chunks("content_too_large", |c| c[0].data = vec![0; CHUNK_BYTES_MAX + 1].into());
    check_chunks("content_corrupt", |c| c[0].data = c[1].data.clone());
    check_chunks("content_malformed", |c| c.iter_mut().for_each(|c| c.set_encoding(PlanEncoding::Delta)));
}

#[test]
fn a_refused_plan_is_refused_once_and_the_next_one_is_taken() {
    let (plan, mut assembler) = (noise(), Assembler::default());
    let chunks: Vec<_> = Encoded::full(&plan).unwrap().chunks().collect();
    assert_eq!(assembler.push(id(&plan), chunks[1].clone()).unwrap_err().code(), "content_chunk_order");
    assert!(assembler.push(id(&plan), chunks[1].clone()).unwrap().is_none());
    assert!(assembler.push(id(&plan), chunks[0].clone()).unwrap().is_none());
    // Another plan takes the place of the unfinished one.
    let small = boot(2, 32);
    let chunk = Encoded::full(&small).unwrap().chunks().next().unwrap();
    let content = assembler.push(id(&small), chunk).unwrap().unwrap();
    assert_eq!(content.plan(None), Ok(small));
    assert_eq!(assembler.push(id(&plan), chunks[1].clone()).unwrap_err().code(), "content_chunk_order");
}

/// A frame of any message, as one chunk.
fn chunk(encoding: PlanEncoding, content: &impl Message) -> Vec<v1::PlanChunk> {
    frame(encoding, &content.encode_to_vec())
}

fn frame(encoding: PlanEncoding, bytes: &[u8]) -> Vec<v1::PlanChunk> {
    let data = zstd::bulk::compress(bytes, LEVEL).unwrap().into();
    vec![v1::PlanChunk { encoding: encoding.into(), index: 0, count: 1, data }]
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_memory() {
    let bomb = frame(PlanEncoding::Full, &vec![0; CONTENT_BYTES_MAX + 1]);
    assert!(bomb[0].data.len() < 2000);
    assert_eq!(read(id(&boot(2, 32)), bomb, None), Err("content_too_large"));
}

#[track_caller]
fn check_full(break_it: impl FnOnce(&mut v1::PlanContent)) {
    let plan = boot(2, 32);
    let mut content = full::write(&plan);
    break_it(&mut content);
    let code = read(id(&plan), chunk(PlanEncoding::Full, &content), None);
    assert_eq!(code, Err("content_malformed"));
}

#[test]
fn a_malformed_plan_is_refused() {
    check_full(|c| c.unit = "Ü".into());
    check_full(|c| c.layers = 0);
    check_full(|c| c.layers = 3);
    check_full(|c| c.layers = 1 << 20);
    check_full(|c| c.share.truncate(1));
    check_full(|c| c.expert_plus_one[0] = 4097);
    check_full(|c| c.expert_plus_one[0] = 65_537);
    check_full(|c| (c.expert_plus_one, c.share) = (Vec::new(), Vec::new()));
    check_full(|c| c.parent = Some(v1::PlanId::default()));
}

#[track_caller]
fn check_delta(code: &str, break_it: impl FnOnce(&mut v1::PlanDelta)) {
    let base = boot(3, 32);
    let plan = child(&base);
    let mut content = delta::write(&plan, &base).unwrap();
    assert_eq!((content.layer.as_slice(), content.changes.as_slice()), (&[1][..], &[2][..]));
    break_it(&mut content);
    let found = read(id(&plan), chunk(PlanEncoding::Delta, &content), Some(&base));
    assert_eq!(found.map(|_| ()), Err(code));
}

#[test]
fn a_difference_that_does_not_lead_to_the_plan_is_refused() {
    check_delta("content_other_plan", |d| d.share[0] += 1);
    check_delta("content_other_plan", |d| *d = v1::PlanDelta::default());
    check_delta("content_malformed", |d| d.layer[0] = 3);
    check_delta("content_malformed", |d| (d.layer, d.changes) = (vec![1, 1], vec![1, 1]));
    check_delta("content_malformed", |d| (d.layer, d.changes) = (vec![2, 1], vec![1, 1]));
    check_delta("content_malformed", |d| d.changes[0] = 3);
    check_delta("content_malformed", |d| d.changes[0] = u32::MAX);
    check_delta("content_malformed", |d| d.layer.clear());
    check_delta("content_malformed", |d| d.gap[1] = 0);
    check_delta("content_malformed", |d| d.gap[1] = u32::MAX);
    check_delta("content_malformed", |d| d.gap[0] = 320);
    check_delta("content_malformed", |d| d.share.truncate(1));
    check_delta("content_malformed", |d| d.expert_plus_one[0] = 5000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_change_survives_as_a_difference(
        changes in prop::collection::vec((0usize..4, 0usize..40, 0u16..4097, 0u32..65537), 0..50)
    ) {
        let base = boot(4, 4);
        let mut layers = base.layers.clone();
        for (layer, slot, expert, share) in changes {
            layers[layer].physical_to_logical[slot] = expert.checked_sub(1).map(ExpertId);
            layers[layer].share[slot] = share;
        }
        let plan = base.child(layers);
        let delta = Encoded::delta(&plan, &base).unwrap().unwrap();
        prop_assert_eq!(read(id(&plan), delta.chunks().collect(), Some(&base)), Ok(plan.clone()));
        prop_assert_eq!(read(id(&plan), Encoded::full(&plan).unwrap().chunks().collect(), None), Ok(plan));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic(at in any::<prop::sample::Index>(), bit in 0..8u8, cut: bool, whole: bool) {
        let base = boot(4, 32);
        let plan = child(&base);
        let encoded = if whole { Encoded::full(&plan) } else { Encoded::delta(&plan, &base).unwrap() };
        let mut chunk = encoded.unwrap().chunks().next().unwrap();
        let mut bytes = chunk.data.to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        chunk.data = bytes.into();
        // What is not noticed has done no harm: the digest covers all of the plan but the parent.
        if let Ok(found) = read(id(&plan), vec![chunk], Some(&base)) {
            prop_assert_eq!(found.layers, plan.layers);
        }
    }
}
