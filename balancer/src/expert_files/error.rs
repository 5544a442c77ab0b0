//! What a file is refused for.

use std::fmt;

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The file as a whole.
    Whole,
    /// 1-based.
    Line(usize),
    /// 1-based.
    LineColumn(usize, usize),
    /// 1-based line, and the ordinal of a value in it, from 1.
    LineField(usize, usize),
    /// 0-based.
    Layer(usize),
    /// 0-based.
    LayerExpert(usize, usize),
    /// 0-based.
    LayerSlot(usize, usize),
    /// 0-based.
    LayerDevice(usize, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Line(line) => write!(f, ", line {line}"),
            Self::LineColumn(line, column) => write!(f, ", line {line}, column {column}"),
            Self::LineField(line, field) => write!(f, ", line {line}, value {field}"),
            Self::Layer(layer) => write!(f, ", layer {layer}"),
            Self::LayerExpert(layer, expert) => write!(f, ", layer {layer}, expert {expert}"),
            Self::LayerSlot(layer, slot) => write!(f, ", layer {layer}, slot {slot}"),
            Self::LayerDevice(layer, device) => write!(f, ", layer {layer}, device {device}"),
        }
    }
}

/// A file that cannot be used. The message names file and place, what was found, what is accepted and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Unreadable { path: String, source: std::io::Error },
    /// The file cannot be written; whatever stood there still does.
    #[error("{path}: cannot be written: {source}; nothing was changed")]
    Unwritable { path: String, source: std::io::Error },
    /// Larger than is read at all.
    #[error("{path}: larger than {max} bytes, which no loads and no plan need: check the file", max = super::disk::FILE_BYTES_MAX)]
    TooLarge { path: String },
    /// An ending that says nothing of the content.
    #[error("{path}: the ending is not known: use {accepted}")]
    Extension { path: String, accepted: &'static str },
    /// Not what its format demands.
    #[error("{path}{place}: {problem}")]
    Malformed { path: String, place: Place, problem: String },
    /// A load that is no finite number, negative, or beyond what sums and parts can hold.
    #[error("{path}{place}: the load is {value}: it must be 0 or a number from 1e-30 to 1e30")]
    Load { path: String, place: Place, value: String },
    /// A plan that breaks what every plan keeps.
    #[error("{path}{place}: {problem}")]
    Plan { path: String, place: Place, problem: String },
    /// A plan that the wanted format cannot hold.
    #[error("{place}{problem}", place = lead(*place))]
    NotRepresentable { place: Place, problem: String },
}

/// A place at the head of a message that names no file.
fn lead(place: Place) -> String {
    match place.to_string().strip_prefix(", ") {
        Some(place) => format!("{place}: "),
        None => String::new(),
    }
}

impl FileError {
    /// The stable code that operators see.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "experts_file_unreadable",
            Self::Unwritable { .. } => "experts_file_unwritable",
            Self::TooLarge { .. } => "experts_file_too_large",
            Self::Extension { .. } => "experts_file_extension",
            Self::Malformed { .. } => "experts_file_malformed",
            Self::Load { .. } => "experts_load",
            Self::Plan { .. } => "experts_plan_file",
            Self::NotRepresentable { .. } => "experts_format",
        }
    }

    pub(crate) fn malformed(path: &str, place: Place, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), place, problem: problem.into() }
    }

    pub(crate) fn plan(path: &str, place: Place, problem: impl Into<String>) -> Self {
        Self::Plan { path: path.to_owned(), place, problem: problem.into() }
    }

    pub(crate) fn not_representable(place: Place, problem: impl Into<String>) -> Self {
        Self::NotRepresentable { place, problem: problem.into() }
    }
}
