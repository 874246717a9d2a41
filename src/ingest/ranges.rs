//! The commands that a replay thread sends to Redis, and how it reads the replies.
//!
//! A stream's entries and its description come from one transaction on one key: what was trimmed before the read
//! shows in the description, and nothing can be trimmed in between.

use ::redis::{Cmd, cmd};

use super::pace::{Manner, TRIP_BYTES_MAX};
use crate::message::{KeyFacts, ReplayRead, ReplayRequest, ReplayStep};
use crate::model::{ENTRY_BYTES_MAX, Entry, EntryId, Position};
use crate::redis::{Keys, Link, RangeReply, RedisError, ServerErrorKind, StreamInfo};

/// How often a read is repeated whose stream was trimmed meanwhile.
const APART_ATTEMPTS: usize = 3;
/// Commands of a transaction before its EXEC, MULTI included.
const COMMANDS: usize = 3;

/// A request with the range to read for it.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) request: ReplayRequest,
    /// Where the range begins.
    pub(super) start: String,
    /// The most entries to return.
    pub(super) count: usize,
    pub(super) manner: Manner,
}

/// The replies of one round trip.
pub(super) struct Answers {
    /// One for each question, in the same order.
    pub(super) ranges: Vec<Result<RangeReply, RedisError>>,
}

/// Where the range of a request begins.
pub(super) fn start_of(request: &ReplayRequest) -> String {
    if let Some(checkpoint) = &request.jump {
        // The checkpoint's entry is read again, to verify it.
        return checkpoint.at().to_string();
    }
    match &request.step {
        ReplayStep::Open { .. } => "-".into(),
        // Nothing follows the highest id: the read only shows whether the stream exists.
        ReplayStep::Probe => "+".into(),
        ReplayStep::Search(search) => beyond(Position::whole(search.from)),
        ReplayStep::State(search) => beyond(Position::whole(search.from)),
        ReplayStep::Continue { from, .. } => beyond(from.position),
    }
}

/// Where the range of a request ends.
fn end_of(step: &ReplayStep) -> String {
    match step {
        ReplayStep::Continue { until: Some(until), .. } => until.to_string(),
        ReplayStep::Probe => "-".into(),
        _ => "+".into(),
    }
}

/// The start of a range that leaves out everything `position` covers. An entry is read again if the viewer has
/// received only some of its frames.
fn beyond(position: Position) -> String {
    match position {
        Position::ZERO => "-".into(),
        // Nothing can be requested after the highest id: the last entry is read again and skipped.
        Position { id, .. } if position.covers_entry() && id != EntryId::MAX => format!("({id}"),
        Position { id, .. } => id.to_string(),
    }
}

/// Reads all ranges in one round trip.
pub(super) fn ask(link: &mut Link, keys: &Keys, questions: &[Question]) -> Result<Answers, RedisError> {
    if let [question] = questions
        && question.manner == Manner::Apart
    {
        return ask_apart(link, keys, question);
    }
    for question in questions {
        let key = keys.stream(&question.request.stream);
        transaction(link, range(question, &key), info(&key, question.manner >= Manner::Lean));
    }
    link.flush()?;
    let mut room = TRIP_BYTES_MAX;
    let mut ranges = Vec::with_capacity(questions.len());
    for question in questions {
        let found = receive(link, room, question.manner >= Manner::Lean)?;
        let kept = found.iter().flat_map(|found| &found.entries).map(|entry| entry.fields.len_bytes());
        room = room.saturating_sub(kept.sum());
        ranges.push(found);
    }
    for (question, range) in questions.iter().zip(&mut ranges) {
        if range.as_ref().is_err_and(|error| error.server_kind() == Some(ServerErrorKind::Oom)) {
            *range = ask_while_full(link, keys, question)?;
        }
    }
    Ok(Answers { ranges })
}

/// Reads a range with nothing else in the reply, and the stream's description before and after. If nothing was
/// removed in between, the result is as good as that of one transaction.
fn ask_apart(link: &mut Link, keys: &Keys, question: &Question) -> Result<Answers, RedisError> {
    let key = keys.stream(&question.request.stream);
    let describe = |link: &mut Link| {
        let nothing = Cmd::xrange(&key, "+", "-");
        transaction(link, nothing, info(&key, true));
        link.flush()?;
        receive(link, 0, true)
    };
    for _ in 0..APART_ATTEMPTS {
        let before = describe(link)?;
        transaction(link, range(question, &key), Cmd::xlen(&key));
        link.flush()?;
        let found = receive(link, TRIP_BYTES_MAX, true)?;
        let after = describe(link)?;
        if removed(&before) == removed(&after) {
            let ranges = vec![found.and_then(|found| Ok(RangeReply { info: before?.info, ..found }))];
            return Ok(Answers { ranges });
        }
    }
    Ok(Answers { ranges: vec![Err(CHANGED)] })
}

/// Reads the range without transactions: a Redis that is out of memory queues no commands but still executes reads.
fn ask_while_full(
    link: &mut Link,
    keys: &Keys,
    question: &Question,
) -> Result<Result<RangeReply, RedisError>, RedisError> {
    let key = keys.stream(&question.request.stream);
    for _ in 0..APART_ATTEMPTS {
        let nothing = Cmd::xrange(&key, "+", "-");
        for command in [nothing, info(&key, true), range(question, &key), info(&key, true)] {
            link.push(&command);
        }
        link.flush()?;
        let before = refusable(link.receive_range_apart(0, true))?;
        let found = refusable(link.receive_range_apart(TRIP_BYTES_MAX, true))?;
        if removed(&before) == removed(&found) {
            return Ok(found.and_then(|found| Ok(RangeReply { info: before?.info, ..found })));
        }
    }
    Ok(Err(CHANGED))
}

const CHANGED: RedisError =
    RedisError::Protocol(std::borrow::Cow::Borrowed("the stream was trimmed at each attempt to read it"));

/// The stream's first entry, and how many entries were ever removed.
fn removed(described: &Result<RangeReply, RedisError>) -> Option<(Option<EntryId>, Option<u64>)> {
    match described {
        Ok(RangeReply { info: Ok(Some(info)), .. }) => {
            Some((info.first, info.entries_added.map(|added| added.saturating_sub(info.length))))
        }
        _ => None,
    }
}

/// Separates errors of the server from errors that end the connection.
fn refusable(found: Result<RangeReply, RedisError>) -> Result<Result<RangeReply, RedisError>, RedisError> {
    match found {
        Err(error @ RedisError::Server(_)) => Ok(Err(error)),
        found => Ok(Ok(found?)),
    }
}

fn range(question: &Question, key: &str) -> Cmd {
    let (start, end) = (&question.start, end_of(&question.request.step));
    Cmd::xrange_count(key, start, end, question.count)
}

/// Both commands return content that is not needed: that of the first and the newest entry, or that of the first
/// entry alone.
fn info(key: &str, is_lean: bool) -> Cmd {
    let mut info = Cmd::xinfo_stream(key);
    if is_lean {
        info.arg(&["FULL", "COUNT", "1"]);
    }
    info
}

fn transaction(link: &mut Link, range: Cmd, info: Cmd) {
    for command in [cmd("MULTI"), range, info, cmd("EXEC")] {
        link.push(&command);
    }
}

/// The reply to a transaction; the outer error is the connection's, the inner one the server's.
fn receive(
    link: &mut Link,
    room: usize,
    is_full: bool,
) -> Result<Result<RangeReply, RedisError>, RedisError> {
    let timeout = link.response_timeout();
    let mut refused = None;
    for _ in 0..COMMANDS {
        refused = refused.or(link.receive(timeout)?.error());
    }
    match (link.receive_range(room, is_full), refused) {
        (Ok(found), _) => Ok(Ok(found)),
        // The error of the refused command is more specific than that of the transaction.
        (Err(RedisError::Server(_)), Some(refused)) => Ok(Err(RedisError::Server(refused))),
        (Err(error @ RedisError::Server(_)), None) => Ok(Err(error)),
        (Err(error), _) => Err(error),
    }
}

/// A parsed reply.
#[derive(Debug)]
pub(super) enum Understood {
    /// An answer.
    Read(ReplayRead),
    /// The other reads of the round trip left no room for a single entry.
    Starved,
}

/// Converts the reply to a question into the answer to its request.
pub(super) fn understand(question: &Question, found: RangeReply) -> Result<Understood, RedisError> {
    let RangeReply { mut entries, found: count, first, info, .. } = found;
    let info = match info {
        Ok(info) => info.ok_or(NOT_DESCRIBED)?,
        Err(error) => {
            return match error.kind() {
                ServerErrorKind::NoSuchKey => Ok(Understood::Read(ReplayRead::Missing)),
                ServerErrorKind::WrongType => Ok(Understood::Read(ReplayRead::WrongType)),
                _ => Err(RedisError::Server(error)),
            };
        }
    };
    let had_all_room = question.manner > Manner::Together;
    if entries.is_empty() && count > 0 {
        match first {
            Some(first) if had_all_room || first.bytes > ENTRY_BYTES_MAX as u64 => {
                entries.push(first.into_entry());
            }
            _ if had_all_room => return Err(NO_ENTRY),
            _ => return Ok(Understood::Starved),
        }
    }
    let until = match &question.request.step {
        ReplayStep::Continue { until, .. } => *until,
        _ => None,
    };
    let exhausted = is_exhausted(&entries, count, (question.count, until));
    Ok(Understood::Read(ReplayRead::Found { facts: facts(&info), entries, exhausted }))
}

const NOT_DESCRIBED: RedisError =
    RedisError::Protocol(std::borrow::Cow::Borrowed("a range without its stream"));
const NO_ENTRY: RedisError = RedisError::Protocol(std::borrow::Cow::Borrowed("an entry without id"));

/// Whether the read reached the end of the stream, or of the requested range.
fn is_exhausted(entries: &[Entry], found: usize, (asked, until): (usize, Option<EntryId>)) -> bool {
    let reached = until.is_some() && entries.last().map(|entry| entry.id) >= until;
    reached || (found < asked && entries.len() == found)
}

fn facts(info: &StreamInfo) -> KeyFacts {
    KeyFacts {
        last_generated: info.last_generated_id,
        first: info.first,
        length: info.length,
        added: info.entries_added,
        max_deleted: info.max_deleted_id.filter(|&id| id != EntryId::ZERO),
    }
}
