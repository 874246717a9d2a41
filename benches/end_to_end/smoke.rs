//! Checks that only the smoke size makes, because they are about the bench itself and its document.

use std::io::Write;

use clap::Parser;
use hdrhistogram::Histogram;

use crate::cores::Cores;
use crate::journal::Journal;
use crate::origin::Origin;
use crate::run::{Latency, Run};
use crate::scenarios::{Scenario, Settings};
use crate::server::Server;
use crate::stage::Result;
use crate::tables::Tables;
use crate::{Args, choose};

/// The document whose tables the bench writes.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/README.md");

/// Checks that the cores can be taken, and that the document has marks, commands that work, and a description of every
/// scenario.
pub(crate) fn check(settings: &Settings) -> Result<()> {
    a_bench_goes_on_where_it_ended(settings)?;
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

/// Checks that finished runs come from the journal, that a line which was cut off is left out, that only parts with runs
/// count, and that another bench's journal and any other file are refused and left as they are.
fn a_bench_goes_on_where_it_ended(settings: &Settings) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("journal");
    let origin = Origin::read(1, 1.0)?;
    let mut us = Histogram::new(3)?;
    us.record_n(1_234, 5)?;
    us.record(9_000_000)?;
    let (scenario, server) = (Scenario::even("journal", 1, 1), Server::Daemon);
    let performed = Run {
        scenario: scenario.name.into(),
        server: server.name().into(),
        cores: settings.cores,
        latency_ms: Latency::of(&us),
        ..Run::default()
    };
    let mut journal = Journal::open(&path, &origin)?;
    journal.run((&scenario, server, 0), settings, || Ok(performed.clone()))?;
    drop(journal);
    std::fs::OpenOptions::new().append(true).open(&path)?.write_all(br#"{"done":{"load":"#)?;

    let mut journal = Journal::open(&path, &origin)?;
    let again = journal.run((&scenario, server, 0), settings, || Err("performed twice".into()))?;
    if again.latency_ms.is_none_or(|ms| ms.us != us) || *journal.origin() != origin {
        return Err("the journal does not return what was added to it".into());
    }
    for (other, what) in [
        (journal.run((&scenario, server, 1), settings, || Err("performed".into())), "another round"),
        (
            journal.run((&scenario, Server::Tracking, 0), settings, || Err("performed".into())),
            "another server",
        ),
        (
            journal.run((&Scenario::even("journal", 2, 1), server, 0), settings, || Err("".into())),
            "another load",
        ),
    ] {
        if other.is_ok() {
            return Err(format!("the journal has {what}, which was not added").into());
        }
    }
    let another = journal.run((&scenario, server, 2), settings, || Ok(performed.clone()));
    if another.is_err() || *journal.origin() != origin.clone().continued() {
        return Err("a part with a run does not count as one".into());
    }
    let notes = folder.path().join("notes");
    std::fs::write(&notes, "notes without a line break")?;
    if Journal::open(&notes, &origin).is_ok() || std::fs::read(&notes)? != b"notes without a line break" {
        return Err("a file that is no journal was taken for one".into());
    }
    let foreign = std::fs::read_to_string(&path)?.replace("cargo bench", "cargo bench --locked");
    std::fs::write(&path, foreign)?;
    match Journal::open(&path, &origin) {
        Ok(_) => Err("the journal of another bench was accepted".into()),
        Err(_) => Ok(()),
    }
}
