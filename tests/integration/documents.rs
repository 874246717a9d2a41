//! The documents: their commands and programs run unchanged except for addresses, the recipes twice, as people would;
//! their links are valid; and blocks of code that no test runs are listed here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::Background;
use crate::support::daemon::Daemon;
use crate::support::documents::{PRODUCERS, READERS, README, block};
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::upstream::{FakeUpstream, Script, chat, event, head};
use crate::support::viewer::{Kind, view};

const KEY: &str = "llm:stream:s1:chat";

/// Where the README's commands run: a Redis, a daemon, and a directory for their files.
struct Place {
    redis: RedisServer,
    daemon: Daemon,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let redis = RedisServer::start();
        let daemon = Daemon::start(&redis);
        Self { redis, daemon, dir: tempfile::tempdir().unwrap() }
    }

    /// A program that finds `llm-bridge`, its Redis and its files here.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let ours = Path::new(env!("CARGO_BIN_EXE_llm-bridge")).parent().unwrap();
        let path = format!("{}:{}", ours.display(), std::env::var("PATH").unwrap_or_default());
        command.env_clear().env("PATH", path).env("LLM_BRIDGE__REDIS__URL", self.redis.url());
        command.env("REDIS_PORT", self.redis.port().to_string()).env("PYTHONPATH", self.dir.path());
        command.env("OPENAI_API_KEY", "k").env("ANTHROPIC_API_KEY", "k").current_dir(self.dir.path());
        command
    }

    /// Commands as a user types them, with the addresses of this place.
    fn shell(&self, script: &str) -> Command {
        let script = script.replace("127.0.0.1:8080", &self.daemon.public.to_string());
        let script = script.replace("/tmp/llm-bridge.sock", self.daemon.stats_socket.to_str().unwrap());
        let cli = r#"redis-cli() { command redis-cli -p "$REDIS_PORT" "$@"; }"#;
        let mut bash = self.command("bash");
        bash.args(["-euo", "pipefail", "-c", &format!("{cli}\n{script}")]);
        bash
    }

    /// The generations in the stream of the recipes: how many began, under how many names, and how many ended.
    fn generations(&self) -> (usize, usize, usize) {
        let entries = self.redis.connect().entries(KEY);
        let natives =
            entries.iter().filter_map(|(_, fields)| serde_json::from_slice(fields.get("data")?).ok());
        let starts: Vec<Value> = natives.filter(|object: &Value| object["type"] == "start").collect();
        let mut names: Vec<String> = starts.iter().map(|start| start["generation"].to_string()).collect();
        names.sort_unstable();
        names.dedup();
        let transcript = view(self.daemon.public, Kind::Sse, "s1/chat", "");
        let ends = transcript.frames.iter().filter(|frame| frame.kind() == "end").count();
        (starts.len(), names.len(), ends)
    }
}

fn expect_done(mut command: Command) -> Output {
    let output = command.output().expect("the program is there; ./tests/run.sh installs it");
    let printed = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}: {printed}", output.status);
    output
}

#[test]
fn the_tour_holds_word_by_word() {
    let place = Place::new();
    let checked = place.shell("llm-bridge check");
    expect_done(checked);
    let watch = block(README, "**3. Watch a name", "sh");
    let mut watching = Background::start(place.shell(&format!("exec {watch}")));
    expect_done(place.shell(block(README, "**4. Write it**", "sh")));
    assert_eq!(watching.line().as_deref(), Some("Hello, world."));
    let outcome = watching.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");

    let produce = block(README, "paces any text like a model", "sh");
    let quick = produce.replace("--rate 20", "--rate 1000000");
    assert!(quick != produce);
    let mut reading = place.shell(&quick);
    let printed = expect_done({
        reading.current_dir(env!("CARGO_MANIFEST_DIR"));
        reading
    });
    // The output says where to watch.
    let printed = String::from_utf8(printed.stderr).unwrap();
    assert!(printed.contains("llm-bridge tail 'http://127.0.0.1:8080/v1/streams/s2/gpt-4o"), "{printed}");
    assert!(printed.contains("entries written in "), "{printed}");
    assert_eq!(view(place.daemon.public, Kind::Sse, "s2/gpt-4o", "").text(), README);

    let read =
        String::from_utf8(expect_done(place.shell(block(README, "**5. Read it", "sh"))).stdout).unwrap();
    assert!(read.contains(r#""content":"Hello, world.\n""#), "{read}");
    // All of it, then the rest after the first entry.
    assert_eq!((read.matches("Hello, ").count(), read.matches("world.").count()), (2, 3), "{read}");
    assert!(!read.contains("\"gap\""), "{read}");
}

#[test]
fn recipes_that_ask_a_server_give_a_new_answer_each_time() {
    let place = Place::new();
    let messages = [
        r#"{"type":"message_start","message":{}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    let messages: Script = std::iter::once(head()).chain(messages.map(event)).collect();
    let (openai, anthropic) = (FakeUpstream::start([chat(&["a"])]), FakeUpstream::start([messages]));
    let addressed = |script: &str| {
        let openai = format!("http://{}", openai.address);
        let script =
            script.replace("http://127.0.0.1:11434", &openai).replace("https://api.openai.com", &openai);
        script.replace("https://api.anthropic.com", &format!("http://{}", anthropic.address))
    };
    let recipes = [
        block(README, "**I have an OpenAI-compatible server**", "sh"),
        block(README, "**I have the Anthropic API**", "sh"),
        block(README, "**I have curl**", "sh"),
    ];
    for recipe in recipes {
        let script = addressed(recipe);
        for _ in 0..2 {
            expect_done(place.shell(&script));
        }
    }
    assert_eq!(place.generations(), (8, 8, 8));
    let models: Vec<String> =
        openai.seen().iter().map(|seen| seen.body["model"].as_str().unwrap().to_owned()).collect();
    assert_eq!(models[..4], ["llama3:8b", "gpt-4o", "llama3:8b", "gpt-4o"]);
    assert_eq!(anthropic.seen()[1].body["model"], "claude-sonnet-4-5");
}

/// A stand-in for Python's Redis client, with the functions that the recipes use.
const PYTHON_CLIENT: &str = r#"
import os, socket
class Redis:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", int(os.environ["REDIS_PORT"])))
        self.lines = self.socket.makefile("rb")
    def call(self, *words):
        words = [str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        line = self.lines.readline()
        assert line[:1] in b"$:", line
        return self.lines.read(int(line[1:]) + 2)[:-2] if line[:1] == b"$" else int(line[1:])
    def xadd(self, key, fields, maxlen=None, approximate=True):
        bound = ["MAXLEN", "~", maxlen] if maxlen else []
        return self.call("XADD", key, *bound, "*", *[word for pair in fields.items() for word in pair])
    def expire(self, key, seconds):
        return self.call("EXPIRE", key, seconds)
"#;

/// A stand-in for Node's Redis client.
const NODE_CLIENT: &str = r#"
import net from "node:net";
export default class Redis {
  socket = net.connect(Number(process.env.REDIS_PORT), "127.0.0.1");
  call(...words) {
    const parts = words.map(word => Buffer.from(String(word)));
    const head = Buffer.from(`*${parts.length}\r\n`);
    const body = parts.flatMap(part => [Buffer.from(`$${part.length}\r\n`), part, Buffer.from("\r\n")]);
    return new Promise((done, failed) => {
      this.socket.once("data", data => (data[0] === 45 ? failed(new Error(String(data))) : done(String(data))));
      this.socket.write(Buffer.concat([head, ...body]));
    });
  }
  xadd(...words) { return this.call("XADD", ...words); }
  expire(...words) { return this.call("EXPIRE", ...words); }
  disconnect() { this.socket.end(); }
}
"#;

#[test]
fn the_programs_of_the_recipes_give_a_new_answer_each_time() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        let path = place.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    file("redis.py", PYTHON_CLIENT);
    file("recipe.py", block(README, "**I have my own Python**", "python"));
    file("node_modules/ioredis/package.json", r#"{"type":"module","exports":"./index.js"}"#);
    file("node_modules/ioredis/index.js", NODE_CLIENT);
    let node = block(PRODUCERS, "**Node** (`npm install ioredis`)", "js");
    file("recipe.mjs", &format!("async function* yourModel() {{ yield \"a\"; yield \"b\"; }}\n{node}"));
    let watch = block(README, "Each puts an answer into the stream", "sh");
    // As JSON, so that each frame is a line.
    let mut watching = Background::start(place.shell(&format!("exec {} --json", watch.trim())));
    for _ in 0..2 {
        let mut python = place.command("python3");
        python.arg("recipe.py");
        expect_done(python);
        let mut node = place.command("node");
        node.arg("recipe.mjs");
        expect_done(node);
    }
    assert_eq!(place.generations(), (4, 4, 4));
    let text = view(place.daemon.public, Kind::Sse, "s1/chat", "").text();
    assert_eq!(text, "Hello, world.abHello, world.ab");
    // One terminal shows them all.
    let mut ends = 0;
    while ends < 4 {
        let frame: Value = serde_json::from_str(&watching.line().expect("it goes on")).unwrap();
        ends += usize::from(frame["type"] == "end");
    }
}

#[test]
fn the_client_in_python_reads_to_the_end() {
    let place = Place::new();
    let mut producer = Producer::new(&place.redis, "s1", "gpt-4o");
    producer.start("g1");
    producer.delta("Hello, ");
    producer.delta("world.");
    producer.end();
    let program = block(READERS, "**Python**, with the standard library", "python");
    let program = program.replace("127.0.0.1:8080", &place.daemon.public.to_string());
    let mut python = place.command("python3");
    python.args(["-c", &program]);
    assert_eq!(String::from_utf8(expect_done(python).stdout).unwrap(), "Hello, world.");
}

#[test]
fn the_commands_that_write_give_an_answer_each() {
    let place = Place::new();
    fs::write(place.dir.path().join("objects.jsonl"), "{\"type\":\"delta\",\"text\":\"two\"}\n").unwrap();
    let script = block(PRODUCERS, "## From a command or a model's server", "sh");
    expect_done(place.shell(&format!("some-model() {{ printf one; }}\n{script}")));
    assert_eq!(place.generations(), (2, 2, 2));
    assert_eq!(view(place.daemon.public, Kind::Sse, "s1/chat", "").text(), "onetwo");
}

#[test]
fn the_worker_answers_the_request_from_the_document() {
    let place = Place::new();
    let upstream = FakeUpstream::start([chat(&["a"])]);
    let script = block(PRODUCERS, "## A queue of requests", "sh");
    let script = script.replace("http://127.0.0.1:8000", &format!("http://{}", upstream.address));
    // The worker runs until it is stopped.
    let answered = "until redis-cli --raw XREVRANGE llm:stream:s3:llama3:8b + - COUNT 1 | grep -qF '[DONE]'; do sleep 0.05; done";
    expect_done(place.shell(&format!("{script}\n{answered}\nkill %1\nwait %1")));
    assert_eq!(view(place.daemon.public, Kind::Sse, "s3/llama3:8b", "").text(), "a");
    assert_eq!(upstream.seen()[0].body["model"], "llama3:8b");
}

/// The longest README, in lines.
const README_LINES_MAX: usize = 250;

/// Blocks of code that no test runs unchanged, by document and first line, and why. The list may only shrink.
const NOT_RUN: [(&str, &str, &str); 12] = [
    (
        "README.md",
        "./conf/demo.sh      # builds it (two minutes on two cores) and starts a demo: prints a URL to open",
        "builds",
    ),
    ("README.md", "export PATH=\"$PWD/target/demo:$PATH\"", "serves on ports of its own until it is stopped"),
    ("README.md", "<pre id=\"text\"></pre>", "a page on another port"),
    (
        "benches/README.md",
        "cargo bench --bench end_to_end -- --compare --cores quiet,half-taken --duration 2 --journal target/figures --tables benches/README.md --svg benches/plots --json target/figures.json",
        "takes hours",
    ),
    (
        "benches/README.md",
        "cargo bench --bench end_to_end -- --only soak,churn --duration 3600 --rounds 1 --journal target/soaks --tables benches/README.md --svg benches/plots",
        "takes more than an hour",
    ),
    ("conf/README.md", "location / {", "needs nginx"),
    ("src/deliver/README.md", "import OpenAI from \"openai\";", "tests/clients runs its like"),
    ("src/deliver/README.md", "const { messages } = useChat({", "part of a React component"),
    ("src/web/README.md", "import { subscribe } from \"/llm-bridge.js\";", "part of a page"),
    ("src/web/README.md", "const source = new EventSource(\"/v1/streams/s1/gpt-4o\");", "part of a page"),
    ("src/web/README.md", "function follow(stream, onFrame) {", "part of a page"),
    ("systemd/README.md", "cargo build --release", "installs on this machine"),
];

/// Every document, by its path from the root.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_ours = !["target", "node_modules", ".git"].iter().any(|name| path.ends_with(name));
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The blocks of code that have a language.
fn blocks(document: &str) -> Vec<&str> {
    let fenced = document.split("\n```").skip(1).step_by(2);
    fenced
        .filter_map(|block| block.split_once('\n'))
        .filter(|(language, _)| !language.is_empty())
        .map(|(_, code)| code)
        .collect()
}

/// The blocks that tests take from a document: the calls of `block` in their sources.
fn run_blocks() -> BTreeSet<&'static str> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let sources =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let mut run = BTreeSet::new();
    for source in sources.map(|path| fs::read_to_string(path).unwrap()) {
        for (name, document) in [("README", README), ("PRODUCERS", PRODUCERS), ("READERS", READERS)] {
            for call in source.split(&format!("block({name}, \"")).skip(1) {
                let arguments: Vec<&str> = call.splitn(4, '"').collect();
                run.insert(block(document, arguments[0], arguments[2]).trim_end());
            }
        }
    }
    run
}

#[test]
fn every_block_of_code_is_run_or_listed() {
    let (run, documents) = (run_blocks(), documents());
    let listed: BTreeSet<_> = NOT_RUN.iter().map(|(document, line, _)| (*document, *line)).collect();
    assert_eq!(listed.len(), NOT_RUN.len());
    // A command occurs again where its output was pasted.
    let mut left = listed.clone();
    for (path, text) in &documents {
        for code in blocks(text).iter().filter(|code| !run.contains(code.trim_end())) {
            let found = (path.to_str().unwrap(), code.lines().next().unwrap());
            assert!(listed.contains(&found), "no test runs this block, and it is not listed: {found:?}");
            left.remove(&found);
        }
    }
    assert!(left.is_empty(), "these blocks are run or gone; take them off the list: {left:?}");
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { root.join(&path) } else { root.join(&path).with_file_name(file) };
            let place = format!("{link} in {}", path.display());
            assert!(target.exists(), "{place} leads nowhere");
            if !heading.is_empty() {
                let target = fs::read_to_string(target).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading),
                    "{place}: there is no such heading"
                );
            }
        }
    }
}

/// The marks of sources, such as `[c1]`, and whether each is one of the definitions at the end.
fn marks(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let parts = text.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    parts
        .filter(|(mark, _)| {
            mark.strip_prefix(|c: char| c.is_ascii_lowercase())
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|(mark, rest)| (mark, rest.starts_with(": http")))
}

#[test]
fn marks_of_sources_lead_somewhere_and_are_all_used() {
    for (path, text) in documents() {
        let (defined, used): (Vec<_>, Vec<_>) = marks(&text).partition(|(_, is_definition)| *is_definition);
        let set = |marks: &[(&str, bool)]| {
            marks.iter().map(|(mark, _)| (*mark).to_owned()).collect::<BTreeSet<_>>()
        };
        assert_eq!(set(&defined).len(), defined.len(), "{} defines a mark twice", path.display());
        assert_eq!(set(&defined), set(&used), "in {}", path.display());
    }
}

#[test]
fn the_first_document_stays_short() {
    let lines = README.lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines");
}
