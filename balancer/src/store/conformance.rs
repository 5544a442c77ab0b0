//! What every store must do. Each implementation runs the whole suite.

use super::embedded::EmbeddedStore;
use super::{PLANS_KEPT, Store, Stored};
use evenkeel_core::ids::{Epoch, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_proto::v1;

fn unit(name: &str) -> UnitId {
    UnitId::new(name).expect("valid")
}

fn boot(name: &str) -> Plan {
    let shape = UnitShape {
        role: Role::Decode,
        layers: 1,
        experts: 4,
        top_k: 1,
        ranks: 2,
        slots_per_rank: 2,
        spare_per_rank: 1,
        expert_bytes: 64,
    };
    Plan::boot(unit(name), &shape)
}

fn stored(plan: &Plan) -> Stored {
    let id = Some((plan.epoch, plan.digest()).into());
    Stored { plan: plan.clone(), summary: v1::PlanSummary { id, ..Default::default() }, loads: None }
}

/// Runs `body` on a fresh store of every kind; `reopen` closes and opens it again.
fn on_every_store(body: impl Fn(&dyn Fn() -> Box<dyn Store>)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    body(&|| Box::new(EmbeddedStore::open(dir.path()).expect("opens")));
}

#[track_caller]
fn check_conflict(result: Result<(), super::StoreError>) {
    assert_eq!(result.map_err(|e| e.code()), Err("store_conflict"));
}

#[test]
fn terms_grow_over_restarts() {
    on_every_store(|open| {
        let first = open().begin_term().expect("a term");
        let second = open().begin_term().expect("a term");
        assert!(second > first);
    });
}

#[test]
fn a_plan_is_committed_once_and_only_on_its_parent() {
    on_every_store(|open| {
        let store = open();
        let term = store.begin_term().expect("a term");
        let boot = boot("u");
        let next = boot.child(boot.layers.clone());
        check_conflict(store.commit(term, &stored(&next)));
        store.commit(term, &stored(&boot)).expect("the boot plan starts a unit");
        check_conflict(store.commit(term, &stored(&boot)));
        store.commit(term, &stored(&next)).expect("a child follows");
        check_conflict(store.commit(term, &stored(&next)));
        drop(store);
        let store = open();
        assert_eq!(store.head(&unit("u")).expect("readable"), Some(stored(&next)), "over a restart");
    });
}

#[test]
fn a_term_that_is_over_commits_nothing() {
    on_every_store(|open| {
        let store = open();
        let old = store.begin_term().expect("a term");
        store.begin_term().expect("a later term");
        check_conflict(store.commit(old, &stored(&boot("u"))));
        check_conflict(store.put_unit(old, &v1::StoredUnit::default()));
        assert_eq!(store.head(&unit("u")).expect("readable"), None);
    });
}

#[test]
fn units_do_not_see_each_other() {
    on_every_store(|open| {
        let store = open();
        let term = store.begin_term().expect("a term");
        for name in ["a", "b", "a-1"] {
            store.commit(term, &stored(&boot(name))).expect("each starts its own");
        }
        let next = boot("a").child(boot("a").layers);
        store.commit(term, &stored(&next)).expect("a child follows");
        assert_eq!(store.head(&unit("b")).expect("readable"), Some(stored(&boot("b"))));
        assert_eq!(store.summaries(&unit("a"), 10).expect("readable").len(), 2);
        assert_eq!(store.summaries(&unit("a-1"), 10).expect("readable").len(), 1);
    });
}

#[test]
fn old_plans_are_dropped_and_the_newest_listed_first() {
    on_every_store(|open| {
        let store = open();
        let term = store.begin_term().expect("a term");
        let mut plan = boot("u");
        store.commit(term, &stored(&plan)).expect("starts");
        for _ in 0..PLANS_KEPT + 2 {
            plan = plan.child(plan.layers.clone());
            store.commit(term, &stored(&plan)).expect("follows");
        }
        let listed = store.summaries(&unit("u"), usize::MAX).expect("readable");
        assert_eq!(listed.len() as u64, PLANS_KEPT);
        assert_eq!(listed[0].id.as_ref().map(|id| id.epoch), Some(plan.epoch.0));
        assert_eq!(store.plan(&unit("u"), Epoch(2)).expect("readable"), None);
        assert!(store.plan(&unit("u"), Epoch(3)).expect("readable").is_some());
    });
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _first = EmbeddedStore::open(dir.path()).expect("opens");
    assert_eq!(EmbeddedStore::open(dir.path()).err().map(|e| e.code()), Some("store_in_use"));
}
