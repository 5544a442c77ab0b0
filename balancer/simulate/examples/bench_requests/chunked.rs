//! Chunked.
use crate::figures::Figures;
use crate::goals::Goal;
use comfy_table::Table;
pub(crate) const TITLE: &str = "CHUNKED";
pub(crate) fn run(_seeds: &[u64], _figures: &mut Figures) -> Table {
    Table::new()
}
pub(crate) fn goals(_figures: &Figures) -> Vec<Goal> {
    Vec::new()
}
