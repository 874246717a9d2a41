//! The daemon as a process: started with settings, observed from outside, stopped in every way. If the test fails,
//! its log is printed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use tempfile::TempDir;

use super::command::program;
use super::http;
use super::patience::wait_for;
use super::ports::free_port;
use super::redis::RedisServer;

/// How often other ports are tried if another process was faster.
const ATTEMPTS: usize = 5;

/// The options to start a daemon with.
#[derive(Clone)]
pub(crate) struct DaemonOptions {
    redis_url: String,
    config: Option<PathBuf>,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    public_port: u16,
    admin_port: u16,
}

impl DaemonOptions {
    /// `--set section.key=value`; later ones take precedence.
    pub(crate) fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// `--config`; the harness overrides the address of Redis and the listeners.
    pub(crate) fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_owned());
        self
    }

    /// A variable of its otherwise empty environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until `/readyz` succeeds.
    pub(crate) fn start(self) -> Daemon {
        self.start_until("/readyz")
    }

    /// Starts it and waits until `/healthz` succeeds, for tests in which Redis is down.
    pub(crate) fn start_alive(self) -> Daemon {
        self.start_until("/healthz")
    }

    fn start_until(mut self, probe: &str) -> Daemon {
        for _ in 0..ATTEMPTS {
            let mut daemon = self.spawn();
            if daemon.wait_up(probe) {
                return daemon;
            }
            assert!(daemon.log().contains("in use"), "the daemon ended at its start:\n{}", daemon.log());
            self.public_port = free_port();
            self.admin_port = free_port();
        }
        panic!("the daemon finds no free ports");
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(&self) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let public = SocketAddr::from((Ipv4Addr::LOCALHOST, self.public_port));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port));
        let stats_socket = dir.path().join("stats.sock");
        let mut command = program(env!("CARGO_BIN_EXE_llm-bridge"));
        command.arg("serve");
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        for setting in [
            format!("redis.url={}", self.redis_url),
            format!("listen.public={public}"),
            format!("listen.admin={admin}"),
            format!("listen.stats_socket={}", stats_socket.display()),
        ]
        .iter()
        .chain(&self.settings)
        {
            command.args(["--set", setting]);
        }
        command.env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let log_reader = Some(gather_log(stderr, Arc::clone(&log)));
        Daemon { options: self.clone(), public, admin, stats_socket, process, log, log_reader, _dir: dir }
    }
}

fn gather_log(stderr: impl BufRead + Send + 'static, log: Arc<Mutex<String>>) -> JoinHandle<()> {
    let gather = move || {
        for line in stderr.split(b'\n').map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&String::from_utf8_lossy(&line));
            log.push('\n');
        }
    };
    thread::Builder::new().name("daemon-log".into()).spawn(gather).unwrap()
}

/// A running daemon. Dropping it kills it.
pub(crate) struct Daemon {
    options: DaemonOptions,
    /// The address for clients.
    pub(crate) public: SocketAddr,
    /// The address for operators.
    pub(crate) admin: SocketAddr,
    /// The path for `llm-bridge stats`.
    pub(crate) stats_socket: PathBuf,
    process: Child,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Daemon {
    /// A ready daemon with the defaults, on this Redis.
    pub(crate) fn start(redis: &RedisServer) -> Self {
        Self::options(redis).start()
    }

    /// Settings to start one with.
    pub(crate) fn options(redis: &RedisServer) -> DaemonOptions {
        DaemonOptions {
            redis_url: redis.url(),
            config: None,
            settings: Vec::new(),
            environment: Vec::new(),
            public_port: free_port(),
            admin_port: free_port(),
        }
    }

    /// True once the probe answers 200, false if the process ended first.
    fn wait_up(&mut self, probe: &str) -> bool {
        let up = wait_for(probe, || {
            if self.process.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let status = http::try_get(self.admin, probe).ok()?.status;
            (status == 200).then_some(true)
        });
        if !up {
            self.finish_log();
        }
        up
    }

    /// Waits until `/readyz` succeeds (again).
    pub(crate) fn wait_ready(&mut self) {
        assert!(self.wait_up("/readyz"), "the daemon ended:\n{}", self.log());
    }

    /// Kills it without warning (SIGKILL).
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.finish_log();
    }

    /// Starts a new one with the same settings on the same ports, like a supervisor after a crash. The old process
    /// must have ended.
    pub(crate) fn start_again(&self) -> Daemon {
        let mut daemon = self.spawn_again();
        daemon.wait_ready();
        daemon
    }

    /// As `start_again`, without waiting for it.
    pub(crate) fn spawn_again(&self) -> Daemon {
        self.options.spawn()
    }

    /// Waits until `/healthz` succeeds.
    pub(crate) fn wait_alive(&mut self) {
        assert!(self.wait_up("/healthz"), "the daemon ended:\n{}", self.log());
    }

    /// Sends it a signal, such as `libc::SIGTERM`.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.process.id()).unwrap();
        // SAFETY: kill(2) touches no memory of ours; the child is not reaped before `self` says so.
        let sent = unsafe { libc::kill(id, signal) };
        assert_eq!(sent, 0, "signal {signal} to {id}");
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let status = wait_for("the daemon to exit", || self.process.try_wait().unwrap());
        self.finish_log();
        status
    }

    /// Waits until it ends by itself, with this exit status.
    pub(crate) fn expect_exit(&mut self, code: i32) {
        let status = self.wait_exit();
        assert_eq!(status.code(), Some(code), "signal {:?}; log:\n{}", status.signal(), self.log());
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Everything that it has written to stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn finish_log(&mut self) {
        if let Some(reader) = self.log_reader.take() {
            reader.join().unwrap();
        }
    }

    /// `/stats.json` of the admin listener.
    pub(crate) fn stats(&self) -> Value {
        http::get(self.admin, "/stats.json").json()
    }

    /// A counter of `/stats.json`.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let stats = self.stats();
        stats["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }

    /// A gauge of `/stats.json`.
    pub(crate) fn gauge(&self, name: &str) -> u64 {
        let stats = self.stats();
        stats["gauges"][name].as_u64().unwrap_or_else(|| panic!("no gauge {name} in {stats}"))
    }

    fn proc_dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process.id()))
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The peak of its resident memory in bytes.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(self.proc_dir().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How many file descriptors it has open.
    pub(crate) fn open_descriptors(&self) -> usize {
        fs::read_dir(self.proc_dir().join("fd")).unwrap().count()
    }

    /// The names of its threads.
    pub(crate) fn thread_names(&self) -> BTreeSet<String> {
        let tasks = fs::read_dir(self.proc_dir().join("task")).unwrap();
        let name =
            |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
        tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- log of the daemon on {} ---\n{}---", self.public, self.log());
        }
    }
}
