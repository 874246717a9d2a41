//! Tests whether the ACL grants the daemon all the rights that it needs.
//!
//! `NEEDS` lists every command once; the documented rule and the tests both follow from it. Each command is really
//! sent, on the keys on which it will be used, in a transaction that is discarded: Redis checks the rights when it
//! queues a command, and never runs it. Commands that cannot be queued are sent in a form that does nothing.

use ::redis::streams::StreamMaxlen;
use ::redis::{Cmd, cmd};

use super::{Keys, Link, RedisError, Reply, ServerErrorKind};
use crate::model::StreamName;
use crate::observe::Trouble;

/// The trouble to report if rights are missing.
pub const MISSING: Trouble = Trouble {
    what: "Redis does not allow what the daemon does",
    fix: "`llm-bridge check` names the missing rights and prints the rule for ACL SETUSER",
};

/// One right that is needed.
struct Need {
    /// The command as an ACL rule names it.
    command: &'static str,
    /// Whether the daemon cannot work without it.
    is_vital: bool,
    /// How it is tested.
    trial: Trial,
}

/// How a right is tested.
enum Trial {
    /// By these commands within the transaction.
    Queued(fn(&Names) -> Vec<Cmd>),
    /// By this command, which does nothing or is refused for its arguments; Redis reports a missing right first.
    Alone(fn(&Names) -> Cmd),
    /// By beginning the transaction.
    Begin,
}

/// The names on which commands are tested; no key of the stream's name exists.
struct Names<'a> {
    keys: &'a Keys,
    none: StreamName,
    stream: String,
}

impl Names<'_> {
    fn add_nothing(&self, key: &str) -> Cmd {
        cmd("XADD").arg(key).arg(&["NOMKSTREAM", "MAXLEN", "~", "1000", "*", "check", "1"]).take()
    }
}

const fn vital(command: &'static str, trial: Trial) -> Need {
    Need { command, is_vital: true, trial }
}

const fn useful(command: &'static str, trial: Trial) -> Need {
    Need { command, is_vital: false, trial }
}

const MULTI: Need = vital("multi", Trial::Begin);

/// The commands that the daemon and `produce` send, in the order of the rule. Those that are tested alone have
/// arguments with which they have no effect.
const NEEDS: &[Need] = &[
    useful("ping", Trial::Alone(|_| Cmd::ping())),
    useful("hello", Trial::Alone(|_| cmd("HELLO").arg("none").take())),
    useful("select", Trial::Alone(|_| cmd("SELECT").arg("none").take())),
    useful("client|setname", Trial::Alone(|_| Cmd::client_setname("no name"))),
    useful("client|tracking", Trial::Alone(|_| cmd("CLIENT").arg(&["TRACKING", "none"]).take())),
    vital("time", Trial::Queued(|_| vec![cmd("TIME")])),
    vital(
        "xadd",
        Trial::Queued(|names| {
            let keys = names.keys;
            let written = [keys.dlq(), keys.receipts(), keys.wake(0), keys.control(&names.none)];
            let mut commands = vec![names.add_nothing(&names.stream)];
            commands.extend(written.iter().map(|key| names.add_nothing(key)));
            commands
        }),
    ),
    vital("xlen", Trial::Queued(|names| vec![Cmd::xlen(&names.stream)])),
    vital(
        "xread",
        Trial::Queued(|names| {
            vec![cmd("XREAD").arg(&["COUNT", "1", "STREAMS", &names.keys.announce(), "$"]).take()]
        }),
    ),
    vital("xrange", Trial::Queued(|names| vec![Cmd::xrange_count(&names.stream, "-", "+", 1)])),
    vital("xrevrange", Trial::Queued(|names| vec![Cmd::xrevrange_count(&names.stream, "+", "-", 1)])),
    useful("memory|usage", Trial::Queued(|names| vec![cmd("MEMORY").arg("USAGE").arg(&names.stream).take()])),
    useful("xtrim", Trial::Queued(|names| vec![Cmd::xtrim(&names.stream, StreamMaxlen::Approx(1_000_000))])),
    vital(
        "xinfo",
        Trial::Queued(|names| vec![Cmd::xinfo_stream(&names.stream), Cmd::xinfo_groups(&names.stream)]),
    ),
    vital(
        "xgroup",
        Trial::Queued(|names| {
            let (stream, group) = (&names.stream, names.keys.group());
            vec![
                Cmd::xgroup_create(stream, group, "$"),
                Cmd::xgroup_setid(stream, group, "$"),
                Cmd::xgroup_destroy(stream, group),
            ]
        }),
    ),
    vital("exists", Trial::Queued(|names| vec![Cmd::exists(&names.stream)])),
    vital(
        "get",
        Trial::Queued(|names| [names.keys.lease(), names.keys.once("check")].map(Cmd::get).to_vec()),
    ),
    vital(
        "set",
        Trial::Queued(|names| {
            vec![cmd("SET").arg(&[&names.keys.once("check"), "1", "NX", "PX", "1"]).take()]
        }),
    ),
    vital("del", Trial::Queued(|names| vec![Cmd::del(names.keys.once("check"))])),
    vital("pexpire", Trial::Queued(|names| vec![Cmd::pexpire(names.keys.control(&names.none), 1)])),
    vital(
        "sadd",
        Trial::Queued(|names| {
            [names.keys.groups(), names.keys.instances()].map(|key| Cmd::sadd(key, "check")).to_vec()
        }),
    ),
    vital("srem", Trial::Queued(|names| vec![Cmd::srem(names.keys.groups(), "check")])),
    vital("sscan", Trial::Queued(|names| vec![cmd("SSCAN").arg(names.keys.groups()).arg("0").take()])),
    vital("watch", Trial::Alone(|names| cmd("WATCH").arg(names.keys.lease()).take())),
    vital("unwatch", Trial::Alone(|_| cmd("UNWATCH"))),
    MULTI,
    vital("exec", Trial::Alone(|_| cmd("EXEC"))),
    vital("discard", Trial::Alone(|_| cmd("DISCARD"))),
];

/// The result of testing all rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// These rights are missing; an empty list: everything is allowed.
    Tried(Vec<Missing>),
    /// Redis refuses commands of all users, for this reason.
    Down(String),
}

/// A right that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The command in capitals, and Redis' error.
    pub what: String,
    /// Whether the daemon cannot work without it.
    pub is_vital: bool,
}

/// The rule for `ACL SETUSER` or an ACL file that grants the daemon and `produce` their rights.
#[must_use]
pub fn acl_rule(keys: &Keys) -> String {
    let commands: Vec<String> = NEEDS.iter().map(|need| format!("+{}", need.command)).collect();
    format!("user llm-bridge on >PASSWORD resetchannels -@all {} {}", acl_keys(keys), commands.join(" "))
}

/// The key patterns of that rule: the daemon's own keys, and the streams if these have another prefix.
#[must_use]
pub fn acl_keys(keys: &Keys) -> String {
    let prefix = keys.prefix();
    let streams = keys.streams().acl_glob(prefix).map(|glob| format!(" ~{glob}"));
    format!("~{prefix}:*{}", streams.unwrap_or_default())
}

/// Tests every right. If a transaction cannot be begun or discarded, the commands to be queued are not tested,
/// because they would be run.
///
/// # Errors
/// If the connection fails; a refusal by Redis is not an error here.
pub fn try_all(link: &mut Link, keys: &Keys) -> Result<Rights, RedisError> {
    let none = StreamName::new("llm-bridge-check", "none").expect("both parts are allowed");
    let names = Names { keys, stream: keys.stream(&none), none };
    let mut found = Found::default();
    for need in NEEDS {
        if let Trial::Alone(command) = &need.trial {
            found.note(need, &link.call_all([command(&names)])?);
        }
    }
    let is_discarded = !found.lacks("discard");
    if !is_discarded && found.lacks("exec") {
        return Ok(found.into());
    }
    found.note(&MULTI, &link.call_all([cmd("MULTI")])?);
    if found.lacks("multi") {
        return Ok(found.into());
    }
    // An empty transaction that cannot be discarded has no effect when it is executed.
    let end = if is_discarded { "DISCARD" } else { "EXEC" };
    link.call_all([cmd(end)])?;
    if is_discarded {
        try_queued(link, &names, &mut found)?;
    }
    Ok(found.into())
}

/// Tests the commands that can be queued, each need in a transaction of its own, because a cluster allows only one
/// slot per transaction.
fn try_queued(link: &mut Link, names: &Names, found: &mut Found) -> Result<(), RedisError> {
    for need in NEEDS {
        let Trial::Queued(commands) = &need.trial else { continue };
        let (begin, end) = ([cmd("MULTI")], [cmd("DISCARD")]);
        let replies = link.call_all(begin.into_iter().chain(commands(names)).chain(end))?;
        found.note(need, replies.get(1..replies.len() - 1).unwrap_or_default());
    }
    Ok(())
}

/// The findings so far.
#[derive(Default)]
struct Found {
    missing: Vec<(&'static str, Missing)>,
    down: Option<String>,
}

impl Found {
    fn note(&mut self, need: &Need, replies: &[Reply]) {
        for error in replies.iter().filter_map(Reply::error) {
            if error.kind().is_outage() || error.kind() == ServerErrorKind::Oom {
                self.down.get_or_insert_with(|| error.to_string());
            } else if matches!(error.kind(), ServerErrorKind::NoPerm | ServerErrorKind::UnknownCommand) {
                let what = format!("{}: {error}", need.command.replace('|', " ").to_uppercase());
                self.missing.push((need.command, Missing { what, is_vital: need.is_vital }));
                return;
            }
        }
    }

    fn lacks(&self, command: &str) -> bool {
        self.missing.iter().any(|(missing, _)| *missing == command)
    }
}

impl From<Found> for Rights {
    fn from(found: Found) -> Self {
        match found.down {
            Some(reason) => Self::Down(reason),
            None => Self::Tried(found.missing.into_iter().map(|(_, missing)| missing).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_shows_the_rule() {
        let manual = include_str!("../../systemd/README.md");
        assert!(
            manual.contains(&acl_rule(&Keys::new("llm", "", ""))),
            "systemd/README.md lacks: {}",
            acl_rule(&Keys::new("llm", "", ""))
        );
    }

    /// The commands in a source: in `cmd("NAME")`, in `pipeline.command("NAME", …)`, or by a constructor of `Cmd`.
    fn commands_in(program: &str) -> impl Iterator<Item = String> {
        let after = |start: &'static str| program.split(start).skip(1);
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let named = after("cmd(\"").chain(after(".command(\"")).filter_map(|rest| rest.split('"').next());
        let typed = after("Cmd::").filter_map(move |rest| rest.split(|c| !is_of_name(c)).next());
        named.map(str::to_lowercase).chain(typed.map(|constructor| command_of(constructor).to_owned()))
    }

    /// The command that a constructor of `Cmd` builds. A constructor that is not listed here has its command's name;
    /// otherwise the test fails, because no command has its name.
    fn command_of(constructor: &str) -> &str {
        match constructor {
            "set_options" => "set",
            "xgroup_create" | "xgroup_createconsumer" | "xgroup_destroy" => "xgroup",
            "xinfo_stream" => "xinfo",
            "xrange_count" => "xrange",
            "xrevrange_count" => "xrevrange",
            other => other,
        }
    }

    /// Every command in the sources of the daemon and of `produce` is in the list.
    #[test]
    fn nothing_is_sent_that_is_not_in_the_list() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders: Vec<_> = ["ingest", "watcher", "recorder", "transform", "deliver", "produce"]
            .map(|part| root.join(part))
            .to_vec();
        let mut sent = std::collections::BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.to_string_lossy().ends_with("tests.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let program = text.split("#[cfg(test)]").next().unwrap();
                    sent.extend(commands_in(program));
                }
            }
        }
        assert!(
            ["xread", "xgroup", "sadd", "set"].iter().all(|name| sent.contains(*name)) && sent.len() > 20,
            "{sent:?}"
        );
        let is_listed = |name: &str| NEEDS.iter().any(|need| need.command.split('|').next() == Some(name));
        let unlisted: Vec<_> = sent.iter().filter(|name| !is_listed(name)).collect();
        assert!(unlisted.is_empty(), "these commands need a place in NEEDS: {unlisted:?}");
    }
}
