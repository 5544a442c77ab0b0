//! Readers of what people hand over, for who only wants to know whether they take it: the fuzzer.

use crate::decision_log::{Lines, Replay};
use crate::expert_files;
use std::path::Path;

/// Whether the file holds a plan, of Evenkeel or of an engine, by its ending and keys.
pub fn is_plan_file(path: &Path) -> bool {
    expert_files::read_plan(path, None).is_ok()
}

/// Whether the file holds expert loads, by its ending.
pub fn is_loads_file(path: &Path) -> bool {
    expert_files::read_loads(path).is_ok()
}

/// Whether the text is a recording of decisions, or events for them, to its end.
pub fn is_decision_log(text: &[u8]) -> bool {
    Replay::default().run(Lines::new("input".to_owned(), text), &mut std::io::sink()).is_ok()
}
