use super::*;
use crate::score;
use crate::score::{check, even_imbalance};
use proptest::prelude::*;

/// Small deployments that all peers accept, with loads from nothing to very uneven.
fn problems() -> impl Strategy<Value = (Deployment, ExpertLoads, ExpertLoads)> {
    let shapes =
        prop::sample::select(vec![(2, 8, 1, 1), (4, 16, 2, 4), (8, 16, 1, 1), (4, 12, 2, 1), (6, 36, 3, 3)]);
    shapes.prop_flat_map(|(ranks, slots, nodes, groups)| {
        let experts = slots / 2 / groups * groups;
        let load = prop_oneof![Just(0.0), 0.0f64..10.0, 1e3f64..1e6].prop_map(f64::round);
        let rows = prop::collection::vec(prop::collection::vec(load, experts), 2);
        (rows.clone(), rows).prop_map(move |(now, next)| {
            let deployment = Deployment::uniform(ranks, slots, nodes, groups).unwrap();
            (deployment, ExpertLoads::new(&now).unwrap(), ExpertLoads::new(&next).unwrap())
        })
    })
}

fn planners() -> Vec<Box<dyn Planner>> {
    let peers = Peer::ALL.into_iter().map(|peer| Box::new(peer) as Box<dyn Planner>);
    peers.chain([Box::new(Evenkeel::weighted()) as Box<dyn Planner>, Box::new(Evenkeel::even())]).collect()
}

proptest! {
    #[test]
    fn every_planner_places_every_expert((deployment, now, next) in problems()) {
        for planner in planners() {
            let first = Problem { deployment: &deployment, loads: &now, running: None };
            let plan = planner.plan(&first, 1).unwrap();
            let running: Vec<_> = plan.iter().map(|layer| layer.slots.clone()).collect();
            let running = Running { slots: &running, solved_for: &now };
            let again = Problem { loads: &next, running: Some(running), ..first };
            let again = planner.plan(&again, 1).unwrap();
            for layer in plan.iter().chain(&again) {
                prop_assert_eq!(check(&deployment, &layer.slots, now.experts()), Ok(()), "{}", planner.name());
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_plan((deployment, now, _) in problems()) {
        let problem = Problem { deployment: &deployment, loads: &now, running: None };
        // Swift decides over all the layers of a thread together.
        for planner in planners().iter().filter(|planner| !planner.name().starts_with("Swift")) {
            prop_assert_eq!(planner.plan(&problem, 2), planner.plan(&problem, 1), "{}", planner.name());
        }
    }

    #[test]
    fn flashlb_and_swift_put_no_expert_twice_on_a_rank((deployment, now, _) in problems()) {
        for peer in [Peer::FlashLb, Peer::SwiftAlways] {
            let problem = Problem { deployment: &deployment, loads: &now, running: None };
            for layer in peer.plan(&problem, 1).unwrap() {
                prop_assert_eq!(score::doubles(&deployment, &layer.slots), 0, "{}", peer.name());
            }
        }
    }
}

#[test]
fn unequal_ranks_and_empty_slots_are_refused_by_peers() {
    let mut ranks = Deployment::uniform(2, 4, 1, 1).unwrap().ranks().to_vec();
    let loads = ExpertLoads::new(&[vec![1.0, 2.0]]).unwrap();
    let full = Deployment::new(ranks.clone(), 1).unwrap();
    let slots = [vec![Some(ExpertId(0)), None, Some(ExpertId(1)), None]];
    let running = Some(Running { slots: &slots, solved_for: &loads });
    let problem = Problem { deployment: &full, loads: &loads, running };
    assert_eq!(Peer::Swift.plan(&problem, 1), Err(PlannerError::EmptySlots { layer: 0 }));
    ranks[1].slots = 1;
    let deployment = Deployment::new(ranks, 1).unwrap();
    let problem = Problem { deployment: &deployment, loads: &loads, running: None };
    assert_eq!(Peer::Eplb.plan(&problem, 1), Err(PlannerError::UnequalRanks));
}

#[test]
fn swift_drops_its_change_when_its_own_verdict_says_so() {
    let deployment = Deployment::uniform(2, 4, 1, 1).unwrap();
    // A swap gains 2 %: enough for the policy to make it, not enough to call it worth it.
    let loads = ExpertLoads::new(&[vec![1040.0, 1000.0, 1000.0, 960.0]]).unwrap();
    let problem = Problem { deployment: &deployment, loads: &loads, running: None };
    let imbalance = |peer: Peer| {
        let plan = peer.plan(&problem, 1).unwrap();
        even_imbalance(&deployment, &plan[0].slots, loads.layer(0))
    };
    assert_eq!(imbalance(Peer::Swift), 1.02);
    assert_eq!(imbalance(Peer::SwiftAlways), 1.0);
}
