//! The suite that every backend must pass. It panics where the backend breaks the contract.

use crate::backend::{Registered, Source, WorkerBackend, WorkerError};
use crate::layout::SlotAddress;
use evenkeel_core::ids::{ExpertId, LayerId, UnitId};
use evenkeel_core::plan::{LayerPlan, Plan};
use evenkeel_core::snapshot::LoadTable;
use evenkeel_kernels::{Fingerprint, fingerprint};
use std::sync::Arc;

/// A backend under test, with what the suite needs beside the contract.
pub trait Subject {
    /// The backend. Its node must run at least two ranks and have at least one spare slot per rank.
    fn backend(&self) -> &dyn WorkerBackend;

    /// Name of its unit.
    fn unit(&self) -> UnitId;

    /// The bytes that an expert must have.
    fn expected(&self, layer: LayerId, expert: ExpertId) -> Vec<u8>;

    /// Runs one step of the engine with these tokens by expert, over the whole unit.
    fn step(&self, step: u64, loads: &LoadTable);
}

/// Runs every check, each on a fresh subject that was not booted.
pub fn check<S: Subject>(fresh: impl Fn() -> S) {
    let checks: [fn(&S); 6] = [
        serves_nothing_before_it_boots,
        boots_with_the_bytes_of_the_plan,
        stages_only_verified_bytes_into_empty_slots,
        flips_as_a_whole_and_only_when_staged,
        keeps_released_slots_until_they_are_staged_over,
        counts_what_it_serves,
    ];
    for check in checks {
        check(&fresh());
    }
}

fn boot<S: Subject>(subject: &S) -> Arc<Plan> {
    let plan = Arc::new(Plan::boot(subject.unit(), subject.backend().layout().shape()));
    subject.backend().boot(&plan, None).expect("a valid plan boots");
    plan
}

/// First layer of the node: a filled slot of its first rank, the expert there, and an empty slot of its
/// second rank.
fn places<S: Subject>(subject: &S, plan: &Plan) -> (SlotAddress, ExpertId, SlotAddress) {
    let layout = subject.backend().layout();
    let layer = &plan.layers[0];
    let find = |rank: usize, filled: bool| {
        let mut slots = layout.shape().slots_of_rank(layout.ranks()[rank]);
        let slot = slots.find(|&slot| layer.physical_to_logical[slot].is_some() == filled).expect("a slot");
        SlotAddress { layer: LayerId(0), slot: u32::try_from(slot).expect("small") }
    };
    let source = find(0, true);
    let expert = layer.physical_to_logical[source.slot as usize].expect("filled");
    (source, expert, find(1, false))
}

fn bytes_of<S: Subject>(subject: &S, slot: SlotAddress, expert: ExpertId) -> Vec<u8> {
    let size = usize::try_from(subject.backend().layout().shape().expert_bytes).expect("small");
    let mut bytes = vec![0; size];
    subject.backend().read(slot, expert, 0, &mut bytes).expect("a held slot reads");
    bytes
}

/// The plan that moves `expert` from `source` to `destination`.
fn moved(plan: &Plan, source: SlotAddress, expert: ExpertId, destination: SlotAddress) -> Arc<Plan> {
    let mut layers = plan.layers.clone();
    let experts = layers.iter().flat_map(|l| l.physical_to_logical.iter().flatten());
    let experts = experts.map(|e| e.index() + 1).max().expect("a plan has experts");
    layers[0].physical_to_logical[source.slot as usize] = None;
    layers[0].physical_to_logical[destination.slot as usize] = Some(expert);
    layers[0] = LayerPlan::even(layers[0].physical_to_logical.clone(), experts);
    Arc::new(plan.child(layers))
}

fn serves_nothing_before_it_boots<S: Subject>(subject: &S) {
    let backend = subject.backend();
    assert_eq!(backend.active(), None);
    let slot = backend.layout().address(0);
    assert_eq!(backend.registered(slot), None);
    assert!(backend.read(slot, ExpertId(0), 0, &mut [0]).is_err());
    assert!(backend.fingerprint(slot).is_err());
    assert!(backend.stage(slot, ExpertId(0), Source::Slot(slot)).is_err());
    assert_eq!(backend.poll_counts(), None);
}

fn boots_with_the_bytes_of_the_plan<S: Subject>(subject: &S) {
    let (plan, backend) = (boot(subject), subject.backend());
    assert_eq!(backend.active(), Some((plan.epoch, plan.digest())));
    for slot in backend.layout().addresses() {
        let expert = plan.layers[slot.layer.index()].physical_to_logical[slot.slot as usize];
        assert_eq!(backend.registered(slot).map(|r| r.expert), expert, "{slot}");
        let Some(expert) = expert else { continue };
        let expected = subject.expected(slot.layer, expert);
        assert_eq!(bytes_of(subject, slot, expert), expected, "{slot}");
        assert_eq!(backend.fingerprint(slot).ok(), Some(fingerprint(&expected)), "{slot}");
        assert!(backend.read(slot, ExpertId(expert.0 + 1), 0, &mut [0]).is_err(), "another expert");
        let size = backend.layout().shape().expert_bytes;
        assert!(backend.read(slot, expert, size, &mut [0]).is_err(), "beyond the end");
    }
}

fn stages_only_verified_bytes_into_empty_slots<S: Subject>(subject: &S) {
    let (plan, backend) = (boot(subject), subject.backend());
    let (source, expert, destination) = places(subject, &plan);
    let result = |staged: Result<Registered, WorkerError>| staged.map(|r| r.expert).map_err(|e| e.code());
    let stages =
        |mut bytes: &[u8], sent| result(backend.stage(destination, expert, Source::Bytes(&mut bytes, sent)));
    let live = backend.stage(source, expert, Source::Slot(source)).expect_err("a live slot");
    assert_eq!(live.code(), "worker_slot_live");
    assert_eq!(result(backend.stage(destination, expert, Source::Slot(source))), Ok(expert));
    assert_eq!(bytes_of(subject, destination, expert), subject.expected(LayerId(0), expert));

    let good = subject.expected(LayerId(0), expert);
    let mut bad = good.clone();
    bad[0] ^= 1;
    let sent = fingerprint(&good);
    assert_eq!(stages(&bad, sent), Err("fingerprint_mismatch"));
    assert_eq!(backend.registered(destination), None, "unverified bytes are nothing");
    let cut = &good[..good.len() - 1];
    assert_eq!(stages(cut, sent), Err("source_unreachable"));
    assert_eq!(stages(&good, Fingerprint(0)), Err("fingerprint_mismatch"));
    assert_eq!(stages(&good, sent), Ok(expert));
    assert_eq!(backend.active(), Some((plan.epoch, plan.digest())), "staging changes nothing served");
}

fn flips_as_a_whole_and_only_when_staged<S: Subject>(subject: &S) {
    let (plan, backend) = (boot(subject), subject.backend());
    let (source, expert, destination) = places(subject, &plan);
    let next = moved(&plan, source, expert, destination);
    assert!(backend.arm(&next).is_err(), "nothing is staged");
    assert_eq!(backend.active(), Some((plan.epoch, plan.digest())));
    backend.stage(destination, expert, Source::Slot(source)).expect("staged");
    backend.arm(&next).expect("everything is staged");
    let shape = backend.layout().shape();
    subject.step(1, &LoadTable::zero(shape.layers.into(), shape.experts.into()));
    assert_eq!(backend.active(), Some((next.epoch, next.digest())), "flipped at a boundary");
}

fn keeps_released_slots_until_they_are_staged_over<S: Subject>(subject: &S) {
    let (plan, backend) = (boot(subject), subject.backend());
    let (source, expert, destination) = places(subject, &plan);
    backend.stage(destination, expert, Source::Slot(source)).expect("staged");
    backend.arm(&moved(&plan, source, expert, destination)).expect("armed");
    let shape = backend.layout().shape();
    subject.step(1, &LoadTable::zero(shape.layers.into(), shape.experts.into()));
    assert_eq!(bytes_of(subject, source, expert), subject.expected(LayerId(0), expert));
    let other = backend.layout().addresses().find_map(|slot| {
        let held = backend.registered(slot)?.expert;
        (slot.layer == LayerId(0) && held != expert).then_some((slot, held))
    });
    let (other, held) = other.expect("a node holds more than one expert");
    backend.stage(source, held, Source::Slot(other)).expect("a released slot is empty");
    assert!(backend.read(source, expert, 0, &mut [0]).is_err(), "staged over");
}

fn counts_what_it_serves<S: Subject>(subject: &S) {
    let (plan, backend) = (boot(subject), subject.backend());
    let shape = backend.layout().shape();
    let (layers, experts) = (usize::from(shape.layers), usize::from(shape.experts));
    let loads = (0..layers * experts).map(|i| (i as u64 * 37) % 101).collect();
    let loads = LoadTable::new(layers, experts, loads).expect("the unit's shape");
    subject.step(1, &loads);
    let counts = backend.poll_counts().expect("counts of the step");
    assert_eq!((counts.step, counts.epoch), (1, plan.epoch));
    assert_eq!(counts.counts.len(), backend.layout().slots());
    for (slot, &count) in backend.layout().addresses().zip(&counts.counts) {
        let at = slot.slot as usize;
        let Some(expert) = plan.layers[slot.layer.index()].physical_to_logical[at] else {
            assert_eq!(count, 0, "an empty slot serves nothing");
            continue;
        };
        let share = f64::from(plan.layers[slot.layer.index()].share[at]) / 65536.0;
        let fair = loads.layer(slot.layer.index())[expert.index()] as f64 * share;
        assert!((f64::from(count) - fair).abs() <= 1.0, "{slot}: {count} instead of {fair}");
    }
    assert_eq!(backend.poll_counts(), None, "counts are handed out once");
}
