//! A redis-server for one test: private, without persistence, killed when the value is dropped.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use super::{Link, Target};
use crate::config;

/// How long a server may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running redis-server on a free loopback port and a Unix socket.
pub(crate) struct RedisServer {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

/// The installed server.
const INSTALLED: &str = "redis-server";

/// The settings for a URL, with timeouts that a busy machine can meet.
pub(crate) fn config_for(url: &str) -> config::Redis {
    config::Redis {
        url: url.to_owned(),
        prefix: "llm".to_owned(),
        stream_key: crate::model::KeyPattern::of_prefix("llm"),
        connect_timeout: Duration::from_secs(20),
        response_timeout: Duration::from_secs(20),
        backoff_max: Duration::from_secs(1),
        ca_file: None,
        dlq_max_entries: 1000,
        receipts_max_entries: 1000,
        dlq_max_bytes: 1 << 20,
        receipts_max_bytes: 1 << 20,
    }
}

impl RedisServer {
    /// Starts a server; `arguments` follow the defaults and override them.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let named = std::env::var_os("LLM_BRIDGE_REDIS_SERVER");
        Self::start_program(named.as_deref().unwrap_or_else(|| INSTALLED.as_ref()), arguments)
    }

    /// Starts the installed server, whatever server the environment names. It supports TLS, which other builds may
    /// not.
    pub(crate) fn start_installed(arguments: &[&str]) -> Self {
        Self::start_program(INSTALLED.as_ref(), arguments)
    }

    fn start_program(program: &OsStr, arguments: &[&str]) -> Self {
        for _ in 0..5 {
            if let Some(server) = Self::try_start(program, arguments) {
                return server;
            }
        }
        panic!("{} does not start with {arguments:?}", program.display());
    }

    fn try_start(program: &OsStr, arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        // Another process may take the port in between: then the server exits, and the test tries again.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = Process::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--unixsocket", "redis.sock"])
            .args(["--port", &port.to_string()])
            .args(arguments)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut server = Self { child, directory, port };
        let deadline = Instant::now() + START_TIMEOUT;
        while !server.socket().exists() || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
        {
            if server.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    /// The path of its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Its TCP port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, for database 0 and without credentials.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A target for it.
    pub(crate) fn target(&self) -> Target {
        Target::new(&config_for(&self.url())).unwrap()
    }

    /// A link to it.
    pub(crate) fn link(&self) -> Link {
        Link::connect(&self.target(), "test").unwrap()
    }

    /// Kills it immediately, like kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
