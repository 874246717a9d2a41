//! The project's documents, and the commands and programs in them.

pub(crate) const README: &str = include_str!("../../../README.md");
pub(crate) const PRODUCERS: &str = include_str!("../../../src/produce/README.md");
pub(crate) const READERS: &str = include_str!("../../../src/deliver/README.md");
pub(crate) const OPERATION: &str = include_str!("../../../systemd/README.md");

/// The first block of code in this language after this text.
pub(crate) fn block(document: &'static str, after: &str, language: &str) -> &'static str {
    let (_, rest) = document.split_once(after).unwrap_or_else(|| panic!("the document lacks {after:?}"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block of code");
    rest.split_once("```").expect("the end of a block").0
}

/// The rights that the daemon needs, as the arguments of ACL SETUSER after the user's name.
pub(crate) fn documented_rights() -> Vec<&'static str> {
    let line = OPERATION.lines().find_map(|line| line.strip_prefix("user llm-bridge "));
    line.expect("the document lists the rights").split(' ').collect()
}
