//! What is compiled: a kernel's source and the constants that are compiled into it.

use sha2::{Digest, Sha256};

/// Shared by all sources.
const COMMON: &str = include_str!("../../cuda/common.cuh");

/// Options of every compilation. Diagnostics 177 and 186 are unused constants and loops that a shape leaves
/// empty, which are meant. `-fmad=false` keeps the order of roundings of the CPU references.
const OPTIONS: [&str; 5] =
    ["-std=c++17", "-diag-suppress=177", "-diag-suppress=186", "--ptxas-options=-v", "-fmad=false"];

/// A kernel with its constants; equal programs compile to equal code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// Name of the kernel, of its file and of its entry point.
    pub name: &'static str,
    source: &'static str,
    constants: Vec<(&'static str, u32)>,
}

impl Program {
    /// A kernel of this crate.
    pub(super) fn new(
        name: &'static str,
        source: &'static str,
        constants: impl IntoIterator<Item = (&'static str, u32)>,
    ) -> Self {
        Self { name, source, constants: constants.into_iter().collect() }
    }

    /// The constants as one line, for reports.
    pub fn constants(&self) -> String {
        let parts: Vec<String> =
            self.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
        parts.join(" ")
    }

    /// The whole text: the compiler is given no folder to include from.
    pub(super) fn text(&self) -> String {
        let common = COMMON.replace("#pragma once\n", "");
        self.source.replace("#include \"common.cuh\"\n", &common)
    }

    /// What the compiler is told.
    pub(super) fn options(&self, arch: &str) -> Vec<String> {
        let defines = self.constants.iter().map(|(name, value)| format!("-D{name}={value}"));
        let fixed = OPTIONS.iter().map(|option| (*option).to_owned());
        fixed.chain(defines).chain([format!("-arch={arch}")]).collect()
    }

    /// Name of its compiled form: whatever could change the code is in it.
    pub(super) fn key(&self, arch: &str, compiler: (i32, i32)) -> String {
        let mut hash = Sha256::new();
        for part in [self.text()].iter().chain(&self.options(arch)) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(format!("{}.{}", compiler.0, compiler.1));
        let digest: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{arch}-{digest}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(value: u32) -> Program {
        Program::new("flip", "#include \"common.cuh\"\nint a;\n", [("A", value)])
    }

    #[test]
    fn the_text_includes_nothing() {
        assert!(!program(1).text().contains("#include"));
        assert!(program(1).text().contains("mix64"));
    }

    #[test]
    fn the_key_follows_constants_target_and_compiler() {
        let key = |value, arch, version| program(value).key(arch, (13, version));
        assert_eq!(key(1, "sm_90a", 0), key(1, "sm_90a", 0));
        assert_ne!(key(1, "sm_90a", 0), key(2, "sm_90a", 0));
        assert_ne!(key(1, "sm_90a", 0), key(1, "sm_100a", 0));
        assert_ne!(key(1, "sm_90a", 0), key(1, "sm_90a", 1));
    }
}
