//! A producer's connection to Redis.
//!
//! A batch is one transaction, so that an error in the middle (Redis out of memory, a revoked right) never leaves a
//! hole that a repetition would fill too late. Because a batch is written completely or not at all, one look after
//! the newest confirmed entry shows whether it has to be repeated; `WATCH` prevents the first attempt, should it
//! still be in progress, from being executed between the look and the repetition.
//!
//! If a lock decides who may write, each batch watches the stream, checks the lock, and then writes. A new holder of
//! the lock writes an entry (a *fence*) into the stream before it reads the stream: a batch of the former holder is
//! either before the fence, where it is read, or is discarded. So every transaction touches one key, the stream's.

use ::redis::{Cmd, cmd};

use crate::config;
use crate::model::{Entry, EntryId, StreamName};
use crate::observe::Trouble;
use crate::redis::{
    ENTRY_ROOM_BYTES, Link, Phase, RedisError, Reply, ServerError, ServerErrorKind, Target, TargetError,
    Value,
};
use crate::warn_limited;

use super::{Batch, Record, Wire, WireError, Wires};

/// The most entries of other writers (the daemon, a second producer) among which a batch is searched for.
const FOREIGN_ENTRIES_MAX: usize = 1_000;
/// The number of entries in the first page of that search; later pages have as many as fit into about [`PAGE_BYTES`].
const PAGE_FIRST: usize = 16;
const PAGE_BYTES: usize = 1 << 20;
/// The trouble to report if a producer's rights are missing.
const MISSING_RIGHTS: Trouble = Trouble {
    what: "Redis does not allow what a producer does",
    fix: "allow its user +multi +exec +xadd +xread +xrange +xrevrange +watch +unwatch on the keys of its prefix (ACL SETUSER)",
};
/// How many announcements are kept; listeners read them within moments.
const ANNOUNCEMENTS_MAX: u32 = 10_000;

/// Connections that write one stream.
#[derive(Clone)]
pub struct RedisWires {
    target: Target,
    key: String,
    announce_key: String,
    kept_entries: Option<u64>,
    lock: Option<Lock>,
}

/// A key whose value names the only producer that may write.
#[derive(Clone)]
struct Lock {
    key: String,
    holder: String,
}

impl RedisWires {
    /// Connections to the configured Redis for the stream `name`.
    ///
    /// # Errors
    /// If the configuration does not describe a usable Redis.
    pub fn new(config: &config::Redis, name: &StreamName) -> Result<Self, TargetError> {
        Ok(Self {
            target: Target::new(config)?,
            key: config.stream_key.key(name),
            announce_key: format!("{}:announce", config.prefix),
            kept_entries: None,
            lock: None,
        })
    }

    /// Writes only while `key` holds `holder`. If it does not, the batch counts as not written.
    ///
    /// Another producer may take the lock between the check and the write: it must write an entry into the stream
    /// before it relies on the stream's content.
    #[must_use]
    pub fn while_held(mut self, key: String, holder: &str) -> Self {
        self.lock = Some(Lock { key, holder: holder.to_owned() });
        self
    }

    /// Keeps only about this many of the stream's newest entries.
    #[must_use]
    pub const fn keeping(mut self, entries: u64) -> Self {
        self.kept_entries = Some(entries);
        self
    }

    fn add(&self, record: &Record) -> Cmd {
        let mut command = cmd("XADD");
        command.arg(&self.key);
        if let Some(entries) = self.kept_entries {
            command.arg(&["MAXLEN", "~"]).arg(entries);
        }
        command.arg("*").arg(record.form.field()).arg(&record.json).take()
    }

    fn announce(&self) -> Cmd {
        let mut command = cmd("XADD");
        command.arg(&self.announce_key).arg(&["MAXLEN", "~"]).arg(ANNOUNCEMENTS_MAX);
        command.arg(&["*", "stream", &self.key]).take()
    }
}

impl Wires for RedisWires {
    type Wire = RedisWire;

    fn connect(&mut self) -> Result<RedisWire, WireError> {
        let link = Link::connect(&self.target, "llm-bridge-produce");
        let link = link.map_err(|error| judge(&error, Phase::Connecting))?;
        Ok(RedisWire { link, wires: self.clone(), announced: false })
    }
}

/// One connection that writes one stream.
pub struct RedisWire {
    link: Link,
    wires: RedisWires,
    /// Whether this connection has announced the stream; announcing it again does no harm.
    announced: bool,
}

impl Wire for RedisWire {
    fn append(&mut self, batch: &Batch<'_>) -> Result<EntryId, WireError> {
        if let Some(after) = batch.look_after()
            && let Some(last) = self.find(batch.records, after)?
        {
            return Ok(last);
        }
        self.check_lock()?;
        let mut commands = Vec::with_capacity(batch.records.len() + 3);
        commands.push(cmd("MULTI"));
        commands.extend(batch.records.iter().map(|record| self.wires.add(record)));
        commands.push(cmd("EXEC"));
        if !self.announced {
            commands.push(self.wires.announce());
        }
        let replies = self.link.call_all(&commands).map_err(|error| failed(&error))?;
        let (transaction, rest) = replies.split_at(batch.records.len() + 2);
        let last = confirm(transaction)?;
        // Announcing only notifies readers earlier: a producer without the right to announce continues.
        if let Some(error) = rest.first().and_then(Reply::error) {
            warn_limited!(%error, key = self.wires.announce_key, "the stream could not be announced");
        }
        self.announced = true;
        Ok(last)
    }
}

impl RedisWire {
    /// Checks whether the lock is held. The stream is watched from before the check on, so that the next transaction
    /// is discarded after the fence of a producer that takes the lock meanwhile.
    fn check_lock(&mut self) -> Result<(), WireError> {
        let Some(lock) = &self.wires.lock else { return Ok(()) };
        let look = [cmd("WATCH").arg(&self.wires.key).take(), Cmd::get(&lock.key)];
        let replies = self.link.call_all(&look).map_err(|error| failed(&error))?;
        if let Some(error) = replies.iter().find_map(Reply::error) {
            return Err(failed(&RedisError::Server(error)));
        }
        match replies.last().map(Reply::text) {
            Some(Ok(holder)) if holder == lock.holder => Ok(()),
            _ => Err(WireError::Lost(format!("{} is not held any more", lock.key))),
        }
    }

    /// The id of the batch's last entry, if it follows `after` in the stream. If it does not, the stream is watched,
    /// so that no other write can come unnoticed between this look and the next transaction.
    fn find(&mut self, records: &[Record], after: EntryId) -> Result<Option<EntryId>, WireError> {
        let Some(from) = after.next().filter(|_| !records.is_empty()) else { return Ok(None) };
        let watch = self.link.query::<()>(cmd("WATCH").arg(&self.wires.key));
        watch.map_err(|error| failed(&error))?;
        let (mut left, mut page) = (records.len() + FOREIGN_ENTRIES_MAX, PAGE_FIRST);
        let mut from = Some(from);
        // How many records, counted from the first one, match the entries up to here.
        let mut matched: Vec<usize> = Vec::new();
        while let Some(id) = from.filter(|_| left > 0) {
            let asked = page.min(left);
            let range = Cmd::xrange_count(&self.wires.key, id, "+", asked);
            let found = self.link.call_range(&range, ENTRY_ROOM_BYTES);
            let found = found.map_err(|error| failed(&error))?;
            let (count, fitting) = (found.found, found.fitting(PAGE_BYTES));
            let entries = found.into_entries();
            for entry in &entries {
                matched.push(0);
                matched.retain_mut(|count| {
                    let is_next = is_of(entry, &records[*count]);
                    *count += usize::from(is_next);
                    is_next
                });
                if matched.contains(&records.len()) {
                    self.link.unwatch().map_err(|error| failed(&error))?;
                    return Ok(Some(entry.id));
                }
            }
            let is_last = count < asked && entries.len() == count;
            from = entries.last().filter(|_| !is_last).and_then(|entry| entry.id.next());
            left = left.saturating_sub(entries.len());
            page = fitting.clamp(1, page.saturating_mul(PAGE_FIRST));
        }
        Ok(None)
    }
}

fn is_of(entry: &Entry, record: &Record) -> bool {
    entry.fields.get(record.form.field()) == Some(record.json.as_bytes())
}

/// Whether a transaction wrote everything: `OK`, `QUEUED`…, and an array of ids, of which the last is returned.
fn confirm(transaction: &[Reply]) -> Result<EntryId, WireError> {
    // The first error gives the cause; EXECABORT at the end only shows that there was one.
    if let Some(error) = transaction.iter().find_map(Reply::error) {
        return Err(failed(&RedisError::Server(error)));
    }
    let done = transaction.last().map_or(Ok(Value::Null), Reply::value).map_err(|error| failed(&error))?;
    let Value::Array(done) = done else {
        return Err(WireError::Lost("the transaction was discarded".to_owned()));
    };
    let last = done.last().and_then(Value::as_bytes).and_then(EntryId::from_ascii);
    match done.into_iter().find_map(into_error) {
        Some(error) => Err(failed(&RedisError::Server(error))),
        None => last.ok_or_else(|| WireError::Lost("the transaction gave no ids".to_owned())),
    }
}

fn into_error(value: Value) -> Option<ServerError> {
    match value {
        Value::Error(error) => Some(error),
        _ => None,
    }
}

/// Judges an error on an established connection.
fn failed(error: &RedisError) -> WireError {
    judge(error, Phase::Connected)
}

/// Decides whether a later attempt can help. The text describes the problem and its fix.
fn judge(error: &RedisError, phase: Phase) -> WireError {
    let Trouble { what, fix } = match error.server_kind() {
        Some(ServerErrorKind::NoPerm) => MISSING_RIGHTS,
        _ => error.trouble(phase),
    };
    let text = format!("{what} ({error}): {fix}");
    let passes = matches!(error.server_kind(), Some(ServerErrorKind::Oom | ServerErrorKind::TryAgain));
    if error.is_outage() || passes { WireError::Lost(text) } else { WireError::Refused(text) }
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;
    use crate::redis::testing::{RedisServer, config_for};

    fn replies(texts: &[&'static str]) -> Vec<Reply> {
        texts.iter().map(|text| Reply::parse(text.as_bytes().into()).unwrap()).collect()
    }

    #[test]
    fn a_transaction_is_confirmed_only_as_a_whole() {
        let done = replies(&["+OK\r\n", "+QUEUED\r\n", "*1\r\n$3\r\n1-0\r\n"]);
        assert_eq!(confirm(&done).unwrap(), EntryId::new(1, 0));
        let full = ["+OK\r\n", "-OOM command not allowed\r\n", "-EXECABORT discarded\r\n"];
        assert!(matches!(confirm(&replies(&full)), Err(WireError::Lost(text)) if text.contains("OOM")));
        let wrong = ["+OK\r\n", "+QUEUED\r\n", "*1\r\n-WRONGTYPE another kind\r\n"];
        assert!(matches!(confirm(&replies(&wrong)), Err(WireError::Refused(_))));
        let denied = ["+OK\r\n", "-NOPERM no\r\n", "-EXECABORT discarded\r\n"];
        assert!(matches!(confirm(&replies(&denied)), Err(WireError::Refused(_))));
        assert!(matches!(confirm(&replies(&["+OK\r\n", "*-1\r\n"])), Err(WireError::Lost(_))));
    }

    #[test]
    fn only_the_holder_of_the_lock_writes() {
        let server = RedisServer::start(&[]);
        let wires = RedisWires::new(&config_for(&server.url()), &"s/m".parse().unwrap()).unwrap();
        let mut wires = wires.while_held("lock".into(), "me");
        let mut wire = wires.connect().unwrap();
        let mut link = server.link();
        let records = [Record { form: Form::OpenAi, json: "{}".into() }];
        let append = |wire: &mut RedisWire| wire.append(&Batch { records: &records, repeats_after: None });
        assert!(matches!(append(&mut wire), Err(WireError::Lost(_))), "nobody holds it");
        link.call(&Cmd::set("lock", "me")).unwrap();
        // A producer drops a connection on which a write has failed.
        let mut wire = wires.connect().unwrap();
        append(&mut wire).unwrap();
        // Another producer takes the lock between the check and the write.
        wire.check_lock().unwrap();
        link.call(&Cmd::set("lock", "you")).unwrap();
        link.call(&Cmd::xadd("llm:stream:s:m", "*", &[("data", r#"{"type":"heartbeat"}"#)])).unwrap();
        let write = [cmd("MULTI"), wires.add(&records[0]), cmd("EXEC")];
        assert!(matches!(confirm(&wire.link.call_all(&write).unwrap()), Err(WireError::Lost(_))));
        assert!(matches!(append(&mut wire), Err(WireError::Lost(_))));
        let len = link.query::<i64>(&Cmd::xlen("llm:stream:s:m")).unwrap();
        assert_eq!(len, 2);
    }

    #[test]
    fn a_batch_that_is_there_is_found_and_one_that_is_not_is_written() {
        let server = RedisServer::start(&[]);
        let mut wires = RedisWires::new(&config_for(&server.url()), &"s/m".parse().unwrap()).unwrap();
        let mut wire = wires.connect().unwrap();
        let raw = |json: &str| Record { form: Form::OpenAi, json: json.into() };
        let mut append =
            |records: &[Record], repeats_after| wire.append(&Batch { records, repeats_after }).unwrap();
        // The same text twice: only entries after the confirmed one count.
        let first = append(&[raw("{}")], None);
        let second = append(&[raw("{}"), raw("[DONE]")], Some(first));
        assert!(second > first);
        assert_eq!(append(&[raw("{}"), raw("[DONE]")], Some(first)), second);
        let mut link = server.link();
        link.call(&Cmd::xadd("llm:stream:s:m", "*", &[("data", "{}")])).unwrap();
        let third = append(&[raw("{}")], Some(second));
        assert_eq!(append(&[raw("{}")], Some(second)), third);
        let len = link.query::<i64>(&Cmd::xlen("llm:stream:s:m")).unwrap();
        assert_eq!(len, 5);
    }

    #[test]
    fn announcements_are_capped() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let old = Cmd::xadd("llm:announce", "*", &[("stream", "other")]);
        link.call_all(vec![old; 1_000 + ANNOUNCEMENTS_MAX as usize]).unwrap();
        let mut wires = RedisWires::new(&config_for(&server.url()), &"s/m".parse().unwrap()).unwrap();
        let records = [Record { form: Form::OpenAi, json: "{}".into() }];
        wires.connect().unwrap().append(&Batch { records: &records, repeats_after: None }).unwrap();
        // Redis trims whole nodes, of a hundred entries by default.
        let kept = link.query::<i64>(&Cmd::xlen("llm:announce")).unwrap();
        assert!(kept <= i64::from(ANNOUNCEMENTS_MAX) + 100, "{kept}");
    }
}
