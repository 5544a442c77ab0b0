//! The command line as it was given, for the report.

/// In the words of a shell.
pub(super) fn given() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default().to_owned();
    std::iter::once(name).chain(words.map(|word| quoted(&word))).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./,=:+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let check = |word, text: &str| assert_eq!(quoted(word), text);
        check("--policy", "--policy");
        check("vllm-0.33,evenkeel", "vllm-0.33,evenkeel");
        check("my trace.jsonl", "'my trace.jsonl'");
        check("it's", "'it'\\''s'");
        check("", "''");
    }
}
