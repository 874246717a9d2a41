//! Whether the ACL lets the daemon do what it does.
//!
//! Every command is really sent, on the keys on which it will be used, inside a transaction that is
//! discarded: Redis judges the rights when it queues a command, and nothing is ever run.

use super::{Command, Keys, Link, RedisError, Reply, ServerErrorKind};
use crate::event::{EntryId, StreamName};
use crate::observe::Trouble;

/// What is wrong where rights are missing.
pub const MISSING: Trouble = Trouble {
    what: "Redis does not allow what the daemon does",
    fix: "`llm-bridge check` names the missing rights and prints the rule for ACL SETUSER",
};

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything is allowed.
    All,
    /// These commands are not, each with what Redis said.
    Missing(Vec<String>),
    /// Transactions are not allowed, so that nothing could be tried.
    Untried(String),
    /// Redis refuses commands whoever sends them.
    Down(String),
}

/// The rule for `ACL SETUSER` or an ACL file that gives the daemon and `produce` what they need.
#[must_use]
pub fn acl_rule(keys: &Keys) -> String {
    let commands = "+ping +hello +select +client|setname +client|tracking +time \
                    +xadd +xlen +xread +xreadgroup +xack +xrange +xrevrange +xtrim +xinfo +xgroup \
                    +exists +get +set +del +pexpire +sadd +srem +smembers +watch +unwatch +multi +exec +discard";
    format!("user llm-bridge on >PASSWORD resetchannels -@all {} {commands}", acl_keys(keys))
}

/// The patterns of the keys that this needs: of the daemon's own, and of the streams where these lie elsewhere.
#[must_use]
pub fn acl_keys(keys: &Keys) -> String {
    let prefix = keys.prefix();
    let streams = keys.streams().acl_glob(prefix).map(|glob| format!(" ~{glob}"));
    format!("~{prefix}:*{}", streams.unwrap_or_default())
}

/// The daemon's commands, harmless even if they were run; nothing of the name exists.
fn samples(keys: &Keys, none: &StreamName) -> Vec<Command> {
    let stream = keys.stream(none);
    let group = keys.group();
    let on = |name: &str| Command::new(name).arg(&stream);
    let xgroup = |what: &str| Command::new("XGROUP").arg(what).arg(&stream).arg(group);
    let add_nothing = |key: &str| {
        Command::new("XADD").arg(key).args(["NOMKSTREAM", "MAXLEN", "~", "1000", "*", "check", "1"])
    };
    vec![
        Command::new("TIME"),
        on("EXISTS"),
        on("XLEN"),
        on("XRANGE").args(["-", "+", "COUNT", "1"]),
        on("XREVRANGE").args(["+", "-", "COUNT", "1"]),
        Command::new("XINFO").arg("STREAM").arg(&stream),
        Command::new("XREADGROUP").args(["GROUP", group, "reader-0", "COUNT", "1", "STREAMS", &stream, ">"]),
        on("XACK").arg(group).id(EntryId::new(0, 1)),
        xgroup("CREATE").arg("$"),
        xgroup("SETID").arg("$"),
        xgroup("DESTROY"),
        add_nothing(&stream),
        add_nothing(&keys.dlq()),
        add_nothing(&keys.receipts()),
        add_nothing(&keys.wake(0)),
        add_nothing(&keys.control(none)),
        Command::new("PEXPIRE").args([&keys.control(none), "1"]),
        Command::new("XREAD").args(["COUNT", "1", "STREAMS", &keys.announce(), "$"]),
        Command::new("SET").args([&keys.once("check"), "1", "NX", "PX", "1"]),
        Command::new("GET").arg(keys.lease()),
        Command::new("GET").arg(keys.once("check")),
        Command::new("SADD").args([&keys.groups(), "check"]),
        Command::new("SADD").args([&keys.instances(), "check"]),
        Command::new("SREM").args([&keys.groups(), "check"]),
        Command::new("SMEMBERS").arg(keys.groups()),
        Command::new("DEL").arg(keys.once("check")),
    ]
}

/// Tries everything.
///
/// # Errors
/// When the connection fails; what Redis refuses is no error here.
pub fn try_all(link: &mut Link, keys: &Keys) -> Result<Rights, RedisError> {
    let none = StreamName::new("llm-bridge-check", "none").expect("both parts are allowed");
    // These two cannot be queued, and do nothing by themselves.
    let watches = [Command::new("WATCH").arg(keys.lease()), Command::new("UNWATCH")];
    let watched = link.call_all(&watches)?;
    let samples = samples(keys, &none);
    let opened = link.call_all(&[Command::new("MULTI")])?;
    if let Some(error) = opened.first().and_then(Reply::error) {
        return Ok(Rights::Untried(error.to_string()));
    }
    let replies = link.call_all(&samples)?;
    link.call_all(&[Command::new("DISCARD")])?;
    let mut missing = Vec::new();
    for (sample, reply) in watches.iter().chain(&samples).zip(watched.iter().chain(&replies)) {
        let Some(error) = reply.error() else { continue };
        if error.kind().is_outage() || error.kind() == ServerErrorKind::Oom {
            return Ok(Rights::Down(error.to_string()));
        }
        missing.push(format!("{}: {error}", sample.name()));
    }
    Ok(if missing.is_empty() { Rights::All } else { Rights::Missing(missing) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_shows_the_rule() {
        let manual = include_str!("../../README.md");
        assert!(
            manual.contains(&acl_rule(&Keys::new("llm", "", ""))),
            "README.md lacks: {}",
            acl_rule(&Keys::new("llm", "", ""))
        );
    }
}
