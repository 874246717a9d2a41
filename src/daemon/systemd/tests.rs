//! The notify protocol with a socket of the test, sockets passed to a process, and the unit.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/llm-bridge.service");

/// Set for the process that [`sockets_pass_to_a_process`] starts from this test binary.
const ROLE: &str = "LLM_BRIDGE_TEST_PASSED_SOCKETS";

fn received(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0_u8; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn check_protocol(socket: &UnixDatagram, address: &OsStr) {
    let notifier = Notifier::new(Some(address), Some(Duration::from_secs(10)));
    assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));
    notifier.ready("2 readers\nMAINPID=1");
    assert_eq!(received(socket), "READY=1\nSTATUS=2 readers MAINPID=1");
    notifier.status("degraded: Redis is away");
    assert_eq!(received(socket), "STATUS=degraded: Redis is away");
    notifier.watchdog();
    assert_eq!(received(socket), "WATCHDOG=1");
    notifier.stopping();
    assert_eq!(received(socket), "STOPPING=1");
}

#[test]
fn a_path_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    check_protocol(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());
}

#[test]
fn an_abstract_name_is_notified() {
    let name = format!("llm-bridge-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    check_protocol(&UnixDatagram::bind_addr(&address).unwrap(), OsStr::new(&format!("@{name}")));
}

#[test]
fn without_a_watchdog_there_is_no_sign_of_life() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    for watchdog in [None, Some(Duration::ZERO)] {
        let notifier = Notifier::new(Some(path.as_os_str()), watchdog);
        assert_eq!(notifier.watchdog_interval(), None);
        notifier.watchdog();
        notifier.stopping();
        assert_eq!(received(&socket), "STOPPING=1");
    }
}

#[test]
fn nobody_there_is_no_failure() {
    let long = "x".repeat(200);
    for address in [None, Some(""), Some("/nowhere/notify"), Some("@"), Some("@nobody"), Some(long.as_str())]
    {
        let notifier = Notifier::new(address.map(OsStr::new), Some(Duration::from_secs(1)));
        notifier.ready("up");
        notifier.watchdog();
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn sorted(sockets: Vec<(OwnedFd, &str)>) -> Result<Passed, PassedError> {
    sort(sockets.into_iter().map(|(socket, name)| (socket, name.to_owned())).collect())
}

#[test]
fn sockets_are_distinguished_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (public, admin) = (listener(), listener());
    let addresses = (public.local_addr().unwrap(), admin.local_addr().unwrap());
    let stats = UnixListener::bind(dir.path().join("stats")).unwrap();
    let passed =
        sorted(vec![(admin.into(), "admin"), (stats.into(), "stats"), (public.into(), "public")]).unwrap();
    let found = (passed.public.unwrap().local_addr().unwrap(), passed.admin.unwrap().local_addr().unwrap());
    assert_eq!(found, addresses);
    assert!(passed.stats.is_some());

    for name in ["public", "unknown", "", "llm-bridge.socket"] {
        let passed = sorted(vec![(listener().into(), name)]).unwrap();
        assert!(passed.public.is_some() && passed.admin.is_none(), "{name}");
    }
}

#[test]
fn unfit_sockets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let unix = || UnixListener::bind(dir.path().join("s")).unwrap().into();
    let datagram = || UnixDatagram::unbound().unwrap().into();
    let peer = listener();
    let connected = || TcpStream::connect(peer.local_addr().unwrap()).unwrap().into();
    for (sockets, message) in [
        (vec![(listener().into(), "publik")], "named \"publik\""),
        (vec![(listener().into(), "public"), (listener().into(), "unknown")], "named \"unknown\""),
        (vec![(listener().into(), "admin"), (listener().into(), "admin")], "more than one"),
        (vec![(unix(), "public")], "not a listening TCP socket"),
        (vec![(connected(), "public")], "not a listening TCP socket"),
        (vec![(listener().into(), "stats")], "not a listening Unix stream socket"),
        (vec![(datagram(), "stats")], "not a listening Unix stream socket"),
    ] {
        let error = sorted(sockets).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// Runs this test again as a process that gets two sockets the way systemd passes them.
#[test]
fn sockets_pass_to_a_process() {
    if std::env::var_os(ROLE).is_some() {
        let passed = passed_sockets().unwrap();
        let ports = [passed.public, passed.admin]
            .map(|socket| socket.unwrap().local_addr().unwrap().port().to_string());
        fs::write(std::env::var_os(ROLE).unwrap(), ports.join(" ")).unwrap();
        assert!(passed_sockets().unwrap().public.is_none());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let (public, admin) = (listener(), listener());
    let ports = [&public, &admin].map(|socket| socket.local_addr().unwrap().port().to_string());
    // The shell moves the sockets to descriptors 3 and 4 and becomes the process that LISTEN_PID names.
    let script = "LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 4<&1 0</dev/null 1>&2";
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::systemd::tests::sockets_pass_to_a_process"])
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "public:admin")
        .env(ROLE, &report)
        .stdin(Stdio::from(OwnedFd::from(public)))
        .stdout(Stdio::from(OwnedFd::from(admin)))
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(&report).unwrap(), ports.join(" "));
}

/// The unit with `binary` in place of the installed one.
fn unit_with(binary: &Path) -> String {
    fs::read_to_string(UNIT).unwrap().replace("/usr/bin/llm-bridge", binary.to_str().unwrap())
}

#[test]
fn systemd_accepts_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("llm-bridge.service");
    fs::write(&unit, unit_with(&std::env::current_exe().unwrap())).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .expect("systemd-analyze is needed: install the package systemd");
    let messages = String::from_utf8_lossy(&output.stderr);
    // Other units of the machine are not part of this test.
    let ours: Vec<&str> = messages.lines().filter(|line| line.contains("llm-bridge")).collect();
    assert!(output.status.success() && ours.is_empty(), "{messages}");
}

#[test]
fn an_outage_lets_the_start_go_on_and_a_bad_configuration_does_not() {
    let check = "/usr/bin/llm-bridge check --config /etc/llm-bridge/llm-bridge.toml";
    let unit = fs::read_to_string(UNIT).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStartPre=/bin/sh -c '")).unwrap();
    let script = line.strip_suffix('\'').unwrap().replace("$$", "$");
    assert!(script.starts_with(check), "{script}");
    for (exits_with, start) in [(0, 0), (1, 0), (78, 78), (2, 2), (101, 101)] {
        let script = script.replace(check, &format!("(exit {exits_with})"));
        let status = Command::new("/bin/sh").args(["-c", &script]).status().unwrap();
        assert_eq!(status.code(), Some(start), "check exits with {exits_with}");
    }
}

#[test]
fn the_unit_leaves_time_and_room_for_the_defaults() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let number = |key: &str| -> u64 {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap();
        line.parse().unwrap()
    };
    let config = crate::config::Config::defaults();
    assert!(number("TimeoutStopSec") > config.shutdown.grace.as_secs());
    let room = config.client.max_connections + crate::daemon::limits::RESERVED;
    assert!(number("LimitNOFILE") >= u64::try_from(room).unwrap());
}
