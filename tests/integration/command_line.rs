//! The command line: exit statuses, configuration and its sources, and the commands besides the daemon as people use
//! them in a terminal.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use crate::support::command::{Background, Outcome, llm_bridge, run};
use crate::support::daemon::Daemon;
use crate::support::documents::documented_rights;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::ports::free_port;
use crate::support::producer::{Producer, tokens};
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer, view};

/// Runs a command without input.
fn llm(arguments: &[&str]) -> Outcome {
    run(llm_bridge(arguments), b"")
}

/// A configuration file with this content.
struct ConfigFile {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl ConfigFile {
    fn new(content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bridge.toml");
        fs::write(&path, content).unwrap();
        Self { path, _dir: dir }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// The configuration file in the repository.
fn shipped_config() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf/llm-bridge.toml")
}

fn redis_setting(redis: &RedisServer) -> String {
    format!("redis.url={}", redis.url())
}

#[test]
fn help_is_there_for_every_command() {
    let top = llm(&["--help"]);
    assert_eq!(top.code, Some(0), "{top:?}");
    let listed = top.stdout.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for command in ["serve", "check", "demo", "produce", "tail", "stats"] {
        assert!(commands.contains(&command), "{command} in {commands:?}");
    }
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = llm(&[command, "--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{command}");
        for option in ["--config", "--set", "--help"] {
            assert!(help.stdout.contains(option), "{option} of {command}: {}", help.stdout);
        }
    }
    assert!(llm(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["serve", "surplus"],
        &["serve", "--config"],
        &["check", "--set"],
        &["produce"],
        &["produce", "--session", "s1"],
        &["produce", "--session", "s1", "--model", "m", "--from", "nonsense"],
        &["produce", "--session", "s1", "--model", "m", "--rate", "fast"],
        &["produce", "--session", "s1", "--model", "m", "--set", "redis.stream_key=chat:{session}"],
        &["tail"],
        &["tail", "http://127.0.0.1:1/v1/streams/s1/m?format=openai"],
        &["demo", "--port", "99999"],
    ] {
        let outcome = llm(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {outcome:?}");
        assert!(!outcome.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn all_mistakes_are_named_at_once() {
    let config = ConfigFile::new(
        "[client]\nsend_budget = \"1\"\nsurprise = 1\nslow_timeout = 5\n[threads]\nreaders = 0\n\
         [nowhere]\nkey = 1\n[redis]\nurl = \"http://127.0.0.1\"\n[delivery]\nack = \"perhaps\"\n",
    );
    for command in ["serve", "check"] {
        let set = ["--set", "threads.replays=65", "--set", "client.nothing=1"];
        let outcome = llm(&[&[command, "--config", config.name()], &set[..]].concat());
        assert_eq!(outcome.code, Some(78), "{command}: {outcome:?}");
        for key in [
            "client.send_budget",
            "client.surprise",
            "client.slow_timeout",
            "threads.readers",
            "nowhere",
            "redis.url",
            "delivery.ack",
            "threads.replays",
            "client.nothing",
        ] {
            let line = outcome.stderr.lines().find(|line| line.contains(key));
            let line = line.unwrap_or_else(|| panic!("{command} does not name {key}: {}", outcome.stderr));
            let is_set = matches!(key, "threads.replays" | "client.nothing");
            assert!(line.contains(if is_set { "--set" } else { config.name() }), "where: {line}");
        }
        // The message lists the allowed values.
        for allowed in ["16KiB", "1GiB", "64", "written", "none"] {
            assert!(outcome.stderr.contains(allowed), "{allowed}: {}", outcome.stderr);
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_78() {
    let no_toml = ConfigFile::new("[client\nsend_budget = ");
    let not_utf8 = ConfigFile::new("");
    fs::write(&not_utf8.path, b"\xff\xfe").unwrap();
    for file in ["/nonexistent/bridge.toml", no_toml.name(), not_utf8.name(), "/"] {
        for command in ["serve", "check"] {
            let outcome = llm(&[command, "--config", file]);
            assert_eq!(outcome.code, Some(78), "{command} {file}: {outcome:?}");
            assert!(outcome.stderr.contains(file), "{command}: {outcome:?}");
        }
    }
    for (name, value) in [("LLM_BRIDGE__CLIENT__SURPRISE", "1"), ("LLM_BRIDGE__CLIENT__SEND_BUDGET", "big")] {
        let mut command = llm_bridge(&["check"]);
        command.env(name, value);
        let outcome = run(command, b"");
        assert_eq!(outcome.code, Some(78), "{outcome:?}");
        assert!(outcome.stderr.contains(name), "{outcome:?}");
    }
}

#[test]
fn streams_are_not_opened_to_everybody_by_accident() {
    let redis = RedisServer::start();
    let public = format!("listen.public=0.0.0.0:{}", free_port());
    let settings = ["--set", &redis_setting(&redis), "--set", &public];
    for command in ["serve", "check"] {
        let outcome = llm(&[&[command], &settings[..]].concat());
        assert_eq!(outcome.code, Some(78), "{command}: {outcome:?}");
        assert!(outcome.stderr.contains("allow_anonymous"), "{command}: {outcome:?}");
    }
    let meant = llm(&[&["check"], &settings[..], &["--set", "auth.allow_anonymous=true"]].concat());
    assert_eq!(meant.code, Some(0), "{meant:?}");
}

#[test]
fn later_sources_win() {
    let redis = RedisServer::start();
    let config = ConfigFile::new("[service]\ninstance = \"from-file\"\n");
    let variable = "LLM_BRIDGE__SERVICE__INSTANCE";
    let instance = |daemon: Daemon| daemon.stats()["instance"].as_str().unwrap().to_owned();
    let options = Daemon::options(&redis);
    let default = options.clone().start();
    let port = default.public.port().to_string();
    let default = instance(default);
    assert!(default.ends_with(&format!("-{port}")) && default.len() > port.len() + 1, "{default}");
    let options = options.config(&config.path);
    assert_eq!(instance(options.clone().start()), "from-file");
    let options = options.env(variable, "from-environment");
    assert_eq!(instance(options.clone().start()), "from-environment");
    let options = options.set("service.instance=first").set("service.instance=from-set");
    assert_eq!(instance(options.start()), "from-set");
}

#[test]
fn the_configuration_that_comes_along_loads_as_it_is() {
    let redis = RedisServer::start();
    let file = shipped_config();
    let file = file.to_str().unwrap();
    let checked = llm(&["check", "--config", file, "--set", &redis_setting(&redis)]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let daemon = Daemon::options(&redis).config(&shipped_config()).start();
    let end = Producer::new(&redis, "s1", "m").end();
    for kind in KINDS {
        view(daemon.public, kind, "s1/m", "").expect_finished(&end);
    }
    // Every key can be given as a variable and on the command line too, with the value in the file.
    let table: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let (mut set, mut variables) = (vec!["check".to_owned()], llm_bridge(&["check"]));
    for (section, keys) in &table {
        for (key, value) in keys.as_table().unwrap() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let name = format!("LLM_BRIDGE__{}__{}", section.to_uppercase(), key.to_uppercase());
            variables.env(name, &value);
            set.extend(["--set".to_owned(), format!("{section}.{key}={value}")]);
        }
    }
    variables.env("LLM_BRIDGE__REDIS__URL", redis.url());
    set.extend(["--set".to_owned(), redis_setting(&redis)]);
    let set = llm(&set.iter().map(String::as_str).collect::<Vec<&str>>());
    assert_eq!(set.code, Some(0), "{set:?}");
    let variables = run(variables, b"");
    assert_eq!(variables.code, Some(0), "{variables:?}");
}

#[test]
fn check_distinguishes_an_outage_from_a_mistake_and_leaves_no_trace() {
    let redis = RedisServer::start();
    let well = llm(&["check", "--set", &redis_setting(&redis)]);
    assert_eq!(well.code, Some(0), "{well:?}");
    assert!(redis.connect().keys("*").is_empty());
    // A running daemon is no reason to fail.
    let daemon = Daemon::options(&redis).set("service.instance=one").start();
    let beside = llm(&["check", "--set", &redis_setting(&redis), "--set", "service.instance=one"]);
    assert_eq!(beside.code, Some(0), "{beside:?}");
    drop(daemon);

    let nobody = format!("redis.url=redis://127.0.0.1:{}", free_port());
    assert_eq!(llm(&["check", "--set", &nobody]).code, Some(1));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("redis.url=redis://{}", listener.local_addr().unwrap());
    let timeouts = ["--set", "redis.response_timeout=200ms", "--set", "redis.connect_timeout=200ms"];
    assert_eq!(llm(&[&["check", "--set", &silent], &timeouts[..]].concat()).code, Some(1));
}

#[test]
fn the_documented_rights_are_enough_and_fewer_are_78() {
    let redis = RedisServer::start();
    let rights = documented_rights();
    let mut command = vec!["ACL", "SETUSER", "llm-bridge"];
    command.extend(&rights);
    redis.connect().run::<()>(&command);
    let secret = ConfigFile::new("PASSWORD\n");
    let url = format!("redis.url=redis://llm-bridge@127.0.0.1:{}/0", redis.port());
    let password = format!("redis.password_file={}", secret.name());
    let check = || llm(&["check", "--set", &url, "--set", &password]);
    assert_eq!(check().code, Some(0), "{:?}", check());

    // `check` may try more than the daemon needs, to give advice; the daemon itself may not.
    redis.connect().run::<()>(&["ACL", "LOG", "RESET"]);
    let daemon = Daemon::options(&redis).set(&url).set(&password).start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.delta(&tokens(0..1));
    let mut viewers = KINDS.map(|kind| Viewer::open(daemon.public, kind, "s1/m", ""));
    viewers.iter_mut().for_each(|viewer| viewer.read_to(&first));
    producer.write_text("not to be read");
    producer.tokens(1..50);
    let end = producer.end();
    for viewer in viewers {
        let transcript = viewer.read_all();
        assert_eq!(transcript.text(), tokens(0..50));
        transcript.expect_finished(&end);
    }
    wait_until("a dead letter", || redis.connect().keys("llm:dlq:*").len() == 1);
    let denied: Vec<redis::Value> = redis.connect().run(&["ACL", "LOG"]);
    assert!(denied.is_empty(), "{denied:?}");
    drop(daemon);

    for missing in ["-xread", "-xadd", "-xrange", "-set", "resetkeys"] {
        redis.connect().run::<()>(&[&command[..], &[missing]].concat());
        let outcome = check();
        assert_eq!(outcome.code, Some(78), "{missing}: {outcome:?}");
        redis.connect().run::<()>(&command);
    }
    fs::write(&secret.path, "WRONG").unwrap();
    assert_eq!(check().code, Some(78), "{:?}", check());
}

/// A daemon that cannot deliver must not get clients: it exits with 78, or reports what is missing.
#[test]
fn a_daemon_without_rights_does_not_claim_to_be_ready() {
    let redis = RedisServer::start();
    let rights = documented_rights();
    let mut command = vec!["ACL", "SETUSER", "llm-bridge"];
    command.extend(&rights);
    let url = format!("redis.url=redis://llm-bridge:PASSWORD@127.0.0.1:{}/0", redis.port());
    for missing in ["-xread", "-xadd", "-xrange"] {
        redis.connect().run::<()>(&[&command[..], &[missing]].concat());
        let mut daemon = Daemon::options(&redis).set(&url).spawn();
        wait_until("it to say what it lacks", || {
            if !daemon.is_running() {
                daemon.expect_exit(78);
                return true;
            }
            let Ok(response) = http::try_get(daemon.admin, "/readyz") else { return false };
            assert_ne!(response.status, 200, "ready with {missing}: {}", response.text());
            ["NOPERM", "permission", "right"].iter().any(|word| response.text().contains(word))
        });
    }
}

#[test]
fn an_instance_id_that_is_held_is_78_and_a_port_that_is_taken_is_1() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set("service.instance=one").start();
    let mut second = Daemon::options(&redis).set("service.instance=one").spawn();
    second.expect_exit(78);
    assert!(second.log().contains("one"), "{}", second.log());
    let taken = format!("listen.public={}", daemon.public);
    let mut third = Daemon::options(&redis).set(&taken).spawn();
    third.expect_exit(1);
    assert!(third.log().contains(&daemon.public.to_string()), "{}", third.log());
    let end = Producer::new(&redis, "s1", "m").end();
    view(daemon.public, Kind::Sse, "s1/m", "").expect_finished(&end);
}

/// Under `nohup`, in the background of a script and in many runners the tests ignore SIGINT; their children must not.
#[test]
fn commands_can_be_interrupted_however_the_tests_were_started() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    // SAFETY: ignoring a signal is valid; the former action, the default or the same, is restored below.
    let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let socket = daemon.stats_socket.to_str().unwrap();
    let mut watch = Background::start(llm_bridge(&["stats", "--socket", socket, "--watch"]));
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGINT, before) };
    watch.line().expect("it watches");
    watch.signal(libc::SIGINT);
    assert_eq!(watch.finish().code, None);
}
