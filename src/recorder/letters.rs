//! Dead letters: copies of entries that could not be processed, one per entry however many instances read it.
//!
//! No letter is dropped because there are many, because Redis is down or out of memory, or because Redis refuses them
//! for a reason that an operator has to fix (a key of another type, a missing right). If the queue has no room, the
//! entries read are not passed on: a live stream's viewers go to history, and history waits until there is room.
//! Streams without unreadable entries continue. A letter in the queue exists in memory only. If the daemon dies, the
//! next reader of the stream reads the entry again, because it does not start from the group's position, and writes
//! the letter then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};

use crate::message::record::DeadLetter;
use crate::queue::Receiver;
use crate::redis::{Keys, Link, RedisError};

use super::WriteContext;
use super::cap::Cap;
use super::once::{self, Claim};
use super::pause::Pause;

/// The most letters in hand, in addition to those in the queue: by number, and by bytes unless there is only one.
const LETTERS_PER_TRIP: usize = 64;
const TRIP_BYTES: usize = 1 << 20;
/// How long a marker shows that the letter of an entry was written.
const MARKER_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How soon a letter that another instance has claimed is checked again.
const OTHERS_PAUSE: Duration = Duration::from_millis(500);

/// Writes the letters in its queue.
pub(super) struct Letters {
    queue: Receiver<DeadLetter>,
    hand: VecDeque<DeadLetter>,
    hand_bytes: usize,
    /// Letters that another instance has claimed; they are checked again at this time.
    others: VecDeque<DeadLetter>,
    others_at: Instant,
    pause: Pause,
    entries_max: u64,
    cap: Cap,
}

impl Letters {
    pub(super) fn new(queue: Receiver<DeadLetter>, (entries_max, cap): (u64, Cap), now: Instant) -> Self {
        Self {
            queue,
            hand: VecDeque::new(),
            hand_bytes: 0,
            others: VecDeque::new(),
            others_at: now,
            pause: Pause::new("dead letters"),
            entries_max,
            cap,
        }
    }

    /// Why Redis refuses dead letters, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.pause.trouble()
    }

    /// When there is a letter to write.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if !(self.hand.is_empty() && self.queue.is_empty()) {
            return Some(self.pause.next(now));
        }
        (!self.others.is_empty()).then(|| self.pause.next(now).max(self.others_at))
    }

    /// The bytes of the letters in hand.
    pub(super) const fn hand_bytes(&self) -> usize {
        self.hand_bytes
    }

    /// How many letters are not written yet.
    pub(super) fn left(&self) -> usize {
        self.hand.len() + self.others.len() + self.queue.len()
    }

    /// Writes some letters.
    ///
    /// # Errors
    /// If Redis does not reply. Letters that are not known to be written stay in hand.
    pub(super) fn tend(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        if !self.pause.is_over(context.now) {
            return Ok(());
        }
        self.take_up(context.now);
        if self.hand.is_empty() {
            return Ok(());
        }
        match self.write(link, context) {
            Ok(()) => self.pause.works(),
            Err(RedisError::Server(error)) => self.pause.refused(&context.keys.dlq(), error, context.now),
            Err(error) => return Err(error),
        }
        self.hand_bytes = self.hand.iter().chain(&self.others).map(DeadLetter::len_bytes).sum();
        Ok(())
    }

    /// Takes letters from the queue.
    fn take_up(&mut self, now: Instant) {
        if self.others_at <= now {
            self.hand.append(&mut self.others);
        }
        while self.hand.len() + self.others.len() < LETTERS_PER_TRIP
            && self.hand_bytes < TRIP_BYTES
            && let Some(letter) = self.queue.try_recv()
        {
            self.hand_bytes += letter.len_bytes();
            self.hand.push_back(letter);
        }
    }

    fn write(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        let markers: Vec<String> = self.hand.iter().map(|letter| marker(context.keys, letter)).collect();
        let claims = once::claim(link, &markers, context.me)?;
        let mut ours = Vec::new();
        for ((letter, claim), marker) in std::mem::take(&mut self.hand).into_iter().zip(claims).zip(markers) {
            match claim {
                Claim::Ours => ours.push((letter, marker)),
                Claim::Written => {}
                Claim::Others => {
                    self.others_at = context.now + OTHERS_PAUSE;
                    self.others.push_back(letter);
                }
            }
        }
        let add = |(letter, _): &_| command(context.keys, letter, self.entries_max);
        let replies = match link.call_all(ours.iter().map(add)) {
            Ok(replies) => replies,
            Err(error) => {
                self.hand.extend(ours.into_iter().map(|(letter, _)| letter));
                return Err(error);
            }
        };
        let (mut written, mut bytes, mut refused) = (Vec::new(), 0, None);
        for ((letter, marker), reply) in ours.into_iter().zip(&replies) {
            match reply.error() {
                None => {
                    bytes += letter.len_bytes();
                    written.push(marker);
                }
                Some(error) => {
                    refused.get_or_insert(error);
                    self.hand.push_back(letter);
                }
            }
        }
        context.counters.dead_letters_written.add(written.len() as u64);
        once::keep(link, written.iter(), MARKER_KEPT)?;
        self.cap.wrote(link, bytes)?;
        refused.map_or(Ok(()), |error| Err(RedisError::Server(error)))
    }
}

fn marker(keys: &Keys, letter: &DeadLetter) -> String {
    keys.once(&format!("dead:deliver:{}:{}", letter.stream, letter.entry.id))
}

fn command(keys: &Keys, letter: &DeadLetter, entries_max: u64) -> Cmd {
    let DeadLetter { stream, entry, reason, message } = letter;
    let mut command = cmd("XADD");
    command.arg(keys.dlq()).arg(&["MAXLEN", "~"]).arg(entries_max);
    command.arg(&["*", "stream", stream.as_str(), "id"]).arg(entry.id);
    command.arg(&["reason", reason, "message", message, "processor", "deliver", "attempts", "1"]);
    match entry.fields.to_json() {
        Ok(fields) => command.arg("fields").arg(fields),
        Err(fields_b64) => command.arg("fields_b64").arg(fields_b64),
    };
    command
}

#[cfg(test)]
#[path = "letters_tests.rs"]
mod tests;
