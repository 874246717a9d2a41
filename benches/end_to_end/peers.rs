//! The peers: alternatives to the daemon, installed from registries on request, under the target directory and never
//! into the checkout. Their sources and configuration are in `benches/peers`.
//!
//! *Node* (ws, ioredis) and *FastAPI* (uvicorn, redis-py) read the same streams of Redis as the daemon, each in one
//! process with one connection in XREAD BLOCK over all of them. *nchan* keeps streams of its own in Redis and reads
//! no others; applications publish to it by HTTP, so the producer does that instead of XADD (see `publisher`), and
//! the work of Redis for nchan counts as the cost of Redis. nchan answers each token, so a flood is only as fast as
//! nchan accepts tokens.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::daemon::{Process, free_address};

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
}

impl Peer {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fastapi => "fastapi",
            Self::Nchan => "nchan",
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
        let (files, address) = (tempfile::tempdir()?, free_address()?);
        let mut command = match self {
            Self::Node => node(address),
            Self::Fastapi => fastapi(address),
            Self::Nchan => nchan(address, redis, files.path())?,
        };
        command.env("REDIS_URL", format!("redis://{redis}"));
        Process::peer(&mut command, address, files)
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

fn nchan(address: SocketAddr, redis: SocketAddr, files: &Path) -> Result<Command> {
    let dir = Peer::Nchan.dir();
    let text = |path: &Path| path.display().to_string();
    let config = std::fs::read_to_string(dir.join("nginx.conf.template"))?
        .replace("@DIR@", &text(files))
        .replace("@MODULE@", &text(&dir.join("ngx_nchan_module.so")))
        .replace("@LISTEN@", &address.to_string())
        .replace("@REDIS@", &redis.to_string());
    let path = files.join("nginx.conf");
    std::fs::write(&path, config)?;
    let mut command = Command::new(dir.join("nginx"));
    command.args(["-e", "stderr", "-p"]).arg(files).arg("-c").arg(path);
    Ok(command)
}
