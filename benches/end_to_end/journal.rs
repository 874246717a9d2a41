//! The journal of a bench: every finished run, a line each, so that a bench that was interrupted goes on where it
//! ended.
//!
//! Each part of the bench begins with a line that tells its origin. A bench of another commit, command or machine refuses
//! the journal, and so does one that finds another file in its place.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::origin::Origin;
use crate::run::Run;
use crate::scenarios::{Scenario, Settings};
use crate::server::Server;
use crate::stage::Result;

/// The beginning of every journal.
const BEGINNING: &str = r#"{"begun":"#;

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The bench began, or went on.
    Begun(Origin),
    /// A run of a load, named as by `load`.
    Done { load: String, run: Box<Run> },
}

/// The finished runs of a bench, in a file if one was named.
pub(crate) struct Journal {
    file: Option<File>,
    done: Vec<(String, Run)>,
    /// The origin of the runs in the file; of all runs once `next` is taken.
    origin: Origin,
    /// The origin with this part, until its first run is finished: a part without runs does not count.
    next: Option<Origin>,
}

impl Journal {
    /// A journal without a file.
    pub(crate) const fn unkept(now: Origin) -> Self {
        Self { file: None, done: Vec::new(), origin: now, next: None }
    }

    /// Reads the file, or creates it.
    pub(crate) fn open(path: &Path, now: &Origin) -> Result<Self> {
        let of_file = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| of_file(&error))?;
        let text = std::fs::read_to_string(path).map_err(|error| of_file(&error))?;
        // The bench may have been killed while it wrote a line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if !text.is_empty() && !text.starts_with(BEGINNING) {
            return Err(of_file(&"it is not the journal of a bench; name another file").into());
        }
        let mut done = Vec::new();
        let mut before = None;
        for line in text[..whole].lines() {
            match serde_json::from_str(line).map_err(|error| of_file(&error))? {
                Line::Begun(part) => {
                    let differences = now.differences(&part);
                    if !differences.is_empty() {
                        let why = format!("its runs are of {differences}; remove it to begin anew");
                        return Err(of_file(&why).into());
                    }
                    before = Some(part);
                }
                Line::Done { load, run } => done.push((load, *run)),
            }
        }
        file.set_len(whole as u64)?;
        let next = before.clone().map_or_else(|| now.clone(), Origin::continued);
        Ok(Self { file: Some(file), done, origin: before.unwrap_or_else(|| now.clone()), next: Some(next) })
    }

    /// The origin of all runs.
    pub(crate) const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The run of that load that is in the journal, or else the one that `perform` returns, which is added.
    pub(crate) fn run(
        &mut self,
        place: (&Scenario, Server, usize),
        settings: &Settings,
        perform: impl FnOnce() -> Result<Run>,
    ) -> Result<Run> {
        let (scenario, server, round) = place;
        let load = scenario.load();
        let is_same = |done: &&(String, Run)| {
            done.0 == load
                && (done.1.server.as_str(), done.1.round, done.1.cores)
                    == (server.name(), round, settings.cores)
        };
        if let Some((_, run)) = self.done.iter().find(is_same) {
            return Ok(run.clone());
        }
        let performed = perform();
        if settings.interrupted.load(Ordering::Acquire) {
            return Err("interrupted; with --journal the same command goes on".into());
        }
        let run = performed?;
        if let Some(file) = &mut self.file {
            if let Some(next) = self.next.take() {
                append(file, &Line::Begun(next.clone()))?;
                self.origin = next;
            }
            append(file, &Line::Done { load, run: Box::new(run.clone()) })
                .map_err(|error| format!("the journal: {error}"))?;
        }
        Ok(run)
    }
}

fn append(file: &mut File, line: &Line) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(file.write_all(&text)?)
}
