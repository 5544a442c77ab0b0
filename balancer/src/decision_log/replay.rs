//! Lines of events through routers.

use super::LogError;
use super::lines::{Line, Lines, UnitLine, write_header};
use super::outcome::DecisionLine;
use evenkeel_core::routing::{Router, RouterCounters};
use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::io::{BufRead, Write};

/// The routers of the units that lines have introduced.
#[derive(Default)]
struct Units {
    /// `None` after a gap, until a state follows.
    routers: BTreeMap<String, Option<Router>>,
}

impl Units {
    /// Takes a line that is no decision; `refusals`: a batch that is refused is an outcome and no error.
    fn take(
        &mut self,
        line: Line,
        (file, at_line): (String, u64),
        refusals: bool,
    ) -> Result<Vec<DecisionLine>, LogError> {
        match line {
            Line::Header | Line::Decision(_) => Ok(Vec::new()),
            Line::Unit(UnitLine { unit, role, ranks, policy }) => {
                let router = Router::new(role, ranks, policy.policy());
                let router = router.map_err(|source| LogError::Routing {
                    file: file.clone(),
                    line: at_line,
                    source,
                })?;
                match self.routers.entry(unit.clone()) {
                    Entry::Vacant(entry) => entry.insert(Some(router)),
                    Entry::Occupied(_) => return Err(LogError::UnitAgain { file, line: at_line, unit }),
                };
                Ok(Vec::new())
            }
            Line::State { unit, router } => {
                *self.known(&unit, &file, at_line)? = Some(*router);
                Ok(Vec::new())
            }
            Line::Gap { unit } => {
                *self.known(&unit, &file, at_line)? = None;
                Ok(Vec::new())
            }
            Line::Batch { at, unit, events } => {
                let Some(router) = self.known(&unit, &file, at_line)? else {
                    return Err(LogError::StateMissing { file, line: at_line, unit });
                };
                match router.apply(at, &events) {
                    Err(source) if !refusals => Err(LogError::Routing { file, line: at_line, source }),
                    decided => Ok(DecisionLine::all(at, &unit, &decided)),
                }
            }
        }
    }

    fn known(&mut self, unit: &str, file: &str, line: u64) -> Result<&mut Option<Router>, LogError> {
        self.routers.get_mut(unit).ok_or_else(|| LogError::UnknownUnit {
            file: file.to_owned(),
            line,
            unit: unit.to_owned(),
        })
    }
}

/// Prints the decisions on events.
#[derive(Default)]
pub(crate) struct Replay {
    units: Units,
}

impl Replay {
    /// Decides all batches of `input`. Decisions that it holds are passed over. A write that fails ends it: nobody
    /// reads on.
    pub(crate) fn run<R: BufRead>(
        &mut self,
        mut input: Lines<R>,
        out: &mut impl Write,
    ) -> Result<(), LogError> {
        while let Some(line) = input.next()? {
            let written = match line {
                Line::Header => write_header(out).and_then(|()| out.flush()),
                line => {
                    let decisions = self.units.take(line, input.place(), false)?;
                    let print = |decision: &DecisionLine| writeln!(out, "{decision}");
                    decisions.iter().try_for_each(print).and_then(|()| out.flush())
                }
            };
            if written.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// What the routers counted, by unit.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&str, RouterCounters)> {
        let routers = self.units.routers.iter();
        routers.filter_map(|(unit, router)| Some((unit.as_str(), router.as_ref()?.counters())))
    }
}

/// Compares the decisions that a recording holds with those that its events lead to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Check {
    /// Batches replayed.
    pub(crate) batches: u64,
    /// Decisions compared.
    pub(crate) decisions: u64,
    /// Places where batches were not recorded.
    pub(crate) gaps: u64,
    /// Files that end in the middle of a line or batch, as those of a balancer that was killed do.
    pub(crate) cut: u64,
}

impl Check {
    /// Replays one recording from its beginning. Ends at the first difference.
    pub(crate) fn run<R: BufRead>(&mut self, mut input: Lines<R>) -> Result<(), LogError> {
        let mut units = Units::default();
        let mut replayed: VecDeque<DecisionLine> = VecDeque::new();
        loop {
            let line = match input.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(LogError::Truncated { .. }) => {
                    self.cut += 1;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let (file, at_line) = input.place();
            let differ = |recorded: Option<&DecisionLine>, replayed: Option<&DecisionLine>| {
                let text =
                    |line: Option<&DecisionLine>| line.map_or("nothing".to_owned(), ToString::to_string);
                let (recorded, replayed) = (text(recorded), text(replayed));
                LogError::Differ { file: file.clone(), line: at_line, recorded, replayed }
            };
            if let Line::Decision(recorded) = &line {
                let ours = replayed.pop_front();
                if ours.as_ref() != Some(recorded) {
                    return Err(differ(Some(recorded), ours.as_ref()));
                }
                self.decisions += 1;
                continue;
            }
            if let Some(ours) = replayed.front() {
                return Err(differ(None, Some(ours)));
            }
            self.batches += u64::from(matches!(line, Line::Batch { .. }));
            self.gaps += u64::from(matches!(line, Line::Gap { .. }));
            replayed.extend(units.take(line, (file, at_line), true)?);
        }
        self.cut += u64::from(!replayed.is_empty());
        Ok(())
    }
}
