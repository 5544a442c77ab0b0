//! A placement packed for the split: colours, segments, lanes.

/// Most lanes of a segment: those of a warp. An expert on more ranks is split into parts by the plan's shares.
const SEGMENT_MAX: usize = 32;
/// Most records of lanes, over all colours: 32 KiB of shared memory.
pub const RECORDS_MAX: usize = 2048;
/// Most lanes: the threads of the one block.
pub const LANES_MAX: usize = 512;
/// Most experts, ranks and slots: the fields of a packed lane, and static shared memory.
const EXPERTS_MAX: usize = 1024;
const RANKS_MAX: usize = 512;
const SLOTS_MAX: usize = 4096;

/// Why a placement cannot be split on the device. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Something is larger than the kernel takes.
    #[error("[split_out_of_range] {field} is {value}: accepted is 1 to {most}")]
    OutOfRange {
        /// What.
        field: &'static str,
        /// How many.
        value: usize,
        /// The most.
        most: usize,
    },
    /// Slots that do not divide over the ranks.
    #[error(
        "[split_slots_not_divisible] {slots} slots do not divide over {ranks} ranks: give every rank as many"
    )]
    NotDivisible {
        /// Slots.
        slots: usize,
        /// Ranks.
        ranks: usize,
    },
    /// A slot that names an expert the layer does not have.
    #[error("[split_unknown_expert] slot {slot} holds expert {expert}: the layer has {experts} experts")]
    UnknownExpert {
        /// Physical slot.
        slot: usize,
        /// Its expert.
        expert: usize,
        /// Experts of the layer.
        experts: usize,
    },
    /// An expert that no slot holds.
    #[error("[split_no_replica] expert {expert} is in no slot: place it")]
    NoReplica {
        /// The expert.
        expert: usize,
    },
}

impl SplitError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            SplitError::OutOfRange { .. } => "split_out_of_range",
            SplitError::NotDivisible { .. } => "split_slots_not_divisible",
            SplitError::UnknownExpert { .. } => "split_unknown_expert",
            SplitError::NoReplica { .. } => "split_no_replica",
        }
    }
}

/// What a slot is to the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotKind {
    /// Holds the only replica of the expert.
    Single(u16),
    /// A lane decides.
    Shared,
    /// Gets nothing: empty, or the expert's second slot on the rank.
    Empty,
}

/// One replica of a replicated expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Lane {
    pub(super) rank: u16,
    pub(super) slot: u16,
    /// The part of the segment's count that it starts with: the plan's share.
    pub(super) start: f32,
}

/// What of its expert's count a segment divides: the tokens between two points of 0..=65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    from: u32,
    to: u32,
}

impl Part {
    /// Tokens of the part; the parts of an expert sum to its count.
    pub(super) fn of(self, count: u32) -> u32 {
        let upto = |point: u32| ((u64::from(count) * u64::from(point)) >> 16) as u32;
        upto(self.to) - upto(self.from)
    }
}

/// The lanes of one expert (or of a part of it): `1 << log` of them from lane `at`, of which the first `lanes.len()` are used.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Segment {
    pub(super) expert: u16,
    pub(super) part: Part,
    pub(super) at: usize,
    pub(super) log: u32,
    /// The widest segment of the warp: it decides how levels are found.
    pub(super) warp_log: u32,
    pub(super) lanes: Vec<Lane>,
}

/// A layer's placement, packed. Made once per plan.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitPlan {
    experts: usize,
    ranks: usize,
    pub(super) slots: Vec<SlotKind>,
    /// By colour.
    pub(super) colours: Vec<Vec<Segment>>,
    lanes: usize,
}

/// An expert's lanes while colours are sought.
struct Replicated {
    expert: u16,
    part: Part,
    log: u32,
    lanes: Vec<Lane>,
}

impl SplitPlan {
    /// Packs `[slots]` of expert (`None` is empty) and share in units of 1/65536, slots numbered rank after rank.
    pub fn new(experts: usize, ranks: usize, slots: &[(Option<usize>, u32)]) -> Result<Self, SplitError> {
        let within = |field, value, most| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(SplitError::OutOfRange { field, value, most })
            }
        };
        within("experts", experts, EXPERTS_MAX)?;
        within("ranks", ranks, RANKS_MAX)?;
        within("slots", slots.len(), SLOTS_MAX)?;
        if !slots.len().is_multiple_of(ranks) {
            return Err(SplitError::NotDivisible { slots: slots.len(), ranks });
        }
        let (kinds, replicated) = replicas(experts, slots.len() / ranks, slots)?;
        // Fewest colours first: each is a step of every sweep. Then fewest warps, which cost barriers.
        let fewest = colour(&replicated, ranks, LANES_MAX).len();
        let lanes = (1..=LANES_MAX / 32)
            .map(|warps| 32 * warps)
            .find(|&lanes| colour(&replicated, ranks, lanes).len() == fewest)
            .unwrap_or(LANES_MAX);
        within("records", (fewest * lanes).max(1), RECORDS_MAX)?;
        let mut colours = colour(&replicated, ranks, lanes);
        for segments in &mut colours {
            widest_of_warps(segments);
        }
        Ok(Self { experts, ranks, slots: kinds, colours, lanes })
    }

    /// Logical experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Physical slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Colours; with at most one the first sweep is exact.
    pub fn colours(&self) -> usize {
        self.colours.len()
    }

    /// Lanes of a colour: threads that sweep.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// `u32 [slots]` for the device: the expert that is only there, or a mark.
    pub fn device_slots(&self) -> Vec<u32> {
        let word = |kind: &SlotKind| match kind {
            SlotKind::Single(expert) => u32::from(*expert),
            SlotKind::Shared => u32::MAX,
            SlotKind::Empty => u32::MAX - 1,
        };
        self.slots.iter().map(word).collect()
    }

    /// `u32 [colours][lanes][4]` for the device:
    /// `expert:16 | log:3 | warp_log:3 | 0:8 | end:1 | here:1` from the low bit up, `rank:16 | slot:16`, the start
    /// share as a float, the part's `from:16 | to - 1:16`.
    pub fn device_lanes(&self) -> Vec<u32> {
        let mut words = vec![0; self.colours.len() * self.lanes * 4];
        for (colour, segments) in words.chunks_mut(self.lanes * 4).zip(&self.colours) {
            for warp in 0..self.lanes / 32 {
                let log = segments.iter().find(|s| s.at / 32 == warp).map_or(1, |s| s.warp_log);
                for lane in 32 * warp..32 * warp + 32 {
                    // Lanes of no expert shuffle along in segments of their own.
                    colour[4 * lane] = 1 << 16 | log << 19;
                }
            }
            for s in segments {
                for place in 0..1usize << s.log {
                    let word = &mut colour[4 * (s.at + place)..][..4];
                    let end = place + 1 == s.lanes.len();
                    word[0] = u32::from(s.expert) | s.log << 16 | s.warp_log << 19 | u32::from(end) << 30;
                    word[3] = s.part.from | s.part.to.saturating_sub(1) << 16;
                    if let Some(lane) = s.lanes.get(place) {
                        word[0] |= 1 << 31;
                        word[1] = u32::from(lane.rank) | u32::from(lane.slot) << 16;
                        word[2] = lane.start.to_bits();
                    }
                }
            }
        }
        words
    }
}

/// Sorts out which slots need no decision, and gathers the replicas of the others by expert.
fn replicas(
    experts: usize,
    slots_per_rank: usize,
    slots: &[(Option<usize>, u32)],
) -> Result<(Vec<SlotKind>, Vec<Replicated>), SplitError> {
    let mut kinds = vec![SlotKind::Empty; slots.len()];
    let mut of_expert: Vec<Vec<(Lane, u32)>> = vec![Vec::new(); experts];
    for (slot, &(expert, share)) in slots.iter().enumerate() {
        let Some(expert) = expert else { continue };
        let row = of_expert.get_mut(expert).ok_or(SplitError::UnknownExpert { slot, expert, experts })?;
        let rank = (slot / slots_per_rank) as u16;
        match row.iter_mut().find(|(lane, _)| lane.rank == rank) {
            Some((_, sum)) => *sum = sum.saturating_add(share),
            None => row.push((Lane { rank, slot: slot as u16, start: 0.0 }, share)),
        }
    }
    let mut replicated = Vec::new();
    for (expert, row) in of_expert.into_iter().enumerate() {
        match row.len() {
            0 => return Err(SplitError::NoReplica { expert }),
            1 => kinds[usize::from(row[0].0.slot)] = SlotKind::Single(expert as u16),
            _ => {
                row.iter().for_each(|(lane, _)| kinds[usize::from(lane.slot)] = SlotKind::Shared);
                replicated.extend(parts(expert as u16, &row));
            }
        }
    }
    Ok((kinds, replicated))
}

/// The expert as segments that fit a warp: one, or parts of equal width in proportion to the plan's shares.
fn parts(expert: u16, row: &[(Lane, u32)]) -> Vec<Replicated> {
    let total: u64 = row.iter().map(|&(_, share)| u64::from(share)).sum();
    let count = row.len().div_ceil(SEGMENT_MAX);
    let mut from = 0;
    let mut before = 0u64;
    let chunk = row.len().div_ceil(count);
    // Every part but the last ends where one point is left for each that follows: `from` has 16 bits.
    let ends = (1..=row.len().div_ceil(chunk) as u32).rev().map(|left| (1 << 16) + 1 - left);
    let segments = row.chunks(chunk).zip(ends).map(|(lanes, most)| {
        let own: u64 = lanes.iter().map(|&(_, share)| u64::from(share)).sum();
        before += own;
        let to = (before << 16) / total.max(1);
        let part = Part { from, to: (to as u32).clamp(from + 1, most) };
        from = part.to;
        let start = |share: u32| if own == 0 { 1.0 / lanes.len() as f32 } else { share as f32 / own as f32 };
        let lanes: Vec<Lane> =
            lanes.iter().map(|&(lane, share)| Lane { start: start(share), ..lane }).collect();
        Replicated { expert, part, log: lanes.len().next_power_of_two().ilog2(), lanes }
    });
    let mut segments: Vec<Replicated> = segments.collect();
    // Whatever the rounding, and where the shares are all zero: the parts cover the whole.
    if let Some(last) = segments.last_mut() {
        last.part.to = 1 << 16;
    }
    segments
}

/// Colours whose experts share no rank and whose segments fit `lanes`. Of the experts left, the one whose ranks already
/// meet the most colours goes next, into the first colour that takes it (Brelaz: New methods to color the vertices of a
/// graph, CACM 1979); ties go to the one on more ranks.
fn colour(replicated: &[Replicated], ranks: usize, lanes: usize) -> Vec<Vec<Segment>> {
    struct Colour {
        taken: Vec<bool>,
        used: usize,
        members: Vec<usize>,
    }
    let mut colours: Vec<Colour> = Vec::new();
    let meets = |c: &Colour, r: &Replicated| r.lanes.iter().any(|lane| c.taken[usize::from(lane.rank)]);
    let mut met = vec![0usize; replicated.len()];
    let mut left: Vec<usize> = (0..replicated.len()).collect();
    while let Some(at) = (0..left.len())
        .max_by_key(|&at| (met[left[at]], replicated[left[at]].lanes.len(), std::cmp::Reverse(left[at])))
    {
        let next = left.swap_remove(at);
        let r = &replicated[next];
        let size = 1 << r.log;
        let fits = |c: &Colour| c.used + size <= lanes && !meets(c, r);
        let at = colours.iter().position(fits).unwrap_or_else(|| {
            colours.push(Colour { taken: vec![false; ranks], used: 0, members: Vec::new() });
            colours.len() - 1
        });
        let before: Vec<bool> = left.iter().map(|&other| meets(&colours[at], &replicated[other])).collect();
        let colour = &mut colours[at];
        r.lanes.iter().for_each(|lane| colour.taken[usize::from(lane.rank)] = true);
        colour.used += size;
        colour.members.push(next);
        for (&other, before) in left.iter().zip(before) {
            met[other] += usize::from(!before && meets(&colours[at], &replicated[other]));
        }
    }
    colours.into_iter().map(|colour| segments(replicated, colour.members)).collect()
}

/// Lanes for the members of a colour: the widest first, so that each begins at a multiple of its size.
fn segments(replicated: &[Replicated], mut members: Vec<usize>) -> Vec<Segment> {
    members.sort_by_key(|&member| {
        let r = &replicated[member];
        (std::cmp::Reverse(r.lanes.len()), r.expert)
    });
    let mut used = 0;
    let segment = |member: usize| {
        let Replicated { expert, part, log, ref lanes } = replicated[member];
        let at = used;
        used += 1 << log;
        Segment { expert, part, at, log, warp_log: log, lanes: lanes.clone() }
    };
    members.into_iter().map(segment).collect()
}

/// Sets every segment's `warp_log`.
fn widest_of_warps(segments: &mut [Segment]) {
    let mut widest = [0; LANES_MAX / 32];
    for s in segments.iter() {
        widest[s.at / 32] = widest[s.at / 32].max(s.log);
    }
    for s in segments {
        s.warp_log = widest[s.at / 32];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = 1 << 15;
    const ALL: u32 = 1 << 16;

    #[test]
    fn experts_that_share_a_rank_have_different_colours() {
        // Ranks of two slots: 0 and 1 share expert 0, 1 and 2 expert 1, 2 and 3 expert 2.
        let e = |expert| (Some(expert), HALF);
        let slots = [e(0), (Some(3), ALL), e(0), e(1), e(1), e(2), e(2), (None, 0)];
        let plan = SplitPlan::new(4, 4, &slots).unwrap();
        let colours: Vec<Vec<u16>> =
            plan.colours.iter().map(|c| c.iter().map(|s| s.expert).collect()).collect();
        assert_eq!(colours, [vec![0, 2], vec![1]]);
        assert_eq!((plan.lanes(), plan.slots[1], plan.slots[7]), (32, SlotKind::Single(3), SlotKind::Empty));
    }

    #[test]
    fn a_second_slot_on_the_rank_gets_nothing() {
        let slots = [(Some(0), HALF / 2), (Some(0), HALF / 2), (Some(0), HALF), (Some(1), ALL)];
        let plan = SplitPlan::new(2, 2, &slots).unwrap();
        assert_eq!(plan.slots[1], SlotKind::Empty);
        assert_eq!(plan.colours[0][0].lanes[0].start, 0.5);
    }

    #[test]
    fn an_expert_on_more_ranks_than_a_warp_has_lanes_is_split_into_parts() {
        let plan = SplitPlan::new(1, 40, &[(Some(0), ALL / 40); 40]).unwrap();
        let parts: Vec<(usize, Part)> =
            plan.colours[0].iter().map(|segment| (segment.lanes.len(), segment.part)).collect();
        let middle = 20 * 65536 / 40;
        assert_eq!(parts, [(20, Part { from: 0, to: middle }), (20, Part { from: middle, to: ALL })]);
        assert_eq!(parts.iter().map(|(_, part)| part.of(1001)).sum::<u32>(), 1001);
    }

    #[test]
    fn parts_without_a_share_keep_a_point_of_their_own() {
        let mut slots = [(Some(0), 0); 70];
        slots[0].1 = ALL;
        let plan = SplitPlan::new(1, 70, &slots).unwrap();
        let parts: Vec<Part> = plan.colours[0].iter().map(|segment| segment.part).collect();
        let part = |from, to| Part { from, to };
        assert_eq!(parts, [part(0, ALL - 2), part(ALL - 2, ALL - 1), part(ALL - 1, ALL)]);
    }

    #[track_caller]
    fn check_refused(experts: usize, ranks: usize, slots: &[(Option<usize>, u32)], code: &str) {
        assert_eq!(SplitPlan::new(experts, ranks, slots).unwrap_err().code(), code);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let one = [(Some(0), ALL)];
        check_refused(0, 1, &one, "split_out_of_range");
        check_refused(1025, 1, &one, "split_out_of_range");
        check_refused(1, 513, &one, "split_out_of_range");
        check_refused(1, 1, &[], "split_out_of_range");
        check_refused(1, 2, &one, "split_slots_not_divisible");
        check_refused(1, 1, &[(Some(1), ALL)], "split_unknown_expert");
        check_refused(2, 1, &one, "split_no_replica");
        // Sixty-five experts on the same two ranks need sixty-five colours.
        let many: Vec<_> = (0..130).map(|slot| (Some(slot % 65), HALF)).collect();
        check_refused(65, 2, &many, "split_out_of_range");
    }
}
