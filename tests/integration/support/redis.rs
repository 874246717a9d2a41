//! A private, real redis-server on a loopback port and in a directory of its own, which can be killed, restarted on
//! the same port, and delayed.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::process::{Child, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use redis::FromRedisValue;
use tempfile::TempDir;

use super::command::program;
use super::patience::{PATIENCE, wait_for};
use super::ports::free_port;

/// How often another port is tried if another process was faster.
const ATTEMPTS: usize = 5;

/// The server's program: `LLM_BRIDGE_REDIS_SERVER` in the environment names another one than Redis' own.
static PROGRAM: LazyLock<OsString> =
    LazyLock::new(|| env::var_os("LLM_BRIDGE_REDIS_SERVER").unwrap_or_else(|| "redis-server".into()));

/// The option that allows DEBUG. Before version 7 it is always allowed, and the option is unknown.
static DEBUG_OPTION: LazyLock<&'static [&'static str]> = LazyLock::new(|| {
    let output = program(&*PROGRAM).arg("--version").output().expect("redis-server is installed");
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = version.split("v=").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < 7) { &[] } else { &["--enable-debug-command", "local"] }
});

/// The server. Dropping it kills it and removes its directory.
pub(crate) struct RedisServer {
    options: Vec<String>,
    dir: TempDir,
    port: u16,
    process: Option<Child>,
}

impl RedisServer {
    /// A server that keeps everything in memory only.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server that keeps every write over `kill` and `restart`.
    pub(crate) fn start_durable() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server with further options of the command line.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let mut server = Self {
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            dir: tempfile::tempdir().unwrap(),
            port: 0,
            process: None,
        };
        for _ in 0..ATTEMPTS {
            server.port = free_port();
            if server.spawn() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts the process and waits until it replies. Returns false if it ended because its port was taken.
    fn spawn(&mut self) -> bool {
        let mut process = program(&*PROGRAM)
            .args(*DEBUG_OPTION)
            .args(["--bind", "127.0.0.1", "--save", "", "--port"])
            .arg(self.port.to_string())
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let own_id = format!("process_id:{}\r\n", process.id());
        let alive = wait_for("redis-server to answer", || {
            if process.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let mut connection = self.try_connect().ok()?;
            // Neither another test's server on the same port nor one that is still loading its data may answer.
            let info: String = redis::cmd("INFO").query(&mut connection).ok()?;
            (info.contains(&own_id) && info.contains("loading:0\r\n")).then_some(true)
        });
        self.process = Some(process);
        alive
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn try_connect(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection_with_timeout(PATIENCE)
    }

    /// A blocking connection for the test's own commands.
    pub(crate) fn connect(&self) -> Redis {
        let connection = self.try_connect().unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Redis(connection)
    }

    /// Kills it without warning (SIGKILL). Data not yet written to its directory is lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again on the same port with the data in its directory. After `kill` only.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "restart follows kill");
        assert!(self.spawn(), "port {} was taken meanwhile", self.port);
    }

    /// Like `restart`, with further options that remain.
    pub(crate) fn restart_with(&mut self, options: &[&str]) {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self.restart();
    }

    /// Stops the process (SIGSTOP): connections stay, the kernel accepts further ones, nothing is answered.
    pub(crate) fn suspend(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Ends a `suspend`.
    pub(crate) fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.process.as_ref().unwrap().id()).unwrap();
        // SAFETY: kill(2) touches no memory of ours; the child is not reaped before `self` says so.
        let sent = unsafe { libc::kill(id, signal) };
        assert_eq!(sent, 0, "signal {signal} to {id}");
    }

    /// Delays every command of every client for `time`; connections stay and are accepted.
    pub(crate) fn pause(&self, time: Duration) {
        self.connect().run::<()>(&["CLIENT", "PAUSE", &time.as_millis().to_string(), "ALL"]);
    }

    /// Ends a `pause`.
    pub(crate) fn unpause(&self) {
        self.connect().run::<()>(&["CLIENT", "UNPAUSE"]);
    }

    /// Makes the server do nothing at all for `time`. Returns at once.
    pub(crate) fn freeze(&self, time: Duration) {
        let mut connection = self.connect();
        let seconds = time.as_secs_f64().to_string();
        let sleep = redis::cmd("DEBUG").arg("SLEEP").arg(seconds).get_packed_command();
        connection.0.send_packed_command(&sleep).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A blocking connection.
pub(crate) struct Redis(redis::Connection);

impl Redis {
    /// Sends a command and returns its answer, which must not be an error.
    pub(crate) fn run<T: FromRedisValue>(&mut self, command: &[&str]) -> T {
        self.try_run(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Sends a command and returns its answer.
    pub(crate) fn try_run<T: FromRedisValue>(&mut self, command: &[&str]) -> redis::RedisResult<T> {
        let mut packed = redis::cmd(command[0]);
        for argument in &command[1..] {
            packed.arg(argument);
        }
        packed.query(&mut self.0)
    }

    /// XADD with an id (`*`: the server's choice) and fields of any bytes; returns the entry's id.
    pub(crate) fn add_entry(&mut self, key: &str, id: &str, fields: &[(&str, &[u8])]) -> String {
        let mut command = redis::cmd("XADD");
        command.arg(key).arg(id);
        for (name, value) in fields {
            command.arg(name).arg(value);
        }
        command.query(&mut self.0).unwrap()
    }

    /// XADD of many `data` objects in one round trip; returns their ids.
    pub(crate) fn add_all(&mut self, key: &str, objects: &[String]) -> Vec<String> {
        let mut pipe = redis::pipe();
        for object in objects {
            pipe.cmd("XADD").arg(key).arg("*").arg("data").arg(object);
        }
        pipe.query(&mut self.0).unwrap()
    }

    /// XADD of many `data` objects under ids of their own, in one round trip.
    pub(crate) fn add_all_at(&mut self, key: &str, objects: &[(String, String)]) {
        let mut pipe = redis::pipe();
        for (id, object) in objects {
            pipe.cmd("XADD").arg(key).arg(id).arg("data").arg(object).ignore();
        }
        pipe.query::<()>(&mut self.0).unwrap();
    }

    /// Several commands as one transaction: nobody sees a state in between.
    pub(crate) fn run_at_once<T: FromRedisValue>(&mut self, commands: &[Vec<String>]) -> T {
        let mut pipe = redis::pipe();
        pipe.atomic();
        for command in commands {
            pipe.cmd(&command[0]).arg(&command[1..]);
        }
        pipe.query(&mut self.0).unwrap()
    }

    /// The server's clock in milliseconds, from which new ids are derived.
    pub(crate) fn now_ms(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = self.run(&["TIME"]);
        seconds * 1000 + micros / 1000
    }

    /// How often a command was answered with this error, such as `LOADING`.
    pub(crate) fn errors(&mut self, name: &str) -> u64 {
        let info: String = self.run(&["INFO", "errorstats"]);
        let prefix = format!("errorstat_{name}:count=");
        info.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |count| count.parse().unwrap())
    }

    /// The names of a stream's consumer groups; none if the stream does not exist.
    pub(crate) fn groups(&mut self, key: &str) -> Vec<String> {
        let groups: Vec<HashMap<String, redis::Value>> =
            self.try_run(&["XINFO", "GROUPS", key]).unwrap_or_default();
        groups.iter().map(|group| redis::from_redis_value_ref(&group["name"]).unwrap()).collect()
    }

    /// The positions of the groups of a stream, each as (ms, sequence).
    pub(crate) fn positions(&mut self, key: &str) -> Vec<(u64, u64)> {
        let groups: Vec<HashMap<String, redis::Value>> =
            self.try_run(&["XINFO", "GROUPS", key]).unwrap_or_default();
        let position = |group: &HashMap<String, redis::Value>| -> String {
            redis::from_redis_value_ref(&group["last-delivered-id"]).unwrap()
        };
        groups.iter().map(|group| parsed_id(&position(group))).collect()
    }

    /// How many entries a group was given and has not acknowledged. The group must exist.
    pub(crate) fn pending(&mut self, key: &str, group: &str) -> u64 {
        let (count, _, _, _): (u64, redis::Value, redis::Value, redis::Value) =
            self.run(&["XPENDING", key, group]);
        count
    }

    /// The entries of a stream: ids and fields.
    pub(crate) fn entries(&mut self, key: &str) -> Vec<(String, HashMap<String, Vec<u8>>)> {
        self.run(&["XRANGE", key, "-", "+"])
    }

    /// The names of all keys, sorted.
    pub(crate) fn keys(&mut self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.run(&["KEYS", pattern]);
        keys.sort();
        keys
    }
}

/// An entry's id as two numbers, so that ids can be compared.
pub(crate) fn parsed_id(id: &str) -> (u64, u64) {
    let (ms, sequence) = id.split_once('-').unwrap();
    (ms.parse().unwrap(), sequence.parse().unwrap())
}
