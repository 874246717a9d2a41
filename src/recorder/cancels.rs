//! Requests that ask producers to stop.
//!
//! A client gets its answer when its request is on the control stream, or when it is certain that the request will
//! not be written. A refused request is not written later. Only if Redis did not reply at all may it have been
//! written, and the client's answer says so. At most one request per generation is pending over all instances
//! (`pending`): further requests get the same answer and write nothing.
//!
//! Streams that do not exist yet can be cancelled too. Such a request expires after a minute, and the instance keeps
//! a bounded number of them, so that nobody can fill Redis with names.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use ::redis::{Cmd, ExistenceCheck, cmd};

use crate::message::ToDelivery;
use crate::message::record::{Asker, CancelRequest, Refused};
use crate::model::{EntryId, StreamName};
use crate::queue::Receiver;
use crate::redis::{ENTRY_ROOM_BYTES, Keys, Link, RedisError, Reply};

use super::answers::Answers;
use super::once::{CLAIMED, expiring};
use super::pending::{Mark, Milestones, Written};
use super::{WriteContext, millis, refusal, refused};

/// The most requests in hand.
const CANCELS_MAX: usize = 256;
/// The most streams served in one turn and in one round trip: Redis sends their newest entries whole.
const STREAMS_PER_TURN: usize = 64;
const STREAMS_PER_TRIP: usize = 8;
/// About how many requests to one producer are kept.
const CONTROL_ENTRIES_MAX: u32 = 100;
/// How long requests are kept, and how long if the stream does not exist yet.
const KEPT: Duration = Duration::from_secs(3600);
const UNWRITTEN_KEPT: Duration = Duration::from_secs(60);
/// The most control streams of streams that do not exist yet.
const UNWRITTEN_MAX: usize = 10_000;
/// How long a request may wait for Redis to come back, and how long for anything else.
const AWAY_PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(4);
/// How soon a stream that another instance has claimed is checked again.
const OTHERS_PAUSE: Duration = Duration::from_millis(20);

/// Writes the requests in its queue.
pub(super) struct Cancels {
    queue: Receiver<CancelRequest>,
    answers: Answers,
    milestones: Box<Milestones>,
    hand: Vec<CancelRequest>,
    /// When the requests in hand that another instance has claimed are checked again.
    others_at: Option<Instant>,
    unwritten: Unwritten,
}

/// Streams that did not exist when they were cancelled, ordered by the time at which they are forgotten.
#[derive(Debug, Default)]
struct Unwritten {
    names: HashSet<StreamName>,
    order: VecDeque<(Instant, StreamName)>,
}

impl Unwritten {
    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now)
            && let Some((_, name)) = self.order.pop_front()
        {
            self.names.remove(&name);
        }
    }

    /// Adds a name if there is room for it.
    ///
    /// # Errors
    /// The time until there is room.
    fn take(&mut self, name: &StreamName, now: Instant) -> Result<(), Duration> {
        if self.names.contains(name) {
            return Ok(());
        }
        if self.names.len() >= UNWRITTEN_MAX {
            let oldest = self.order.front().map(|(until, _)| until.saturating_duration_since(now));
            return Err(oldest.unwrap_or_default());
        }
        self.names.insert(name.clone());
        self.order.push_back((now + UNWRITTEN_KEPT, name.clone()));
        Ok(())
    }
}

/// The decision about the requests for a stream.
enum Verdict {
    /// A request is on the control stream.
    Requested,
    /// A request has to be written: the position of the stream, and how long the request is kept.
    Write(Mark, Duration),
    /// Another instance is writing a request.
    Wait,
    Refuse(Refused),
}

/// Redis' replies when a stream is claimed. Only the meaning of its newest entry is kept, because the entry may be
/// large.
struct Look {
    set: Reply,
    get: Reply,
    mark: Mark,
    is_written: bool,
}

impl Cancels {
    pub(super) fn new(queue: Receiver<CancelRequest>, answers: Answers, milestones: Box<Milestones>) -> Self {
        Self {
            queue,
            answers,
            milestones,
            hand: Vec::new(),
            others_at: None,
            unwritten: Unwritten::default(),
        }
    }

    /// When there is work to do.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        if !self.queue.is_empty() && self.hand.is_empty() {
            return Some(now);
        }
        let unsent_at = (self.answers.held() > 0).then(|| now + Duration::from_millis(2));
        let hand_at = (!self.hand.is_empty()).then(|| self.others_at.unwrap_or(now));
        unsent_at.into_iter().chain(hand_at).min()
    }

    /// How many control streams of streams that do not exist yet this instance keeps.
    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.names.len()
    }

    /// Writes some requests and answers the clients that sent them.
    ///
    /// # Errors
    /// If Redis does not reply. Requests that are certainly not written stay in hand.
    pub(super) fn tend(&mut self, link: &mut Link, context: WriteContext<'_>) -> Result<(), RedisError> {
        self.answers.retry();
        self.unwritten.forget(context.now);
        if self.others_at.is_some_and(|at| at > context.now) {
            return Ok(());
        }
        self.others_at = None;
        self.take_up();
        if self.hand.is_empty() {
            return Ok(());
        }
        self.refuse_late(
            context.now,
            PATIENCE,
            &Refused::new("redis_timeout", "Redis does not answer in time: nothing was requested; try again"),
        );
        let mut streams: Vec<StreamName> = Vec::new();
        let mut known = HashSet::new();
        for request in &self.hand {
            if streams.len() < STREAMS_PER_TURN && known.insert(&request.stream) {
                streams.push(request.stream.clone());
            }
        }
        let mut verdicts = self.judge(link, &streams, context)?;
        let result = self.write(link, &mut verdicts, context);
        for (request, verdict) in std::mem::take(&mut self.hand).into_iter().map(|request| {
            let verdict = verdicts.get(&request.stream);
            (request, verdict)
        }) {
            match verdict {
                Some(Verdict::Requested) => {
                    context.counters.cancels_requested.inc();
                    self.send(request.asker, Ok(()));
                }
                Some(Verdict::Refuse(refused)) => {
                    context.counters.cancels_refused.inc();
                    self.send(request.asker, Err(refused.clone()));
                }
                Some(Verdict::Wait | Verdict::Write(..)) => {
                    self.others_at = Some(context.now + OTHERS_PAUSE);
                    self.hand.push(request);
                }
                None => self.hand.push(request),
            }
        }
        result
    }

    /// Answers clients that would wait too long while Redis is down.
    pub(super) fn give_up(&mut self, now: Instant, why: &'static str) {
        self.answers.retry();
        self.take_up();
        self.refuse_late(now, AWAY_PATIENCE, &Refused::new("redis_unreachable", why));
    }

    fn take_up(&mut self) {
        while self.hand.len() < CANCELS_MAX
            && self.answers.held() < CANCELS_MAX
            && let Some(request) = self.queue.try_recv()
        {
            self.hand.push(request);
        }
    }

    fn refuse_late(&mut self, now: Instant, patience: Duration, refused: &Refused) {
        let late =
            self.hand.extract_if(.., |request| now.saturating_duration_since(request.asked_at) >= patience);
        for request in late.collect::<Vec<_>>() {
            self.send(request.asker, Err(refused.clone()));
        }
    }

    /// Claims the streams, and decides about each.
    fn judge(
        &mut self,
        link: &mut Link,
        streams: &[StreamName],
        context: WriteContext<'_>,
    ) -> Result<HashMap<StreamName, Verdict>, RedisError> {
        let mut looks = Vec::with_capacity(streams.len());
        for some in streams.chunks(STREAMS_PER_TRIP) {
            self.look(link, some, &mut looks, context)?;
        }
        let mut verdicts = HashMap::new();
        for (stream, look) in streams.iter().zip(looks) {
            let verdict = self.judge_one(link, stream, &look, context)?;
            verdicts.insert(stream.clone(), verdict);
        }
        Ok(verdicts)
    }

    /// Claims some streams, and reads the state of each.
    fn look(
        &self,
        link: &mut Link,
        streams: &[StreamName],
        looks: &mut Vec<Look>,
        context: WriteContext<'_>,
    ) -> Result<(), RedisError> {
        for stream in streams {
            let marker = marker(context.keys, stream);
            let if_free = expiring(CLAIMED).conditional_set(ExistenceCheck::NX);
            link.push(&Cmd::set_options(&marker, context.me, if_free));
            link.push(&Cmd::get(&marker));
            link.push(&Cmd::xrevrange_count(context.keys.stream(stream), "+", "-", 1));
        }
        let timeout = link.response_timeout();
        for _ in streams {
            let (set, get) = (link.receive(timeout)?, link.receive(timeout)?);
            let newest = match link.receive_bare_range(ENTRY_ROOM_BYTES) {
                Ok(found) => Some(found.into_entries()),
                // A key of another type is not a stream: no producer writes text there, but the name is not free
                // either.
                Err(RedisError::Server(_)) => None,
                Err(error) => return Err(error),
            };
            let entry = newest.as_ref().map(|entries| entries.first());
            let mark = Mark::at(entry.flatten(), &self.milestones);
            looks.push(Look { set, get, mark, is_written: entry.is_none_or(|entry| entry.is_some()) });
        }
        Ok(())
    }

    fn judge_one(
        &mut self,
        link: &mut Link,
        stream: &StreamName,
        look: &Look,
        context: WriteContext<'_>,
    ) -> Result<Verdict, RedisError> {
        let Look { set, get, mark, is_written } = look;
        let (mark, is_written) = (*mark, *is_written);
        if let Some(error) = set.error().or_else(|| get.error()) {
            return Ok(Verdict::Refuse(refused(&marker(context.keys, stream), &error)));
        }
        if get.is_null() {
            return Ok(Verdict::Wait);
        }
        let holder = get.bytes()?;
        if holder[..] != *context.me.as_bytes() {
            let Some(former) = Written::parse(&holder) else { return Ok(Verdict::Wait) };
            let keys = [context.keys.stream(stream), context.keys.control(stream)];
            let keys = keys.each_ref().map(String::as_str);
            if former.is_pending(mark.newest, link, keys, &self.milestones)? {
                return Ok(Verdict::Requested);
            }
            if !take_over(link, &marker(context.keys, stream), &holder, context.me)? {
                return Ok(Verdict::Wait);
            }
        }
        if is_written {
            return Ok(Verdict::Write(mark, KEPT));
        }
        if let Err(wait) = self.unwritten.take(stream, context.now) {
            let message = format!(
                "{UNWRITTEN_MAX} streams that do not exist yet are cancelled already; each request is kept for {} s",
                UNWRITTEN_KEPT.as_secs()
            );
            return Ok(Verdict::Refuse(Refused::too_many(message, wait)));
        }
        Ok(Verdict::Write(mark, UNWRITTEN_KEPT))
    }

    /// Writes a request to every stream that needs one, and releases the claims of the others.
    fn write(
        &mut self,
        link: &mut Link,
        verdicts: &mut HashMap<StreamName, Verdict>,
        context: WriteContext<'_>,
    ) -> Result<(), RedisError> {
        let at_us = context.clock.at(context.now_us);
        let (mut commands, mut written) = (Vec::new(), Vec::new());
        for request in &self.hand {
            let Some(Verdict::Write(mark, kept)) = verdicts.get(&request.stream) else { continue };
            let (stream, mark, kept) = (request.stream.clone(), *mark, *kept);
            commands.extend(transaction(context.keys, request, (at_us, kept)));
            // This request also answers further ones for the stream.
            verdicts.insert(stream.clone(), Verdict::Requested);
            written.push((stream, mark, kept));
        }
        let replies = match link.call_all(&commands) {
            Ok(replies) => replies,
            Err(error) => {
                let message = "Redis has not answered: it is not known whether the request was written";
                for (stream, ..) in written {
                    verdicts.insert(stream, Verdict::Refuse(Refused::new("redis_unreachable", message)));
                }
                return Err(error);
            }
        };
        let mut markers = Vec::new();
        for ((stream, mark, kept), replies) in written.into_iter().zip(replies.chunks_exact(4)) {
            let marker = marker(context.keys, &stream);
            match refusal(replies)? {
                None => {
                    let written = Written { request: request_id(&replies[3])?, mark };
                    markers.push(Cmd::set_options(marker, written.to_text(), expiring(kept)));
                    context.counters.cancels_written.inc();
                }
                Some(error) => {
                    markers.push(Cmd::del(marker));
                    let key = context.keys.control(&stream);
                    verdicts.insert(stream, Verdict::Refuse(refused(&key, &error)));
                }
            }
        }
        let in_vain = verdicts
            .iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Refuse(refused) if refused.too_many.is_some()));
        markers.extend(in_vain.map(|(stream, _)| Cmd::del(marker(context.keys, stream))));
        // If this fails, the claims expire, and another request may be written.
        link.call_all(&markers).map(drop)
    }

    fn send(&mut self, asker: Asker, outcome: Result<(), Refused>) {
        self.answers.send(asker.delivery, ToDelivery::CancelAnswered(asker, outcome));
    }
}

fn marker(keys: &Keys, stream: &StreamName) -> String {
    keys.once(&format!("cancel:{stream}"))
}

/// The commands that write a request to the control stream and set that stream's expiry, both or neither.
fn transaction(keys: &Keys, request: &CancelRequest, (at_us, kept): (u64, Duration)) -> [Cmd; 4] {
    let CancelRequest { stream, reason, by, .. } = request;
    let key = keys.control(stream);
    let reason = reason.as_deref().unwrap_or_default();
    let mut add = cmd("XADD");
    add.arg(&key).arg(&["MAXLEN", "~"]).arg(CONTROL_ENTRIES_MAX).arg("*");
    add.arg(&["type", "cancel", "reason", reason, "by", by, "at"]).arg(at_us);
    let expire = cmd("PEXPIRE").arg(&key).arg(millis(kept)).take();
    [cmd("MULTI"), add, expire, cmd("EXEC")]
}

/// The id of a written request: the first result of its transaction.
fn request_id(executed: &Reply) -> Result<EntryId, RedisError> {
    let value = executed.value()?;
    let first = value.as_array().and_then(|results| results.first());
    let id = first.and_then(|id| id.as_str()).and_then(|id| id.parse().ok());
    id.ok_or_else(|| RedisError::Protocol("an XADD without an id".into()))
}

/// Claims a stream whose former request is no longer pending. Returns whether the claim succeeded.
fn take_over(link: &mut Link, marker: &str, former: &[u8], me: &str) -> Result<bool, RedisError> {
    let is_same = match link.watch(marker) {
        Ok(holder) => holder.as_deref() == Some(former),
        Err(RedisError::Server(_)) => false,
        Err(error) => return Err(error),
    };
    if !is_same {
        link.unwatch()?;
        return Ok(false);
    }
    match link.execute(&Cmd::set_options(marker, me, expiring(CLAIMED))) {
        Err(RedisError::Server(_)) => Ok(false),
        executed => executed,
    }
}

#[cfg(test)]
#[path = "cancels_tests.rs"]
mod tests;
