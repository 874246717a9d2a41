//! Receipts: what clients acknowledge, and which generations nobody acknowledged in time.
//!
//! Two markers in Redis make instances agree. `taken:{stream}` holds the highest id that a client has acknowledged and is
//! written together with its receipt; `untaken:{stream}:{id}` is written together with the one receipt that says that
//! nobody took that generation. Both writes are transactions over watched markers: whoever is overtaken between looking
//! and writing has written nothing and looks again, and a crash leaves both or neither. So an `untaken` is one however many
//! instances judge, and none where an acknowledgement came before. An acknowledgement whose answer from Redis got lost is
//! written again: `acked` is at least once.
//!
//! What is yet to be judged lies in memory: an instance that ends forgets it. Others that watched judge on, and so does
//! whoever delivers the end again in time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::pause::Pause;
use super::{Desk, can_be_later, millis, refusal};
use crate::config;
use crate::event::record::{Acked, Ended, Receipt};
use crate::event::{EntryId, Position, StreamName};
use crate::json;
use crate::observe::Counters;
use crate::queue::Receiver;
use crate::redis::{Command, Keys, Link, RedisError, Reply};
use crate::{error_limited, warn_limited};

/// Acknowledgements that are written in one transaction.
const ACKS_PER_TRIP: usize = 64;
/// Words of the queue that are heard in one turn.
const WORDS_PER_TURN: usize = 1024;
/// Generations that are held until they are judged: some 10 MB.
const ENDED_MAX: usize = 65_536;
/// How often a transaction that was overtaken is tried again at once.
const RACES_MAX: usize = 8;
/// How long markers are kept, beyond the time in which generations are judged.
const MARKER_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Nothing is judged so soon after a connection was made: after an outage, what clients have said meanwhile to other
/// instances has to be written first.
const REST: Duration = Duration::from_secs(3);

/// What is to be written, and judged.
pub(super) struct Receipts {
    queue: Receiver<Receipt>,
    pause: Pause,
    after: Duration,
    entries_max: u64,
    acks: VecDeque<Acked>,
    /// By the time at which it is judged, µs by Redis' clock; the number keeps those of one moment apart.
    ended: BTreeMap<(u64, u64), Ended>,
    known: HashSet<(StreamName, EntryId)>,
    number: u64,
    /// The connection that was used last, and until when it is too new for judging.
    connection: u64,
    rests_until: Instant,
}

impl Receipts {
    pub(super) fn new(
        queue: Receiver<Receipt>,
        stream: &config::Stream,
        entries_max: u64,
        now: Instant,
    ) -> Self {
        Self {
            queue,
            pause: Pause::new("receipts"),
            after: stream.receipts_after,
            entries_max,
            acks: VecDeque::new(),
            ended: BTreeMap::new(),
            known: HashSet::new(),
            number: 0,
            connection: 0,
            rests_until: now,
        }
    }

    /// What Redis refuses and why, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.pause.trouble()
    }

    /// When there is something to write; generations are judged now and again.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!(self.acks.is_empty() && self.queue.is_empty())).then(|| self.pause.next(now))
    }

    /// How many acknowledgements are not written yet.
    pub(super) fn left(&self) -> usize {
        self.acks.len() + self.queue.len()
    }

    /// How many generations are yet to be judged.
    pub(super) fn unjudged(&self) -> usize {
        self.ended.len()
    }

    /// Hears what there is, as long as there is room for acknowledgements.
    fn hear(&mut self, counters: &Counters) {
        for _ in 0..WORDS_PER_TURN {
            if self.acks.len() >= ACKS_PER_TRIP {
                return;
            }
            match self.queue.try_recv() {
                Some(Receipt::Acked(acked)) => self.acks.push_back(acked),
                Some(Receipt::Ended(ended)) => self.note_ended(ended, counters),
                None => return,
            }
        }
    }

    /// A generation is over; the first word of it counts.
    fn note_ended(&mut self, ended: Ended, counters: &Counters) {
        if self.after.is_zero() {
            return;
        }
        if self.ended.len() >= ENDED_MAX {
            counters.receipts_failed.inc();
            warn_limited!(key: ended.stream; stream = %ended.stream, id = %ended.id, "too many finished answers wait for their receipts: whether anybody took this one is not recorded");
            return;
        }
        if self.known.insert((ended.stream.clone(), ended.id)) {
            self.number += 1;
            let after_us = u64::try_from(self.after.as_micros()).unwrap_or(u64::MAX);
            self.ended.insert((ended.at_redis_us.saturating_add(after_us), self.number), ended);
        }
    }

    /// Writes what can be written on this connection.
    ///
    /// # Errors
    /// When Redis could not be asked, or cannot serve: what was not written is kept.
    pub(super) fn tend(
        &mut self,
        link: &mut Link,
        connection: u64,
        desk: Desk<'_>,
    ) -> Result<(), RedisError> {
        if connection != self.connection {
            (self.connection, self.rests_until) = (connection, desk.now + REST);
        }
        self.hear(desk.counters);
        if !self.pause.is_over(desk.now) {
            return Ok(());
        }
        match self.write(link, desk) {
            Ok(()) => self.pause.works(),
            Err(RedisError::Server(error)) => self.pause.refused(&desk.keys.receipts(), &error, desk.now),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, link: &mut Link, desk: Desk<'_>) -> Result<(), RedisError> {
        if !self.acks.is_empty() {
            self.write_acks(link, desk)?;
        }
        if desk.now < self.rests_until || !(self.acks.is_empty() && self.queue.is_empty()) {
            return Ok(());
        }
        let redis_us = desk.clock.at(desk.now_us);
        for _ in 0..ACKS_PER_TRIP {
            let Some((&(due_us, number), ended)) = self.ended.first_key_value() else { return Ok(()) };
            if due_us > redis_us {
                return Ok(());
            }
            match self.judge(link, ended, desk.keys, redis_us) {
                Ok(Outcome::Written) => desk.counters.receipts_untaken.inc(),
                Ok(Outcome::Needless) => {}
                Ok(Outcome::Overtaken) => return Ok(()),
                Err(RedisError::Server(error)) if can_be_later(&error) => {
                    return Err(RedisError::Server(error));
                }
                Err(error) if error.server_kind().is_none() => return Err(error),
                Err(error) => {
                    desk.counters.receipts_failed.inc();
                    error_limited!(key: ended.stream; stream = %ended.stream, id = %ended.id, %error, "a receipt cannot be written");
                }
            }
            if let Some(ended) = self.ended.remove(&(due_us, number)) {
                self.known.remove(&(ended.stream, ended.id));
            }
        }
        Ok(())
    }

    /// Writes some acknowledgements, all in one transaction.
    fn write_acks(&mut self, link: &mut Link, desk: Desk<'_>) -> Result<(), RedisError> {
        let count = self.acks.len().min(ACKS_PER_TRIP);
        match self.try_write_acks(link, desk, count) {
            Ok(Outcome::Overtaken) => return Ok(()),
            Ok(_) => desk.counters.receipts_acked.add(count as u64),
            Err(RedisError::Server(error)) if can_be_later(&error) => return Err(RedisError::Server(error)),
            Err(error) if error.server_kind().is_none() => return Err(error),
            Err(error) => {
                desk.counters.receipts_failed.add(count as u64);
                error_limited!(%error, count, "receipts cannot be written");
            }
        }
        self.acks.drain(..count);
        Ok(())
    }

    fn try_write_acks(&self, link: &mut Link, desk: Desk<'_>, count: usize) -> Result<Outcome, RedisError> {
        let mut highest: HashMap<&StreamName, Position> = HashMap::new();
        for acked in self.acks.iter().take(count) {
            let known = highest.entry(&acked.stream).or_default();
            *known = acked.id.max(*known);
        }
        let markers: Vec<(String, Position)> =
            highest.into_iter().map(|(stream, id)| (taken(desk.keys, stream), id)).collect();
        let mut receipts = Vec::new();
        for acked in self.acks.iter().take(count) {
            let at_us = desk.clock.at(acked.at_us);
            let words = [acked.id.to_string(), "acked".to_owned(), acked.by.clone()];
            receipts.push(self.receipt(
                desk.keys,
                (&acked.stream, acked.generation.as_deref()),
                words,
                at_us,
            ));
        }
        transact(link, markers.iter().map(|(marker, _)| marker.as_str()), |values| {
            let mut commands = receipts.clone();
            for ((marker, id), value) in markers.iter().zip(values) {
                let id = position(value.as_deref()).max(*id);
                commands.push(self.keep(marker, &id.to_string()));
            }
            Some(commands)
        })
    }

    /// Writes the receipt of a generation that nobody took, unless somebody did or it is written.
    fn judge(
        &self,
        link: &mut Link,
        ended: &Ended,
        keys: &Keys,
        redis_us: u64,
    ) -> Result<Outcome, RedisError> {
        let Ended { stream, id, generation, .. } = ended;
        let (taken, untaken) = (taken(keys, stream), keys.once(&format!("untaken:{stream}:{id}")));
        let words = [id.to_string(), "untaken".to_owned(), String::new()];
        let receipt = self.receipt(keys, (stream, generation.as_deref()), words, redis_us);
        let outcome = transact(link, [taken.as_str(), untaken.as_str()].into_iter(), |values| {
            let is_taken = position(values[0].as_deref()) >= Position::whole(*id);
            let is_told = values[1].is_some();
            (!is_taken && !is_told).then(|| vec![receipt.clone(), self.keep(&untaken, "written")])
        });
        if outcome.as_ref().is_err_and(|error| error.server_kind().is_some()) {
            // A transaction does the rest of itself where one command fails: this failure has written nothing.
            link.call(&Command::new("DEL").arg(&untaken))?;
        }
        outcome
    }

    fn keep(&self, marker: &str, value: &str) -> Command {
        let kept = MARKER_KEPT.saturating_add(self.after);
        Command::new("SET").args([marker, value, "PX"]).number(millis(kept))
    }

    fn receipt(
        &self,
        keys: &Keys,
        (stream, generation): (&StreamName, Option<&String>),
        [id, status, by]: [String; 3],
        at_us: u64,
    ) -> Command {
        let generation = generation.and_then(|escaped| json::unescape(escaped)).unwrap_or_default();
        let command =
            Command::new("XADD").arg(keys.receipts()).args(["MAXLEN", "~"]).number(self.entries_max).arg("*");
        let command = command.args(["stream", stream.as_str(), "id", &id, "generation", &generation]);
        command.args(["status", &status, "by", &by, "at"]).number(at_us)
    }
}

/// The marker with the highest id that was acknowledged.
fn taken(keys: &Keys, stream: &StreamName) -> String {
    keys.once(&format!("taken:{stream}"))
}

fn position(marker: Option<&[u8]>) -> Position {
    marker.and_then(|marker| std::str::from_utf8(marker).ok()?.parse().ok()).unwrap_or_default()
}

/// What came of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    /// The markers say that nothing is to be written.
    Needless,
    /// Others changed a marker between looking and writing, again and again.
    Overtaken,
}

/// Looks at markers, and writes what `decide` makes of their values unless one of them is changed meanwhile.
fn transact<'a>(
    link: &mut Link,
    markers: impl Iterator<Item = &'a str> + Clone,
    decide: impl Fn(&[Option<Vec<u8>>]) -> Option<Vec<Command>>,
) -> Result<Outcome, RedisError> {
    for _ in 0..RACES_MAX {
        let mut look = vec![Command::new("WATCH").args(markers.clone())];
        look.extend(markers.clone().map(|marker| Command::new("GET").arg(marker)));
        let values = values(&link.call_all(&look)?);
        let commands = match values {
            Ok(values) => decide(&values),
            Err(error) => {
                link.call(&Command::new("UNWATCH"))?;
                return Err(error);
            }
        };
        let Some(commands) = commands else {
            link.call(&Command::new("UNWATCH"))?;
            return Ok(Outcome::Needless);
        };
        let mut write = vec![Command::new("MULTI")];
        write.extend(commands);
        write.push(Command::new("EXEC"));
        let replies = link.call_all(&write)?;
        if let Some(error) = refusal(&replies)? {
            return Err(RedisError::Server(error));
        }
        // EXEC answers null when a watched key has changed.
        if !replies.last().is_some_and(Reply::is_null) {
            return Ok(Outcome::Written);
        }
    }
    Ok(Outcome::Overtaken)
}

/// The values of GETs behind a WATCH.
fn values(replies: &[Reply]) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
    if let Some(error) = replies.iter().find_map(Reply::error) {
        return Err(RedisError::Server(error));
    }
    let value = |reply: &Reply| match reply.is_null() {
        true => Ok(None),
        false => reply.bytes().map(|bytes| Some(bytes.to_vec())),
    };
    replies.iter().skip(1).map(value).collect()
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
