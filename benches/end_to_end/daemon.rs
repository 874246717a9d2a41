//! The processes of a run: a private redis-server, and the daemon, a floor or a peer; and the resources that they
//! use, as the kernel reports them.
//!
//! Each process ends when its handle is dropped, and also when the bench itself ends, for whatever reason.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::floor::Mode;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long a process may take to start.
const START: Duration = Duration::from_secs(20);

/// A process that listens on a port.
pub(crate) struct Process {
    child: Child,
    /// The address on which it listens.
    pub(crate) address: SocketAddr,
    /// The address at which it takes tokens, if they are published to it.
    pub(crate) producers: SocketAddr,
    /// The address at which its counters can be read.
    admin: Option<SocketAddr>,
    /// Its private files.
    _files: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let children = self.children().unwrap_or_default();
        // These fail only if the process has ended already, which is the aim.
        self.child.kill().ok();
        self.child.wait().ok();
        for child in children {
            // SAFETY: kill is a plain system call; the process was a child of this one a moment ago.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
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
        let child = spawn(command.stdout(Stdio::null()), libc::SIGKILL)?;
        let mut process = Self { child, address, producers: address, admin: None, _files: files };
        process.wait_until(|| ask(address, "PING\r\n").is_ok_and(|answer| answer.starts_with("+PONG")))?;
        Ok(process)
    }

    /// The daemon with its default configuration, changed by `settings`.
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
        let child = spawn(&mut command, libc::SIGKILL)?;
        let mut process = Self { child, address, producers: address, admin: Some(admin), _files: files };
        let ready = "GET /readyz HTTP/1.0\r\n\r\n";
        process.wait_until(|| ask(admin, ready).is_ok_and(|answer| answer.contains(" 200 ")))?;
        Ok(process)
    }

    /// A floor process.
    pub(crate) fn floor(redis: SocketAddr, mode: Mode) -> Result<Self> {
        let mode = match mode {
            Mode::Blocking => "blocking",
            Mode::Tracking => "tracking",
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--floor", mode, "--redis", &redis.to_string()]).stdout(Stdio::piped());
        let mut child = spawn(&mut command, libc::SIGKILL)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process =
            Self { child, address: unknown, producers: unknown, admin: None, _files: tempfile::tempdir()? };
        process.address = line.trim().parse().map_err(|_| "a floor did not start")?;
        Ok(process)
    }

    /// A peer that the command starts on `address`.
    pub(crate) fn peer(command: &mut Command, address: SocketAddr, files: tempfile::TempDir) -> Result<Self> {
        // If nginx were killed, its workers would keep running.
        let child = spawn(command.stdout(Stdio::null()), libc::SIGTERM)?;
        let mut process = Self { child, address, producers: address, admin: None, _files: files };
        process.wait_until(|| {
            ask(address, "GET / HTTP/1.0\r\n\r\n").is_ok_and(|it| it.starts_with("HTTP/1."))
        })?;
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

    /// The present value of one of its counters; 0 if it has none.
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

    /// The processes that this one has started.
    fn children(&self) -> Result<Vec<i32>> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
    }

    /// This process and those that it has started.
    fn all(&self) -> Result<Vec<i32>> {
        let mut all = self.children()?;
        all.push(i32::try_from(self.child.id())?);
        Ok(all)
    }

    /// Processor time of all threads so far, with the scheduler's resolution.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.all()?.into_iter().map(process_cpu).sum()
    }

    /// The process' resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        self.all()?.into_iter().map(resident_bytes).sum()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> Result<u64> {
        self.all()?.into_iter().map(descriptors).sum()
    }

    /// The process' private memory, in bytes: pages that it wrote and does not share.
    pub(crate) fn private_bytes(&self) -> Result<u64> {
        self.all()?.into_iter().map(private_bytes).sum()
    }
}

fn resident_bytes(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Ok(kib.ok_or("a process without VmRSS")?.parse::<u64>()? * 1024)
}

fn descriptors(pid: i32) -> Result<u64> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

fn process_cpu(pid: i32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` is a valid place for the id of a clock.
    let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed).into());
    }
    Ok(read_clock(clock)?)
}

fn private_bytes(pid: i32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")?.split_whitespace().next());
    Ok(kib.ok_or("smaps_rollup without Private_Dirty")?.parse::<u64>()? * 1024)
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

/// Starts a process that the kernel ends with `signal` when the thread that started it ends.
fn spawn(command: &mut Command, signal: libc::c_int) -> io::Result<Child> {
    // SAFETY: prctl is a plain system call, allowed between fork and exec; it touches no memory.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command.stdin(Stdio::null()).spawn()
}

/// A loopback address on which nothing listens at the moment.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Sends a request and reads the first part of the response.
fn ask(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = [0; 256];
    let n = socket.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}
