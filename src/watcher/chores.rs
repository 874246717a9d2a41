//! What the watcher does for others at Redis: dead letters, the end of an abandoned generation, requests to cancel, a look
//! whether anything follows an entry.
//!
//! A chore is done in one round trip or tried again as a whole. Dead letters must be one for each entry however many
//! instances meet it, and must not get lost when an instance dies in between: a marker is *taken* for a
//! few seconds before the letter is written and *kept* together with it.

use std::time::Duration;

use crate::event::{Entry, EntryId, StreamName};
use crate::redis::{Command, Keys, Link, RedisError, Reply, ServerError, ServerErrorKind, Value};

/// How long a dead letter may take from taking its marker to being written.
const MARKER_TAKEN: Duration = Duration::from_secs(10);
/// How long an entry that is met again is known to have its dead letter.
const MARKER_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Requests to a producer that are kept.
const CONTROL_ENTRIES_MAX: u32 = 100;
/// How long they are kept.
const CONTROL_KEPT: Duration = Duration::from_secs(3600);

/// Something to be written, or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// An entry that could not be processed.
    DeadLetter { stream: StreamName, entry: Entry, reason: &'static str, message: Box<str> },
    /// A producer is given up, if `newest` is still the newest entry.
    GiveUp { stream: StreamName, newest: EntryId },
    /// Whether anything follows `newest`.
    IsOver { stream: StreamName, newest: EntryId, transform: usize },
    /// A client wants the generation to stop.
    Cancel { stream: StreamName, reason: Option<String>, by: String },
}

/// What came of a chore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It is written.
    Written,
    /// Somebody else has done it, or it is not to be done any more.
    Needless,
    /// Nothing followed at this time by Redis' clock, ms since 1970.
    NothingFollowed(u64),
}

impl Chore {
    /// Does it.
    ///
    /// # Errors
    /// When Redis could not be asked, or refuses; [`RedisError::is_outage`] tells which.
    pub(super) fn perform(&self, link: &mut Link, context: Context<'_>) -> Result<Done, RedisError> {
        match self {
            Self::DeadLetter { stream, entry, reason, message } => {
                write_dead_letter(link, context, (stream, entry), (reason, message))
            }
            Self::GiveUp { stream, newest } => give_up(link, context.keys, stream, *newest),
            Self::IsOver { stream, newest, .. } => look_behind(link, context.keys, stream, *newest),
            Self::Cancel { stream, reason, by } => {
                cancel(link, context, stream, (reason.as_deref(), by)).map(|()| Done::Written)
            }
        }
    }
}

/// What chores need to know.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) keys: &'a Keys,
    pub(super) dlq_max_entries: u64,
    /// Now by Redis' clock, µs since 1970.
    pub(super) redis_us: u64,
}

fn write_dead_letter(
    link: &mut Link,
    context: Context<'_>,
    (stream, entry): (&StreamName, &Entry),
    (reason, message): (&str, &str),
) -> Result<Done, RedisError> {
    let keys = context.keys;
    let marker = keys.once(&format!("dead:deliver:{stream}:{}", entry.id));
    let take = Command::new("SET").arg(&marker).arg("taken").arg("NX").arg("PX").number(millis(MARKER_TAKEN));
    if link.call(&take)?.is_null() {
        return Ok(Done::Needless);
    }
    let letter = Command::new("XADD").arg(keys.dlq()).args(["MAXLEN", "~"]).number(context.dlq_max_entries);
    let letter = letter.arg("*").arg("stream").arg(stream.as_str()).arg("id").arg(entry.id.to_string());
    let letter = letter.args(["reason", reason, "message", message, "processor", "deliver", "attempts", "1"]);
    let letter = match entry.fields.to_json() {
        Ok(fields) => letter.arg("fields").arg(fields),
        Err(fields_b64) => letter.arg("fields_b64").arg(fields_b64),
    };
    let keep = Command::new("SET").arg(&marker).arg("written").arg("PX").number(millis(MARKER_KEPT));
    let replies = link.call_all(&[Command::new("MULTI"), letter, keep, Command::new("EXEC")])?;
    match refusal(&replies)? {
        Some(error) => {
            // Whoever meets the entry next may try: this failure has not written it.
            link.call(&Command::new("DEL").arg(&marker))?;
            Err(RedisError::Server(error))
        }
        None => Ok(Done::Written),
    }
}

/// Why a transaction did not do all that it should: it was not run, or a command in it failed.
pub(super) fn refusal(replies: &[Reply]) -> Result<Option<ServerError>, RedisError> {
    if let Some(error) = replies.iter().find_map(Reply::error) {
        return Ok(Some(error));
    }
    let Some(results) = replies.last().map(Reply::value).transpose()? else { return Ok(None) };
    Ok(results.as_array().unwrap_or_default().iter().find_map(|result| match result {
        Value::Error(error) => Some(error.clone()),
        _ => None,
    }))
}

/// Ends the generation right after `newest`, if that is still the newest entry: exactly one of all that try
/// succeeds.
fn give_up(link: &mut Link, keys: &Keys, stream: &StreamName, newest: EntryId) -> Result<Done, RedisError> {
    // At the end of the id space nothing can follow.
    let Some(id) = newest.n.checked_add(1).map(|n| EntryId::new(newest.ms, n)) else {
        return Ok(Done::Needless);
    };
    let error = r#"{"type":"error","code":"producer_lost","message":"the producer has been silent for too long and was given up"}"#;
    let command =
        Command::new("XADD").arg(keys.stream(stream)).arg("NOMKSTREAM").id(id).arg("data").arg(error);
    match link.call(&command) {
        Ok(reply) if reply.is_null() => Ok(Done::Needless),
        Ok(_) => Ok(Done::Written),
        // The id is not above the newest any more: somebody has written meanwhile.
        Err(RedisError::Server(error)) if error.kind() == ServerErrorKind::Other && error.code == "ERR" => {
            Ok(Done::Needless)
        }
        Err(error) => Err(error),
    }
}

/// Asks for the time first: an entry written later than the look has an id that is not below it.
fn look_behind(
    link: &mut Link,
    keys: &Keys,
    stream: &StreamName,
    newest: EntryId,
) -> Result<Done, RedisError> {
    let behind =
        Command::new("XRANGE").arg(keys.stream(stream)).arg(format!("({newest}")).args(["+", "COUNT", "1"]);
    let replies = link.call_all(&[Command::new("TIME"), behind])?;
    if let Some(error) = replies.iter().find_map(Reply::error) {
        return Err(RedisError::Server(error));
    }
    let [time, behind] = &replies[..] else { return Ok(Done::Needless) };
    Ok(match time.time_us() {
        Some(redis_us) if behind.entries()?.is_empty() => Done::NothingFollowed(redis_us / 1000),
        _ => Done::Needless,
    })
}

fn cancel(
    link: &mut Link,
    context: Context<'_>,
    stream: &StreamName,
    (reason, by): (Option<&str>, &str),
) -> Result<(), RedisError> {
    let key = context.keys.control(stream);
    let command = Command::new("XADD").arg(&key).args(["MAXLEN", "~"]).number(CONTROL_ENTRIES_MAX).arg("*");
    let command = command.args(["type", "cancel", "reason", reason.unwrap_or_default(), "by", by, "at"]);
    let expire = Command::new("PEXPIRE").arg(&key).number(millis(CONTROL_KEPT));
    let replies = link.call_all(&[command.number(context.redis_us), expire])?;
    match replies.iter().find_map(Reply::error) {
        Some(error) => Err(RedisError::Server(error)),
        None => Ok(()),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Fields;
    use crate::redis::testing::RedisServer;

    fn context(keys: &Keys) -> Context<'_> {
        Context { keys, dlq_max_entries: 100, redis_us: 7 }
    }

    fn name() -> StreamName {
        "s/m:1".parse().unwrap()
    }

    fn entries(link: &mut Link, key: &str) -> Vec<Entry> {
        link.call(&Command::new("XRANGE").args([key, "-", "+"])).unwrap().entries().unwrap()
    }

    fn text(entry: &Entry, field: &str) -> String {
        String::from_utf8(entry.fields.get(field).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn an_entry_has_one_dead_letter_however_many_meet_it() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        let entry = Entry {
            id: EntryId::new(5, 1),
            fields: Fields::from_pairs(&[(b"data", b"{\"a\":\"\xc3\xa4\""), (b"x", b"")]),
        };
        let letter = Chore::DeadLetter { stream: name(), entry, reason: "malformed", message: "m".into() };
        assert_eq!(letter.perform(&mut link, context(&keys)).unwrap(), Done::Written);
        assert_eq!(letter.perform(&mut link, context(&keys)).unwrap(), Done::Needless);
        let letters = entries(&mut link, "llm:dlq:s");
        assert_eq!(letters.len(), 1);
        let fields: Vec<_> = ["stream", "id", "reason", "message", "processor", "attempts", "fields"]
            .iter()
            .map(|field| text(&letters[0], field))
            .collect();
        let data = r#"{"data":"{\"a\":\"ä\"","x":""}"#;
        assert_eq!(fields, ["s/m:1", "5-1", "malformed", "m", "deliver", "1", data]);
    }

    #[test]
    fn a_dead_letter_that_was_refused_can_be_written_later() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        link.call(&Command::new("SET").args(["llm:dlq:s", "no stream"])).unwrap();
        let entry = Entry { id: EntryId::new(5, 1), fields: Fields::default() };
        let letter = Chore::DeadLetter { stream: name(), entry, reason: "malformed", message: "m".into() };
        assert!(!letter.perform(&mut link, context(&keys)).unwrap_err().is_outage());
        link.call(&Command::new("DEL").arg("llm:dlq:s")).unwrap();
        assert_eq!(letter.perform(&mut link, context(&keys)).unwrap(), Done::Written);
    }

    #[test]
    fn a_producer_is_given_up_once_and_only_while_it_is_silent() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        let give_up = |n| Chore::GiveUp { stream: name(), newest: EntryId::new(9, n) };
        assert_eq!(give_up(0).perform(&mut link, context(&keys)).unwrap(), Done::Needless, "there is none");
        let key = keys.stream(&name());
        link.call(&Command::new("XADD").args([key.as_str(), "9-4", "data", "{}"])).unwrap();
        assert_eq!(give_up(2).perform(&mut link, context(&keys)).unwrap(), Done::Needless, "it spoke");
        assert_eq!(give_up(4).perform(&mut link, context(&keys)).unwrap(), Done::Written);
        assert_eq!(give_up(4).perform(&mut link, context(&keys)).unwrap(), Done::Needless, "it is done");
        let last = entries(&mut link, &key).pop().unwrap();
        assert_eq!(last.id, EntryId::new(9, 5));
        assert!(text(&last, "data").contains("producer_lost"));
        assert_eq!(give_up(u64::MAX).perform(&mut link, context(&keys)).unwrap(), Done::Needless);
    }

    #[test]
    fn what_follows_an_entry_is_seen() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        let key = keys.stream(&name());
        let is_over = |n| Chore::IsOver { stream: name(), newest: EntryId::new(9, n), transform: 0 };
        link.call(&Command::new("XADD").args([key.as_str(), "9-4", "data", "{}"])).unwrap();
        assert_eq!(is_over(3).perform(&mut link, context(&keys)).unwrap(), Done::Needless);
        let Done::NothingFollowed(redis_ms) = is_over(4).perform(&mut link, context(&keys)).unwrap() else {
            panic!("nothing follows")
        };
        assert!(redis_ms > 1_700_000_000_000, "{redis_ms}");
    }

    #[test]
    fn a_cancel_request_lies_on_the_control_stream_for_a_while() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        let chore = Chore::Cancel { stream: name(), reason: Some("enough".into()), by: "10.0.0.1:5".into() };
        assert_eq!(chore.perform(&mut link, context(&keys)).unwrap(), Done::Written);
        let request = entries(&mut link, "llm:control:s:m:1").pop().unwrap();
        let fields: Vec<_> =
            ["type", "reason", "by", "at"].iter().map(|field| text(&request, field)).collect();
        assert_eq!(fields, ["cancel", "enough", "10.0.0.1:5", "7"]);
        let ttl = link.call(&Command::new("PTTL").arg("llm:control:s:m:1")).unwrap().value().unwrap();
        assert!(matches!(ttl, Value::Int(1..)));
    }
}
