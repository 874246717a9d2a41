//! Checks that only the smoke size makes, because they are about the bench itself and its document.

use clap::Parser;

use crate::cores::Cores;
use crate::stage::Result;
use crate::tables::Tables;
use crate::{Args, choose};

/// The document whose tables the bench writes.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/README.md");

/// Checks that the cores can be taken, and that the document has marks, commands that work, and a description of every
/// scenario.
pub(crate) fn check() -> Result<()> {
    drop(Cores::HalfTaken.take()?);
    for are_long in [false, true] {
        Tables::read(DOCUMENT.as_ref(), are_long)?;
    }
    let document = std::fs::read_to_string(DOCUMENT)?;
    let mut commands = 0;
    for line in document.lines().filter(|line| line.starts_with("cargo bench --bench end_to_end --")) {
        let words = line.split_whitespace().skip_while(|word| *word != "--").skip(1);
        let args = Args::try_parse_from(["end_to_end"].into_iter().chain(words))
            .map_err(|error| format!("benches/README.md: {line}: {error}"))?;
        choose(&args.only, true)?;
        commands += 1;
    }
    if commands == 0 {
        return Err("benches/README.md has no command that runs the bench".into());
    }
    for scenario in choose(&[], true)? {
        if !document.contains(&format!("| `{}` |", scenario.name)) {
            return Err(format!("benches/README.md does not describe the scenario {}", scenario.name).into());
        }
    }
    Ok(())
}
