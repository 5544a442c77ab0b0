//! Which layers of the model have experts.

use super::{Failure, refused};

/// Most layers of a model, ten times what any has.
const LAYERS_MAX: usize = 4_096;

/// Reads `3-60` or `1,3,5-9`: ascending layers, each once.
pub(super) fn parse(text: &str) -> Result<Vec<usize>, Failure> {
    let bad = |problem: &str| {
        let accepted = "give ascending layers below 4096, such as 3-60 or 1,3,5-9";
        refused("experts_moe_layers", format!("--moe-layers {text}: {problem}: {accepted}"))
    };
    let mut layers: Vec<usize> = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| bad("this is no list of layers"));
        let (from, to) = (number(from)?, number(to)?);
        if to < from || to >= LAYERS_MAX || layers.last().is_some_and(|last| from <= *last) {
            return Err(bad("a layer is out of range or out of order"));
        }
        layers.extend(from..=to);
    }
    Ok(layers)
}

/// Which of `rows` rows belong to the layers: all of them, if there is a row for each layer; else the rows that
/// the layers number.
pub(super) fn rows_of(layers: &[usize], rows: usize, path: &str) -> Result<Vec<usize>, Failure> {
    if layers.len() == rows {
        return Ok((0..rows).collect());
    }
    match layers.last() {
        Some(last) if *last < rows => Ok(layers.to_vec()),
        _ => {
            let (count, last) = (layers.len(), layers.last().map_or(0, |last| *last));
            let need = format!(
                "--moe-layers names {count} layers up to {last}: {count} rows, or at least {}, are needed",
                last + 1
            );
            Err(refused("experts_moe_layers", format!("{path}: there are {rows} rows, and {need}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read() {
        assert_eq!(parse("3-5").unwrap(), [3, 4, 5]);
        assert_eq!(parse("1,3, 5-6").unwrap(), [1, 3, 5, 6]);
        for text in ["", "5-3", "1,1", "2,1", "x", "-3", "0-4096"] {
            assert_eq!(parse(text).unwrap_err().code, "experts_moe_layers", "{text}");
        }
    }

    #[test]
    fn rows_are_taken_whole_or_by_number() {
        assert_eq!(rows_of(&[3, 4], 2, "x").unwrap(), [0, 1]);
        assert_eq!(rows_of(&[3, 4], 5, "x").unwrap(), [3, 4]);
        assert_eq!(rows_of(&[3, 4], 4, "x").unwrap_err().code, "experts_moe_layers");
    }
}
