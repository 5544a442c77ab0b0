//! NumPy's `.npy`, as its format description (NEP 1) has it: two-dimensional arrays of numbers, nothing pickled. The
//! header is a Python literal of three keys; general readers bring a grammar for all Python literals along.

use super::error::{FileError, Place};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own limit (`max_header_size`).
const HEADER_BYTES_MAX: usize = 10_000;
const KINDS: &str = "i1 i2 i4 i8 u1 u2 u4 u8 f4 f8";

/// `[rows][columns]`.
#[derive(Debug, PartialEq)]
pub(super) struct Array {
    pub(super) rows: Vec<Vec<f64>>,
    /// Whether the file held integers.
    pub(super) integer: bool,
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads a whole file.
pub(super) fn parse(path: &str, bytes: &[u8]) -> Result<Array, FileError> {
    let bad = |problem: String| FileError::malformed(path, Place::Whole, problem);
    let (header, data) = split_header(bytes).map_err(bad)?;
    let header = parse_header(header).map_err(bad)?;
    let [rows, columns] = header.shape[..] else {
        let shape = header.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(bad(format!(
            "the array has shape ({shape}): two dimensions, [layers, experts] or [layers, slots], are needed"
        )));
    };
    let (big_endian, kind, size) = element(&header.descr).map_err(bad)?;
    let need = rows.checked_mul(columns).and_then(|count| count.checked_mul(size));
    if need != Some(data.len()) {
        let need = need.map_or("more bytes than there are numbers for".to_owned(), |n| format!("{n} bytes"));
        let have = data.len();
        let (descr, what) = (&header.descr, "the file is truncated or damaged: write it again");
        return Err(bad(format!("{rows} x {columns} of {descr} need {need}, and there are {have}: {what}")));
    }
    if data.is_empty() {
        // Of an array without columns any number of rows would fit.
        return Ok(Array { rows: Vec::new(), integer: kind != b'f' });
    }
    let number = |at: usize| {
        let mut raw = [0; 8];
        raw[..size].copy_from_slice(&data[at * size..(at + 1) * size]);
        if big_endian {
            raw[..size].reverse();
        }
        decode(kind, size, raw)
    };
    let at = |row, column| if header.fortran { column * rows + row } else { row * columns + column };
    let rows = (0..rows).map(|row| (0..columns).map(|column| number(at(row, column))).collect()).collect();
    Ok(Array { rows, integer: kind != b'f' })
}

/// Little-endian bytes to a number; integers beyond 2^53 are rounded, which no load minds.
fn decode(kind: u8, size: usize, raw: [u8; 8]) -> f64 {
    let unsigned = u64::from_le_bytes(raw);
    match (kind, size) {
        (b'f', 4) => f64::from(f32::from_bits(unsigned as u32)),
        (b'f', _) => f64::from_bits(unsigned),
        (b'u', _) => unsigned as f64,
        // The sign is brought to the top and shifted back down.
        _ => ((unsigned << (64 - 8 * size)) as i64 >> (64 - 8 * size)) as f64,
    }
}

fn split_header(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let truncated = || "the header is truncated: write the file again".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or("this is no .npy file: it does not begin with \\x93NUMPY")?;
    let [major, _minor, rest @ ..] = rest else { return Err(truncated()) };
    let (length, rest) = match (major, rest) {
        (1, [a, b, rest @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        (2 | 3, [a, b, c, d, rest @ ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        (1..=3, _) => return Err(truncated()),
        _ => return Err(format!("version {major} of .npy is not known: 1, 2 and 3 are")),
    };
    if length > HEADER_BYTES_MAX {
        return Err(format!("the header has {length} bytes: at most {HEADER_BYTES_MAX} are read"));
    }
    rest.split_at_checked(length).ok_or_else(truncated)
}

fn element(descr: &str) -> Result<(bool, u8, usize), String> {
    let refused = || format!("elements of type {descr:?} are not read: {KINDS} are, little- or big-endian");
    let [order, kind, size] = descr.as_bytes() else { return Err(refused()) };
    let size = usize::from(size.wrapping_sub(b'0'));
    let known = match kind {
        b'i' | b'u' => matches!(size, 1 | 2 | 4 | 8),
        b'f' => matches!(size, 4 | 8),
        _ => false,
    };
    match order {
        b'<' | b'|' | b'>' if known && (*order != b'|' || size == 1) => Ok((*order == b'>', *kind, size)),
        _ => Err(refused()),
    }
}

/// The header's dictionary: `descr`, `fortran_order` and `shape`, each once, in any order.
fn parse_header(header: &[u8]) -> Result<Header, String> {
    let text = std::str::from_utf8(header).map_err(|_| "the header is not text".to_owned())?;
    let malformed = || format!("the header {:?} is not {{'descr', 'fortran_order', 'shape'}}", text.trim());
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(malformed)?;
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let (key, after) = quoted(rest).ok_or_else(malformed)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(malformed)?.trim_start();
        let after = match key {
            "descr" if descr.is_none() && value.starts_with('[') => {
                return Err("records of several fields are not read: save one array of numbers".to_owned());
            }
            "descr" if descr.is_none() => {
                let (value, after) = quoted(value).ok_or_else(malformed)?;
                descr = Some(value.to_owned());
                after
            }
            "fortran_order" if fortran.is_none() => {
                let (value, after) = boolean(value).ok_or_else(malformed)?;
                fortran = Some(value);
                after
            }
            "shape" if shape.is_none() => {
                let (value, after) = tuple(value).ok_or_else(malformed)?;
                shape = Some(value);
                after
            }
            _ => return Err(malformed()),
        };
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return Err(malformed()),
        };
    }
    match (descr, fortran, shape) {
        (Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
        _ => Err(malformed()),
    }
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn boolean(text: &str) -> Option<(bool, &str)> {
    match text.strip_prefix("True") {
        Some(rest) => Some((true, rest)),
        None => text.strip_prefix("False").map(|rest| (false, rest)),
    }
}

fn tuple(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inner, rest) = text.strip_prefix('(')?.split_once(')')?;
    let inner = inner.trim();
    let inner = inner.strip_suffix(',').unwrap_or(inner);
    if inner.is_empty() {
        return Some((Vec::new(), rest));
    }
    let numbers: Result<Vec<usize>, _> = inner.split(',').map(|number| number.trim().parse()).collect();
    numbers.ok().map(|numbers| (numbers, rest))
}

/// `[rows][columns]` as little-endian 8-byte integers, version 1.0.
pub(super) fn write(rows: &[Vec<i64>]) -> Vec<u8> {
    let columns = rows.first().map_or(0, Vec::len);
    let header =
        format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({}, {columns}), }}", rows.len());
    // The data begin at a multiple of 64 bytes; the header ends with a line feed.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((padded as u16).to_le_bytes());
    bytes.extend(format!("{header:<width$}\n", width = padded - 1).bytes());
    bytes.extend(rows.iter().flatten().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A version 1.0 file with this header and these bytes.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(data);
        bytes
    }

    fn of(descr: &str, data: &[u8]) -> Vec<u8> {
        file(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1, 2), }}\n"), data)
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[&[f64]]) {
        assert_eq!(parse("x.npy", bytes).unwrap().rows, expected);
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], words: &str) {
        let error = parse("x.npy", bytes).unwrap_err().to_string();
        assert!(error.starts_with("x.npy") && error.contains(words), "{error}");
    }

    #[test]
    fn numbers_of_every_kind_and_order_are_read() {
        check(&of("|i1", &[1, 0xff]), &[&[1.0, -1.0]]);
        check(&of("|u1", &[1, 0xff]), &[&[1.0, 255.0]]);
        check(&of("<i2", &[1, 0, 0xfe, 0xff]), &[&[1.0, -2.0]]);
        check(&of(">u2", &[0, 1, 1, 0]), &[&[1.0, 256.0]]);
        check(&of("<i4", &[7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), &[&[7.0, -1.0]]);
        check(&of(">u4", &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]), &[&[7.0, 4_294_967_295.0]]);
        check(&of("<i8", &[3i64.to_le_bytes(), (-3i64).to_le_bytes()].concat()), &[&[3.0, -3.0]]);
        check(&of(">u8", &[3u64.to_be_bytes(), 9u64.to_be_bytes()].concat()), &[&[3.0, 9.0]]);
        check(&of("<f4", &[0.5f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat()), &[&[0.5, 2.0]]);
        check(&of(">f8", &[0.1f64.to_be_bytes(), 1e9f64.to_be_bytes()].concat()), &[&[0.1, 1e9]]);
    }

    #[test]
    fn fortran_order_and_any_order_of_keys_are_read() {
        let header = r#"{"shape": (2, 3), "fortran_order": True, "descr": "|u1"}"#;
        check(&file(header, &[1, 4, 2, 5, 3, 6]), &[&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]]);
    }

    #[test]
    fn what_is_no_array_of_numbers_is_refused() {
        check_refused(b"PK\x03\x04", "\\x93NUMPY");
        check_refused(b"\x93NUMPY\x01", "truncated");
        check_refused(b"\x93NUMPY\x09\x00\x00\x00", "version 9");
        check_refused(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "10000");
        check_refused(&of("<i4", &[0; 7]), "need 8 bytes, and there are 7");
        check_refused(&of("<i4", &[0; 9]), "need 8 bytes, and there are 9");
        check_refused(&of("|O", &[0; 2]), "not read");
        check_refused(&of("<f2", &[0; 4]), "not read");
        check_refused(&of("|i4", &[0; 8]), "not read");
        check_refused(&file("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", &[0; 8]), "(2)");
        check_refused(&file("{'descr': '<i4', 'shape': (1, 2)}", &[0; 8]), "fortran_order");
        check_refused(&file("{'descr': [('a', '<i4')], 'shape': (1, 2)}", &[0; 8]), "several fields");
        let no_columns = "{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904, 0), }";
        check(&file(no_columns, &[]), &[]);
        let huge = "{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904, 8), }";
        check_refused(&file(huge, &[]), "more bytes");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(rows in 1usize..4, columns in 1usize..5, seed in any::<i32>()) {
            let row = |r: usize| (0..columns).map(|c| i64::from(seed) + (r * columns + c) as i64).collect();
            let table: Vec<Vec<i64>> = (0..rows).map(row).collect();
            let array = parse("x.npy", &write(&table)).unwrap();
            prop_assert!(array.integer);
            let back: Vec<Vec<i64>> =
                array.rows.iter().map(|row| row.iter().map(|v| *v as i64).collect()).collect();
            prop_assert_eq!(back, table);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 1u8..4) {
            let _ = parse("x.npy", &bytes);
            let _ = parse("x.npy", &[b"\x93NUMPY", &[version, 0][..], &bytes].concat());
            let _ = parse("x.npy", &file(&String::from_utf8_lossy(&bytes), &bytes));
        }
    }
}
