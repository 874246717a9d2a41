//! Progress lines of `produce` on stderr: where to watch, from time to time the number of entries written, and
//! finally the total.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::model::EntryId;
use crate::produce::{Batch, Wire, WireError, Wires};

/// The time until the first line about the number of entries.
const FIRST: Duration = Duration::from_secs(5);
/// The longest time between two such lines; it doubles until then.
const EVERY_MAX: Duration = Duration::from_secs(60);

/// The count of entries written. Clones share it.
#[derive(Clone)]
pub(super) struct Progress(Rc<RefCell<State>>);

struct State {
    /// Prints a line; `None`: prints nothing.
    note: Option<fn(&str)>,
    began: Instant,
    print_at: Instant,
    every: Duration,
    entries: u64,
}

impl Progress {
    /// The progress of a run that begins now.
    pub(super) fn new(note: fn(&str)) -> Self {
        Self::with(Some(note))
    }

    /// Prints nothing.
    pub(super) fn silent() -> Self {
        Self::with(None)
    }

    fn with(note: Option<fn(&str)>) -> Self {
        let began = Instant::now();
        Self(Rc::new(RefCell::new(State { note, began, print_at: began + FIRST, every: FIRST, entries: 0 })))
    }

    /// Prints a line.
    pub(super) fn print(&self, text: &str) {
        if let Some(note) = self.0.borrow().note {
            note(&format!("llm-bridge produce: {text}\n"));
        }
    }

    /// Records that Redis has confirmed `entries` entries.
    fn confirmed(&self, entries: usize, now: Instant) {
        let line = self.0.borrow_mut().confirmed(entries, now);
        if let Some(text) = line {
            self.print(&text);
        }
    }

    /// Prints the total.
    pub(super) fn finish(&self) {
        let text = self.0.borrow().so_far(Instant::now());
        self.print(&text);
    }
}

impl State {
    /// Counts confirmed entries. Returns a line if one is due.
    fn confirmed(&mut self, entries: usize, now: Instant) -> Option<String> {
        self.entries = self.entries.saturating_add(u64::try_from(entries).unwrap_or(u64::MAX));
        if now < self.print_at {
            return None;
        }
        self.every = (self.every * 2).min(EVERY_MAX);
        self.print_at = now + self.every;
        Some(self.so_far(now))
    }

    fn so_far(&self, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.began).as_secs_f64();
        let noun = if self.entries == 1 { "entry" } else { "entries" };
        format!("{} {noun} written in {seconds:.1} s", self.entries)
    }
}

/// Connections whose confirmed entries are counted.
pub(super) struct Counted<W> {
    inner: W,
    progress: Progress,
}

impl<W> Counted<W> {
    pub(super) const fn new(inner: W, progress: Progress) -> Self {
        Self { inner, progress }
    }
}

impl<W: Wires> Wires for Counted<W> {
    type Wire = Counted<W::Wire>;

    fn connect(&mut self) -> Result<Self::Wire, WireError> {
        Ok(Counted { inner: self.inner.connect()?, progress: self.progress.clone() })
    }
}

impl<W: Wire> Wire for Counted<W> {
    fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError> {
        let last = self.inner.append(batch)?;
        self.progress.confirmed(batch.records.len(), Instant::now());
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::produce::testing::Memory;
    use crate::produce::{Generation, Producer};

    #[test]
    fn progress_lines_become_less_and_less_frequent() {
        let progress = Progress::silent();
        let mut state = progress.0.borrow_mut();
        let began = state.began;
        let mut printed = Vec::new();
        for second in 1..=300 {
            if let Some(text) = state.confirmed(1, began + Duration::from_secs(second)) {
                printed.push((second, text));
            }
        }
        let seconds: Vec<u64> = printed.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [5, 15, 35, 75, 135, 195, 255]);
        assert_eq!(printed[1].1, "15 entries written in 15.0 s");
    }

    #[test]
    fn confirmed_entries_are_counted() {
        let progress = Progress::silent();
        let mut producer = Producer::new(Counted::new(Memory::default(), progress.clone()));
        producer.push(Generation::start);
        producer.flush(|| false).unwrap();
        assert_eq!(progress.0.borrow().entries, 1);
        assert!(progress.0.borrow().so_far(Instant::now()).starts_with("1 entry written in "));
    }
}
