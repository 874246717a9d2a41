//! The first commands of a connection: the protocol, the user, the name, the database.

use std::time::Instant;

use ::redis::{Cmd, cmd};

use super::Link;
use crate::redis::error::{RedisError, ServerError, ServerErrorKind};
use crate::redis::target::{Credentials, Target};

impl Link {
    pub(super) fn introduce(
        &mut self,
        target: &Target,
        name: &str,
        deadline: Instant,
    ) -> Result<(), RedisError> {
        self.is_resp3 = !target.only_resp2 && self.hello(target.credentials.as_ref(), name, deadline)?;
        if !self.is_resp3 {
            if let Some(Credentials { username, password }) = &target.credentials {
                self.call_until(cmd("AUTH").arg(username).arg(password), deadline)?;
            }
            match self.call_until(&Cmd::client_setname(name), deadline) {
                Ok(_) => {}
                // The name only helps operators who look at the server.
                Err(RedisError::Server(error)) if error.kind() != ServerErrorKind::NoAuth => {
                    tracing::debug!(%error, "the connection to Redis has no name");
                }
                Err(error) => return Err(error),
            }
        }
        if target.database != 0 {
            self.call_until(cmd("SELECT").arg(target.database), deadline)?;
        }
        Ok(())
    }

    /// Requests RESP3; `false` if the server does not support it.
    fn hello(
        &mut self,
        credentials: Option<&Credentials>,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, RedisError> {
        let mut command = cmd("HELLO").arg(3).take();
        if let Some(Credentials { username, password }) = credentials {
            command.arg("AUTH").arg(username.as_deref().unwrap_or("default")).arg(password);
        }
        match self.call_until(command.arg("SETNAME").arg(name), deadline) {
            Ok(_) => Ok(true),
            Err(RedisError::Server(error)) if is_hello_unknown(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether HELLO failed because the server does not support RESP3.
fn is_hello_unknown(error: &ServerError) -> bool {
    error.kind() == ServerErrorKind::UnknownCommand || error.code == "NOPROTO"
}

/// A connection's name in the form that Redis accepts: printable, without spaces.
pub(super) fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_redis_takes() {
        assert_eq!(printable("llm-bridge reader\n\u{e4}0"), "llm-bridge-reader--0");
    }
}
