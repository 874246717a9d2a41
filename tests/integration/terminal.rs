//! The commands for a terminal besides the daemon: `produce`, `tail`, `demo`.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::command::{Background, Outcome, llm_bridge, program, run, run_in_terminal};
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::patience::wait_until;
use crate::support::ports::free_port;
use crate::support::producer::{Producer, token, tokens};
use crate::support::redis::RedisServer;
use crate::support::transcript::Transcript;
use crate::support::viewer::{KINDS, Kind, Viewer, target, view};

const TEXT: &str = "Hello, wörld →\u{1F9ED}\n\n  indented\ttabs \"quotes\" \\ and the rest\r\nlast";

/// `produce` into `s1/m`.
fn produce(redis: &RedisServer, more: &[&str]) -> Command {
    let setting = format!("redis.url={}", redis.url());
    let arguments = ["produce", "--session", "s1", "--model", "m", "--set", &setting];
    llm_bridge(&[&arguments, more].concat())
}

fn tail(daemon: &Daemon, query: &str, more: &[&str]) -> Command {
    let url = format!("http://{}{}", daemon.public, target("s1/m", query));
    llm_bridge(&[&["tail", &url], more].concat())
}

fn expect_success(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// The transcript of `s1/m`; checks that it is the same for both kinds of viewers.
fn views(daemon: &Daemon) -> Transcript {
    let [one, other] = KINDS.map(|kind| view(daemon.public, kind, "s1/m", ""));
    assert_eq!(one.outline(), other.outline());
    one
}

#[test]
fn text_is_produced_as_it_is() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    expect_success(&run(produce(&redis, &[]), TEXT.as_bytes()));
    let transcript = views(&daemon);
    assert_eq!(transcript.text(), TEXT);
    assert!(transcript.outline()[0].starts_with("start "), "{:?}", transcript.outline());
    assert!(transcript.frames.last().unwrap().kind() == "end");
    // Every entry has a number and a time.
    type Entries = Vec<(String, std::collections::BTreeMap<String, String>)>;
    let entries: Entries = redis.connect().run(&["XRANGE", "llm:stream:s1:m", "-", "+"]);
    for (number, (_, entry)) in entries.iter().enumerate() {
        let data: Value = serde_json::from_str(&entry["data"]).unwrap();
        assert_eq!(data["seq"], number, "{data}");
        assert!(data["ts"].is_u64(), "{data}");
    }
    // Another run into the same stream is another generation.
    expect_success(&run(produce(&redis, &["--from", "text", "--rate", "1000"]), b"second"));
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", "after=last").text(), "second");
    let nothing = run(produce(&redis, &[]), b"");
    expect_success(&nothing);
    assert_eq!(view(daemon.public, Kind::Sse, "s1/m", "after=last").text(), "");
}

#[test]
fn text_that_comes_in_pieces_goes_on_at_once_and_unbroken() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut process = Background::start(produce(&redis, &[]));
    let mut stdin = process.take_stdin();
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "wait=60");
    let mut seen = String::new();
    // Also a character in two pieces.
    let pieces: [&[u8]; 4] = [b"one ", b"two \xf0\x9f", b"\xa7\xad three ", b"four"];
    for (piece, visible) in pieces.iter().zip(["one ", "one two ", "one two \u{1F9ED} three "]) {
        stdin.write_all(piece).unwrap();
        stdin.flush().unwrap();
        while seen != visible {
            let frame = viewer.next().unwrap_or_else(|| panic!("ended at {seen:?}"));
            if frame.kind() == "delta" {
                seen.push_str(frame.value["text"].as_str().unwrap());
                assert!(visible.starts_with(&seen), "{seen:?}");
            }
        }
    }
    stdin.write_all(pieces[3]).unwrap();
    drop(stdin);
    expect_success(&process.finish());
    assert_eq!(viewer.read_all().text(), "one two \u{1F9ED} three four");
}

#[test]
fn objects_are_produced_line_by_line() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let lines = [
        json!({"type": "start", "generation": "mine"}),
        json!({"type": "delta", "text": "a\n", "channel": "reasoning"}),
        json!({"type": "delta", "text": TEXT}),
        json!({"type": "tool_call", "index": 0, "id": "c", "name": "n", "arguments": "{}"}),
        json!({"type": "mine", "x": [1, 2]}),
        json!({"type": "end", "finish_reason": "length", "usage": {"total_tokens": 5}}),
    ];
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    expect_success(&run(produce(&redis, &["--from", "jsonl"]), input.as_bytes()));
    let transcript = views(&daemon);
    assert_eq!((transcript.text().as_str(), transcript.text_of("reasoning").as_str()), (TEXT, "a\n"));
    let outline = transcript.outline();
    assert_eq!((outline[0].as_str(), outline.last().unwrap().as_str()), ("start mine", "end length"));
    assert_eq!(transcript.frames.last().unwrap().value["usage"], json!({"total_tokens": 5}));
    assert_eq!(outline.len(), 6, "{outline:?}");
}

#[test]
fn an_input_that_breaks_ends_the_answer_as_failed() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let good = json!({"type": "delta", "text": "good"});
    let outcome = run(produce(&redis, &["--from", "jsonl"]), format!("{good}\nno json\n{good}\n").as_bytes());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("line 2"), "{outcome:?}");
    let transcript = views(&daemon);
    assert_eq!(transcript.text(), "good");
    assert_eq!(transcript.frames.last().unwrap().value["code"], "producer_failed");

    let mut process = Background::start(produce(&redis, &[]));
    let mut stdin = process.take_stdin();
    stdin.write_all(b"half of it ").unwrap();
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, "s1/m", "after=last&follow=1");
    viewer.read_until("half", |frame| frame.value["text"] == "half of it ");
    process.signal(libc::SIGINT);
    let outcome = process.finish();
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    let error = viewer.read_until("an error", |frame| frame.is_terminal());
    assert_eq!(error.value["code"], "producer_failed");
    drop(stdin);

    for (session, model) in [("no/session", "m"), ("s1", "no model"), ("..", "m"), ("", "m")] {
        let outcome = run(llm_bridge(&["produce", "--session", session, "--model", model]), b"x");
        assert_eq!(outcome.code, Some(2), "{session} {model}: {outcome:?}");
    }
}

#[test]
fn output_during_an_outage_is_not_lost() {
    let mut redis = RedisServer::start_durable();
    redis.kill();
    let mut process = Background::start(produce(&redis, &[]));
    let mut stdin = process.take_stdin();
    stdin.write_all(tokens(0..50).as_bytes()).unwrap();
    redis.restart();
    let daemon = Daemon::start(&redis);
    let mut viewer = Viewer::open(daemon.public, Kind::WebSocket, "s1/m", "wait=60");
    viewer.read_until("the last of them", |frame| {
        frame.value["text"].as_str().is_some_and(|text| text.ends_with("49 "))
    });
    redis.kill();
    stdin.write_all(tokens(50..100).as_bytes()).unwrap();
    redis.restart();
    drop(stdin);
    expect_success(&process.finish());
    assert_eq!(viewer.read_all().text(), tokens(0..100));
}

#[test]
fn tail_shows_the_text_or_the_frames() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.start("g1");
    producer.delta(TEXT);
    producer.write(&json!({"type": "delta", "text": " and more", "seq": 2}));
    let end = producer.write(&json!({"type": "end", "seq": 3, "finish_reason": "stop"}));
    let shown = run(tail(&daemon, "", &[]), b"");
    expect_success(&shown);
    assert_eq!(shown.stdout.trim_end(), format!("{TEXT} and more"));

    for query in ["", "after=0"] {
        let frames = run(tail(&daemon, query, &["--json"]), b"");
        expect_success(&frames);
        let frames: Vec<Value> =
            frames.stdout.trim_end().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let text: String = frames.iter().filter_map(|frame| frame["text"].as_str()).collect();
        assert_eq!(text, format!("{TEXT} and more"));
        let last = frames.last().unwrap();
        assert_eq!((&last["type"], &last["id"]), (&json!("end"), &json!(end)));
    }
    let rest = run(tail(&daemon, "", &["--after", &producer.ids[1]]), b"");
    assert_eq!(rest.stdout.trim_end(), " and more");
    let nothing = run(tail(&daemon, "", &["--after", &end]), b"");
    assert_eq!((nothing.code, nothing.stdout.trim_end()), (Some(0), ""), "{nothing:?}");

    let url = format!("http://{}/v1/streams/s1/none?wait=0", daemon.public);
    let missing = run(llm_bridge(&["tail", &url]), b"");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(!missing.stderr.is_empty());
    for url in ["nonsense", "ftp://127.0.0.1/v1/streams/s1/m", "http://"] {
        let outcome = run(llm_bridge(&["tail", url]), b"");
        assert!(matches!(outcome.code, Some(1 | 2)), "{url}: {outcome:?}");
    }
}

/// An answer that thinks, calls a tool, and contains control characters.
fn produce_unruly(redis: &RedisServer) {
    let mut producer = Producer::new(redis, "s1", "m");
    let delta = |channel: &str, text: &str| json!({"type": "delta", "channel": channel, "text": text});
    producer.write(&json!({"type": "start", "generation": "g\u{1b}[5m"}));
    producer.write(&delta("reasoning", "Let me \u{1b}[31msee"));
    producer.write(
        &json!({"type": "tool_call", "index": 0, "id": "c", "name": "se\u{7}arch", "arguments": "{\"q\":"}),
    );
    producer.write(&json!({"type": "tool_call", "index": 0, "arguments": "\"\u{9b}2J\"}"}));
    producer.write(&delta("content", "# No *Markdown* \u{1b}]0;title\u{7}\u{8}\r\n\ttext\u{7f}"));
    producer.write(&json!({"type": "custom\u{1b}[2J"}));
    producer.write(&json!({"type": "end", "finish_reason": "stop\u{1b}c"}));
}

#[test]
fn tail_in_a_terminal_dims_reasoning_marks_calls_and_shows_control_characters() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    produce_unruly(&redis);
    let (code, shown) = run_in_terminal(tail(&daemon, "", &[]));
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("\x1b[2mLet me \u{241b}[31msee\x1b[22m\n"), "{shown:?}");
    assert!(shown.contains("\n\u{2192} se\u{2407}arch({\"q\":\"\u{fffd}2J\"})\n"), "{shown:?}");
    let text = "# No *Markdown* \u{241b}]0;title\u{2407}\u{2408}\u{240d}\n\ttext\u{2421}\n";
    assert!(shown.contains(text), "{shown:?}");
    // No frame sends a control character to the terminal: only our own dimming and line breaks are there.
    let rest = shown.replace("\x1b[2m", "").replace("\x1b[22m", "");
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    assert!(!rest.contains(is_control), "{rest:?}");
    let last = shown.trim_end().lines().last().unwrap();
    assert!(last.contains("first token ") && last.contains("4 tokens"), "{last}");

    let (code, plain) = run_in_terminal(tail(&daemon, "", &["--color", "never"]));
    assert_eq!((code, plain.contains('\x1b')), (Some(0), false), "{plain:?}");
    assert!(plain.contains("Let me \u{241b}[31msee\n"), "{plain:?}");
    let mut no_color = tail(&daemon, "", &[]);
    no_color.env("NO_COLOR", "1");
    assert_eq!(run_in_terminal(no_color).1, plain);
}

#[test]
fn tail_in_a_pipe_passes_the_text_on_without_colours() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    produce_unruly(&redis);
    for options in [&[][..], &["--color", "never"]] {
        let shown = run(tail(&daemon, "", options), b"");
        expect_success(&shown);
        assert!(!shown.stdout.contains("\x1b[2m") && !shown.stderr.contains('\x1b'), "{shown:?}");
        assert!(
            shown.stdout.ends_with("# No *Markdown* \u{1b}]0;title\u{7}\u{8}\r\n\ttext\u{7f}"),
            "{shown:?}"
        );
        assert!(shown.stderr.trim_end().ends_with(']') && shown.stderr.contains("tokens"), "{shown:?}");
    }
    // For `less -R`: as in a terminal.
    let always = run(tail(&daemon, "", &["--color", "always"]), b"");
    assert!(always.stdout.starts_with("\x1b[2mLet me \u{241b}[31msee\x1b[22m\n"), "{always:?}");
    // JSON is for programs: frames, and nothing else.
    let frames = run(tail(&daemon, "", &["--json", "--color", "always"]), b"");
    expect_success(&frames);
    assert!(frames.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{frames:?}");
    assert!(!frames.stdout.contains('\x1b') && frames.stderr.is_empty(), "{frames:?}");
    assert_eq!(run(tail(&daemon, "", &["--color", "blue"]), b"").code, Some(2));
}

#[test]
fn tail_shows_control_characters_in_errors_too() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let object = "{\"type\":\"mine\",\"x\":\n\"\u{9b}2J\u{202e}\"}";
    producer.write_text(object);
    producer.write(
        &json!({"type": "error", "code": "c\u{1b}]0;x\u{7}\n\u{9b}2J", "message": "m\u{1b}[2J\n[end: stop]"}),
    );
    let is_control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    for options in [&[][..], &["--json"], &["--color", "always"]] {
        let outcome = run(tail(&daemon, "", options), b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(!outcome.stderr.contains(is_control) && !outcome.stdout.contains(is_control), "{outcome:?}");
        assert!(outcome.stderr.contains("failed: c\u{241b}]0;x\u{2407}\u{240a}\u{fffd}2J\n"), "{outcome:?}");
        assert!(!outcome.stderr.lines().any(|line| line == "[end: stop]"), "{outcome:?}");
        if options == ["--json"] {
            let frames: Vec<Value> =
                outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let custom = frames.iter().find(|frame| frame["type"] == "custom").unwrap();
            assert_eq!(custom["data"], serde_json::from_str::<Value>(object).unwrap());
        }
    }
    let url = format!("http://{}/v1/streams/s1/none?wait=0", daemon.public);
    let missing = run(llm_bridge(&["tail", &url]), b"");
    assert_eq!(missing.stderr, "llm-bridge: there is no such stream\n");
}

#[test]
fn tail_shows_the_speed_of_an_answer() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut process = Background::start(tail(&daemon, "wait=60", &[]));
    let at = |ms: u64| format!("{}-0", 1_763_800_000_000 + ms);
    let mut write = |ms: u64, data: &str| producer.write_fields(&at(ms), &[("data", data.as_bytes())]);
    write(0, r#"{"type":"start","generation":"g1"}"#);
    // It is shown as it arrives, and the time of the first token is known if it was not merged with others.
    write(350, r#"{"type":"delta","text":"one\n"}"#);
    assert_eq!(process.line().as_deref(), Some("one"));
    for number in 1..=10 {
        write(350 + number * 100, r#"{"type":"delta","text":"more\n"}"#);
    }
    write(60_000, r#"{"type":"end","finish_reason":"stop"}"#);
    let outcome = process.finish();
    expect_success(&outcome);
    let expected = "[first token after 350 ms, 11 tokens in 1.00 s, 10.0 tokens/s]";
    assert!(outcome.stderr.lines().any(|line| line == expected), "{outcome:?}");
}

#[test]
fn tail_resumes_over_a_restart_of_the_daemon() {
    for options in [&[][..], &["--json"]] {
        let redis = RedisServer::start();
        let mut daemon = Daemon::start(&redis);
        let mut producer = Producer::new(&redis, "s1", "m");
        producer.start("g1");
        let mut process = Background::start(tail(&daemon, "", options));
        let mut shown = Vec::new();
        // Each part ends with a line break, so that a line of text shows that it has arrived.
        for round in 0..3 {
            for number in round * 20..round * 20 + 20 {
                producer.delta(&token(number));
            }
            producer.delta(&format!("round {round}\n"));
            while !shown.last().is_some_and(|line: &String| line.contains(&format!("round {round}"))) {
                shown.push(process.line().expect("it goes on"));
            }
            daemon.kill();
            // Entries written meanwhile are there when it reconnects.
            producer.delta(&format!("between {round}\n"));
            daemon = daemon.start_again();
        }
        producer.end();
        while let Some(line) = process.line() {
            shown.push(line);
        }
        expect_success(&process.finish());
        let round =
            |round: usize| format!("{}round {round}\nbetween {round}\n", tokens(round * 20..round * 20 + 20));
        let expected: String = (0..3).map(round).collect();
        let shown = if options.is_empty() {
            shown.join("\n") + "\n"
        } else {
            let text = |line: &String| {
                let frame: Value = serde_json::from_str(line).unwrap();
                frame["text"].as_str().unwrap_or_default().to_owned()
            };
            shown.iter().map(text).collect()
        };
        assert_eq!(shown.trim_end(), expected.trim_end());
    }
}

#[test]
fn tail_stays_for_the_next_answer_with_follow() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("first\n");
    producer.end();
    let mut process = Background::start(tail(&daemon, "", &["--follow"]));
    while !process.line().expect("it goes on").contains("first") {}
    producer.start("g2");
    producer.delta("second\n");
    while !process.line().expect("it goes on").contains("second") {}
    process.signal(libc::SIGINT);
    process.finish();
    wait_until("it to be gone", || daemon.gauge("connections_open") == 0);
}

/// The processes that were started with this value in their environment.
fn processes_with(value: &str) -> Vec<String> {
    let has = |entry: &fs::DirEntry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(value)
    };
    let entries = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    entries.filter(has).map(|entry| entry.path().display().to_string()).collect()
}

/// A demo with these arguments that is ready, and its output so far.
fn demo(arguments: &[&str]) -> (Background, Vec<String>) {
    let mut demo = Background::start(llm_bridge(&[&["demo"], arguments].concat()));
    let mut printed = Vec::new();
    while !printed.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
        printed.push(demo.line().expect("it goes on"));
    }
    (demo, printed)
}

#[test]
fn the_demos_model_can_be_stopped_and_its_address_chosen() {
    let (public, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let settings = [format!("listen.public={public}"), format!("listen.admin={admin}")];
    let (demo, printed) = demo(&["--set", &settings[0], "--set", &settings[1]]);
    assert!(printed.iter().any(|line| line.trim() == format!("http://{public}/")), "{printed:?}");
    let public: SocketAddr = public.parse().unwrap();
    assert_eq!(http::get(admin.parse().unwrap(), "/healthz").status, 200);
    // Two programs cannot use the same address, and the message names it.
    for arguments in [["--set", &settings[0]], ["--port", &public.port().to_string()]] {
        let second = run(llm_bridge(&[&["demo"], &arguments[..]].concat()), b"");
        assert_eq!(second.code, Some(1), "{second:?}");
        assert!(
            second.stderr.contains(&public.to_string()) && second.stderr.contains("--port"),
            "{second:?}"
        );
    }
    let mut viewer = Viewer::open(public, Kind::WebSocket, "demo/demo-model", "after=last&follow=1");
    for _ in 0..3 {
        viewer.read_until("text", |frame| frame.kind() == "delta");
    }
    viewer.websocket().send(&json!({"type": "cancel", "reason": "the Stop button"}));
    let end = viewer.read_until("the end", |frame| frame.is_terminal());
    assert_eq!(end.value["finish_reason"], "cancelled", "{end:?}");
    // The next answer still comes.
    viewer.read_until("the next answer", |frame| frame.kind() == "start");
    viewer.read_until("its text", |frame| frame.kind() == "delta");
    demo.signal(libc::SIGTERM);
    expect_success(&demo.finish());
}

#[test]
fn the_demo_shows_itself_and_leaves_nothing_behind() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let dir = tempfile::tempdir().unwrap();
        let dir_name = dir.path().to_str().unwrap();
        let mut command = llm_bridge(&["demo"]);
        command.env("TMPDIR", dir_name);
        let mut demo = Background::start(command);
        let mut printed = Vec::new();
        while !printed.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
            printed.push(demo.line().expect("it goes on"));
        }
        let url = printed.iter().map(|line| line.trim()).find(|line| line.starts_with("http://")).unwrap();
        let address: SocketAddr = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
        let page = http::get(address, "/");
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));

        let mut viewers = KINDS.map(|kind| Viewer::open(address, kind, "demo/demo-model", "after=last"));
        for viewer in &mut viewers {
            for _ in 0..5 {
                viewer.read_until("text", |frame| frame.kind() == "delta");
            }
        }
        // The command that it prints works.
        let tail = printed.iter().map(|line| line.trim()).find(|line| line.contains(" tail ")).unwrap();
        let mut shell = program("/bin/sh");
        shell.args(["-c", &format!("exec {tail} --json")]).env_clear();
        let mut tail = Background::start(shell);
        for _ in 0..5 {
            let frame: Value = serde_json::from_str(&tail.line().expect("it goes on")).unwrap();
            assert!(frame["type"].is_string());
        }
        drop(tail);
        assert!(processes_with(dir_name).len() >= 2, "the demo and its redis-server");
        demo.signal(signal);
        let outcome = demo.finish();
        expect_success(&outcome);
        wait_until("its processes to end", || processes_with(dir_name).is_empty());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
