//! Every transaction of the daemon and the commands touches only one key, so that it works in a cluster. The test
//! uses all parts of them and reads their commands by Redis' MONITOR.
//!
//! Live reads are excluded: one of them reads several streams in one transaction. They write no entries.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::command::{Background, llm_bridge, run};
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::redis::{Redis, RedisServer};
use crate::support::upstream::{FakeUpstream, Step, chat, event, head, token};
use crate::support::viewer::{Kind, Viewer};

/// A command as MONITOR shows it.
#[derive(Debug)]
struct Seen {
    client: String,
    /// Its arguments; bytes that are not text are replaced.
    words: Vec<String>,
}

impl Seen {
    fn name(&self) -> String {
        self.words[0].to_uppercase()
    }
}

/// Redis' record of the commands of all clients, from its start to its end. Redis queues what has not been read yet.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn start(redis: &RedisServer) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
        socket.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Self(BufReader::new(socket));
        assert_eq!(monitor.line(), b"+OK\r");
        monitor
    }

    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        line.pop();
        line
    }

    fn end(mut self, connection: &mut Redis) -> Vec<Seen> {
        connection.run::<String>(&["ECHO", "the last one"]);
        let lines = std::iter::from_fn(|| Some(parse(&self.line())));
        lines.take_while(|seen| seen.words != ["ECHO", "the last one"]).collect()
    }
}

/// Parses `+1700000000.000000 [0 127.0.0.1:1234] "SET" "a\x00b"`.
fn parse(line: &[u8]) -> Seen {
    let text = String::from_utf8(line.to_vec()).unwrap();
    let (client, rest) = text.split_once('[').and_then(|(_, rest)| rest.split_once("] ")).unwrap();
    let mut words = Vec::new();
    let mut bytes = rest.bytes();
    while bytes.by_ref().any(|byte| byte == b'"') {
        let mut word = Vec::new();
        while let Some(byte) = bytes.next().filter(|&byte| byte != b'"') {
            word.push(if byte == b'\\' { unescaped(&mut bytes) } else { byte });
        }
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Seen { client: client.to_owned(), words }
}

/// The byte that an escape sequence stands for; its backslash has been read.
fn unescaped(bytes: &mut impl Iterator<Item = u8>) -> u8 {
    match bytes.next().unwrap() {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 7,
        b'b' => 8,
        b'x' => {
            let digits: String = bytes.take(2).map(char::from).collect();
            u8::from_str_radix(&digits, 16).unwrap()
        }
        other => other,
    }
}

/// The keys of a command, as Redis reports them.
fn keys(connection: &mut Redis, seen: &Seen) -> Vec<String> {
    let words: Vec<&str> =
        ["COMMAND", "GETKEYS"].into_iter().chain(seen.words.iter().map(String::as_str)).collect();
    // Redis returns an error for commands without keys.
    connection.try_run(&words).unwrap_or_default()
}

/// The keys of each transaction, including the watched ones, with the names of its commands.
fn transactions(seen: Vec<Seen>, connection: &mut Redis) -> Vec<(BTreeSet<String>, Vec<String>)> {
    #[derive(Default)]
    struct Open {
        keys: BTreeSet<String>,
        names: Vec<String>,
        is_queuing: bool,
    }
    let mut open: BTreeMap<String, Open> = BTreeMap::new();
    let mut done = Vec::new();
    for command in seen {
        let transaction = open.entry(command.client.clone()).or_default();
        match command.name().as_str() {
            "WATCH" => transaction.keys.extend(keys(connection, &command)),
            "UNWATCH" | "DISCARD" => *transaction = Open::default(),
            "MULTI" => transaction.is_queuing = true,
            "EXEC" => {
                let Open { keys, names, .. } = std::mem::take(transaction);
                done.push((keys, names));
            }
            name if transaction.is_queuing => {
                transaction.keys.extend(keys(connection, &command));
                transaction.names.push(name.to_owned());
            }
            _ => {}
        }
    }
    done
}

fn relay(redis: &RedisServer, upstream: &FakeUpstream) -> Background {
    let (setting, url) = (format!("redis.url={}", redis.url()), upstream.chat_url());
    Background::start(llm_bridge(&["relay", "--url", &url, "--set", &setting, "--takeover-after", "1s"]))
}

#[test]
fn every_transaction_touches_one_key() {
    let redis = RedisServer::start();
    let monitor = Monitor::start(&redis);
    let mut connection = redis.connect();
    let options = Daemon::options(&redis).set("stream.receipts=true").set("stream.receipts_after=1s");
    let mut daemon = options.start();

    // A producer's entries, one of them malformed; a viewer that acknowledges; cancel requests; an answer that nobody
    // acknowledges.
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    let bad = producer.write_text("{");
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, &producer.stream, "");
    viewer.read_to(&bad);
    let cancelled =
        http::request(daemon.public, "POST", "/v1/streams/s1/m/cancel", &[("Content-Length", "0")]);
    assert_eq!(cancelled.status, 202);
    viewer.websocket().send(&json!({"type": "cancel"}));
    let end = producer.end();
    viewer.read_to(&end);
    viewer.acknowledge(&end);
    viewer.expect_acked(&end);
    let mut untaken = Producer::new(&redis, "s2", "m");
    untaken.start("g1");
    untaken.end();
    let _other = Viewer::open(daemon.public, Kind::Sse, &untaken.stream, "?follow=1");
    wait_until("the receipts of both", || connection.run::<usize>(&["XLEN", "llm:receipts:llm-bridge"]) >= 2);
    // The next daemon with its name removes its groups.
    daemon.kill();
    let daemon = daemon.start_again();

    // A worker that dies within an answer, one that takes its requests over, and a request that cannot be answered.
    let dying = FakeUpstream::start([vec![head(), event(&token("a")), Step::Hang]]);
    let doomed = relay(&redis, &dying);
    let ask = |session: &str, body: &str| -> String {
        redis.connect().run(&["XADD", "llm:requests", "*", "session", session, "model", "m", "request", body])
    };
    ask("s3", r#"{"messages":[]}"#);
    wait_until("the answer to begin", || connection.entries("llm:stream:s3:m").len() == 2);
    doomed.signal(libc::SIGKILL);
    drop(doomed);
    let upstream = FakeUpstream::start([chat(&["a", "b"])]);
    let worker = relay(&redis, &upstream);
    ask("s4", r#"{"messages":[]}"#);
    ask("a b", "{}");
    let group = "llm:relay:llm-bridge";
    wait_until("all requests to be settled", || {
        connection.entries("llm:stream:s4:m").last().is_some_and(|(_, last)| last.contains_key("openai"))
            && connection.pending("llm:requests", group) == 0
            && connection.run::<usize>(&["XLEN", "llm:dlq:llm-bridge"]) == 2
    });
    worker.signal(libc::SIGTERM);
    assert_eq!(worker.finish().code, Some(0));
    let setting = format!("redis.url={}", redis.url());
    let outcome =
        run(llm_bridge(&["produce", "--session", "s5", "--model", "m", "--set", &setting]), b"one answer");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(run(llm_bridge(&["check", "--set", &setting]), b"").code, Some(0));
    drop(daemon);

    let transactions = transactions(monitor.end(&mut connection), &mut connection);
    let is_judged = |(_, names): &&(BTreeSet<String>, Vec<String>)| !names.contains(&"XREAD".to_owned());
    let judged: Vec<_> = transactions.iter().filter(is_judged).collect();
    let wide: Vec<_> = judged.iter().filter(|(keys, _)| keys.len() > 1).collect();
    assert!(wide.is_empty(), "{wide:?}");
    // Each kind of transaction occurred: an entry under a lock, a lock, a receipt or dead letter, a cancel request, a
    // read of a stream's end.
    for command in ["XADD", "SET", "DEL", "PEXPIRE", "XRANGE"] {
        let is_seen = judged.iter().any(|(_, names)| names.iter().any(|name| name == command));
        assert!(is_seen, "no transaction with {command} in {judged:?}");
    }
}
