//! The balancer's side of the plan protocol for one unit.
//!
//! ```text
//!            propose                all prepared            stored
//!   STEADY ----------> PREPARING ----------------> STORING --------> STEADY (nodes behind, rolled forward)
//!     ^                    |  refusal, deadline,      | conflict
//!     +--------------------+  a node leaves: ABORT <--+
//! ```
//!
//! The store's compare-and-swap is the only commit point. Before it any trouble aborts the plan and the
//! last good one stays; after it every node is rolled forward, for as long as it takes: a node that serves
//! the parent of the head is given PREPARE and COMMIT again until it serves the head. No plan is proposed
//! while a node is away or behind, so a node is never more than one plan behind.

use crate::ids::{Digest, Epoch, NodeId};
use crate::plan::Plan;
use crate::planted;
use crate::units::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names a plan of the unit.
pub type PlanRef = (Epoch, Digest);

/// Time limits of the protocol, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From PREPARE to the last node's answer.
    pub prepare_ms: u64,
    /// From COMMIT to a node's answer, after which its stream is closed so that it says anew what it serves.
    pub commit_ms: u64,
    /// Before a node that refused to be rolled forward is asked again.
    pub retry_ms: u64,
    /// From COMMIT to a node's answer, after which operators are told that its worker may hang.
    pub hung_ms: u64,
}

impl Default for Limits {
    /// Prepare: a full rank of 44 MB experts over a 100 GbE NIC takes 2.1 s a slot at 58 layers; a minute
    /// bounds what any budget should allow. Commit: a table flip waits for one step, far below a second. Hung: the
    /// longest prefill steps are below a second too, and operators are promised to hear of it within five.
    fn default() -> Self {
        Self { prepare_ms: 60_000, commit_ms: 10_000, retry_ms: 1_000, hung_ms: 4_000 }
    }
}

/// A node's answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Everything is staged.
    Prepared,
    /// The tables are flipped.
    Applied,
    /// What was staged is forgotten.
    Aborted,
    /// Nothing was changed, for this coded reason.
    Refused(String),
}

/// What happens to a unit.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node's stream is up and the node serves this plan (`None`: it boots with the head).
    /// [`UnitControl::admit`] must have accepted it.
    Joined(NodeId, Option<PlanRef>),
    /// A node's stream is down.
    Left(NodeId),
    /// A node has been replaced and will not return.
    Forgotten(NodeId),
    /// The control loop wants this plan. Ignored unless [`UnitControl::can_propose`].
    Propose(Arc<Plan>),
    /// The store accepted the plan as the new head, or did not and never will, for this coded reason.
    Stored(Result<(), &'static str>),
    /// Give the plan up, for this coded reason. Ignored unless it is being prepared.
    GiveUp(&'static str),
    /// A node answered about a plan.
    Answered(NodeId, PlanRef, Answer),
    /// Time has passed.
    Tick,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send PREPARE of `plan` on top of `base`.
    Prepare {
        /// Receiver.
        node: NodeId,
        /// The plan to stage.
        plan: Arc<Plan>,
        /// The plan that the node serves.
        base: Arc<Plan>,
    },
    /// Send COMMIT.
    Commit {
        /// Receiver.
        node: NodeId,
        /// The plan to flip to.
        plan: PlanRef,
    },
    /// Send ABORT.
    Abort {
        /// Receiver.
        node: NodeId,
        /// The plan to forget.
        plan: PlanRef,
    },
    /// Make the plan the head if its parent still is, then report [`Event::Stored`].
    Store(Arc<Plan>),
    /// The plan was given up, for this coded reason, and by this node if one is to blame.
    Aborted {
        /// The plan.
        plan: PlanRef,
        /// Stable code.
        code: String,
        /// Who refused, left or was late.
        node: Option<NodeId>,
    },
    /// Every node serves the head.
    Settled(PlanRef),
    /// The node has not answered COMMIT for long: its worker may hang.
    Hung {
        /// The node.
        node: NodeId,
        /// The plan it does not apply.
        plan: PlanRef,
    },
    /// Close the node's stream: it is silent, or says what cannot be.
    Close {
        /// The node.
        node: NodeId,
        /// Stable code.
        code: &'static str,
    },
}

/// Why a node may not join with the plan it serves. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// A plan this balancer's store has never committed.
    #[error(
        "the node serves plan {applied}, but the last committed plan is {head}: the balancer's store is older than the node; restore the store, or restart the node without its state"
    )]
    EpochAhead {
        /// The node's plan.
        applied: Epoch,
        /// The unit's head.
        head: Epoch,
    },
    /// A plan that is neither the head nor its parent.
    #[error(
        "the node serves plan {applied}, which is neither the last committed plan {head} nor the one before it: restart the node without its state, so that it boots with plan {head}"
    )]
    EpochUnknown {
        /// The node's plan.
        applied: Epoch,
        /// The unit's head.
        head: Epoch,
    },
}

impl AdmitError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            AdmitError::EpochAhead { .. } => "epoch_ahead",
            AdmitError::EpochUnknown { .. } => "epoch_unknown",
        }
    }
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Away,
    /// Connected, without weights; will say APPLIED when it has booted with the head.
    Booting,
    /// Serves the head.
    Current,
    /// Serves the head's parent; PREPARE is due at this time.
    Behind(Millis),
    /// PREPARE of the head was sent at this time.
    RollingPrepare(Millis),
    /// COMMIT of the head was sent at this time.
    RollingCommit(Millis),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Steady,
    Preparing { plan: Arc<Plan>, id: PlanRef, waiting: BTreeSet<NodeId>, deadline: Millis },
    Storing { plan: Arc<Plan>, id: PlanRef },
}

/// What a unit is doing, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// A node is away or boots.
    Incomplete,
    /// Every node serves the head.
    Steady,
    /// A plan is being staged.
    Preparing,
    /// A committed plan is being applied.
    Committing,
}

/// One unit's plans and nodes.
#[derive(Debug, Clone)]
pub struct UnitControl {
    head: Arc<Plan>,
    head_id: PlanRef,
    parent: Option<(Arc<Plan>, PlanRef)>,
    nodes: BTreeMap<NodeId, Standing>,
    phase: Phase,
    limits: Limits,
    /// Nodes that operators have been told of as hung, until they answer or leave.
    hung: BTreeSet<NodeId>,
    /// Plans that a node was told to forget and has not said that it did. Answers arrive in order, so until then all that
    /// it says of such a plan is about the attempt that was given up, and not about one that followed.
    aborting: BTreeMap<NodeId, Vec<PlanRef>>,
}

/// ABORTs that a node may leave unanswered: it answers each at once, so one that leaves more does not work.
const ABORTS_MAX: usize = 8;

impl UnitControl {
    /// A unit whose nodes are all away. `parent` is the plan before `head`, if there was one.
    pub fn new(
        head: Arc<Plan>,
        parent: Option<Arc<Plan>>,
        nodes: impl IntoIterator<Item = NodeId>,
        limits: Limits,
    ) -> Self {
        let head_id = (head.epoch, head.digest());
        let parent = parent.map(|plan| {
            let id = (plan.epoch, plan.digest());
            (plan, id)
        });
        if let Some((_, id)) = &parent {
            assert_eq!(head.parent.as_ref(), Some(id), "the head names its parent");
        }
        let nodes = nodes.into_iter().map(|n| (n, Standing::Away)).collect();
        Self {
            head,
            head_id,
            parent,
            nodes,
            phase: Phase::Steady,
            limits,
            hung: BTreeSet::new(),
            aborting: BTreeMap::new(),
        }
    }

    /// The last committed plan.
    pub fn head(&self) -> &Arc<Plan> {
        &self.head
    }

    /// Epoch and digest of the head.
    pub fn head_id(&self) -> PlanRef {
        self.head_id
    }

    /// The committed plan with this epoch, if it is the head or its parent.
    pub fn plan_of(&self, epoch: Epoch) -> Option<&Arc<Plan>> {
        if self.head.epoch == epoch {
            return Some(&self.head);
        }
        self.parent.as_ref().filter(|(plan, _)| plan.epoch == epoch).map(|(plan, _)| plan)
    }

    /// Whether a plan may be proposed: every node serves the head and nothing is under way.
    pub fn can_propose(&self) -> bool {
        let ready = |s: &Standing| {
            *s == Standing::Current
                || planted!(ProposeWhileBehind) && !matches!(s, Standing::Away | Standing::Booting)
        };
        self.phase == Phase::Steady && self.nodes.values().all(ready)
    }

    /// The plan before the head, as far as it is known.
    pub fn parent(&self) -> Option<&Arc<Plan>> {
        self.parent.as_ref().map(|(plan, _)| plan)
    }

    /// Whether no connected node serves the plan before the head any more.
    pub fn is_applied(&self) -> bool {
        let behind = |standing: &Standing| {
            matches!(standing, Standing::Behind(_) | Standing::RollingPrepare(_) | Standing::RollingCommit(_))
        };
        !self.nodes.values().any(behind)
    }

    /// The plan that is being prepared and can still be given up.
    pub fn preparing(&self) -> Option<PlanRef> {
        match &self.phase {
            Phase::Preparing { id, .. } => Some(*id),
            Phase::Steady | Phase::Storing { .. } => None,
        }
    }

    /// Moves every running time limit: for this long nothing could be commanded.
    pub fn postpone(&mut self, by_ms: u64) {
        if let Phase::Preparing { deadline, .. } = &mut self.phase {
            *deadline = deadline.after(by_ms);
        }
        for standing in self.nodes.values_mut() {
            match standing {
                Standing::Behind(at) | Standing::RollingPrepare(at) | Standing::RollingCommit(at) => {
                    *at = at.after(by_ms);
                }
                Standing::Away | Standing::Booting | Standing::Current => {}
            }
        }
    }

    /// What the unit is doing.
    pub fn activity(&self) -> Activity {
        match self.phase {
            Phase::Preparing { .. } | Phase::Storing { .. } => return Activity::Preparing,
            Phase::Steady => {}
        }
        let mut standings = self.nodes.values();
        if standings.clone().any(|s| matches!(s, Standing::Away | Standing::Booting)) {
            Activity::Incomplete
        } else if standings.all(|s| *s == Standing::Current) {
            Activity::Steady
        } else {
            Activity::Committing
        }
    }

    /// How far each node is, for people.
    pub fn standings(&self) -> impl Iterator<Item = (&NodeId, &'static str)> {
        self.nodes.iter().map(|(node, standing)| {
            let text = match standing {
                Standing::Away => "away",
                Standing::Booting => "booting",
                Standing::Current => "serves the head",
                Standing::Behind(_) => "behind",
                Standing::RollingPrepare(_) => "is prepared",
                Standing::RollingCommit(_) => "commits",
            };
            (node, text)
        })
    }

    /// Whether a node that serves `applied` may join.
    pub fn admit(&self, applied: Option<PlanRef>) -> Result<(), AdmitError> {
        let Some(applied) = applied else { return Ok(()) };
        if applied == self.head_id || self.parent.as_ref().is_some_and(|(_, id)| *id == applied) {
            return Ok(());
        }
        let (applied, head) = (applied.0, self.head.epoch);
        if applied > head {
            Err(AdmitError::EpochAhead { applied, head })
        } else {
            Err(AdmitError::EpochUnknown { applied, head })
        }
    }

    /// The machine's one step.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Joined(node, applied) => self.joined(now, node, applied, &mut actions),
            Event::Left(node) => self.left(&node, false, &mut actions),
            Event::Forgotten(node) => self.left(&node, true, &mut actions),
            Event::Propose(plan) => self.propose(now, plan, &mut actions),
            Event::Stored(accepted) => self.stored(now, accepted, &mut actions),
            Event::GiveUp(code) => {
                if self.preparing().is_some() {
                    self.abort(code, None, &mut actions);
                }
            }
            Event::Answered(node, id, answer) => self.answered(now, &node, id, answer, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn joined(&mut self, now: Millis, node: NodeId, applied: Option<PlanRef>, actions: &mut Vec<Action>) {
        assert_eq!(self.admit(applied), Ok(()), "the shell admits before it joins");
        // A node that joins while a plan is prepared has lost its stream: what it staged is unknown.
        self.left(&node, false, actions);
        let standing = match applied {
            None => Standing::Booting,
            Some(id) if id == self.head_id => Standing::Current,
            Some(_) => Standing::Behind(now),
        };
        self.nodes.insert(node, standing);
        self.roll_forward(now, actions);
        self.settle(standing == Standing::Current, actions);
    }

    fn left(&mut self, node: &NodeId, forget: bool, actions: &mut Vec<Action>) {
        self.hung.remove(node);
        self.aborting.remove(node);
        if forget {
            self.nodes.remove(node);
        } else if let Some(standing) = self.nodes.get_mut(node) {
            *standing = Standing::Away;
        }
        if matches!(self.phase, Phase::Preparing { .. }) {
            self.abort("node_left", Some(node), actions);
        }
    }

    fn propose(&mut self, now: Millis, plan: Arc<Plan>, actions: &mut Vec<Action>) {
        if !self.can_propose() || plan.parent != Some(self.head_id) {
            return;
        }
        let id = (plan.epoch, plan.digest());
        for node in self.nodes.keys() {
            actions.push(Action::Prepare {
                node: node.clone(),
                plan: Arc::clone(&plan),
                base: Arc::clone(&self.head),
            });
        }
        let waiting = self.nodes.keys().cloned().collect();
        self.phase = Phase::Preparing { plan, id, waiting, deadline: now.after(self.limits.prepare_ms) };
    }

    fn stored(&mut self, now: Millis, accepted: Result<(), &'static str>, actions: &mut Vec<Action>) {
        let Phase::Storing { plan, id } = std::mem::replace(&mut self.phase, Phase::Steady) else {
            unreachable!("the store is only asked while storing")
        };
        if let Err(code) = accepted {
            self.send_abort(id, actions);
            actions.push(Action::Aborted { plan: id, code: code.to_owned(), node: None });
            return;
        }
        if planted!(HeadNotAdvanced) {
            return;
        }
        self.parent = Some((std::mem::replace(&mut self.head, plan), self.head_id));
        self.head_id = id;
        for (node, standing) in &mut self.nodes {
            // A node may have left or rejoined between the last PREPARED and the store's answer.
            match standing {
                Standing::Current => {
                    *standing = Standing::RollingCommit(now);
                    actions.push(Action::Commit { node: node.clone(), plan: id });
                }
                Standing::Away | Standing::Booting => {}
                // It came back with an older plan than it had: two behind now, which nothing rolls forward.
                Standing::Behind(_) | Standing::RollingPrepare(_) | Standing::RollingCommit(_) => {
                    *standing = Standing::Away;
                    actions.push(Action::Close { node: node.clone(), code: "epoch_unknown" });
                }
            }
        }
    }

    fn answered(
        &mut self,
        now: Millis,
        node: &NodeId,
        id: PlanRef,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        if self.is_given_up(node, id, &answer) && !planted!(AnswerOfGivenUpCounts) {
            return;
        }
        if let Phase::Preparing { plan, id: prepared, waiting, .. } = &mut self.phase
            && (*prepared == id || planted!(AnswerOfAnyPlanCounts))
        {
            let id = *prepared;
            match answer {
                Answer::Prepared => {
                    waiting.remove(node);
                    if planted!(CommitBeforeStored) && waiting.is_empty() {
                        actions.push(Action::Commit { node: node.clone(), plan: id });
                    }
                    if waiting.is_empty() || waiting.len() == 1 && planted!(CommitBeforeLastPrepared) {
                        let plan = Arc::clone(plan);
                        actions.push(Action::Store(Arc::clone(&plan)));
                        self.phase = Phase::Storing { plan, id };
                    }
                }
                Answer::Refused(code) => self.abort(&code, Some(node), actions),
                Answer::Applied | Answer::Aborted => {
                    actions.push(Action::Close { node: node.clone(), code: "unexpected_answer" });
                }
            }
            return;
        }
        if id == self.head_id {
            return self.answered_head(now, node, answer, actions);
        }
        if answer == Answer::Applied {
            self.booted_with_another(now, node, id, actions);
        }
        // Anything else is about a plan that was given up: the node has been told so.
    }

    /// The head has changed while the node booted with the one before.
    fn booted_with_another(&mut self, now: Millis, node: &NodeId, id: PlanRef, actions: &mut Vec<Action>) {
        let Some(standing @ Standing::Booting) = self.nodes.get_mut(node) else { return };
        if self.parent.as_ref().is_some_and(|(_, parent)| *parent == id) {
            *standing = Standing::Behind(now);
            self.roll_forward(now, actions);
        } else {
            *standing = Standing::Away;
            actions.push(Action::Close { node: node.clone(), code: "epoch_unknown" });
        }
    }

    fn answered_head(&mut self, now: Millis, node: &NodeId, answer: Answer, actions: &mut Vec<Action>) {
        let Some(standing) = self.nodes.get_mut(node) else { return };
        self.hung.remove(node);
        match (answer, *standing) {
            (_, Standing::Away) => {}
            (Answer::Applied, Standing::Current) => {}
            (Answer::Applied, _) => {
                *standing = Standing::Current;
                self.settle(true, actions);
            }
            (Answer::Prepared, Standing::RollingPrepare(_)) => {
                *standing = Standing::RollingCommit(now);
                actions.push(Action::Commit { node: node.clone(), plan: self.head_id });
            }
            (Answer::Refused(code), Standing::RollingCommit(_)) if code == "not_prepared" => {
                *standing = Standing::Behind(now);
                self.roll_forward(now, actions);
            }
            (Answer::Refused(_), Standing::RollingPrepare(_) | Standing::RollingCommit(_)) => {
                *standing = Standing::Behind(now.after(self.limits.retry_ms));
            }
            (Answer::Prepared | Answer::Refused(_) | Answer::Aborted, _) => {}
        }
    }

    fn tick(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if let Phase::Preparing { waiting, deadline, .. } = &self.phase
            && now >= *deadline
        {
            let late = waiting.first().cloned();
            self.abort("deadline_exceeded", late.as_ref(), actions);
        }
        for (node, standing) in &self.nodes {
            let silent = match standing {
                Standing::RollingPrepare(since) => now.since(*since) >= self.limits.prepare_ms,
                Standing::RollingCommit(since) => now.since(*since) >= self.limits.commit_ms,
                _ => false,
            };
            if silent {
                actions.push(Action::Close { node: node.clone(), code: "silent_after_commit" });
            } else if let Standing::RollingCommit(since) = standing
                && now.since(*since) >= self.limits.hung_ms
                && self.hung.insert(node.clone())
            {
                actions.push(Action::Hung { node: node.clone(), plan: self.head_id });
            }
        }
        self.roll_forward(now, actions);
    }

    /// Sends PREPARE of the head to every node that is behind and due.
    fn roll_forward(&mut self, now: Millis, actions: &mut Vec<Action>) {
        for (node, standing) in &mut self.nodes {
            if let Standing::Behind(due) = *standing
                && due <= now
                && !planted!(RollForwardForgotten)
            {
                let (base, _) =
                    self.parent.as_ref().expect("a node is behind only when the head has a parent");
                *standing = Standing::RollingPrepare(now);
                let (node, plan, base) = (node.clone(), Arc::clone(&self.head), Arc::clone(base));
                actions.push(Action::Prepare { node, plan, base });
            }
        }
    }

    fn settle(&self, changed: bool, actions: &mut Vec<Action>) {
        if changed && self.can_propose() {
            actions.push(Action::Settled(self.head_id));
        }
    }

    fn abort(&mut self, code: &str, node: Option<&NodeId>, actions: &mut Vec<Action>) {
        let Phase::Preparing { id, .. } = std::mem::replace(&mut self.phase, Phase::Steady) else {
            unreachable!("only a plan that is being prepared is aborted")
        };
        self.send_abort(id, actions);
        actions.push(Action::Aborted { plan: id, code: code.to_owned(), node: node.cloned() });
    }

    fn send_abort(&mut self, id: PlanRef, actions: &mut Vec<Action>) {
        for (node, _) in self.nodes.iter().filter(|(_, standing)| **standing != Standing::Away) {
            let unanswered = self.aborting.entry(node.clone()).or_default();
            if unanswered.len() >= ABORTS_MAX {
                actions.push(Action::Close { node: node.clone(), code: "aborts_unanswered" });
                continue;
            }
            unanswered.push(id);
            actions.push(Action::Abort { node: node.clone(), plan: id });
        }
    }

    /// Whether an answer is about an attempt that was given up.
    fn is_given_up(&mut self, node: &NodeId, id: PlanRef, answer: &Answer) -> bool {
        let Some(unanswered) = self.aborting.get_mut(node) else { return false };
        let Some(first) = unanswered.iter().position(|plan| *plan == id) else { return false };
        // A disk that is full refuses ABORT too.
        if matches!(answer, Answer::Aborted | Answer::Refused(_)) {
            unanswered.remove(first);
            if unanswered.is_empty() {
                self.aborting.remove(node);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
