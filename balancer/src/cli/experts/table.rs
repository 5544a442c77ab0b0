//! What all the commands print.

use super::{Failure, refused};
use comfy_table::{Cell, CellAlignment, Table, TableStyle};
use std::io::{ErrorKind, Write};

/// A table whose first column is text and whose others are numbers.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(header.iter().enumerate().map(|(at, title)| aligned(at, title)));
    table
}

/// Adds a row of text and numbers.
pub(super) fn add_row(table: &mut Table, cells: impl IntoIterator<Item = String>) {
    table.add_row(cells.into_iter().enumerate().map(|(at, text)| aligned(at, &text)));
}

fn aligned(column: usize, text: &str) -> Cell {
    Cell::new(text).set_alignment(if column == 0 { CellAlignment::Left } else { CellAlignment::Right })
}

/// Prints data. A reader that has seen enough (`head`) is no failure.
pub(super) fn show(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(format!("{text}\n").as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure {
            exit: 1,
            ..refused("experts_stdout_unwritable", format!("cannot be written: {error}"))
        }),
        _ => Ok(()),
    }
}

/// Bytes in decimal units.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_decimal_units() {
        let shown: Vec<String> = [0, 999, 44_040_192, 2_554_331_136, u64::MAX].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "999 B", "44.04 MB", "2.55 GB", "18446744.07 TB"]);
    }
}
