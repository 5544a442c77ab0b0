use super::bench::*;
use crate::plan::Plan;
use crate::protocol::reign::*;
use crate::protocol::unit::Answer as NodeAnswer;
use crate::records::{Key, Record};
use crate::units::Millis;
use proptest::prelude::*;

/// What can happen, as numbers that a shrinker can make small.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Join(bool, bool),
    Close(bool),
    Answer(bool, u8),
    Propose,
    Order(u8),
    Freeze,
    Extend,
    End,
    Lead,
    Mood(u8),
    Later(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => any::<(bool, bool)>().prop_map(|(b, next)| Happening::Join(b, next)),
        1 => any::<bool>().prop_map(Happening::Close),
        8 => (any::<bool>(), 0u8..4).prop_map(|(b, answer)| Happening::Answer(b, answer)),
        4 => Just(Happening::Propose),
        2 => (0u8..5).prop_map(Happening::Order),
        1 => Just(Happening::Freeze),
        2 => Just(Happening::Extend),
        1 => Just(Happening::End),
        1 => Just(Happening::Lead),
        2 => (0u8..5).prop_map(Happening::Mood),
        3 => (0u16..8_000).prop_map(Happening::Later),
    ]
}

/// The plans of the one line of children that have the boot plan's layers: the only ones there are in these runs.
fn line() -> Vec<Plan> {
    let mut line = vec![boot()];
    for _ in 0..40 {
        let last = line.last().expect("not empty");
        line.push(last.child(last.layers.clone()));
    }
    line
}

fn happen(bench: &mut Bench, line: &[Plan], what: Happening) {
    let name = |b: bool| if b { "b" } else { "a" };
    let epoch = match bench.store.get(&Key::Head(unit())).map(|found| &found.record) {
        Some(Record::Plan(plan)) => usize::try_from(plan.epoch.0).expect("few"),
        _ => 0,
    };
    match what {
        Happening::Join(b, behind) => bench.join(name(b), Some(&line[epoch.saturating_sub(behind.into())])),
        Happening::Close(b) => bench.run(Event::Closed(Bench::stream(name(b)))),
        Happening::Answer(b, answer) => {
            let (plan, answer) = match answer {
                0 => (epoch + 1, NodeAnswer::Prepared),
                1 => (epoch, NodeAnswer::Applied),
                2 => (epoch, NodeAnswer::Prepared),
                _ => (epoch + 1, NodeAnswer::Refused("x".to_owned())),
            };
            bench.answer(name(b), &line[plan], answer);
        }
        Happening::Propose => drop(bench.propose(&line[epoch + 1])),
        Happening::Order(0) => drop(bench.order(Order::Resume(unit()))),
        Happening::Order(1) => drop(bench.order(Order::Abort { unit: unit(), epoch: None })),
        Happening::Order(2) => drop(bench.order_as("same", 0, Order::Resume(unit()))),
        Happening::Order(3) => {
            drop(bench.order(Order::Pause { unit: unit(), for_ms: Some(1) }));
        }
        Happening::Order(_) => drop(bench.order_as("same", 1, Order::Resume(unit()))),
        Happening::Freeze => bench.run(Event::Freeze),
        Happening::Extend => bench.run(Event::Extend { until: Millis(bench.at + 3_500) }),
        Happening::End => bench.run(Event::End),
        Happening::Lead => drop(bench.lead()),
        Happening::Mood(mood) => {
            let moods = [
                StoreMood::Good,
                StoreMood::LosesAnswers,
                StoreMood::LosesRequests,
                StoreMood::Away,
                StoreMood::Silent,
            ];
            bench.mood = moods[usize::from(mood)];
        }
        Happening::Later(ms) => drop(bench.later(ms.into())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_happens_nothing_is_commanded_out_of_time_and_every_epoch_is_audited_once(
        happenings in prop::collection::vec(happening(), 0..120),
    ) {
        let line = line();
        let mut bench = Bench::formed();
        for what in happenings {
            if bench.store.get(&Key::Head(unit())).is_some() && bench.head_in_store() > 35 {
                break;
            }
            bench.take();
            let could_command = bench.reign.term().is_some() && !bench.reign.is_frozen(Millis(bench.at));
            happen(&mut bench, &line, what);
            let commands = bench.take().iter().any(|word| {
                ["prepare", "commit ", "abort "].iter().any(|verb| word.starts_with(verb))
            });
            let confirmed = could_command || matches!(what, Happening::Lead | Happening::Extend);
            prop_assert!(!commands || confirmed, "commands while it may not command");
            prop_assert!(bench.reign.sizes().iter().all(|&size| size <= 64), "{:?}", bench.reign.sizes());
        }
        let commits = bench.audited().iter().filter(|entry| *entry == "balancer commit").count();
        prop_assert_eq!(commits as u64, bench.head_in_store() + 1, "one entry an epoch");
        let same = bench.audited().iter().filter(|entry| *entry == "kim resume").count();
        prop_assert!(same <= bench.answers.len());
    }
}
