//! Where the figures go: a table or JSON on stdout, a page, a file.

use super::refused;
use crate::cli::Failure;
use crate::expert_files::write_whole;
use crate::simulation_report::Report;
use clap::Args;
use comfy_table::{Cell, CellAlignment, Table, TableStyle};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What is written.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(super) struct Output {
    /// Write a page with plots that needs no network; - is stdout
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// Write all figures as JSON to a file
    #[arg(long, value_name = "JSON")]
    out: Option<PathBuf>,
    /// Print all figures as JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Refuses what could not be written, before anything is simulated.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for path in [&self.report, &self.out].into_iter().flatten() {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if path.as_os_str() != "-" && (path.is_dir() || !folder.is_dir()) {
                let problem = format!(
                    "{}: cannot be written: its folder must exist, and it be no folder",
                    path.display()
                );
                return Err(refused("simulate_file_unwritable", problem));
            }
        }
        let on_stdout = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| path.as_os_str() == "-");
        let claims = [self.json, on_stdout(&self.report), on_stdout(&self.out)];
        if claims.iter().filter(|&&claim| claim).count() > 1 {
            let problem = "--json, --report - and --out - all want stdout: name files for the others";
            return Err(refused("simulate_flags", problem));
        }
        Ok(())
    }

    /// Writes and prints.
    pub(super) fn write(&self, report: &Report) -> Result<(), Failure> {
        let json = || format!("{:#}\n", report.json());
        let mut on_stdout = self.json;
        if let Some(path) = &self.report {
            on_stdout |= path.as_os_str() == "-";
            write(path, &report.html())?;
        }
        if let Some(path) = &self.out {
            on_stdout |= path.as_os_str() == "-";
            write(path, &json())?;
        }
        match (self.json, on_stdout) {
            (true, _) => print(&json()),
            (false, true) => Ok(()),
            (false, false) => print(&format!("{}\n", table(report))),
        }
    }
}

/// Writes a file whole; `-` is stdout.
pub(super) fn write(path: &Path, content: &str) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        return print(content);
    }
    write_whole(path, content.as_bytes()).map_err(|error| Failure::new("simulate_file_unwritable", error))
}

/// Prints data. A reader that has seen enough (`head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new("simulate_stdout_unwritable", format!("stdout cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// A table whose first columns are text, so many, and whose others are numbers.
pub(super) fn rows<'a>(
    texts: usize,
    titles: &[&str],
    rows: impl IntoIterator<Item = &'a Vec<String>>,
) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(titles.iter().enumerate().map(|(at, title)| cell(at < texts, title)));
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(at, text)| cell(at < texts, text)));
    }
    table
}

fn cell(is_text: bool, text: &str) -> Cell {
    Cell::new(text).set_alignment(if is_text { CellAlignment::Left } else { CellAlignment::Right })
}

fn table(report: &Report) -> String {
    let summary = report.summary();
    let mut text = String::new();
    for (name, value) in &report.inputs {
        text += &format!("{name:<16} {value}\n");
    }
    for note in &report.notes {
        text += &format!("{:<16} {note}\n", "note");
    }
    format!(
        "simulated: nothing here was measured on hardware\n{text}{}",
        rows(1, &summary.titles, &summary.rows)
    )
}
