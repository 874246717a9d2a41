//! Changes one key only if nobody has changed it since it was read: `WATCH`, a read, then a transaction.

use ::redis::{Cmd, cmd};

use super::Link;
use super::typed::read;
use crate::redis::error::RedisError;
use crate::redis::reply::{Reply, Value};

impl Link {
    /// The string at a key, which is watched from before the read on. The next call must be either [`Link::execute`]
    /// or [`Link::unwatch`].
    ///
    /// # Errors
    /// As [`Link::call`]. After [`RedisError::Server`] the key is still watched.
    pub fn watch(&mut self, key: &str) -> Result<Option<Vec<u8>>, RedisError> {
        let replies = self.call_all([cmd("WATCH").arg(key).take(), Cmd::get(key)])?;
        replies.first().map_or(Ok(()), read)?;
        replies.last().map_or(Ok(None), read)
    }

    /// Stops watching.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub fn unwatch(&mut self) -> Result<(), RedisError> {
        self.query(&cmd("UNWATCH"))
    }

    /// Runs a command in a transaction; `false`: a watched key has changed, and the command was not run.
    ///
    /// # Errors
    /// As [`Link::call`], also for an error of the command itself.
    pub fn execute(&mut self, command: &Cmd) -> Result<bool, RedisError> {
        let replies = self.call_all([&cmd("MULTI"), command, &cmd("EXEC")])?;
        // The first error gives the cause; EXECABORT at the end only shows that there was one.
        if let Some(error) = replies.iter().find_map(Reply::error) {
            return Err(RedisError::Server(error));
        }
        match replies.last().map_or(Ok(Value::Null), Reply::value)? {
            Value::Null => Ok(false),
            Value::Array(results) => match results.into_iter().next() {
                Some(Value::Error(error)) => Err(RedisError::Server(error)),
                _ => Ok(true),
            },
            _ => Err(RedisError::Protocol("EXEC answers with no array".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::error::ServerErrorKind;
    use crate::redis::testing::RedisServer;

    #[test]
    fn a_key_that_has_changed_is_left_alone() {
        let server = RedisServer::start(&[]);
        let (mut ours, mut theirs) = (server.link(), server.link());
        let set = |value: &str| Cmd::set("k", value);
        assert!(ours.watch("k").unwrap().is_none());
        assert!(ours.execute(&set("ours")).unwrap());
        assert_eq!(ours.watch("k").unwrap().unwrap(), b"ours");
        theirs.call(&set("theirs")).unwrap();
        assert!(!ours.execute(&set("ours")).unwrap());
        // A transaction ends the watching, executed or not, and so does unwatch.
        assert_eq!(ours.watch("k").unwrap().unwrap(), b"theirs");
        ours.unwatch().unwrap();
        theirs.call(&set("again")).unwrap();
        assert!(ours.execute(&set("ours")).unwrap());
    }

    #[test]
    fn errors_of_each_step_are_returned() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        link.call(&Cmd::sadd("set", "member")).unwrap();
        let kind = |result: Result<bool, RedisError>| result.unwrap_err().server_kind();
        assert_eq!(link.watch("set").unwrap_err().server_kind(), Some(ServerErrorKind::WrongType));
        link.unwatch().unwrap();
        let add = |key: &str| Cmd::xadd(key, "*", &[("a", "b")]);
        assert_eq!(kind(link.execute(&add("set"))), Some(ServerErrorKind::WrongType));
        assert_eq!(kind(link.execute(&cmd("NOSUCH"))), Some(ServerErrorKind::UnknownCommand));
        assert!(link.execute(&add("stream")).unwrap());
    }
}
