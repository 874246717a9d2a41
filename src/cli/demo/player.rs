//! The recorded answer and its timing.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::CliError;
use crate::produce::{ProduceError, Producer, Wires, jsonl};

/// One line an entry: `after_ms`, the pause before it, and `entry`, the native object.
const RECORDING: &str = include_str!("recording.jsonl");

/// Entries that the demo's stream keeps: some 50 answers.
pub(super) const KEPT_ENTRIES: u64 = 20_000;

#[derive(Debug, Deserialize)]
struct Line {
    after_ms: u64,
    entry: Box<RawValue>,
}

/// Writes the recording, entry by entry.
pub(super) struct Player<W: Wires> {
    lines: Vec<Line>,
    at: usize,
    producer: Producer<W>,
}

impl<W: Wires> Player<W> {
    /// A player at the beginning of the recording.
    pub(super) fn new(producer: Producer<W>) -> Result<Self, CliError> {
        let lines = RECORDING.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let lines = lines.map_err(|error| CliError::Failed(format!("the recording: {error}")))?;
        Ok(Self { lines, at: 0, producer })
    }

    /// The pause before the next entry; `None` at the end.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.lines.get(self.at).map(|line| Duration::from_millis(line.after_ms))
    }

    /// Writes the next entry; does nothing at the end.
    pub(super) fn step(&mut self, stop: impl FnMut() -> bool) -> Result<(), ProduceError> {
        let Some(line) = self.lines.get(self.at) else { return Ok(()) };
        self.at += 1;
        // A line that is no native object cannot be in the recording: a test reads all of it.
        if let Ok(Some(object)) = jsonl::parse(line.entry.get().as_bytes()) {
            self.producer.pass_on(&object);
        }
        self.producer.flush(stop)
    }

    /// Back to the beginning.
    pub(super) const fn rewind(&mut self) {
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::produce::testing::Memory;

    #[test]
    fn the_recording_is_an_answer_of_half_a_minute() {
        let memory = Memory::default();
        let mut player = Player::new(Producer::new(memory.clone())).unwrap();
        let mut length = Duration::ZERO;
        while let Some(pause) = player.pause() {
            length += pause;
            player.step(|| false).unwrap();
        }
        assert!((20..=30).contains(&length.as_secs()), "{length:?}");
        let entries = memory.entries();
        let count = RECORDING.lines().count();
        assert_eq!(entries.len(), count + 1, "every line is an entry, and the start comes before them");
        assert!(entries[0].contains("\"start\"") && entries[1].contains("\"reasoning\""));
        assert!(entries[count].contains("\"end\"") && entries.iter().any(|entry| entry.contains('📖')));
    }
}
