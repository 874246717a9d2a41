//! The daemon as a systemd service: its notifications to the manager, sockets that the manager opens for it, and the
//! unit file.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::activation;
use crate::support::command::{Background, llm_bridge, program, run};
use crate::support::daemon::Daemon;
use crate::support::held::HeldThread;
use crate::support::http;
use crate::support::patience::{PATIENCE, wait_until};
use crate::support::ports::free_port;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::viewer::{KINDS, Kind, Viewer, view};

/// The socket on which a service manager listens.
struct Manager {
    socket: UnixDatagram,
    /// The value of `NOTIFY_SOCKET`.
    address: String,
    _dir: TempDir,
}

impl Manager {
    fn listen() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::new(socket, path.to_str().unwrap().to_owned(), dir)
    }

    /// With a name that is not in a directory, as container managers use.
    fn listen_abstract() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{}/notify", dir.path().display());
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        Self::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"), dir)
    }

    fn new(socket: UnixDatagram, address: String, dir: TempDir) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, address, _dir: dir }
    }

    /// The lines of the next message.
    fn message(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Drops the messages that have arrived.
    fn drop_all(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Checks that a line does not come for `time`.
    fn expect_none(&self, line: &str, time: Duration) {
        thread::sleep(time);
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(!message.lines().any(|came| came == line), "{message}");
        }
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Reads until a line comes; returns all lines up to the end of its message.
    fn read_to(&self, line: &str) -> Vec<String> {
        let (mut lines, began) = (Vec::new(), Instant::now());
        while !lines.iter().any(|known| known == line) {
            lines.extend(self.message());
            assert!(began.elapsed() < PATIENCE, "no {line} in {lines:?}");
        }
        lines
    }
}

#[test]
fn ready_means_listening_and_redis_tried() {
    let redis = RedisServer::start();
    for manager in [Manager::listen(), Manager::listen_abstract()] {
        // A daemon that is ready too early reports it while Redis is suspended.
        redis.freeze(Duration::from_millis(1500));
        let mut daemon = Daemon::options(&redis).env("NOTIFY_SOCKET", &manager.address).spawn();
        let before = manager.read_to("READY=1");
        let tried = daemon.stats()["redis"].clone();
        let is_up = |role: &Value| role["up"] == true;
        assert!(tried.as_object().unwrap().values().any(is_up), "{before:?}: {tried}");
        TcpStream::connect(daemon.public).unwrap();
        assert!(before.iter().any(|line| line.starts_with("STATUS=")), "{before:?}");
        assert!(!before.iter().any(|line| line == "STOPPING=1"), "{before:?}");

        daemon.wait_ready();
        daemon.signal(libc::SIGTERM);
        let after = manager.read_to("STOPPING=1");
        assert!(!after.iter().any(|line| line == "READY=1"), "{after:?}");
        daemon.expect_exit(0);
    }
}

/// An id that is held by another daemon is detected before, so that a failed start is visible.
#[test]
fn a_daemon_that_does_not_start_is_never_ready() {
    let redis = RedisServer::start();
    let _holder = Daemon::options(&redis).set("service.instance=one").start();
    for _ in 0..10 {
        let manager = Manager::listen();
        let options = Daemon::options(&redis).set("service.instance=one");
        let mut second = options.env("NOTIFY_SOCKET", &manager.address).spawn();
        second.expect_exit(78);
        manager.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = manager.socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(!message.contains("READY=1"), "{message}");
        }
    }
}

#[test]
fn ready_comes_without_redis_too() {
    let mut redis = RedisServer::start();
    redis.kill();
    let manager = Manager::listen();
    let mut daemon = Daemon::options(&redis).env("NOTIFY_SOCKET", &manager.address).spawn();
    manager.read_to("READY=1");
    TcpStream::connect(daemon.public).unwrap();
    assert_eq!(http::get(daemon.admin, "/healthz").status, 200);
    assert_eq!(http::get(daemon.admin, "/readyz").status, 503);
    redis.restart();
    daemon.wait_ready();
    daemon.signal(libc::SIGTERM);
    manager.read_to("STOPPING=1");
    daemon.expect_exit(0);
}

#[test]
fn the_watchdog_is_fed() {
    let redis = RedisServer::start();
    let manager = Manager::listen();
    let mut daemon =
        Daemon::options(&redis).env("NOTIFY_SOCKET", &manager.address).env("WATCHDOG_USEC", "600000").spawn();
    manager.read_to("READY=1");
    for _ in 0..5 {
        manager.read_to("WATCHDOG=1");
    }
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(0);
}

#[test]
fn the_watchdog_is_not_fed_while_a_thread_hangs() {
    let redis = RedisServer::start();
    let manager = Manager::listen();
    let mut daemon = Daemon::options(&redis)
        .env("NOTIFY_SOCKET", &manager.address)
        .env("WATCHDOG_USEC", "2000000")
        .spawn();
    daemon.wait_ready();
    for thread in ["transform-0", "deliver-0", "reader-0", "watcher", "recorder"] {
        let held = HeldThread::hold(daemon.id(), thread);
        let complaint = format!("thread {thread} hangs");
        wait_until(&complaint, || http::get(daemon.admin, "/readyz").text().contains(&complaint));
        manager.drop_all();
        manager.expect_none("WATCHDOG=1", Duration::from_secs(1));
        drop(held);
        manager.read_to("WATCHDOG=1");
        daemon.wait_ready();
    }
    assert!(daemon.log().contains("thread=\"transform-0\""), "the log names it: {}", daemon.log());
    daemon.signal(libc::SIGTERM);
    daemon.expect_exit(0);
}

#[test]
fn no_watchdog_is_fed_that_nobody_has_asked_for() {
    let redis = RedisServer::start();
    for (name, value) in [("UNRELATED", ""), ("WATCHDOG_PID", "1")] {
        let manager = Manager::listen();
        let mut options = Daemon::options(&redis).env("NOTIFY_SOCKET", &manager.address).env(name, value);
        if name == "WATCHDOG_PID" {
            options = options.env("WATCHDOG_USEC", "20000");
        }
        let mut daemon = options.spawn();
        let mut lines = manager.read_to("READY=1");
        wait_until("some work to be done", || http::get(daemon.admin, "/readyz").status == 200);
        daemon.signal(libc::SIGTERM);
        lines.extend(manager.read_to("STOPPING=1"));
        daemon.expect_exit(0);
        assert!(!lines.iter().any(|line| line == "WATCHDOG=1"), "{name}: {lines:?}");
    }
}

/// A daemon that a manager starts with sockets.
struct Activated {
    process: Background,
    configured: [SocketAddr; 2],
    configured_stats: PathBuf,
    _dir: TempDir,
}

fn activate(redis: &RedisServer, sockets: &[(&str, std::os::fd::BorrowedFd)], is_meant: bool) -> Activated {
    let dir = tempfile::tempdir().unwrap();
    let configured = [0; 2].map(|_| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let configured_stats = dir.path().join("stats.sock");
    let mut arguments = vec!["serve".to_owned()];
    for setting in [
        format!("redis.url={}", redis.url()),
        format!("listen.public={}", configured[0]),
        format!("listen.admin={}", configured[1]),
        format!("listen.stats_socket={}", configured_stats.display()),
        // So much that a client that reads nothing prevents its daemon from exiting before its grace is over.
        "client.send_budget=64MiB".to_owned(),
    ] {
        arguments.extend(["--set".to_owned(), setting]);
    }
    let process = activation::start(&arguments, &[], sockets, is_meant);
    Activated { process, configured, configured_stats, _dir: dir }
}

/// Waits until it is ready, asked at this address, and returns it.
fn wait_ready(mut activated: Activated, admin: SocketAddr) -> Activated {
    let is_ready = || http::try_get(admin, "/readyz").is_ok_and(|response| response.status == 200);
    wait_until("it to be ready or to end", || is_ready() || !activated.process.is_running());
    if !activated.process.is_running() {
        panic!("it ended: {:?}", activated.process.finish());
    }
    activated
}

fn stop(activated: Activated) {
    activated.process.signal(libc::SIGTERM);
    let outcome = activated.process.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn passed_sockets_are_used() {
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    producer.delta("hello");
    let end = producer.end();
    let dir = tempfile::tempdir().unwrap();
    let stats_path = dir.path().join("passed.sock");
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let stats = UnixListener::bind(&stats_path).unwrap();
    let (public_address, admin_address) = (public.local_addr().unwrap(), admin.local_addr().unwrap());
    let named = [("public", public.as_fd()), ("admin", admin.as_fd()), ("stats", stats.as_fd())];
    // The names identify the sockets, not the order; and the manager keeps its sockets over restarts.
    for order in [[0, 1, 2], [2, 0, 1]] {
        let sockets = order.map(|number| named[number]);
        let activated = wait_ready(activate(&redis, &sockets, true), admin_address);
        for kind in KINDS {
            let transcript = view(public_address, kind, "s1/m", "");
            assert_eq!(transcript.text(), "hello");
            transcript.expect_finished(&end);
        }
        let asked = run(llm_bridge(&["stats", "--json", "--socket", stats_path.to_str().unwrap()]), b"");
        assert!(asked.stdout.contains("counters"), "{asked:?}");
        for address in activated.configured {
            assert!(TcpStream::connect(address).is_err(), "{address} is not needed");
        }
        assert!(!activated.configured_stats.exists());
        stop(activated);
        assert!(stats_path.exists(), "it is the manager's");
    }
}

#[test]
fn clients_that_connect_while_the_daemon_drains_wait_for_the_next_one() {
    let redis = RedisServer::start();
    let mut producer = Producer::new(&redis, "s1", "m");
    let first = producer.start("g1");
    let mut big = Producer::new(&redis, "s2", "m");
    for _ in 0..200 {
        big.delta(&"x".repeat(128 * 1024));
    }
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = public.local_addr().unwrap();
    let start = || {
        let activated = activate(&redis, &[("public", public.as_fd())], true);
        let admin = activated.configured[1];
        wait_ready(activated, admin)
    };
    let mut daemon = start();
    let mut unread = Viewer::open(address, Kind::Sse, "s2/m", "");
    unread.expect_open("live");
    let mut viewer = Viewer::open(address, Kind::WebSocket, "s1/m", "");
    viewer.read_to(&first);
    daemon.process.signal(libc::SIGTERM);
    viewer.read_to_status("draining");
    assert!(daemon.process.is_running(), "it drains for a client that reads nothing");
    let request = b"GET /v1/streams/s1/m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let early = http::Exchange::raw(address, request).unwrap();
    // Time in which a daemon that accepts would do so.
    thread::sleep(Duration::from_millis(500));
    assert!(daemon.process.is_running());
    drop(unread);
    assert_eq!(daemon.process.finish().code, Some(0));
    let next = start();
    let response = early.whole().unwrap();
    assert_eq!((response.status, &response.json()["last_id"]), (200, &serde_json::json!(first)));
    stop(next);
}

#[test]
fn clients_that_connect_before_the_daemon_runs_are_served() {
    let redis = RedisServer::start();
    let end = Producer::new(&redis, "s1", "m").end();
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = public.local_addr().unwrap();
    let request = b"GET /v1/streams/s1/m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let early = http::Exchange::raw(address, request).unwrap();
    let activated = activate(&redis, &[("public", public.as_fd())], true);
    let admin = activated.configured[1];
    let response = early.whole().unwrap();
    // The request may come before Redis was asked, and is told so.
    if response.status != 503 {
        assert_eq!((response.status, &response.json()["last_id"]), (200, &serde_json::json!(end)));
    }
    let activated = wait_ready(activated, admin);
    assert_eq!(http::get(address, "/v1/streams/s1/m").status, 200);
    stop(activated);
}

#[test]
fn sockets_that_are_passed_to_another_process_are_left_alone() {
    let redis = RedisServer::start();
    let end = Producer::new(&redis, "s1", "m").end();
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let activated = activate(&redis, &[("public", public.as_fd())], false);
    let admin = activated.configured[1];
    let activated = wait_ready(activated, admin);
    for kind in KINDS {
        view(activated.configured[0], kind, "s1/m", "").expect_finished(&end);
    }
    stop(activated);
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn unit() -> String {
    fs::read_to_string(repository().join("systemd/llm-bridge.service")).unwrap()
}

/// The value of a setting of the unit.
fn setting(name: &str) -> String {
    let unit = unit();
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn the_unit_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llm-bridge.service");
    fs::write(&path, unit().replace("/usr/bin/llm-bridge", env!("CARGO_BIN_EXE_llm-bridge"))).unwrap();
    let output = program("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
        .expect("systemd-analyze is installed");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    // There may be complaints about other units of the machine, but not about this one.
    assert!(!printed.contains("llm-bridge"), "{printed}");
}

#[test]
fn the_unit_leaves_room_for_what_is_configured() {
    let configuration = fs::read_to_string(repository().join("conf/llm-bridge.toml")).unwrap();
    let configuration: toml::Table = configuration.parse().unwrap();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let grace = configuration["shutdown"]["grace"].as_str().unwrap();
    assert!(seconds(&setting("TimeoutStopSec")) > seconds(grace));
    let connections = configuration["client"]["max_connections"].as_integer().unwrap();
    assert!(setting("LimitNOFILE").parse::<i64>().unwrap() > connections);
    let stats = configuration["listen"]["stats_socket"].as_str().unwrap();
    assert!(Path::new(stats).starts_with(Path::new("/run").join(setting("RuntimeDirectory"))));
    assert_eq!(setting("Type"), "notify");
    assert!(seconds(&setting("WatchdogSec")) > 0);
}

/// Runs the command of the unit that checks before the start, with this configuration.
fn check_before_start(configuration: &str) -> Option<i32> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llm-bridge.toml");
    fs::write(&path, configuration).unwrap();
    let command = setting("ExecStartPre")
        .replace("$$", "$")
        .replace("/etc/llm-bridge/llm-bridge.toml", path.to_str().unwrap())
        .replace("/usr/bin/llm-bridge", env!("CARGO_BIN_EXE_llm-bridge"));
    let script = command.strip_prefix("/bin/sh -c '").unwrap().strip_suffix('\'').unwrap();
    let output = program("/bin/sh").args(["-c", script]).env_clear().output().unwrap();
    output.status.code()
}

#[test]
fn the_check_before_the_start_bears_an_outage_and_no_mistake() {
    let redis = RedisServer::start();
    let well = format!("[redis]\nurl = \"{}\"\n", redis.url());
    let away = format!("[redis]\nurl = \"redis://127.0.0.1:{}\"\n", free_port());
    assert_eq!(check_before_start(&well), Some(0));
    assert_eq!(check_before_start(&away), Some(0));
    assert_eq!(check_before_start(&format!("{well}surprise = 1\n")), Some(78));
    assert_eq!(check_before_start("no toml"), Some(78));
}
