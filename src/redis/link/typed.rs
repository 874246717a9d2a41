//! Replies as values of the `redis` crate's types: off the hot path, that crate builds the commands and reads plain
//! values. A [`Reply`] is kept where errors of single replies matter. The `Debug` form of a command shows its
//! arguments, which may be secrets or a user's text, so commands are not logged.
//!
//! The connection below remains our own. The crate's connection waits for a whole reply in one blocking read, so a
//! thread that has to stop, or whose reply arrives slowly, could not be distinguished from one that hangs; and it
//! keeps a reply of any size. The hot path's pipeline and parser are our own as well: the pipeline is one buffer that
//! is reused, while the crate allocates for each command; the parser's strings are slices of what was read, while the
//! crate's are copies.

use std::borrow::Borrow;

use ::redis::{Cmd, FromRedisValue, parse_redis_value};

use super::Link;
use crate::redis::error::RedisError;
use crate::redis::reply::Reply;

impl Link {
    /// Sends one command and reads its reply.
    ///
    /// # Errors
    /// As [`Link::call`]; [`RedisError::Protocol`] for a reply of another type.
    pub fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        read(&self.call(command)?)
    }

    /// Sends several commands at once and reads all replies.
    ///
    /// # Errors
    /// As [`Link::query`]: the first error, after all replies have arrived.
    pub fn query_all<T: FromRedisValue>(
        &mut self,
        commands: impl IntoIterator<Item: Borrow<Cmd>>,
    ) -> Result<Vec<T>, RedisError> {
        self.call_all(commands)?.iter().map(read).collect()
    }
}

/// A reply as a value; an error reply is [`RedisError::Server`].
pub(super) fn read<T: FromRedisValue>(reply: &Reply) -> Result<T, RedisError> {
    if let Some(error) = reply.error() {
        return Err(RedisError::Server(error));
    }
    let value = parse_redis_value(reply.as_bytes());
    let value = value.map_err(|error| RedisError::Protocol(error.to_string().into()))?;
    T::from_redis_value(value).map_err(|error| RedisError::Protocol(error.to_string().into()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ::redis::cmd;

    use super::*;
    use crate::redis::error::ServerErrorKind;
    use crate::redis::testing::RedisServer;

    #[test]
    fn replies_have_the_types_that_were_asked_for() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        link.query::<()>(&Cmd::set("k", "v")).unwrap();
        assert_eq!(link.query::<Option<String>>(&Cmd::get("k")).unwrap().as_deref(), Some("v"));
        assert_eq!(link.query::<Option<String>>(&Cmd::get("none")).unwrap(), None);
        let limit: HashMap<String, String> = link.query(cmd("CONFIG").arg("GET").arg("maxmemory")).unwrap();
        assert_eq!(limit.get("maxmemory").map(String::as_str), Some("0"));
        let lens: Vec<usize> = link.query_all(["k", "none"].map(Cmd::strlen)).unwrap();
        assert_eq!(lens, [1, 0]);
    }

    #[test]
    fn errors_are_those_of_the_link_which_remains_usable() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let wrong = link.query::<i64>(&Cmd::ping()).unwrap_err();
        assert!(matches!(wrong, RedisError::Protocol(_)), "{wrong}");
        link.query::<()>(&Cmd::set("k", "v")).unwrap();
        let wrong = link.query::<usize>(&Cmd::xlen("k")).unwrap_err();
        assert_eq!(wrong.server_kind(), Some(ServerErrorKind::WrongType));
        let one_of = link.query_all::<usize>([Cmd::xlen("k"), Cmd::strlen("k")]).unwrap_err();
        assert_eq!(one_of.server_kind(), Some(ServerErrorKind::WrongType));
        assert_eq!(link.query::<usize>(&Cmd::strlen("k")).unwrap(), 1);
    }
}
