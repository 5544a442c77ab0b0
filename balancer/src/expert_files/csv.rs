//! Comma-separated loads: a line is a layer, a value an expert. Lines that begin with `#` are comments; the first
//! other line may be a header, if all its values begin like names.

use super::error::{FileError, Place};

/// Most layers of a file, ten times what any model has.
pub(super) const LAYERS_MAX: usize = 4_096;

/// Whether a load is taken: sums, squares and parts of loads stay far from the ends of what a number can hold, and
/// counts of tokens stay far within.
pub(super) fn is_load(value: f64) -> bool {
    value == 0.0 || (1e-30..=1e30).contains(&value)
}

/// `[layers][experts]`; lines are equally long.
pub(super) fn parse(path: &str, bytes: &[u8]) -> Result<Vec<Vec<f64>>, FileError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        FileError::malformed(path, Place::Line(line), "this is not UTF-8 text")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rows: Vec<Vec<f64>> = Vec::new();
    let mut first = true;
    for (line, content) in (1..).zip(text.lines()) {
        if content.trim().is_empty() || content.trim_start().starts_with('#') {
            continue;
        }
        let header = first && content.split(',').all(is_name);
        first = false;
        if header {
            continue;
        }
        let row = values(path, line, content)?;
        if rows.first().is_some_and(|top| top.len() != row.len()) {
            let (have, need) = (row.len(), rows[0].len());
            let problem =
                format!("{have} values, and the lines before have {need}: every layer needs {need}");
            return Err(FileError::malformed(path, Place::Line(line), problem));
        }
        if rows.len() == LAYERS_MAX {
            let problem = format!("more than {LAYERS_MAX} layers");
            return Err(FileError::malformed(path, Place::Line(line), problem));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn values(path: &str, line: usize, content: &str) -> Result<Vec<f64>, FileError> {
    let value = |(field, text): (usize, &str)| {
        let place = Place::LineField(line, field);
        let Some(value) = number(text) else {
            let problem = format!("{:?} is not a number: separate numbers by commas", shortened(text.trim()));
            return Err(FileError::malformed(path, place, problem));
        };
        if !is_load(value) {
            return Err(FileError::Load { path: path.to_owned(), place, value: shortened(text.trim()) });
        }
        Ok(value)
    };
    (1..).zip(content.split(',')).map(value).collect()
}

/// `nan` and `inf` begin like names and are numbers, bad ones.
fn is_name(field: &str) -> bool {
    let begins =
        field.trim().chars().next().is_none_or(|c| c.is_alphabetic() || matches!(c, '_' | '"' | '\''));
    begins && number(field).is_none()
}

fn number(field: &str) -> Option<f64> {
    field.trim().parse().ok()
}

/// What is quoted in a message, so that a binary file does not fill the terminal.
fn shortened(text: &str) -> String {
    const CHARACTERS: usize = 40;
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&[f64]]) {
        assert_eq!(parse("x.csv", text.as_bytes()).unwrap(), expected);
    }

    #[track_caller]
    fn check_refused(text: &[u8], expected: &str) {
        assert_eq!(parse("x.csv", text).unwrap_err().to_string(), expected);
    }

    #[test]
    fn comments_header_and_blank_lines_are_passed_over() {
        check("1,2\n3,4.5\n", &[&[1.0, 2.0], &[3.0, 4.5]]);
        check("# counts\r\ne0, e1\r\n\r\n1, 2e3\r\n", &[&[1.0, 2000.0]]);
        check("\u{feff}7", &[&[7.0]]);
        check("", &[]);
        check("layer\n", &[]);
    }

    #[test]
    fn the_place_of_what_is_wrong_is_named() {
        check_refused(
            b"1,2\n3,x\n",
            "x.csv, line 2, value 2: \"x\" is not a number: separate numbers by commas",
        );
        check_refused(
            b"a,b\nc,d\n",
            "x.csv, line 2, value 1: \"c\" is not a number: separate numbers by commas",
        );
        check_refused(
            b"1,2\n3\n",
            "x.csv, line 2: 1 values, and the lines before have 2: every layer needs 2",
        );
        check_refused(
            b"1,2\n#\n3,-4\n",
            "x.csv, line 3, value 2: the load is -4: it must be 0 or a number from 1e-30 to 1e30",
        );
        check_refused(
            b"nan,2\n",
            "x.csv, line 1, value 1: the load is nan: it must be 0 or a number from 1e-30 to 1e30",
        );
        check_refused(
            b"1,1e999\n",
            "x.csv, line 1, value 2: the load is 1e999: it must be 0 or a number from 1e-30 to 1e30",
        );
        check_refused(b"1,2\n\xff\xfe", "x.csv, line 2: this is not UTF-8 text");
        check_refused(
            b"1 2\n3 4\n",
            "x.csv, line 1, value 1: \"1 2\" is not a number: separate numbers by commas",
        );
        check_refused("1\n".repeat(LAYERS_MAX + 1).as_bytes(), "x.csv, line 4097: more than 4096 layers");
    }
}
