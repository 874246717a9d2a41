//! The peers: alternatives to the daemon, installed from registries on request, under the target directory and never
//! into the checkout. Their sources and configuration are in `benches/peers`.
//!
//! *Node* (ws, ioredis) and *FastAPI* (uvicorn, redis-py) read the same streams of Redis as the daemon, each in one
//! process with one connection in XREAD BLOCK over all of them. *nchan* keeps streams of its own in Redis and reads
//! no others; applications publish to it by HTTP, so the producer does that instead of XADD (see `publisher`), and
//! the work of Redis for nchan counts as the cost of Redis. nchan answers each token, so a flood is only as fast as
//! nchan accepts tokens.
//!
//! *Centrifugo* keeps channels of its own in Redis as well. The producer posts batches of tokens to it, or adds them to
//! streams that Centrifugo's consumer reads. Its clients speak its JSON protocol (see `centrifugo`).
//!
//! *NATS* keeps tokens in a stream of JetStream in its own memory, to which the producer publishes them, and does not
//! need Redis at all. Its clients speak its protocol over WebSocket (see `nats`).

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::centrifugo;
use crate::daemon::{Process, free_address};
use crate::publisher::nats::Nats;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// ws and ioredis.
    Node,
    /// FastAPI, uvicorn and redis-py.
    Fastapi,
    /// nginx with nchan.
    Nchan,
    /// Centrifugo with its Redis engine, to which tokens are posted.
    Centrifugo,
    /// The same with its consumer of Redis Streams.
    CentrifugoStreams,
    /// NATS with JetStream.
    Nats,
}

impl Peer {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fastapi => "fastapi",
            Self::Nchan => "nchan",
            Self::Centrifugo | Self::CentrifugoStreams => "centrifugo",
            Self::Nats => "nats",
        }
    }

    /// The directory in which it is installed.
    fn dir(self) -> PathBuf {
        root().join(self.name())
    }

    /// Installs it unless it is installed already. The error is the reason why it cannot be installed.
    pub(crate) fn install(self) -> std::result::Result<(), String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/install.sh");
        let mut command = Command::new("bash");
        command.arg(script).arg(self.name()).arg(root());
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("bash does not run: {error}"))?;
        let mut last = String::new();
        for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
            last = line.unwrap_or_default();
            eprintln!("  {last}");
        }
        match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(last.trim_start_matches("install.sh: ").to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Starts it with the given Redis.
    pub(crate) fn start(self, redis: SocketAddr) -> Result<Process> {
        let (files, address, producers) = (tempfile::tempdir()?, free_address()?, free_address()?);
        let mut command = match self {
            Self::Node => node(address),
            Self::Fastapi => fastapi(address),
            Self::Nchan => nchan(address, redis, files.path())?,
            Self::Centrifugo => centrifugo((address, redis), false, files.path())?,
            Self::CentrifugoStreams => centrifugo((address, redis), true, files.path())?,
            Self::Nats => nats(address, producers, files.path())?,
        };
        command.env("REDIS_URL", format!("redis://{redis}"));
        let mut process = Process::peer(&mut command, address, files)?;
        if self == Self::Nats {
            process.producers = producers;
            Nats::connect(producers)?.create_stream()?;
        }
        Ok(process)
    }
}

/// The directory of the peers, in the target directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers")
}

fn node(address: SocketAddr) -> Command {
    let mut command = Command::new("node");
    command.arg(Peer::Node.dir().join("server.js")).env("PORT", address.port().to_string());
    command.env("NODE_ENV", "production");
    command
}

fn fastapi(address: SocketAddr) -> Command {
    let dir = Peer::Fastapi.dir();
    let mut command = Command::new(dir.join("venv/bin/uvicorn"));
    command.arg("server:app").arg("--app-dir").arg(&dir).args(["--port", &address.port().to_string()]);
    command.args(["--loop", "uvloop", "--http", "httptools", "--ws-per-message-deflate", "false"]);
    command.args(["--no-access-log", "--log-level", "warning", "--backlog", "4096"]);
    command
}

/// Writes a peer's configuration from its template, with each name in `values` replaced by its value.
fn configure(template: &Path, to: &Path, values: &[(&str, &str)]) -> Result<()> {
    let mut config = std::fs::read_to_string(template)?;
    for (name, value) in values {
        config = config.replace(name, value);
    }
    Ok(std::fs::write(to, config)?)
}

fn nchan(address: SocketAddr, redis: SocketAddr, files: &Path) -> Result<Command> {
    let (dir, config) = (Peer::Nchan.dir(), files.join("nginx.conf"));
    let module = dir.join("ngx_nchan_module.so");
    let values = [
        ("@DIR@", &*files.to_string_lossy()),
        ("@MODULE@", &module.to_string_lossy()),
        ("@LISTEN@", &address.to_string()),
        ("@REDIS@", &redis.to_string()),
    ];
    configure(&dir.join("nginx.conf.template"), &config, &values)?;
    let mut command = Command::new(dir.join("nginx"));
    command.args(["-e", "stderr", "-p"]).arg(files).arg("-c").arg(config);
    Ok(command)
}

/// `consumes` says whether it reads Redis Streams.
fn centrifugo((address, redis): (SocketAddr, SocketAddr), consumes: bool, files: &Path) -> Result<Command> {
    let (dir, config) = (Peer::Centrifugo.dir(), files.join("config.json"));
    let streams = serde_json::to_string(&centrifugo::queues().collect::<Vec<_>>())?;
    let values = [
        ("@HOST@", &*address.ip().to_string()),
        ("@PORT@", &address.port().to_string()),
        ("@REDIS@", &redis.to_string()),
        ("@CONSUMES@", &consumes.to_string()),
        ("@STREAMS@", &streams),
    ];
    configure(&dir.join("config.json.template"), &config, &values)?;
    let mut command = Command::new(dir.join("centrifugo"));
    command.arg("--config").arg(config);
    Ok(command)
}

fn nats(address: SocketAddr, producers: SocketAddr, files: &Path) -> Result<Command> {
    let (dir, config) = (Peer::Nats.dir(), files.join("nats.conf"));
    let values = [
        ("@DIR@", &*files.to_string_lossy()),
        ("@LISTEN@", &address.to_string()),
        ("@PRODUCERS@", &producers.to_string()),
    ];
    configure(&dir.join("nats.conf.template"), &config, &values)?;
    let mut command = Command::new(dir.join("nats-server"));
    command.arg("-c").arg(config);
    Ok(command)
}
