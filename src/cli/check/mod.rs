//! `llm-bridge check`: whether the daemon would work with this configuration, this Redis and these rights.
//!
//! Takes no lease, writes nothing, and completes all checks before it reports: one line per finding.

use std::collections::HashMap;

use ::redis::{Cmd, Value, cmd, from_redis_value_ref};
use clap::Args;

use super::output::print;
use super::{CliError, Shared};
use crate::config::Config;
use crate::redis::rights::{self, Rights};
use crate::redis::{Keys, Link, RedisError, ServerErrorKind, Target};

/// The oldest version with all commands that the daemon uses.
const VERSION_MIN: (u64, u64) = (6, 0);
/// The oldest version that reports which entries of a stream were removed.
const VERSION_TELLS_TRIMMING: (u64, u64) = (7, 0);

/// Check configuration and Redis, and say everything that is wrong
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    shared: Shared,
}

/// The severity of a finding for the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// As it should be.
    Fine,
    /// It works, but not as well as it could.
    Warning,
    /// The configuration or Redis' rights have to change.
    Unfit,
    /// Something is down; it may recover without a change.
    Outage,
}

/// The result of one check.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    text: String,
}

fn finding(weight: Weight, text: impl Into<String>) -> Finding {
    Finding { weight, text: text.into() }
}

/// Runs `check`.
pub(crate) fn run(args: &Check) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let findings = examine(&config);
    for Finding { weight, text } in &findings {
        let mark = match weight {
            Weight::Fine => "ok     ",
            Weight::Warning => "warning",
            Weight::Unfit => "WRONG  ",
            Weight::Outage => "DOWN   ",
        };
        print(&format!("{mark} {text}\n"))?;
    }
    verdict(&findings)
}

/// A needed change takes precedence over an outage.
fn verdict(findings: &[Finding]) -> Result<(), CliError> {
    let any = |weight| findings.iter().any(|finding| finding.weight == weight);
    if any(Weight::Unfit) {
        Err(CliError::Unfit)
    } else if any(Weight::Outage) {
        Err(CliError::Failed("Redis cannot serve now".to_owned()))
    } else {
        Ok(())
    }
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![finding(Weight::Fine, "the configuration is valid")];
    if let Err(error) = examine_redis(config, &mut findings) {
        findings.push(error);
    }
    findings
}

/// Adds the findings about Redis; an error ended the examination.
fn examine_redis(config: &Config, findings: &mut Vec<Finding>) -> Result<(), Finding> {
    let target = Target::new(&config.redis).map_err(|error| finding(Weight::Unfit, error.to_string()))?;
    let address = target.address();
    let keys = Keys::of(&config.redis, &config.service.name, &config.service.instance);
    let broken = |error: &RedisError| {
        let is_denied = error.server_kind() == Some(ServerErrorKind::NoPerm);
        let more = if is_denied { needed(&keys) } else { String::new() };
        finding(weigh(error), format!("{address}: {error}{more}"))
    };
    let mut link = Link::connect(&target, "llm-bridge-check").map_err(|error| broken(&error))?;
    link.query::<()>(&Cmd::ping()).map_err(|error| broken(&error))?;
    findings.push(examine_version(&mut link, &address).map_err(|error| broken(&error))?);
    let rights = rights::try_all(&mut link, &keys).map_err(|error| broken(&error))?;
    findings.push(describe_rights(&rights, &keys));
    findings.push(examine_tracking(&mut link, &keys).map_err(|error| broken(&error))?);
    findings.push(examine_memory(&mut link).map_err(|error| broken(&error))?);
    Ok(())
}

/// Whether a later attempt could help without a change.
fn weigh(error: &RedisError) -> Weight {
    match (error, error.server_kind()) {
        (RedisError::Tls(_), _) => Weight::Unfit,
        (_, Some(ServerErrorKind::Oom)) => Weight::Outage,
        _ if error.is_outage() => Weight::Outage,
        _ => Weight::Unfit,
    }
}

fn examine_version(link: &mut Link, address: &str) -> Result<Finding, RedisError> {
    let hello: HashMap<String, Value> = match link.query(&cmd("HELLO")) {
        Ok(hello) => hello,
        // Before version 6 there was no HELLO, and a proxy may hide it.
        Err(RedisError::Server(_)) => {
            let text = format!(
                "{address} does not know HELLO: it is older than Redis 6, or something between hides it"
            );
            return Ok(finding(Weight::Unfit, text));
        }
        Err(error) => return Err(error),
    };
    let text_of = |name| -> String {
        hello.get(name).and_then(|value| from_redis_value_ref(value).ok()).unwrap_or_default()
    };
    Ok(judge_version(address, &text_of("server"), &text_of("version")))
}

fn judge_version(address: &str, server: &str, version: &str) -> Finding {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u64>().ok());
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("{address} answers: {server} {version}");
    if (major, minor) < VERSION_MIN {
        finding(Weight::Unfit, format!("{text}; at least 6.0 is needed"))
    } else if (major, minor) < VERSION_TELLS_TRIMMING {
        let why = "before 7.0 Redis does not report which entries were trimmed, so some gaps have no number";
        finding(Weight::Warning, format!("{text}; {why}"))
    } else {
        finding(Weight::Fine, text)
    }
}

fn describe_rights(rights: &Rights, keys: &Keys) -> Finding {
    match rights {
        Rights::Tried(missing) if missing.is_empty() => {
            finding(Weight::Fine, format!("all commands are allowed on the keys {}", rights::acl_keys(keys)))
        }
        Rights::Tried(missing) => {
            let list: Vec<&str> = missing.iter().map(|right| right.what.as_str()).collect();
            finding(
                Weight::Unfit,
                format!("missing rights:\n          {}{}", list.join("\n          "), needed(keys)),
            )
        }
        Rights::Down(reason) => finding(Weight::Outage, format!("commands are refused for now: {reason}")),
    }
}

/// The ACL rule that the daemon needs, as advice about missing rights.
fn needed(keys: &Keys) -> String {
    format!("\n        what is needed: {}", rights::acl_rule(keys))
}

/// Without pushes, streams are still read, but a new stream is detected later.
fn examine_tracking(link: &mut Link, keys: &Keys) -> Result<Finding, RedisError> {
    if !link.is_resp3() {
        let text = "no RESP3, hence no CLIENT TRACKING: new streams are noticed by polling, later";
        return Ok(finding(Weight::Warning, text));
    }
    let tracking = |words: &[&str]| cmd("CLIENT").arg("TRACKING").arg(words).take();
    let on = tracking(&["ON", "BCAST", "PREFIX", keys.stream_prefix()]);
    let is_on = link.query::<()>(&on).and_then(|()| link.query::<()>(&tracking(&["OFF"])));
    Ok(match is_on {
        Ok(()) => {
            let (streams, beginning) = (keys.streams(), keys.stream_prefix());
            let text = format!("CLIENT TRACKING reports new entries: streams are the keys {streams}");
            let further = "; Redis reports every changed key that begins with";
            finding(Weight::Fine, format!("{text}{further} {beginning}"))
        }
        Err(RedisError::Server(error)) => finding(
            Weight::Warning,
            format!("CLIENT TRACKING does not work, so new streams are noticed by polling, later: {error}"),
        ),
        Err(error) => return Err(error),
    })
}

fn examine_memory(link: &mut Link) -> Result<Finding, RedisError> {
    let get = |name| cmd("CONFIG").arg("GET").arg(name).take();
    let found = link.query_all::<HashMap<String, String>>([get("maxmemory"), get("maxmemory-policy")]);
    let settings: HashMap<String, String> = match found {
        Ok(found) => found.into_iter().flatten().collect(),
        Err(RedisError::Server(_)) => HashMap::new(),
        Err(error) => return Err(error),
    };
    Ok(match (settings.get("maxmemory"), settings.get("maxmemory-policy")) {
        (Some(limit), Some(policy)) => judge_memory(limit, policy),
        _ => finding(
            Weight::Fine,
            "maxmemory-policy cannot be read (no right to CONFIG GET); it should be noeviction",
        ),
    })
}

fn judge_memory(limit: &str, policy: &str) -> Finding {
    let evicts_streams = policy.starts_with("allkeys");
    match (limit, evicts_streams) {
        ("0", true) => {
            let text = format!("maxmemory-policy {policy} would evict whole streams once a maxmemory is set");
            finding(Weight::Warning, text)
        }
        (_, true) => {
            let text =
                format!("maxmemory-policy {policy} evicts whole streams at {limit} bytes; use noeviction");
            finding(Weight::Warning, text)
        }
        ("0", false) => {
            finding(Weight::Fine, "no maxmemory: Redis grows with its streams; trim or expire them")
        }
        (_, false) => finding(Weight::Fine, format!("maxmemory {limit}, maxmemory-policy {policy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::{RedisServer, config_for};

    fn examined(url: &str) -> Vec<Finding> {
        let mut config = Config::defaults();
        config.redis = config_for(url);
        examine(&config)
    }

    fn weights(findings: &[Finding]) -> Vec<Weight> {
        findings.iter().map(|finding| finding.weight).collect()
    }

    #[test]
    fn a_plain_redis_is_fit_and_left_as_it_was() {
        let server = RedisServer::start(&[]);
        let findings = examined(&server.url());
        assert_eq!(weights(&findings), [Weight::Fine; 5], "{findings:?}");
        verdict(&findings).unwrap();
        assert_eq!(server.link().query::<u64>(&cmd("DBSIZE")).unwrap(), 0);
    }

    #[test]
    fn the_documented_rule_is_enough_and_every_missing_right_is_named() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let mut user = |name: &str, rule: &str| {
            let rule = rule.split(' ').skip(2).collect::<Vec<_>>();
            link.query::<()>(cmd("ACL").arg(&["SETUSER", name, "on", ">secret"]).arg(rule)).unwrap();
            format!("redis://{name}:secret@127.0.0.1:{}", server.port())
        };
        let rule = rights::acl_rule(&Keys::new("llm", "", ""));
        let enough = examined(&user("enough", &rule));
        assert!(!weights(&enough).contains(&Weight::Unfit), "{enough:?}");
        verdict(&enough).unwrap();
        let commands: Vec<&str> = rule.split(' ').filter_map(|word| word.strip_prefix('+')).collect();
        assert!(commands.len() > 25, "{commands:?}");
        // Redis allows HELLO for everybody, like AUTH.
        for command in commands.into_iter().filter(|command| *command != "hello") {
            let others: Vec<&str> =
                rule.split(' ').filter(|word| word.strip_prefix('+') != Some(command)).collect();
            let less = examined(&user("less", &others.join(" ")));
            let named = command.split('|').next_back().unwrap_or(command);
            let is_named = |finding: &&Finding| {
                let (found, _) = finding.text.split_once("what is needed: user ").unwrap_or_default();
                finding.weight == Weight::Unfit && found.to_lowercase().contains(named)
            };
            assert!(less.iter().any(|finding| is_named(&finding)), "{command}: {less:?}");
            assert!(matches!(verdict(&less), Err(CliError::Unfit)), "{command}");
        }
        let elsewhere = examined(&user("elsewhere", &rule.replace("~llm:*", "~other:*")));
        assert!(elsewhere.iter().any(|finding| finding.text.contains("XRANGE")), "{elsewhere:?}");
        let wrong = examined(&format!("redis://less:wrong@127.0.0.1:{}", server.port()));
        assert_eq!(weights(&wrong), [Weight::Fine, Weight::Unfit], "{wrong:?}");
    }

    #[test]
    fn a_redis_that_is_down_is_an_outage() {
        let mut server = RedisServer::start(&[]);
        let url = server.url();
        server.kill();
        let findings = examined(&url);
        assert_eq!(weights(&findings), [Weight::Fine, Weight::Outage]);
        assert!(matches!(verdict(&findings), Err(CliError::Failed(_))));
    }

    #[test]
    fn versions_and_policies_are_judged() {
        let version = |version| judge_version("r", "redis", version).weight;
        assert_eq!(
            ["5.0.14", "6.0.16", "6.2.0", "7.0.15", "10.1", ""].map(version),
            [Weight::Unfit, Weight::Warning, Weight::Warning, Weight::Fine, Weight::Fine, Weight::Unfit]
        );
        assert_eq!(judge_memory("100", "allkeys-lru").weight, Weight::Warning);
        assert_eq!(judge_memory("0", "allkeys-lfu").weight, Weight::Warning);
        assert_eq!(judge_memory("100", "volatile-lru").weight, Weight::Fine);
        assert_eq!(judge_memory("0", "noeviction").weight, Weight::Fine);
    }
}
