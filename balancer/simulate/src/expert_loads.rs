//! Expert loads: synthetic log-normal windows, and recorded routing of DeepSeek-V2-Lite.
//!
//! The synthetic ones are labelled so wherever they are shown: no complete load table of a 256-expert
//! deployment is public. Recorded DeepSeek-V3 routing fits a log-normal best (DeepEP issue 393).

use flate2::read::GzDecoder;
use serde::Deserialize;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A generator with a written-down sequence: SplitMix64 (Steele, Lea, Flood 2014). The same seed gives the
/// same loads on every machine and with every version of every library.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `(0, 1]`, with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958; the second value is not used, so every call costs two draws).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `exp(sigma * normal)`.
    pub fn log_normal(&mut self, sigma: f64) -> f64 {
        (sigma * self.normal()).exp()
    }
}

/// What synthetic windows look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Synthetic {
    /// MoE layers.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Tokens routed (assignments, `tokens * top_k`) per layer and window, before rounding.
    pub routed: u64,
    /// Log-normal sigma of the experts of one layer.
    pub sigma: f64,
    /// Log-normal sigma by which every expert's load differs from its base in each window, independently.
    pub drift: f64,
    /// Seed of everything.
    pub seed: u64,
}

/// Windows of one synthetic domain: the same base loads, each window with its own drift.
#[derive(Debug, Clone)]
pub struct SyntheticWindows {
    of: Synthetic,
    /// `[layers * experts]`.
    base: Vec<f64>,
}

impl SyntheticWindows {
    /// Draws the base loads.
    pub fn new(of: Synthetic) -> Self {
        let mut draw = SplitMix64::new(of.seed);
        let base = (0..of.layers * of.experts).map(|_| draw.log_normal(of.sigma)).collect();
        Self { of, base }
    }

    /// Counts of one window, `[layers * experts]` row-major, each layer scaled to `routed` and rounded.
    /// The same window always has the same counts.
    pub fn window(&self, window: u64) -> Vec<u64> {
        // A generator per window: windows can be drawn in any order.
        let mut draw = SplitMix64::new(self.of.seed ^ SplitMix64::new(window + 1).next_u64());
        let mut counts = Vec::with_capacity(self.base.len());
        for layer in self.base.chunks(self.of.experts) {
            let loads: Vec<f64> = layer.iter().map(|base| base * draw.log_normal(self.of.drift)).collect();
            let scale = self.of.routed as f64 / loads.iter().sum::<f64>();
            counts.extend(loads.iter().map(|load| (load * scale).round() as u64));
        }
        counts
    }
}

/// Recorded routing: for every layer and token the experts that were chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRouting {
    layers: usize,
    experts: usize,
    top_k: usize,
    tokens: usize,
    /// `[layers][tokens][top_k]`.
    ids: Vec<u8>,
}

/// Why recorded routing could not be read. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// The file cannot be opened or decompressed.
    #[error("{path}: cannot be read: {source}; expected {expected}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The description is not what it should be.
    #[error(
        "{path}: not a routing description: {source}; expected JSON with layers, experts, topk and tokens"
    )]
    BadDescription {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A count of the description outside its range.
    #[error("{path}: {field} is {value}: must be {min} to {max}")]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Least accepted value.
        min: usize,
        /// Greatest accepted value.
        max: usize,
    },
    /// Another number of ids than the description says.
    #[error(
        "{path}: has {have} ids{more}: {layers} layers x {tokens} tokens x {top_k} ids need {need}; fetch the file again"
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Ids found.
        have: usize,
        /// " or more" when reading stopped at one more than needed.
        more: &'static str,
        /// Layers described.
        layers: usize,
        /// Tokens described.
        tokens: usize,
        /// Ids per token described.
        top_k: usize,
        /// Ids needed.
        need: usize,
    },
    /// An expert that the model does not have.
    #[error("{path}: layer {layer}, token {token}: expert {expert} does not exist, the model has {experts}")]
    UnknownExpert {
        /// The file.
        path: PathBuf,
        /// Layer.
        layer: usize,
        /// Token.
        token: usize,
        /// The id.
        expert: u8,
        /// Experts of the model.
        experts: usize,
    },
}

impl RoutingError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            RoutingError::Unreadable { .. } => "routing_unreadable",
            RoutingError::BadDescription { .. } => "routing_bad_description",
            RoutingError::OutOfRange { .. } => "routing_out_of_range",
            RoutingError::WrongLength { .. } => "routing_wrong_length",
            RoutingError::UnknownExpert { .. } => "routing_unknown_expert",
        }
    }
}

/// The fields of the description that are used.
#[derive(Deserialize)]
struct Description {
    layers: usize,
    experts: usize,
    topk: usize,
    tokens: usize,
}

/// Most tokens accepted, so that a wrong description cannot ask for all memory: far above any recording here.
const TOKENS_MAX: usize = 1 << 24;

impl RecordedRouting {
    /// Reads `<stem>_topk_meta.json` and `<stem>_topk_u8.bin.gz` of a folder, `stem` being for example
    /// `dsv2lite_law`.
    pub fn read(folder: &Path, stem: &str) -> Result<Self, RoutingError> {
        let described = folder.join(format!("{stem}_topk_meta.json"));
        let description = read_description(&described)?;
        let path = folder.join(format!("{stem}_topk_u8.bin.gz"));
        let need = description.layers * description.tokens * description.topk;
        let unreadable = |source| RoutingError::Unreadable {
            path: path.clone(),
            expected: format!("gzip of {need} bytes, [layer][token][k] expert ids"),
            source,
        };
        let file = std::fs::File::open(&path).map_err(unreadable)?;
        let mut ids = Vec::with_capacity(need);
        // One byte more than needed tells a longer file without reading all of it.
        GzDecoder::new(file).take(need as u64 + 1).read_to_end(&mut ids).map_err(unreadable)?;
        Self::from_ids(path, &description, ids)
    }

    fn from_ids(path: PathBuf, description: &Description, ids: Vec<u8>) -> Result<Self, RoutingError> {
        let &Description { layers, experts, topk: top_k, tokens } = description;
        let need = layers * tokens * top_k;
        if ids.len() != need {
            let more = if ids.len() > need { " or more" } else { "" };
            let have = ids.len();
            return Err(RoutingError::WrongLength { path, have, more, layers, tokens, top_k, need });
        }
        if let Some(at) = ids.iter().position(|&id| usize::from(id) >= experts) {
            let (layer, token) = (at / (tokens * top_k), at / top_k % tokens);
            return Err(RoutingError::UnknownExpert { path, layer, token, expert: ids[at], experts });
        }
        Ok(Self { layers, experts, top_k, tokens, ids })
    }

    /// MoE layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Experts per layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Experts chosen per token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Tokens recorded.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `[tokens][top_k]` flat: the experts chosen for a range of tokens in one layer.
    pub fn ids(&self, layer: usize, tokens: Range<usize>) -> &[u8] {
        let start = layer * self.tokens * self.top_k;
        &self.ids[start + tokens.start * self.top_k..start + tokens.end * self.top_k]
    }

    /// Cuts the recording into steps of `tokens` tokens; the last may be shorter.
    pub fn steps(&self, tokens: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let size = tokens.max(1);
        (0..self.tokens.div_ceil(size)).map(move |step| step * size..((step + 1) * size).min(self.tokens))
    }

    /// How often each expert was chosen in a range of tokens: `[layers * experts]` row-major.
    pub fn counts(&self, tokens: Range<usize>) -> Vec<u64> {
        let mut counts = vec![0; self.layers * self.experts];
        for (layer, row) in counts.chunks_mut(self.experts).enumerate() {
            self.ids(layer, tokens.clone()).iter().for_each(|&id| row[usize::from(id)] += 1);
        }
        counts
    }
}

fn read_description(path: &Path) -> Result<Description, RoutingError> {
    let text = std::fs::read_to_string(path).map_err(|source| RoutingError::Unreadable {
        path: path.to_owned(),
        expected: "the JSON description beside the ids".to_owned(),
        source,
    })?;
    let description: Description = serde_json::from_str(&text)
        .map_err(|source| RoutingError::BadDescription { path: path.to_owned(), source })?;
    let fields = [
        ("layers", description.layers, 512),
        ("experts", description.experts, 256),
        ("topk", description.topk, description.experts),
        ("tokens", description.tokens, TOKENS_MAX),
    ];
    for (field, value, max) in fields {
        if !(1..=max).contains(&value) {
            return Err(RoutingError::OutOfRange { path: path.to_owned(), field, value, min: 1, max });
        }
    }
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data")
    }

    #[test]
    fn the_generator_gives_its_published_sequence() {
        let mut draw = SplitMix64::new(1234567);
        let first: Vec<u64> = (0..3).map(|_| draw.next_u64()).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn windows_of_a_domain_are_alike_but_not_the_same() {
        let of = Synthetic { layers: 2, experts: 64, routed: 100_000, sigma: 1.0, drift: 0.1, seed: 3 };
        let windows = SyntheticWindows::new(of);
        let (a, b) = (windows.window(0), windows.window(1));
        assert_eq!(a, SyntheticWindows::new(of).window(0));
        assert_ne!(a, b);
        assert!(a[..64].iter().sum::<u64>().abs_diff(100_000) <= 64);
        // The logarithms differ by about sqrt(2) * drift; five times that would be another domain.
        let far = a.iter().zip(&b).filter(|(a, b)| (**a as f64 / **b as f64).ln().abs() > 0.7);
        assert_eq!(far.count(), 0);
    }

    #[test]
    fn recorded_routing_has_the_described_shape() {
        for (stem, tokens) in [("dsv2lite_intent", 8222), ("dsv2lite_law", 8327)] {
            let routing = RecordedRouting::read(&data(), stem).unwrap();
            assert_eq!((routing.layers(), routing.experts(), routing.top_k()), (26, 64, 6));
            assert_eq!(routing.tokens(), tokens);
            let whole = routing.counts(0..tokens);
            assert_eq!(whole[..64].iter().sum::<u64>(), 6 * tokens as u64);
            let mut by_steps = vec![0; whole.len()];
            for step in routing.steps(1000) {
                by_steps.iter_mut().zip(routing.counts(step)).for_each(|(sum, count)| *sum += count);
            }
            assert_eq!(by_steps, whole);
        }
    }

    #[track_caller]
    fn check_refused(description: Description, ids: &[u8], text: &str) {
        let error = RecordedRouting::from_ids("x.bin.gz".into(), &description, ids.to_vec()).unwrap_err();
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_wrong_file_is_named_with_what_was_expected() {
        let description = || Description { layers: 2, experts: 4, topk: 2, tokens: 3 };
        let needed = "2 layers x 3 tokens x 2 ids need 12; fetch the file again";
        check_refused(description(), &[0; 7], &format!("x.bin.gz: has 7 ids: {needed}"));
        check_refused(description(), &[0; 13], &format!("x.bin.gz: has 13 ids or more: {needed}"));
        let mut ids = [0; 12];
        ids[9] = 4;
        check_refused(
            description(),
            &ids,
            "x.bin.gz: layer 1, token 1: expert 4 does not exist, the model has 4",
        );
    }

    #[test]
    fn a_truncated_or_missing_file_is_named() {
        let folder = std::env::temp_dir().join(format!("evenkeel-routing-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let missing = RecordedRouting::read(&folder, "none").unwrap_err();
        assert_eq!(missing.code(), "routing_unreadable");
        assert!(missing.to_string().contains("none_topk_meta.json"));
        let (ids, description) = ("dsv2lite_law_topk_u8.bin.gz", "dsv2lite_law_topk_meta.json");
        std::fs::copy(data().join(description), folder.join(description)).unwrap();
        let whole = std::fs::read(data().join(ids)).unwrap();
        std::fs::write(folder.join(ids), &whole[..whole.len() / 2]).unwrap();
        let truncated = RecordedRouting::read(&folder, "dsv2lite_law").unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(truncated.code(), "routing_unreadable");
        let text = truncated.to_string();
        assert!(text.contains(ids) && text.contains("1299012 bytes"), "{text}");
    }
}
