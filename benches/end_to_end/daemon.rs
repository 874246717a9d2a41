//! The processes of a run: a private redis-server, the daemon or a floor; what they use, from the kernel.
//!
//! Each ends when its handle is dropped, and with the bench itself however that ends.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::floor::Mode;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a process may take to answer.
const START: Duration = Duration::from_secs(20);

/// A process that serves on a port.
pub(crate) struct Process {
    child: Child,
    /// Where it serves.
    pub(crate) address: SocketAddr,
    /// Where it tells its counters.
    admin: Option<SocketAddr>,
    /// Its private files.
    _files: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is over, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Process {
    /// A redis-server without persistence.
    pub(crate) fn redis() -> Result<Self> {
        let (files, address) = (tempfile::tempdir()?, free_address()?);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--dir"]);
        command.arg(files.path());
        command.args(["--save", "", "--appendonly", "no", "--maxclients", "15000", "--tcp-backlog", "4096"]);
        let child = spawn(command.stdout(Stdio::null()))?;
        let mut process = Self { child, address, admin: None, _files: files };
        process.wait_until(|| ask(address, "PING\r\n").is_ok_and(|answer| answer.starts_with("+PONG")))?;
        Ok(process)
    }

    /// The daemon, as it comes but for `settings`.
    pub(crate) fn daemon(redis: SocketAddr, settings: &[String]) -> Result<Self> {
        let (files, address, admin) = (tempfile::tempdir()?, free_address()?, free_address()?);
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-bridge"));
        command.arg("serve");
        for setting in [
            format!("redis.url=redis://{redis}"),
            format!("listen.public={address}"),
            format!("listen.admin={admin}"),
            format!("listen.stats_socket={}", files.path().join("stats.sock").display()),
            "log.level=warn".into(),
        ]
        .iter()
        .chain(settings)
        {
            command.args(["--set", setting]);
        }
        let mut process = Self { child: spawn(&mut command)?, address, admin: Some(admin), _files: files };
        let ready = "GET /readyz HTTP/1.0\r\n\r\n";
        process.wait_until(|| ask(admin, ready).is_ok_and(|answer| answer.contains(" 200 ")))?;
        Ok(process)
    }

    /// A floor.
    pub(crate) fn floor(redis: SocketAddr, mode: Mode) -> Result<Self> {
        let mode = match mode {
            Mode::Blocking => "blocking",
            Mode::Told => "told",
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--floor", mode, "--redis", &redis.to_string()]).stdout(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self { child, address: unknown, admin: None, _files: tempfile::tempdir()? };
        process.address = line.trim().parse().map_err(|_| "a floor did not start")?;
        Ok(process)
    }

    fn wait_until(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("a server ended at its start: {status}").into());
            }
            if Instant::now() > deadline {
                return Err("a server did not become ready".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// One of its counters so far; 0 where it has none.
    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        let Some(admin) = self.admin else { return Ok(0) };
        let mut socket = TcpStream::connect(admin)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut metrics = String::new();
        socket.read_to_string(&mut metrics)?;
        let name = format!("llm_bridge_{name}_total ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
        Ok(value.ok_or_else(|| format!("the daemon does not count {name}"))?.parse()?)
    }

    /// Processor time of all its threads so far, in the resolution of the scheduler.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut clock = 0;
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: `clock` is a valid place for the id of a clock.
        let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed).into());
        }
        Ok(read_clock(clock)?)
    }

    /// Memory that is the process' own, in bytes: pages that it has written and shares with nobody.
    pub(crate) fn private_bytes(&self) -> Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let kib =
            rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")?.split_whitespace().next());
        Ok(kib.ok_or("smaps_rollup without Private_Dirty")?.parse::<u64>()? * 1024)
    }
}

/// Processor time of the calling thread.
pub(crate) fn thread_cpu() -> io::Result<Duration> {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read_clock(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for a timespec.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).map_err(io::Error::other)?))
}

/// Starts a process that the kernel ends when the thread that started it is gone.
fn spawn(command: &mut Command) -> io::Result<Child> {
    // SAFETY: prctl is a plain system call, allowed between fork and exec; it touches no memory.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command.stdin(Stdio::null()).spawn()
}

/// A loopback address that nobody listens on now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Sends a request and reads the first piece of the answer.
fn ask(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = [0; 256];
    let n = socket.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}
