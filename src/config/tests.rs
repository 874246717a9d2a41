//! Tests of `config`: settings that an operator may write, and the messages about them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const CONF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/llm-bridge.toml");

/// Loads a file's text, an environment and arguments.
fn try_load(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llm-bridge.toml");
    fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    load(Some(&path), environment, &sets)
}

/// The errors of a file's text, without the path of the file.
fn errors_of(text: &str) -> Vec<String> {
    errors_with(text, &[], &[])
}

fn errors_with(text: &str, environment: &[(&str, &str)], sets: &[&str]) -> Vec<String> {
    let errors = try_load(text, environment, sets).unwrap_err();
    let short = |error: &ConfigError| match error.to_string().split_once("/llm-bridge.toml:") {
        Some((_, rest)) => rest.to_owned(),
        None => error.to_string(),
    };
    errors.iter().map(short).collect()
}

/// The keys that a TOML text sets.
fn names(text: &str) -> BTreeSet<String> {
    let table: toml::Table = text.parse().unwrap();
    let keys = |(section, keys): (&String, &toml::Value)| -> Vec<String> {
        keys.as_table().unwrap().keys().map(|key| format!("{section}.{key}")).collect()
    };
    table.iter().flat_map(keys).collect()
}

#[test]
fn the_file_in_conf_shows_every_key_with_its_default() {
    let shown = names(&fs::read_to_string(CONF).unwrap());
    let known: BTreeSet<String> = defaults::NAMES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(shown, known);
    let here = ["service.instance=here".to_owned()];
    let loaded = load(Some(Path::new(CONF)), std::iter::empty(), &here).unwrap();
    assert_eq!(loaded, load(None, std::iter::empty(), &here).unwrap());
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::defaults();
    assert_eq!(config.service.instance, "localhost-8080");
    assert_eq!(config.redis.url, "redis://127.0.0.1:6379/0");
    assert_eq!(config.listen.public, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.listen.admin, "127.0.0.1:9464".parse().unwrap());
    assert_eq!(config.listen.stats_socket, Some(PathBuf::from("/run/llm-bridge/stats.sock")));
    assert_eq!(config.threads, Threads { readers: 2, transforms: 1, deliveries: 1, replays: 1 });
    assert_eq!((config.client.send_budget, config.client.max_connections), (262_144, 100_000));
    assert_eq!(config.client.slow_timeout, Duration::from_secs(60));
    assert_eq!(config.stream.abandon_after, Duration::from_secs(300));
    assert_eq!((config.delivery.ack, config.shutdown.grace), (Ack::Written, Duration::from_secs(20)));
}

#[test]
fn the_file_yields_to_the_environment_and_both_to_arguments() {
    let text = "[client]\nslow_timeout = \"1s\"\nmax_wait = \"1s\"\nkeepalive = \"1s\"";
    let environment =
        [("LLM_BRIDGE__CLIENT__MAX_WAIT", "2s"), ("LLM_BRIDGE__CLIENT__KEEPALIVE", "2s"), ("PATH", "/bin")];
    let client = try_load(text, &environment, &["client.keepalive=3s"]).unwrap().client;
    let seconds = [client.slow_timeout, client.max_wait, client.keepalive].map(|span| span.as_secs());
    assert_eq!(seconds, [1, 2, 3]);
}

#[test]
fn typed_values_need_no_quotes() {
    let sets = [
        "service.name=2024",
        "listen.public=[::1]:0",
        "listen.origins=[\"https://a\"]",
        "listen.stats_socket=",
        "client.send_budget=65536",
        "client.slow_timeout = 0",
        "client.max_connections=0",
        "delivery.ack=none",
        "log.level=info,llm_bridge=debug",
        "log.format=json",
    ];
    let config = try_load("", &[], &sets).unwrap();
    assert_eq!(config.service.name, "2024");
    assert!(config.service.instance.ends_with("-0"));
    assert_eq!((config.listen.origins, config.listen.stats_socket), (vec!["https://a".to_owned()], None));
    assert_eq!((config.client.send_budget, config.client.slow_timeout), (65_536, NEVER));
    assert_eq!((config.client.max_connections, config.delivery.ack), (10_000_000, Ack::None));
    assert!(config.log.json);
}

#[test]
fn all_errors_are_reported_at_once() {
    let text = "\
stray = 1
[threads]
readers = 0
transforms = \"many\"
[client]
slow_time = \"1s\"
send_budget = \"1KB\"
[clients]
max_wait = \"1s\"
";
    let environment = [("LLM_BRIDGE__STREAM__STALL_AFTER", "soon"), ("LLM_BRIDGE__MAX_WAIT", "1s")];
    let mut errors = errors_with(text, &environment, &["log.format=xml", "log.level"]);
    errors.sort();
    for error in &mut errors {
        error.truncate(error.find(": service,").unwrap_or(error.len()));
    }
    assert_eq!(
        errors,
        [
            "--set: log.format: \"xml\" is not allowed; allowed: \"text\" or \"json\"",
            "--set: log.level: --set takes section.key=value",
            "1: stray: no such key; the sections are",
            "3: threads.readers: 0 is not allowed; allowed: a whole number from 1 to 64",
            "4: threads.transforms: \"many\" is not allowed; allowed: a whole number from 1 to 64",
            "6: client.slow_time: no such key; did you mean client.slow_timeout?",
            "7: client.send_budget: \"1KB\" is not allowed; allowed: a size from \"16KiB\" to \"1GiB\"",
            "8: clients: no such section; did you mean client?",
            "environment LLM_BRIDGE__MAX_WAIT: max_wait: no such key; did you mean client.max_wait?",
            "environment LLM_BRIDGE__STREAM__STALL_AFTER: stream.stall_after: \"soon\" is not allowed; \
             allowed: a duration from \"100ms\" to \"1d\", or 0",
        ]
    );
}

#[test]
fn a_wrong_item_of_a_list_is_named() {
    let text = "[listen]\norigins = [\"https://a\", 7, \"b/c\"]\nhosts = \"chat.example\"\n[log]\nlevel = [\"info\", 1]\n";
    let errors = errors_of(text);
    for words in [
        "2: listen.origins: item 2 (7), item 3 (\"b/c\") are not allowed; allowed: a list of texts in brackets, each",
        "3: listen.hosts: \"chat.example\" is not allowed; allowed: a list of texts in brackets, each",
        "5: log.level: the list [\"info\", 1] is not allowed; allowed: ",
    ] {
        assert!(errors.iter().any(|error| error.starts_with(words)), "{words}: {errors:?}");
    }
}

#[test]
fn an_unknown_key_without_a_similar_one_gets_the_section_s_keys() {
    let errors = errors_with("[shutdown]\nwhatever = 1\n[surprise]\n", &[], &["nonsense.key=1"]);
    for words in [
        "shutdown.whatever: no such key; [shutdown] has: grace",
        "surprise: no such section; the sections are: service,",
        "nonsense.key: no such key; the sections are: service,",
    ] {
        assert!(errors.iter().any(|error| error.contains(words)), "{words}: {errors:?}");
    }
}

#[test]
fn errors_name_the_file() {
    let errors = try_load("[threads]\nreaders = 99", &[], &[]).unwrap_err();
    let error = errors.iter().next().unwrap();
    assert_eq!(error.key(), "threads.readers");
    assert!(error.to_string().contains("/llm-bridge.toml:2: threads.readers: 99"), "{error}");
    let missing = load(Some(Path::new("/nowhere/conf.toml")), std::iter::empty(), &[]).unwrap_err();
    assert!(missing.to_string().starts_with("/nowhere/conf.toml: cannot be read: "), "{missing}");
}

#[test]
fn every_syntax_error_has_its_line() {
    let errors = errors_of("[threads]\nreaders = = 1\n[client]\nkeepalive = \"15s\nmax_wait = \"1s\"\n");
    assert!(errors.len() == 2, "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("not TOML: ")), "{errors:?}");
    assert!(errors[0].starts_with("2: ") && errors[1].starts_with("4: "), "{errors:?}");
    assert_eq!(errors_of("[threads]\nreaders = 1\nreaders = 2").len(), 1);
}

#[test]
fn odd_toml_is_refused_not_misread() {
    for text in [
        "client = 1",
        "[[client]]\nmax_wait = \"1s\"",
        "[client.max_wait]\nseconds = 1",
        "[client]\nmax_wait = 1.5",
        "[client]\nmax_wait = 30",
        "[client]\nmax_connections = 99999999999999999999",
        "[listen]\norigins = \"*\"",
        "[listen]\norigins = [1]",
        "[listen]\npublic = \"localhost:8080\"",
        "[service]\nname = 1",
        "[service]\nname = \"a:b\"",
        "[service]\ninstance = \"{x}\"",
        "[redis]\nprefix = \"\"",
        "[log]\nlevel = \"inof\"",
    ] {
        assert_eq!(errors_of(text).len(), 1, "{text}");
    }
}

#[test]
fn unsupported_keys_are_refused_by_name() {
    for text in [
        "[auth]\nmode = \"jwt\"",
        "[auth]\nsecret_file = \"/s\"",
        "[auth]\nkeys_file = \"/k\"",
        "[auth]\nquery_token = true",
    ] {
        let errors = errors_of(text);
        assert!(errors.len() == 1 && errors[0].contains("not available in this version"), "{errors:?}");
    }
}

#[test]
fn stream_keys_follow_the_prefix_or_a_pattern_of_their_own() {
    let pattern = |text: &str| try_load(text, &[], &[]).unwrap().redis.stream_key.to_string();
    assert_eq!(pattern(""), "llm:stream:{session}:{model}");
    assert_eq!(pattern("[redis]\nprefix = \"x\""), "x:stream:{session}:{model}");
    assert_eq!(pattern("[redis]\nprefix = \"x\"\nstream_key = \"llm:{session}\""), "llm:{session}");
    assert_eq!(pattern("[redis]\nstream_key = \"chat:{{session}}\""), "chat:{{session}}");
    for (value, why) in [
        ("chat", "it has {session} once and {model} at most once"),
        ("{session}:x", "it begins with literal text"),
        ("chat:{session}{model}", "a character that no session has"),
        ("llm:{session}", "begin it with a word of its own"),
        ("chat {session}", "without blanks"),
    ] {
        let errors = errors_of(&format!("[redis]\nstream_key = \"{value}\""));
        let found = format!("2: redis.stream_key: \"{value}\" is not allowed; allowed: ");
        assert!(errors.len() == 1 && errors[0].starts_with(&found) && errors[0].contains(why), "{errors:?}");
    }
    assert_eq!(errors_of("[redis]\nstream_key = 5").len(), 1);
}

#[test]
fn the_names_of_flat_fields_can_be_chosen() {
    let fields = |text: &str| try_load(text, &[], &[]).unwrap().fields;
    assert_eq!(fields(""), Fields::default());
    let chosen = fields("[fields]\ntext = [\"tok\", \"ä b\"]\ntype = []");
    assert_eq!((chosen.text, chosen.kind), (vec!["tok".to_owned(), "ä b".to_owned()], Vec::new()));
    for bad in ["\"tok\"", "[1]", "[\"\"]", "[\"data\"]", "[\"x\", \"openai\"]"] {
        assert_eq!(errors_of(&format!("[fields]\ntext = {bad}")).len(), 1, "{bad}");
    }
    let many = vec!["\"a\""; 17].join(",");
    assert!(errors_of(&format!("[fields]\ntype = [{many}]"))[0].contains("a list of up to 16 texts"));
}

#[test]
fn receipts_are_off_unless_wanted() {
    let stream = try_load("", &[], &[]).unwrap().stream;
    assert_eq!((stream.receipts, stream.receipts_after), (false, Duration::from_secs(60)));
    let stream = try_load("[stream]\nreceipts = true\nreceipts_after = 0", &[], &[]).unwrap().stream;
    assert_eq!((stream.receipts, stream.receipts_after), (true, Duration::ZERO));
    for text in
        ["[stream]\nreceipts = 1", "[stream]\nreceipts_after = \"9ms\"", "[redis]\nreceipts_max_entries = 0"]
    {
        assert_eq!(errors_of(text).len(), 1, "{text}");
    }
}

#[test]
fn an_open_door_has_to_be_meant() {
    for address in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "[::ffff:192.0.2.1]:8080"] {
        let text = format!("[listen]\npublic = \"{address}\"\n");
        let errors = errors_of(&text);
        assert!(errors.len() == 1 && errors[0].starts_with("2: listen.public: "), "{errors:?}");
        try_load(&format!("{text}[auth]\nallow_anonymous = true"), &[], &[]).unwrap();
    }
    for address in ["127.8.8.8:8080", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
        try_load(&format!("[listen]\npublic = \"{address}\""), &[], &[]).unwrap();
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for text in [
        "[listen]\nadmin = \"127.0.0.1:8080\"",
        "[stream]\nabandon_after = \"1s\"",
        "[stream]\nstall_after = \"10m\"",
        "[redis]\nurl = \"http://127.0.0.1\"",
    ] {
        assert_eq!(errors_of(text).len(), 1, "{text}");
    }
    try_load("[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"", &[], &[]).unwrap();
    let stream = try_load("[stream]\nabandon_after = 0\nstall_after = \"10m\"", &[], &[]).unwrap().stream;
    assert_eq!(stream.abandon_after, Duration::ZERO);
}

#[test]
fn secrets_come_from_files_and_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (url, password) = (dir.path().join("url"), dir.path().join("password"));
    fs::write(&url, "redis://user@db.example.com:6380/2\n").unwrap();
    fs::write(&password, "geheim/1\n").unwrap();
    let text = format!("[redis]\nurl_file = {:?}\npassword_file = {:?}", url, password);
    let config = try_load(&text, &[], &[]).unwrap();
    assert_eq!(config.redis.url, "redis://user:geheim%2F1@db.example.com:6380/2");
    for shown in [format!("{config:?}"), describe(&config)] {
        assert!(
            shown.contains("redis://user:***@db.example.com:6380/2") && !shown.contains("geheim"),
            "{shown}"
        );
    }
    fs::remove_file(&password).unwrap();
    let errors = errors_of(&text);
    assert!(
        errors.len() == 1 && errors[0].starts_with("3: redis.password_file: the secret file "),
        "{errors:?}"
    );
    fs::write(&url, "geheim").unwrap();
    let errors = errors_of(&format!("[redis]\nurl_file = {url:?}"));
    assert!(errors.len() == 1 && !errors[0].contains("geheim"), "{errors:?}");
}

#[test]
fn a_described_configuration_can_be_loaded_again() {
    let sets = ["client.slow_timeout=0", "listen.origins=[\"https://a\", \"*\"]", "stream.linger=1500ms"];
    let config = try_load("[redis]\nca_file = '/a \"b\"'", &[], &sets).unwrap();
    assert_eq!(try_load(&describe(&config), &[], &[]).unwrap(), config);
    // Left out: secret files, whose content is in the URL, and keys that this version does not support.
    let left_out =
        ["redis.url_file", "redis.password_file", "auth.secret_file", "auth.keys_file", "auth.query_token"];
    let mut shown = names(&describe(&config));
    shown.extend(left_out.map(ToOwned::to_owned));
    assert_eq!(shown, names(&fs::read_to_string(CONF).unwrap()));
}
