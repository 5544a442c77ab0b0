//! Joins the counts of a unit's nodes into load windows.
//!
//! A window is *clean* when every node delivered all of it and served all of it under one plan. Only clean
//! windows are solved on: while nodes flip at different steps, a moved expert's tokens can be counted on
//! both of its hosts or on none.

use evenkeel_core::ids::{Epoch, NodeId};
use evenkeel_core::plan::Plan;
use evenkeel_core::snapshot::{LoadTable, SnapshotError, Window};
use evenkeel_core::topology::{UnitShape, UnitTopology};
use evenkeel_proto::{WINDOW_PARTS, v1};
use std::collections::{BTreeMap, BTreeSet};

/// Windows held open per unit. Nodes of one unit step together, so more than a few means that a node is
/// missing; the oldest is then given up.
const OPEN_WINDOWS_MAX: usize = 4;

/// A window all of whose counts are in.
#[derive(Debug, Clone, PartialEq)]
pub struct CleanWindow {
    /// Its steps.
    pub window: Window,
    /// The plan it was served under.
    pub epoch: Epoch,
    /// `[layers][experts]`.
    pub loads: LoadTable,
    /// The same in parts of the window, in order of time.
    pub parts: Vec<LoadTable>,
    /// `[layers][ranks]`, row-major: tokens served by each rank.
    pub rank_loads: Vec<u64>,
}

/// How a segment was taken.
#[derive(Debug, PartialEq)]
pub enum Taken {
    /// More of the window is to come.
    Open,
    /// The window is done and can be solved on.
    Clean(CleanWindow),
    /// The window is done, but was served under more than one plan.
    Mixed,
    /// The segment was dropped, for this coded reason.
    Dropped(&'static str),
}

#[derive(Debug)]
struct Open {
    epochs: BTreeSet<Epoch>,
    done: BTreeSet<NodeId>,
    /// `[parts][layers * experts]`.
    parts: [Vec<u64>; WINDOW_PARTS],
    rank_loads: Vec<u64>,
}

/// The open windows of one unit.
#[derive(Debug, Default)]
pub struct WindowAssembler {
    open: BTreeMap<Window, Open>,
    /// Nothing at or below this step is taken any more.
    closed_to: u64,
    /// Windows given up because a newer one displaced them.
    pub given_up: u64,
}

impl WindowAssembler {
    /// Takes one segment of a node. `plan` is the committed plan of the segment's epoch, if known.
    pub fn take(
        &mut self,
        node: &NodeId,
        segment: &v1::LoadSegment,
        plan: Option<&Plan>,
        topology: &UnitTopology,
    ) -> Taken {
        let Some(window) = segment.window.map(Window::from).filter(|w| w.from_step < w.to_step) else {
            return Taken::Dropped("malformed");
        };
        if window.to_step <= self.closed_to {
            return Taken::Dropped("late");
        }
        let Some(plan) = plan else { return Taken::Dropped("unknown_epoch") };
        let Some(node_ordinal) = topology.ordinal_of(node) else {
            return Taken::Dropped("unknown_node");
        };
        let shape = topology.shape();
        let ranks: Vec<_> = topology.ranks_of(node_ordinal).collect();
        let part = segment.part as usize;
        if part >= WINDOW_PARTS {
            return Taken::Dropped("malformed");
        }
        let per_layer = ranks.len() * shape.physical_per_rank();
        if segment.counts.len() != per_layer * usize::from(shape.layers) {
            return Taken::Dropped("malformed");
        }
        let open = self.open.entry(window).or_insert_with(|| Open::new(shape));
        if open.done.contains(node) {
            return Taken::Dropped("repeated");
        }
        open.epochs.insert(Epoch(segment.epoch));
        for (layer, counts) in segment.counts.chunks_exact(per_layer).enumerate() {
            for (rank, counts) in ranks.iter().zip(counts.chunks_exact(shape.physical_per_rank())) {
                open.add(part, layer, rank.index(), counts, plan, shape);
            }
        }
        if segment.window_complete {
            open.done.insert(node.clone());
        }
        let done = open.done.len() == topology.nodes().len();
        if done { self.close(window, shape) } else { self.bound() }
    }

    fn close(&mut self, window: Window, shape: &UnitShape) -> Taken {
        let open = self.open.remove(&window).expect("the window is open");
        self.closed_to = window.to_step;
        let before = self.open.len();
        self.open.retain(|w, _| w.to_step > window.to_step);
        self.given_up += (before - self.open.len()) as u64;
        if open.epochs.len() != 1 {
            return Taken::Mixed;
        }
        let table = |counts| LoadTable::new(shape.layers.into(), shape.experts.into(), counts);
        let sum = |at: usize| open.parts.iter().filter_map(|part| part.get(at)).sum();
        let cells = usize::from(shape.layers) * usize::from(shape.experts);
        let loads = match table((0..cells).map(sum).collect()) {
            Ok(loads) => loads,
            Err(SnapshotError::TooLarge { .. }) => return Taken::Dropped("load_too_large"),
            Err(other) => unreachable!("the table has the unit's shape: {other}"),
        };
        let parts = open.parts.into_iter().filter(|part| !part.is_empty());
        let parts = parts.map(|part| table(part).expect("a part is below the whole")).collect();
        Taken::Clean(CleanWindow {
            window,
            epoch: *open.epochs.first().expect("exactly one"),
            loads,
            parts,
            rank_loads: open.rank_loads,
        })
    }

    fn bound(&mut self) -> Taken {
        while self.open.len() > OPEN_WINDOWS_MAX {
            let (window, _) = self.open.pop_first().expect("not empty");
            self.closed_to = window.to_step;
            self.given_up += 1;
        }
        Taken::Open
    }
}

impl Open {
    fn new(shape: &UnitShape) -> Self {
        Self {
            epochs: BTreeSet::new(),
            done: BTreeSet::new(),
            parts: Default::default(),
            rank_loads: vec![0; usize::from(shape.layers) * usize::from(shape.ranks)],
        }
    }

    fn add(
        &mut self,
        part: usize,
        layer: usize,
        rank: usize,
        counts: &[u32],
        plan: &Plan,
        shape: &UnitShape,
    ) {
        let experts = usize::from(shape.experts);
        let part = &mut self.parts[part];
        part.resize(usize::from(shape.layers) * experts, 0);
        let first = rank * shape.physical_per_rank();
        let slots = &plan.layers[layer].physical_to_logical[first..first + counts.len()];
        for (&count, expert) in counts.iter().zip(slots) {
            // A count in a slot that the plan leaves empty has no expert to belong to; invariants forbid it.
            if let Some(expert) = expert {
                part[layer * experts + expert.index()] += u64::from(count);
                self.rank_loads[layer * usize::from(shape.ranks) + rank] += u64::from(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::ids::{Rank, UnitId};
    use evenkeel_core::topology::Role;

    /// Two nodes of one rank each, boot placement `0 1 - | 2 0 -`.
    fn topology() -> UnitTopology {
        let shape = UnitShape {
            role: Role::Decode,
            layers: 1,
            experts: 3,
            top_k: 1,
            ranks: 2,
            slots_per_rank: 2,
            spare_per_rank: 1,
            expert_bytes: 8,
        };
        let claims = BTreeMap::from([(node("a"), vec![Rank(0)]), (node("b"), vec![Rank(1)])]);
        UnitTopology::new(UnitId::new("u").expect("valid"), shape, &claims).expect("complete")
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn segment(from: u64, epoch: u64, counts: [u32; 3], window_complete: bool) -> v1::LoadSegment {
        let window = Some(v1::Window { from_step: from, to_step: from + 4 });
        v1::LoadSegment { window, epoch, counts: counts.to_vec(), window_complete, part: 0 }
    }

    fn take(windows: &mut WindowAssembler, name: &str, segment: &v1::LoadSegment) -> Taken {
        let topology = topology();
        let boot = Plan::boot(topology.unit().clone(), topology.shape());
        let next = boot.child(boot.layers.clone());
        let plan = [&boot, &next].into_iter().find(|p| p.epoch.0 == segment.epoch);
        windows.take(&node(name), segment, plan, &topology)
    }

    #[test]
    fn a_window_is_clean_when_every_node_served_it_under_one_plan() {
        let mut windows = WindowAssembler::default();
        assert_eq!(take(&mut windows, "a", &segment(0, 0, [1, 2, 0], false)), Taken::Open);
        assert_eq!(take(&mut windows, "a", &segment(0, 0, [3, 0, 0], true)), Taken::Open);
        let Taken::Clean(clean) = take(&mut windows, "b", &segment(0, 0, [5, 7, 0], true)) else {
            panic!("clean")
        };
        assert_eq!(clean.loads.layer(0), [11, 2, 5]);
        assert_eq!(clean.rank_loads, [6, 12]);
        assert_eq!(clean.epoch, Epoch(0));
    }

    #[test]
    fn the_parts_of_a_window_add_up_to_it() {
        let mut windows = WindowAssembler::default();
        let part = |part, counts, complete| v1::LoadSegment { part, ..segment(0, 0, counts, complete) };
        take(&mut windows, "a", &part(0, [1, 2, 0], false));
        take(&mut windows, "a", &part(2, [3, 0, 0], true));
        take(&mut windows, "b", &part(0, [5, 0, 0], false));
        let Taken::Clean(clean) = take(&mut windows, "b", &part(2, [0, 7, 0], true)) else { panic!("clean") };
        let parts: Vec<&[u64]> = clean.parts.iter().map(|p| p.layer(0)).collect();
        assert_eq!(parts, [[1, 2, 5], [10, 0, 0]]);
        assert_eq!(clean.loads.layer(0), [11, 2, 5]);
    }

    #[test]
    fn a_window_under_two_plans_is_mixed() {
        let mut windows = WindowAssembler::default();
        take(&mut windows, "a", &segment(0, 0, [1, 2, 0], true));
        take(&mut windows, "b", &segment(0, 0, [1, 2, 0], false));
        assert_eq!(take(&mut windows, "b", &segment(0, 1, [1, 2, 0], true)), Taken::Mixed);
    }

    #[test]
    fn what_cannot_be_used_is_dropped_with_a_reason() {
        let mut windows = WindowAssembler::default();
        let full = segment(0, 0, [1, 2, 0], true);
        let check = |windows: &mut WindowAssembler, name: &str, segment: &v1::LoadSegment, reason| {
            assert_eq!(take(windows, name, segment), Taken::Dropped(reason));
        };
        check(&mut windows, "c", &full, "unknown_node");
        check(&mut windows, "a", &segment(0, 9, [1, 2, 0], true), "unknown_epoch");
        check(&mut windows, "a", &v1::LoadSegment { window: None, ..full.clone() }, "malformed");
        check(&mut windows, "a", &v1::LoadSegment { counts: vec![1], ..full.clone() }, "malformed");
        check(&mut windows, "a", &v1::LoadSegment { part: 4, ..full.clone() }, "malformed");
        take(&mut windows, "a", &full);
        check(&mut windows, "a", &full, "repeated");
        take(&mut windows, "b", &full);
        check(&mut windows, "b", &full, "late");
    }

    #[test]
    fn a_missing_node_cannot_make_windows_pile_up() {
        let mut windows = WindowAssembler::default();
        for window in 0..10 {
            take(&mut windows, "a", &segment(window * 4, 0, [1, 1, 0], true));
        }
        assert_eq!((windows.open.len(), windows.given_up), (OPEN_WINDOWS_MAX, 6));
    }
}
