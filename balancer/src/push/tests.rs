use super::*;
use evenkeel_core::ids::{Rank, UnitId};
use evenkeel_core::plan::LayerPlan;
use evenkeel_core::topology::{Role, UnitShape};
use evenkeel_proto::plan_content::Assembler;
use evenkeel_proto::v1::PlanEncoding;
use evenkeel_proto::v1::sync_response::Message;
use std::collections::BTreeMap;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn topology() -> UnitTopology {
    let shape = UnitShape {
        role: Role::Decode,
        layers: 58,
        experts: 256,
        top_k: 8,
        ranks: 32,
        slots_per_rank: 9,
        spare_per_rank: 1,
        expert_bytes: 64,
    };
    let ranks = |from: u16| (from..from + 16).map(Rank).collect::<Vec<_>>();
    let claims = BTreeMap::from([(node("a"), ranks(0)), (node("b"), ranks(16))]);
    UnitTopology::new(UnitId::new("u").unwrap(), shape, &claims).unwrap()
}

/// The boot plan, and a child that moves one expert to node `a`.
fn plans(topology: &UnitTopology) -> [Arc<Plan>; 2] {
    let base = Plan::boot(topology.unit().clone(), topology.shape());
    let mut layers = base.layers.clone();
    let mut slots = layers[3].physical_to_logical.clone();
    slots[9] = slots[310];
    layers[3] = LayerPlan::even(slots, 256);
    let plan = base.child(layers);
    [Arc::new(base), Arc::new(plan)]
}

type Received = mpsc::Receiver<Result<v1::SyncResponse, tonic::Status>>;

fn link(protocol: u32) -> (AgentLink, Received) {
    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    let link = AgentLink::new(commands, oneshot::channel().0);
    link.speak(protocol);
    (link, received)
}

fn taken(received: &mut Received) -> Vec<v1::PlanCommand> {
    let taken = std::iter::from_fn(|| received.try_recv().ok());
    let command = |message: Result<v1::SyncResponse, _>| match message.unwrap().message {
        Some(Message::Plan(command)) => command,
        other => panic!("{other:?}"),
    };
    taken.map(command).collect()
}

fn order(prepared: &Prepared, topology: &UnitTopology, name: &str) -> v1::PlanCommand {
    let addresses = BTreeMap::from([(node("a"), "a:1".to_owned()), (node("b"), "b:1".to_owned())]);
    prepared.order(Term::default(), &node(name), topology, |n| addresses.get(n).cloned(), 1000)
}

#[test]
fn a_node_gets_the_plan_with_its_own_moves() {
    let topology = topology();
    let [base, plan] = plans(&topology);
    let prepared = Prepared::new(&plan, &base, &topology).unwrap();
    for (name, moves) in [("a", 1), ("b", 0)] {
        let (link, mut received) = link(2);
        assert!(link.prepare(&prepared, order(&prepared, &topology, name)));
        let [command] = taken(&mut received).try_into().unwrap();
        assert_eq!((command.moves.len(), command.plan.is_none()), (moves, true));
        assert_eq!(command.base, Some((base.epoch, base.digest()).into()));
        let content = Assembler::default().push(prepared.id, command.content.unwrap()).unwrap().unwrap();
        assert_eq!(content.plan(Some(&base)).unwrap(), *plan);
    }
}

#[test]
fn a_difference_is_sent_until_it_does_not_lead_to_the_plan() {
    let topology = topology();
    let [base, plan] = plans(&topology);
    let prepared = Prepared::new(&plan, &base, &topology).unwrap();
    let (link, mut received) = link(2);
    let encoding = |link: &AgentLink, received: &mut Received| {
        assert!(link.prepare(&prepared, order(&prepared, &topology, "a")));
        taken(received)[0].content.as_ref().unwrap().encoding()
    };
    assert_eq!(encoding(&link, &mut received), PlanEncoding::Delta);
    assert!(link.want_whole_plans());
    assert!(!link.want_whole_plans(), "once is enough");
    assert_eq!(encoding(&link, &mut received), PlanEncoding::Full);
}

#[test]
fn an_agent_of_the_version_before_gets_the_plan_unchunked() {
    let topology = topology();
    let [base, plan] = plans(&topology);
    let prepared = Prepared::new(&plan, &base, &topology).unwrap();
    let (link, mut received) = link(1);
    assert!(link.prepare(&prepared, order(&prepared, &topology, "a")));
    let [command] = taken(&mut received).try_into().unwrap();
    assert_eq!((command.plan, command.content), (Some(plan.as_ref().into()), None));
}

#[test]
fn a_plan_is_encoded_once_and_its_bytes_are_shared() {
    let topology = topology();
    let [base, plan] = plans(&topology);
    let mut cache = PreparedCache::default();
    let first = cache.get(&plan, &base, &topology).unwrap();
    let copy = Arc::new(plan.as_ref().clone());
    assert!(Arc::ptr_eq(&first, &cache.get(&copy, &base, &topology).unwrap()));
    assert!(cache.last(first.id).is_some() && cache.last(first.base_id).is_none());
    let content = |name| {
        let (link, mut received) = link(2);
        assert!(link.prepare(&first, order(&first, &topology, name)));
        taken(&mut received)[0].content.clone().unwrap()
    };
    assert_eq!(content("a").data.as_ptr(), content("b").data.as_ptr());
}

#[test]
fn an_agent_that_does_not_read_is_found_out() {
    let topology = topology();
    let [base, plan] = plans(&topology);
    let prepared = Prepared::new(&plan, &base, &topology).unwrap();
    let (link, _received) = link(2);
    let sent = (0..=COMMANDS_MAX).take_while(|_| link.prepare(&prepared, order(&prepared, &topology, "a")));
    assert_eq!(sent.count(), COMMANDS_MAX);
}
