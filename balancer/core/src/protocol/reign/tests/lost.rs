//! A store that was put back to a backup: the numbers of the plans that it has lost are not used again.

use super::bench::*;
use crate::ids::Epoch;
use crate::plan::Plan;
use crate::protocol::reign::*;
use crate::records::UnitRecord;

/// A plan of a history that the store does not know.
fn lost(epoch: u64) -> Plan {
    boot().child(boot().layers).numbered(Epoch(epoch))
}

/// Node `a` says that it serves `plan`, and is refused.
#[track_caller]
fn refused(bench: &mut Bench, plan: &Plan) {
    bench.run(Event::Closed(StreamId(1)));
    bench.take();
    bench.join("a", Some(plan));
    let said = bench.take();
    assert!(
        said.ends_with(&["refuse a epoch_ahead".to_owned(), "close a epoch_ahead".to_owned()]),
        "{said:?}"
    );
}

/// Node `a` is started again without its state.
fn boots(bench: &mut Bench) {
    bench.join("a", None);
    bench.answer("a", &boot(), crate::protocol::unit::Answer::Applied);
    bench.later(200);
}

#[test]
fn the_next_plan_is_numbered_above_what_a_node_serves() {
    let mut bench = Bench::formed();
    refused(&mut bench, &lost(7));
    boots(&mut bench);
    let next = boot().child(boot().layers);
    assert!(bench.propose(&next).is_empty(), "plan 1 was lost, as far as anyone knows");
    assert_eq!(bench.propose(&next.numbered(Epoch(8))), ["prepare a 8", "prepare b 8"]);
}

#[test]
fn whoever_leads_next_reads_from_the_store_what_was_lost() {
    let mut bench = Bench::formed();
    refused(&mut bench, &lost(7));
    refused(&mut bench, &lost(5));
    assert!(bench.later(200).is_empty(), "it was written down at once");
    bench.run(Event::End);
    bench.lead();
    bench.join("b", Some(&boot()));
    boots(&mut bench);
    assert_eq!(bench.reign.next_epoch(&unit()), Some(Epoch(8)));
}

#[test]
fn a_unit_that_has_yet_to_form_passes_over_what_was_lost() {
    let mut bench = Bench::standby();
    bench.lead();
    bench.join("a", Some(&lost(7)));
    bench.join("a", Some(&boot()));
    bench.join("b", Some(&boot()));
    assert_eq!(bench.reign.next_epoch(&unit()), Some(Epoch(8)));
    assert_eq!(bench.recovered().units[0].record.lost, Epoch(7));
}

#[test]
fn a_broken_ledger_does_not_use_the_numbers_up() {
    let mut bench = Bench::formed();
    refused(&mut bench, &lost(UnitRecord::LOST_MAX + 1));
    refused(&mut bench, &lost(u64::MAX));
    assert_eq!(bench.reign.next_epoch(&unit()), Some(Epoch(1)));
}

#[test]
fn an_adopted_store_has_numbers_of_its_own() {
    let mut bench = Bench::formed();
    bench.run(Event::End);
    bench.lead_in(3);
    bench.join("a", Some(&boot()));
    bench.join("b", Some(&boot()));
    bench.later(200);
    let next = bench.next();
    assert_eq!(next.epoch, Epoch(3 * Epoch::PER_GENERATION));
    bench.take();
    assert_eq!(bench.propose(&next), ["prepare a 3000000000", "prepare b 3000000000"]);
    bench.settle(&next);
    assert_eq!(bench.next().epoch, next.epoch.next());
}
