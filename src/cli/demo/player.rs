//! Plays the recorded answer with its timing, and handles the viewers' requests to stop it.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::CliError;
use crate::produce::{Cancels, ProduceError, Producer, Wires, jsonl};

/// One entry per line: `after_ms`, the pause before it, and `entry`, the native object.
const RECORDING: &str = include_str!("recording.jsonl");

/// How many entries the demo's stream keeps: about 50 answers.
pub(super) const KEPT_ENTRIES: u64 = 20_000;

#[derive(Debug, Deserialize)]
struct Line {
    after_ms: u64,
    entry: Box<RawValue>,
}

/// Writes the recording, entry by entry, until a viewer asks to stop.
pub(super) struct Player<W: Wires, C: Cancels> {
    lines: Vec<Line>,
    at: usize,
    producer: Producer<W>,
    cancels: C,
    is_cancelled: bool,
}

impl<W: Wires, C: Cancels> Player<W, C> {
    /// A player at the beginning of the recording.
    pub(super) fn new(producer: Producer<W>, cancels: C) -> Result<Self, CliError> {
        let lines = RECORDING.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let lines = lines.map_err(|error| CliError::Failed(format!("the recording: {error}")))?;
        Ok(Self { lines, at: 0, producer, cancels, is_cancelled: false })
    }

    /// Whether a viewer has asked to stop the current answer. A request that comes between two answers has no effect.
    pub(super) fn is_asked_to_stop(&mut self) -> bool {
        let is_asked = self.cancels.requested(Instant::now()).is_some();
        self.is_cancelled |= is_asked && self.producer.generation().is_open();
        self.is_cancelled
    }

    /// The pause before the next entry; `None` at the end.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.lines.get(self.at).map(|line| Duration::from_millis(line.after_ms))
    }

    /// Writes the next entry, or the end if a viewer asked to stop; does nothing at the end.
    pub(super) fn step(&mut self, stop: impl FnMut() -> bool) -> Result<(), ProduceError> {
        if std::mem::take(&mut self.is_cancelled) {
            self.at = self.lines.len();
            self.producer.push(|generation, ts| generation.end("cancelled", ts));
            return self.producer.flush(stop);
        }
        let Some(line) = self.lines.get(self.at) else { return Ok(()) };
        self.at += 1;
        // Every line of the recording is a native object: a test reads all of it.
        if let Ok(Some(object)) = jsonl::parse(line.entry.get().as_bytes()) {
            self.producer.push_object(&object);
        }
        self.producer.flush(stop)
    }

    /// Returns to the beginning.
    pub(super) const fn rewind(&mut self) {
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::produce::testing::Memory;
    use crate::produce::{CancelRequest, NoCancels};

    #[test]
    fn the_recording_is_an_answer_of_half_a_minute() {
        let memory = Memory::default();
        let mut player = Player::new(Producer::new(memory.clone()), NoCancels).unwrap();
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

    /// Asks to stop at every check.
    struct Impatient;

    impl Cancels for Impatient {
        fn requested(&mut self, _: Instant) -> Option<CancelRequest> {
            Some(CancelRequest::default())
        }

        fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
            None
        }
    }

    #[test]
    fn it_stops_when_a_viewer_asks_and_begins_anew() {
        let memory = Memory::default();
        let mut player = Player::new(Producer::new(memory.clone()), Impatient).unwrap();
        for _ in 0..2 {
            assert!(!player.is_asked_to_stop(), "nothing is going on that could be stopped");
            player.step(|| false).unwrap();
            assert!(player.is_asked_to_stop());
            player.step(|| false).unwrap();
            assert!(player.pause().is_none());
            player.rewind();
        }
        let entries = memory.entries();
        assert_eq!(entries.len(), 6, "{entries:?}");
        assert!(entries[2].contains(r#""finish_reason":"cancelled""#) && entries[3].contains("\"start\""));
    }
}
