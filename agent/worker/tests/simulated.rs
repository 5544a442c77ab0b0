//! The simulated worker: the conformance suite, restarts, and sums over several nodes.

use evenkeel_core::ids::{ExpertId, LayerId, Rank, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::snapshot::LoadTable;
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_worker::conformance::{self, Subject};
use evenkeel_worker::simulated::slots::Header;
use evenkeel_worker::simulated::{Found, Routing, SimulatedWorker, weights};
use evenkeel_worker::{NodeLayout, Source, WorkerBackend, WorkerEvent};
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const SEED: u64 = 7;

fn shape(expert_bytes: u64) -> UnitShape {
    UnitShape {
        role: Role::Decode,
        layers: 2,
        experts: 6,
        top_k: 2,
        ranks: 4,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes,
    }
}

fn header(expert_bytes: u64, ranks: &[u16]) -> Header {
    let ranks = ranks.iter().map(|&r| Rank(r)).collect();
    let layout = NodeLayout::new(shape(expert_bytes), ranks);
    Header { layout, weights_seed: SEED, unit: "u".into(), node: "n".into() }
}

fn open(directory: &Path, ranks: &[u16]) -> (SimulatedWorker, Found) {
    SimulatedWorker::open(directory, header(44, ranks)).expect("opens")
}

fn boot_plan() -> Arc<Plan> {
    Arc::new(Plan::boot(UnitId::new("u").unwrap(), &shape(44)))
}

struct Simulated {
    worker: SimulatedWorker,
    _directory: tempfile::TempDir,
}

impl Simulated {
    fn fresh(expert_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (worker, found) = SimulatedWorker::open(directory.path(), header(expert_bytes, &[1, 2])).unwrap();
        assert_eq!(found, Found::Nothing);
        Self { worker, _directory: directory }
    }
}

impl Subject for Simulated {
    fn backend(&self) -> &dyn WorkerBackend {
        &self.worker
    }

    fn unit(&self) -> UnitId {
        UnitId::new("u").unwrap()
    }

    fn expected(&self, layer: LayerId, expert: ExpertId) -> Vec<u8> {
        let size = usize::try_from(self.worker.layout().shape().expert_bytes).unwrap();
        let mut bytes = vec![0; size];
        weights::fill(SEED, layer, expert, 0, &mut bytes);
        bytes
    }

    fn step(&self, step: u64, loads: &LoadTable) {
        self.worker.step(step, &Routing::Counts(loads), Vec::new()).expect("runs");
    }
}

#[test]
fn the_simulated_worker_conforms() {
    conformance::check(|| Simulated::fresh(44));
}

#[test]
fn slots_larger_than_a_chunk_conform() {
    conformance::check(|| Simulated::fresh((4 << 20) + 44));
}

#[test]
fn a_restart_attaches_to_the_plan_in_service() {
    let directory = tempfile::tempdir().unwrap();
    let (worker, _) = open(directory.path(), &[1, 2]);
    worker.boot(&boot_plan(), None).unwrap();
    drop(worker);
    let (worker, found) = open(directory.path(), &[1, 2]);
    assert_eq!(found, Found::Attached(boot_plan()));
    assert_eq!(worker.active(), Some((boot_plan().epoch, boot_plan().digest())));
    let slot = worker.layout().address(0);
    let expert = worker.registered(slot).unwrap().expert;
    let mut bytes = [0; 44];
    worker.read(slot, expert, 0, &mut bytes).unwrap();
    let mut expected = [0; 44];
    weights::fill(SEED, slot.layer, expert, 0, &mut expected);
    assert_eq!(bytes, expected);
}

#[test]
fn a_slot_that_was_being_written_holds_nothing_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (worker, _) = open(directory.path(), &[1, 2]);
    worker.boot(&boot_plan(), None).unwrap();
    let (source, empty) = (worker.layout().address(0), worker.layout().address(5));
    let expert = worker.registered(source).unwrap().expert;
    worker.stage(empty, expert, Source::Slot(source)).unwrap();
    let mut cut: &[u8] = &[0; 8];
    let sent = worker.registered(source).unwrap().fingerprint;
    assert!(worker.stage(empty, expert, Source::Bytes(&mut cut, sent)).is_err());
    drop(worker);
    let (worker, found) = open(directory.path(), &[1, 2]);
    assert_eq!(found, Found::Attached(boot_plan()));
    assert_eq!(worker.registered(empty), None);
}

#[track_caller]
fn check_void(damage: impl Fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let (worker, _) = open(directory.path(), &[1, 2]);
    worker.boot(&boot_plan(), None).unwrap();
    drop(worker);
    damage(directory.path());
    let (worker, found) = open(directory.path(), &[1, 2]);
    assert!(!matches!(found, Found::Attached(_)), "{found:?}");
    assert_eq!(worker.active(), None);
    worker.boot(&boot_plan(), None).expect("void state is no obstacle");
}

#[test]
fn damaged_state_is_void_and_boots_again() {
    check_void(|d| fs::remove_file(d.join("control.bin")).unwrap());
    check_void(|d| fs::remove_file(d.join("slots.bin")).unwrap());
    check_void(|d| fs::write(d.join("control.bin"), b"EVKCTRL1").unwrap());
    check_void(|d| {
        fs::OpenOptions::new().write(true).open(d.join("slots.bin")).unwrap().set_len(9000).unwrap()
    });
    check_void(|d| {
        let mut bytes = fs::read(d.join("slots.bin")).unwrap();
        bytes[8192..8196].fill(0);
        fs::write(d.join("slots.bin"), bytes).unwrap();
    });
}

#[test]
fn state_of_another_node_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), &[1, 2]).0.boot(&boot_plan(), None).unwrap();
    let error = SimulatedWorker::open(directory.path(), header(44, &[1, 3])).unwrap_err();
    assert_eq!(error.code(), "worker_wrong_shape");
    assert!(error.to_string().contains("use another --state-dir"), "{error}");
}

#[test]
fn a_step_is_run_once() {
    let subject = Simulated::fresh(44);
    let loads = LoadTable::zero(2, 6);
    let step = |step| subject.worker.step(step, &Routing::Counts(&loads), Vec::new());
    assert_eq!(step(0).unwrap_err().code(), "worker_not_booted");
    subject.worker.boot(&boot_plan(), None).unwrap();
    assert_eq!(step(0).unwrap().step, 0);
    assert_eq!(step(2).unwrap().step, 2);
    assert_eq!(step(1).unwrap().step, 2);
    let counted: Vec<_> = std::iter::from_fn(|| subject.worker.poll_counts()).map(|c| c.step).collect();
    assert_eq!(counted, [0, 2]);
}

#[test]
fn a_worker_that_hangs_flips_when_it_goes_on_and_answers_meanwhile() {
    let subject = Simulated::fresh(44);
    let boot = boot_plan();
    subject.worker.boot(&boot, None).unwrap();
    let next = Arc::new(boot.child(boot.layers.clone()));
    subject.worker.set_hanging(true);
    std::thread::scope(|scope| {
        let arming = scope.spawn(|| subject.worker.arm(&next));
        assert_eq!(subject.worker.active(), Some((boot.epoch, boot.digest())));
        assert_eq!((subject.worker.poll_counts(), subject.worker.gauges().len()), (None, 0));
        assert_eq!(subject.worker.last_step(), None);
        subject.worker.set_hanging(false);
        arming.join().unwrap().unwrap();
    });
    assert_eq!(subject.worker.active(), Some((next.epoch, next.digest())));
}

#[test]
fn events_are_told_once_and_in_order() {
    let subject = Simulated::fresh(44);
    let events = [WorkerEvent::Drain { message: "now".into() }, WorkerEvent::Hung { message: "1 s".into() }];
    events.iter().for_each(|event| subject.worker.tell(event.clone()));
    let told: Vec<_> = std::iter::from_fn(|| subject.worker.poll_event()).collect();
    assert_eq!(told, events);
}

#[track_caller]
fn check_refused(routing: &Routing<'_>, code: &str) {
    let subject = Simulated::fresh(44);
    subject.worker.boot(&boot_plan(), None).unwrap();
    assert_eq!(subject.worker.step(1, routing, Vec::new()).unwrap_err().code(), code);
    assert_eq!(subject.worker.last_step(), None);
}

#[test]
fn a_bad_step_is_refused_and_not_counted() {
    check_refused(&Routing::Counts(&LoadTable::zero(3, 6)), "step_wrong_shape");
    check_refused(&Routing::Counts(&LoadTable::zero(2, 5)), "step_wrong_shape");
    let many = LoadTable::new(2, 6, vec![1 << 25; 12]).unwrap();
    check_refused(&Routing::Counts(&many), "step_too_many_tokens");
    check_refused(&Routing::TopK { top_k: 1, tokens: 1, ids: &[0, 0] }, "step_wrong_shape");
    check_refused(&Routing::TopK { top_k: 2, tokens: 1, ids: &[0, 1, 2] }, "step_wrong_shape");
    check_refused(&Routing::TopK { top_k: 2, tokens: 1, ids: &[0, 1, 2, 6] }, "step_bad_ids");
    check_refused(&Routing::TopK { top_k: 2, tokens: usize::MAX, ids: &[] }, "step_wrong_shape");
}

/// Two nodes that serve one plan with uneven shares; the sum of their counts by layer and expert.
fn sum_over_nodes(step: u64, routing: &Routing<'_>) -> Vec<u64> {
    let boot = boot_plan();
    let mut layers = boot.layers.clone();
    // Experts 0 and 1 have two replicas each in the trivial placement.
    let twice = boot.layers[1].slots_of_experts(6);
    for (expert, first) in [(0, 12345), (1, 65535)] {
        layers[1].share[twice[expert][0] as usize] = first;
        layers[1].share[twice[expert][1] as usize] = 65536 - first;
    }
    let plan = Arc::new(boot.child(layers));
    let mut sums = vec![0; 12];
    for ranks in [[0, 2], [1, 3]] {
        let directory = tempfile::tempdir().unwrap();
        let (worker, _) = open(directory.path(), &ranks);
        worker.boot(&plan, None).unwrap();
        worker.step(step, routing, Vec::new()).unwrap();
        let counts = worker.poll_counts().unwrap();
        for (slot, &count) in worker.layout().addresses().zip(&counts.counts) {
            match plan.layers[slot.layer.index()].physical_to_logical[slot.slot as usize] {
                Some(expert) => sums[slot.layer.index() * 6 + expert.index()] += u64::from(count),
                None => assert_eq!(count, 0),
            }
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn counts_sum_over_nodes_to_the_tokens_routed(
        step in any::<u64>(), loads in prop::collection::vec(0u64..10_000, 12)
    ) {
        let table = LoadTable::new(2, 6, loads.clone()).unwrap();
        prop_assert_eq!(sum_over_nodes(step, &Routing::Counts(&table)), loads);
    }

    #[test]
    fn ids_sum_over_nodes_to_the_tokens_routed(
        step in any::<u64>(), ids in prop::collection::vec(0u8..6, 0..50)
    ) {
        let tokens = ids.len() / 4;
        let ids = &ids[..tokens * 4];
        let mut routed = vec![0; 12];
        for (at, id) in ids.iter().enumerate() {
            routed[at / (tokens * 2) * 6 + usize::from(*id)] += 1;
        }
        prop_assert_eq!(sum_over_nodes(step, &Routing::TopK { top_k: 2, tokens, ids }), routed);
    }
}
