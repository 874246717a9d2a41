//! A producer's connection to Redis.
//!
//! A batch travels as one transaction, so that an error in the middle (Redis out of memory, a lost
//! right) never leaves a hole that a repetition would come too late to fill.

use crate::config;
use crate::event::StreamName;
use crate::redis::{
    Command, Link, RedisError, Reply, ServerError, ServerErrorKind, Target, TargetError, Value,
};

use super::{Wire, WireError, Wires};

/// Announcements that are kept; listeners take them within moments.
const ANNOUNCEMENTS_MAX: u32 = 10_000;

/// Connections that write one stream.
#[derive(Clone)]
pub struct RedisWires {
    target: Target,
    key: String,
    announce_key: String,
    kept_entries: Option<u64>,
}

impl RedisWires {
    /// Connections to the configured Redis for the stream `name`.
    ///
    /// # Errors
    /// When the configuration names no Redis that could be connected to.
    pub fn new(config: &config::Redis, name: &StreamName) -> Result<Self, TargetError> {
        Ok(Self {
            target: Target::new(config)?,
            key: name.key(&config.prefix),
            announce_key: format!("{}:announce", config.prefix),
            kept_entries: None,
        })
    }

    /// The same, keeping only about so many of the stream's newest entries.
    #[must_use]
    pub const fn keeping(mut self, entries: u64) -> Self {
        self.kept_entries = Some(entries);
        self
    }

    fn add(&self, entry: &str) -> Command {
        let command = Command::new("XADD").arg(&self.key);
        let command = match self.kept_entries {
            Some(entries) => command.arg("MAXLEN").arg("~").number(entries),
            None => command,
        };
        command.arg("*").arg("data").arg(entry)
    }

    fn announce(&self) -> Command {
        let command = Command::new("XADD").arg(&self.announce_key).arg("MAXLEN").arg("~");
        command.number(ANNOUNCEMENTS_MAX).arg("*").arg("stream").arg(&self.key)
    }
}

impl Wires for RedisWires {
    type Wire = RedisWire;

    fn connect(&mut self) -> Result<RedisWire, WireError> {
        let link = Link::connect(&self.target, "llm-bridge-produce").map_err(|error| judge(&error))?;
        Ok(RedisWire { link, wires: self.clone(), announced: false })
    }
}

/// One connection that writes one stream.
pub struct RedisWire {
    link: Link,
    wires: RedisWires,
    /// Whether this connection announced the stream; announcing it again does no harm.
    announced: bool,
}

impl Wire for RedisWire {
    fn append(&mut self, entries: &[String]) -> Result<(), WireError> {
        let mut commands = Vec::with_capacity(entries.len() + 3);
        commands.push(Command::new("MULTI"));
        commands.extend(entries.iter().map(|entry| self.wires.add(entry)));
        commands.push(Command::new("EXEC"));
        if !self.announced {
            commands.push(self.wires.announce());
        }
        let replies = self.link.call_all(&commands).map_err(|error| judge(&error))?;
        let (transaction, rest) = replies.split_at(entries.len() + 2);
        confirm(transaction)?;
        // Announcing only makes readers quicker: a producer without the right to do so goes on.
        if let Some(error) = rest.first().and_then(Reply::error) {
            tracing::warn!(%error, key = self.wires.announce_key, "the stream could not be announced");
        }
        self.announced = true;
        Ok(())
    }
}

/// Whether a transaction wrote everything: `OK`, `QUEUED`…, and an array without an error in it.
fn confirm(transaction: &[Reply]) -> Result<(), WireError> {
    // The first error tells why; EXECABORT at the end only that there was one.
    if let Some(error) = transaction.iter().find_map(Reply::error) {
        return Err(judge(&RedisError::Server(error)));
    }
    let done = transaction.last().map_or(Ok(Value::Null), Reply::value).map_err(|error| judge(&error))?;
    let Value::Array(done) = done else {
        return Err(WireError::Lost("the transaction was given up".to_owned()));
    };
    match done.into_iter().find_map(into_error) {
        Some(error) => Err(judge(&RedisError::Server(error))),
        None => Ok(()),
    }
}

fn into_error(value: Value) -> Option<ServerError> {
    match value {
        Value::Error(error) => Some(error),
        _ => None,
    }
}

/// Whether trying again can help.
fn judge(error: &RedisError) -> WireError {
    let text = error.to_string();
    let passes = matches!(error.server_kind(), Some(ServerErrorKind::Oom | ServerErrorKind::TryAgain));
    if error.is_outage() || passes { WireError::Lost(text) } else { WireError::Refused(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(texts: &[&'static str]) -> Vec<Reply> {
        texts.iter().map(|text| Reply::parse(text.as_bytes().into()).unwrap()).collect()
    }

    #[test]
    fn a_transaction_is_confirmed_only_as_a_whole() {
        confirm(&replies(&["+OK\r\n", "+QUEUED\r\n", "*1\r\n$3\r\n1-0\r\n"])).unwrap();
        let full = ["+OK\r\n", "-OOM command not allowed\r\n", "-EXECABORT discarded\r\n"];
        assert!(matches!(confirm(&replies(&full)), Err(WireError::Lost(text)) if text.contains("OOM")));
        let wrong = ["+OK\r\n", "+QUEUED\r\n", "*1\r\n-WRONGTYPE another kind\r\n"];
        assert!(matches!(confirm(&replies(&wrong)), Err(WireError::Refused(_))));
        let denied = ["+OK\r\n", "-NOPERM no\r\n", "-EXECABORT discarded\r\n"];
        assert!(matches!(confirm(&replies(&denied)), Err(WireError::Refused(_))));
        assert!(matches!(confirm(&replies(&["+OK\r\n", "*-1\r\n"])), Err(WireError::Lost(_))));
    }
}
