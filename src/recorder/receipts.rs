//! Receipts: the acknowledgements of clients, and the generations that no client acknowledged in time.
//!
//! Markers in Redis make instances agree. `taken:{stream}` holds the highest id that a client has acknowledged. It is
//! raised *before* the receipt is written, and the client gets its answer after both, so an instance that judges a
//! generation after that answer knows of the acknowledgement. An `untaken` receipt, and a client's acknowledgement of
//! an end, are written once ([`once`]): a client that has got no answer may repeat it. Other acknowledgements are
//! written at least once.
//!
//! A client gets an answer in time. If Redis has not accepted the receipt by then, the answer says so; the receipt is
//! kept, and written when Redis accepts it.
//!
//! Generations that are not judged yet are held in memory, so an instance that stops forgets them. Other instances
//! that watched them still judge them, and so does an instance that delivers the end again in time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};

use super::answers::Answers;
use super::cap::Cap;
use super::once::{self, Claim};
use super::pause::Pause;
use super::{WriteContext, millis, refused};
use crate::config;
use crate::json;
use crate::message::ToDelivery;
use crate::message::record::{Acked, Ended, Receipt, Refused};
use crate::model::{EntryId, Position, StreamName};
use crate::observe::Counters;
use crate::queue::Receiver;
use crate::redis::{Keys, Link, RedisError, Reply, ServerErrorKind};
use crate::warn_limited;

/// The most acknowledgements written in one turn.
const ACKS_PER_TURN: usize = 64;
/// The most acknowledgements in hand while Redis does not accept them, so that waiting clients can be answered: by
/// number, and by bytes.
const ACKS_HELD_MAX: usize = 32_768;
const ACKS_HELD_BYTES_MAX: usize = 10 << 20;
/// The most generations held until they are judged: about 10 MB.
const ENDED_MAX: usize = 65_536;
/// The most generations judged in one turn.
const JUDGED_PER_TURN: usize = 16;
/// How often a marker that others change meanwhile is retried at once.
const RACES_MAX: usize = 8;
/// How long markers are kept after the time in which generations are judged.
const MARKER_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long an acknowledgement of an end is remembered: a client that got no answer repeats it within this time.
const ACKED_KEPT: Duration = Duration::from_secs(3600);
/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// How soon an acknowledgement that another instance is writing is checked again.
const OTHERS_PAUSE: Duration = Duration::from_millis(500);
/// Nothing is judged for this long after a connection was opened: after an outage, acknowledgements that clients sent
/// to other instances meanwhile have to be written first.
const REST: Duration = Duration::from_secs(3);

/// Writes the receipts in its queue.
pub(super) struct Receipts {
    queue: Receiver<Receipt>,
    answers: Answers,
    pause: Pause,
    after: Duration,
    entries_max: u64,
    cap: Cap,
    acks: VecDeque<Waiting>,
    /// When acknowledgements that another instance is writing are checked again.
    others_at: Option<Instant>,
    /// Ordered by the time at which they are judged, µs by Redis' clock; the number distinguishes those with the same
    /// time.
    ended: BTreeMap<(u64, u64), Ended>,
    known: HashSet<(StreamName, EntryId)>,
    number: u64,
    /// The connection that was used last, and until when it is too new for judging.
    connection: u64,
    rests_until: Instant,
}

/// An acknowledgement that is not written yet.
struct Waiting {
    acked: Acked,
    /// Whether the client got the answer that it is not written.
    is_refused: bool,
}

/// The outcome of writing an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its receipt is written.
    Written,
    /// Another instance is writing it.
    Others,
    /// It is not written yet.
    Unwritten,
}

impl Receipts {
    pub(super) fn new(
        (queue, answers): (Receiver<Receipt>, Answers),
        stream: &config::Stream,
        (entries_max, cap): (u64, Cap),
        now: Instant,
    ) -> Self {
        Self {
            queue,
            answers,
            pause: Pause::new("receipts"),
            after: stream.receipts_after,
            entries_max,
            cap,
            acks: VecDeque::new(),
            others_at: None,
            ended: BTreeMap::new(),
            known: HashSet::new(),
            number: 0,
            connection: 0,
            rests_until: now,
        }
    }

    /// Why Redis refuses receipts, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.pause.trouble()
    }

    /// When there is a receipt to write or a generation to judge.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if self.answers.held() > 0 {
            return Some(now + Duration::from_millis(2));
        }
        let at = self.pause.next(now).max(self.others_at.unwrap_or(now));
        (!(self.acks.is_empty() && self.queue.is_empty())).then_some(at)
    }

    /// How many acknowledgements are not written yet.
    pub(super) fn left(&self) -> usize {
        self.acks.len() + self.queue.len()
    }

    /// The bytes of the acknowledgements in hand.
    pub(super) fn hand_bytes(&self) -> usize {
        self.acks.iter().map(|waiting| waiting.acked.len_bytes()).sum()
    }

    /// How many generations are not judged yet.
    pub(super) fn unjudged(&self) -> usize {
        self.ended.len()
    }

    /// Answers the waiting clients while Redis is down.
    pub(super) fn give_up(&mut self, counters: &Counters, now: Instant, why: &'static str) {
        self.answers.retry();
        self.take_receipts(ACKS_HELD_MAX, counters);
        self.refuse(now, PATIENCE, &Refused::new("redis_unreachable", why));
    }

    /// Takes receipts from the queue until `room` acknowledgements, or [`ACKS_HELD_BYTES_MAX`], are in hand.
    fn take_receipts(&mut self, room: usize, counters: &Counters) {
        let mut bytes = self.hand_bytes();
        while self.acks.len() < room && bytes < ACKS_HELD_BYTES_MAX {
            match self.queue.try_recv() {
                Some(Receipt::Acked(acked)) => {
                    bytes += acked.len_bytes();
                    self.acks.push_back(Waiting { acked, is_refused: false });
                }
                Some(Receipt::Ended(ended)) => self.note_ended(ended, counters),
                None => return,
            }
        }
    }

    /// Answers the clients that have waited for `patience` that their receipts are not written yet.
    fn refuse(&mut self, now: Instant, patience: Duration, why: &Refused) {
        let message = format!("{}; the receipt is written as soon as that has changed", why.message);
        let refused = Refused { message, ..why.clone() };
        for waiting in self.acks.iter_mut().filter(|waiting| !waiting.is_refused) {
            if now.saturating_duration_since(waiting.acked.asked_at) >= patience {
                waiting.is_refused = true;
                let Acked { asker, id, .. } = &waiting.acked;
                let answer = ToDelivery::AckAnswered(asker.clone(), *id, Err(refused.clone()));
                self.answers.send(asker.delivery, answer);
            }
        }
    }

    /// Records that a generation is over; ignores further reports of the same end.
    fn note_ended(&mut self, ended: Ended, counters: &Counters) {
        if self.after.is_zero() {
            return;
        }
        if self.ended.len() >= ENDED_MAX {
            counters.receipts_failed.inc();
            warn_limited!(key: ended.stream; stream = %ended.stream, id = %ended.id, "too many finished answers wait for their receipts: this one gets no `untaken` receipt");
            return;
        }
        if self.known.insert((ended.stream.clone(), ended.id)) {
            let after_us = u64::try_from(self.after.as_micros()).unwrap_or(u64::MAX);
            self.judge_at(ended.at_redis_us.saturating_add(after_us), ended);
        }
    }

    fn judge_at(&mut self, due_us: u64, ended: Ended) {
        self.number += 1;
        self.ended.insert((due_us, self.number), ended);
    }

    /// Writes acknowledgements, and judges generations that are due, on this connection.
    ///
    /// # Errors
    /// If Redis does not reply: acknowledgements that were not written are kept.
    pub(super) fn tend(
        &mut self,
        link: &mut Link,
        connection: u64,
        context: WriteContext<'_>,
    ) -> Result<(), RedisError> {
        if connection != self.connection {
            (self.connection, self.rests_until) = (connection, context.now + REST);
        }
        self.answers.retry();
        if !self.pause.is_over(context.now) {
            self.take_receipts(ACKS_HELD_MAX, context.counters);
            let why = Refused::new("redis_refuses", self.trouble().unwrap_or_default());
            self.refuse(context.now, Duration::ZERO, &why);
            return Ok(());
        }
        self.take_receipts(ACKS_PER_TURN, context.counters);
        self.refuse(context.now, PATIENCE, &Refused::new("redis_timeout", "Redis does not answer in time"));
        if self.others_at.is_some_and(|at| at > context.now) {
            return Ok(());
        }
        self.others_at = None;
        let result = self.write_acks(link, context).and_then(|()| self.judge_due(link, context));
        match result {
            Ok(()) => self.pause.works(),
            Err(RedisError::Server(error)) => {
                let key = context.keys.receipts();
                self.refuse(context.now, Duration::ZERO, &refused(&key, &error));
                self.pause.refused(&key, error, context.now);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    // ----- acknowledgements of clients -----

    fn write_acks(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        let count = self.acks.len().min(ACKS_PER_TURN);
        if count == 0 {
            return Ok(());
        }
        let mut outcomes = vec![Outcome::Unwritten; count];
        let result = self.try_write_acks(link, context, &mut outcomes);
        for outcome in outcomes {
            let Some(waiting) = self.acks.pop_front() else { break };
            match outcome {
                Outcome::Written => {
                    if !waiting.is_refused {
                        let Acked { asker, id, .. } = waiting.acked;
                        self.answers.send(asker.delivery, ToDelivery::AckAnswered(asker, id, Ok(())));
                    }
                }
                Outcome::Others => {
                    self.others_at = Some(context.now + OTHERS_PAUSE);
                    self.acks.push_back(waiting);
                }
                Outcome::Unwritten => self.acks.push_back(waiting),
            }
        }
        result
    }

    fn try_write_acks(
        &mut self,
        link: &mut Link,
        context: WriteContext<'_>,
        outcomes: &mut [Outcome],
    ) -> Result<(), RedisError> {
        let acks: Vec<&Acked> = self.acks.iter().take(outcomes.len()).map(|waiting| &waiting.acked).collect();
        self.raise_taken(link, &acks, context)?;
        let markers: Vec<Option<String>> =
            acks.iter().map(|acked| acked.is_once.then(|| acked_marker(context.keys, acked))).collect();
        let claimed: Vec<String> =
            markers.iter().flatten().cloned().collect::<HashSet<_>>().into_iter().collect();
        let claims = once::claim(link, &claimed, context.me)?;
        let claims: HashMap<&String, Claim> = claimed.iter().zip(claims).collect();
        let (mut commands, mut places, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut repeated: HashMap<&String, Vec<usize>> = HashMap::new();
        for (place, (acked, marker)) in acks.iter().zip(&markers).enumerate() {
            match marker.as_ref().and_then(|marker| claims.get(marker)) {
                Some(Claim::Written) => outcomes[place] = Outcome::Written,
                Some(Claim::Others) => outcomes[place] = Outcome::Others,
                Some(Claim::Ours) | None => {
                    if let Some(marker) = marker {
                        let places = repeated.entry(marker).or_default();
                        places.push(place);
                        if places.len() > 1 {
                            continue;
                        }
                    }
                    let words = [acked.id.to_string(), "acked".to_owned(), acked.by.clone()];
                    let about = (&acked.stream, acked.generation.as_deref());
                    commands.push(self.receipt(context.keys, about, words, context.clock.at(acked.at_us)));
                    places.push(place);
                }
            }
        }
        let replies = link.call_all(&commands)?;
        let (mut written, mut refused) = (Vec::new(), None);
        for (place, reply) in places.into_iter().zip(&replies) {
            if let Some(error) = reply.error() {
                refused.get_or_insert(error);
                continue;
            }
            outcomes[place] = Outcome::Written;
            bytes += acks[place].len_bytes();
            context.counters.receipts_acked.inc();
            if let Some(marker) = &markers[place] {
                written.push(marker);
                repeated
                    .get(marker)
                    .into_iter()
                    .flatten()
                    .for_each(|&place| outcomes[place] = Outcome::Written);
            }
        }
        once::keep(link, written.into_iter(), ACKED_KEPT)?;
        self.cap.wrote(link, bytes)?;
        refused.map_or(Ok(()), |error| Err(RedisError::Server(error)))
    }

    /// Raises the markers of the highest acknowledged ids, each in a transaction of its own.
    fn raise_taken(
        &self,
        link: &mut Link,
        acks: &[&Acked],
        context: WriteContext<'_>,
    ) -> Result<(), RedisError> {
        let mut highest: BTreeMap<&StreamName, Position> = BTreeMap::new();
        for acked in acks {
            let known = highest.entry(&acked.stream).or_default();
            *known = acked.id.max(*known);
        }
        let markers: Vec<(String, Position)> =
            highest.into_iter().map(|(stream, id)| (taken(context.keys, stream), id)).collect();
        let replies = link.call_all(markers.iter().map(|(marker, _)| Cmd::get(marker)))?;
        for ((marker, id), reply) in markers.iter().zip(&replies) {
            if known(reply)? < *id {
                self.raise(link, marker, *id)?;
            }
        }
        Ok(())
    }

    fn raise(&self, link: &mut Link, marker: &str, id: Position) -> Result<(), RedisError> {
        for _ in 0..RACES_MAX {
            let value = link.watch(marker).map(|value| value.as_deref().map_or(Position::ZERO, position));
            if value.as_ref().map_or(true, |value| *value >= id) {
                link.unwatch()?;
                return value.map(drop);
            }
            let kept = MARKER_KEPT.saturating_add(self.after);
            if link.execute(&Cmd::set_options(marker, id.to_string(), once::expiring(kept)))? {
                return Ok(());
            }
        }
        // Other instances raise it all the time: the connection is reopened, and the attempt repeated.
        Err(RedisError::Timeout)
    }

    // ----- generations that no client acknowledged -----

    fn judge_due(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        if context.now < self.rests_until || !(self.acks.is_empty() && self.queue.is_empty()) {
            return Ok(());
        }
        let redis_us = context.clock.at(context.now_us);
        for _ in 0..JUDGED_PER_TURN {
            let Some((&(due_us, number), ended)) = self.ended.first_key_value() else { return Ok(()) };
            if due_us > redis_us {
                return Ok(());
            }
            let claim = self.judge(link, ended, context)?;
            let Some(ended) = self.ended.remove(&(due_us, number)) else { return Ok(()) };
            match claim {
                Claim::Ours => context.counters.receipts_untaken.inc(),
                Claim::Written => {}
                Claim::Others => {
                    self.judge_at(redis_us.saturating_add(millis(OTHERS_PAUSE) * 1000), ended);
                    continue;
                }
            }
            self.known.remove(&(ended.stream, ended.id));
        }
        Ok(())
    }

    /// Writes the `untaken` receipt of a generation, unless a client has acknowledged it or the receipt is written
    /// already.
    fn judge(&self, link: &mut Link, ended: &Ended, context: WriteContext<'_>) -> Result<Claim, RedisError> {
        let Ended { stream, id, generation, .. } = ended;
        let taken: Option<Vec<u8>> = link.query(&Cmd::get(taken(context.keys, stream)))?;
        if taken.is_some_and(|taken| position(&taken) >= Position::whole(*id)) {
            return Ok(Claim::Written);
        }
        let marker = [context.keys.once(&format!("untaken:{stream}:{id}"))];
        let claim = once::claim(link, &marker, context.me)?.pop().unwrap_or(Claim::Others);
        if claim != Claim::Ours {
            return Ok(claim);
        }
        let words = [id.to_string(), "untaken".to_owned(), String::new()];
        let at_us = context.clock.at(context.now_us);
        link.query::<()>(&self.receipt(context.keys, (stream, generation.as_deref()), words, at_us))?;
        once::keep(link, marker.iter(), MARKER_KEPT.saturating_add(self.after))?;
        Ok(claim)
    }

    fn receipt(
        &self,
        keys: &Keys,
        (stream, generation): (&StreamName, Option<&String>),
        [id, status, by]: [String; 3],
        at_us: u64,
    ) -> Cmd {
        let generation = generation.and_then(|escaped| json::unescape(escaped)).unwrap_or_default();
        let mut command = cmd("XADD");
        command.arg(keys.receipts()).arg(&["MAXLEN", "~"]).arg(self.entries_max);
        command.arg(&["*", "stream", stream.as_str(), "id", &id, "generation", &generation]);
        command.arg(&["status", &status, "by", &by, "at"]).arg(at_us).take()
    }
}

/// The marker with the highest acknowledged id.
fn taken(keys: &Keys, stream: &StreamName) -> String {
    keys.once(&format!("taken:{stream}"))
}

/// The marker of a client's acknowledgement of an end.
fn acked_marker(keys: &Keys, acked: &Acked) -> String {
    keys.once(&format!("acked:{}:{}:{}", acked.stream, acked.id, acked.by))
}

/// The position in a marker; zero if the marker is missing, not valid, or not a string.
fn known(reply: &Reply) -> Result<Position, RedisError> {
    match reply.error() {
        Some(error) if error.kind() == ServerErrorKind::WrongType => return Ok(Position::ZERO),
        Some(error) => return Err(RedisError::Server(error)),
        None if reply.is_null() => return Ok(Position::ZERO),
        None => {}
    }
    Ok(position(&reply.bytes()?))
}

/// The position that a marker holds; zero if it is not valid.
fn position(marker: &[u8]) -> Position {
    std::str::from_utf8(marker).ok().and_then(|marker| marker.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
