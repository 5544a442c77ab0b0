//! How the tables look.

use comfy_table::{Cell, CellAlignment, Table, presets};

pub(crate) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    table
}

pub(crate) fn right(text: impl Into<String>) -> Cell {
    Cell::new(text.into()).set_alignment(CellAlignment::Right)
}

/// An imbalance.
pub(crate) fn ratio(value: f64) -> Cell {
    right(format!("{value:.4}"))
}

pub(crate) fn ms(value: f64) -> Cell {
    right(format!("{value:.3}"))
}

pub(crate) fn percent(part: f64) -> Cell {
    right(format!("{:.1} %", part * 100.0))
}
