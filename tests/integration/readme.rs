//! The commands and programs of README.md, word by word but for addresses: the tour of five minutes, and the recipes,
//! each twice, because that is what people do.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::Background;
use crate::support::daemon::Daemon;
use crate::support::redis::RedisServer;
use crate::support::upstream::{FakeUpstream, Script, chat, event, head};
use crate::support::viewer::{Kind, view};

const README: &str = include_str!("../../README.md");
const KEY: &str = "llm:stream:s1:chat";

/// The first block of code in this language that follows these words.
fn block(after: &str, language: &str) -> &'static str {
    let (_, rest) = README.split_once(after).unwrap_or_else(|| panic!("README has no {after:?}"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block of code");
    rest.split_once("```").expect("the end of a block").0
}

/// Where the README's commands run: a Redis, a daemon, and a directory for the files that they write.
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
        let ours = std::path::Path::new(env!("CARGO_BIN_EXE_llm-bridge")).parent().unwrap();
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
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output
}

#[test]
fn the_tour_holds_word_by_word() {
    let place = Place::new();
    let checked = place.shell("llm-bridge check");
    expect_done(checked);
    let watch = block("**3. Watch a name", "sh");
    let mut watching = Background::start(place.shell(&format!("exec {watch}")));
    expect_done(place.shell(block("**4. Write it**", "sh")));
    assert_eq!(watching.line().as_deref(), Some("Hello, world."));
    let outcome = watching.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");

    let produce = block("paces any text like a model", "sh");
    let quick = produce.replace("--rate 20", "--rate 1000000");
    assert!(quick != produce);
    let mut reading = place.shell(&quick);
    let said = expect_done({
        reading.current_dir(env!("CARGO_MANIFEST_DIR"));
        reading
    });
    // It says where to watch.
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("llm-bridge tail 'http://127.0.0.1:8080/v1/streams/s2/gpt-4o"), "{said}");
    assert!(said.contains("entries written in "), "{said}");
    assert_eq!(view(place.daemon.public, Kind::Sse, "s2/gpt-4o", "").text(), README);

    let read = String::from_utf8(expect_done(place.shell(block("**5. Read it", "sh"))).stdout).unwrap();
    assert!(read.contains(r#""content":"Hello, world.\n""#), "{read}");
    // All of it, then what follows the first entry.
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
    let recipes =
        ["**I have an OpenAI-compatible server**", "**I have the Anthropic API**", "**I have curl**"];
    for recipe in recipes {
        let script = addressed(block(recipe, "sh"));
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

/// What the recipes need of Python's client of Redis.
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

/// What they need of Node's.
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
    file("recipe.py", block("**I have my own Python**", "python"));
    file("node_modules/ioredis/package.json", r#"{"type":"module","exports":"./index.js"}"#);
    file("node_modules/ioredis/index.js", NODE_CLIENT);
    let node = block("**Node** (`npm install ioredis`)", "js");
    file("recipe.mjs", &format!("async function* yourModel() {{ yield \"a\"; yield \"b\"; }}\n{node}"));
    let watch = block("Each puts an answer into the stream", "sh");
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
    // The one terminal sees them all.
    let mut ends = 0;
    while ends < 4 {
        let frame: Value = serde_json::from_str(&watching.line().expect("it goes on")).unwrap();
        ends += usize::from(frame["type"] == "end");
    }
}
