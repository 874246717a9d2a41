//! The program's other commands: run to their end, or in the background with their output as it arrives.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};

use super::patience::{PATIENCE, wait_for, wait_until};

/// A command whose process handles signals like one started in a terminal, however the tests were started: under
/// `nohup`, in the background of a script and in many runners they ignore SIGINT or SIGHUP, and a process passes on
/// the signals that it ignores or blocks to its children.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    // SAFETY: between fork and exec only signal(2), sigemptyset(3) and sigprocmask(2) are called, which are safe there.
    unsafe { command.pre_exec(reset_signals) };
    command
}

fn reset_signals() -> io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD] {
        // SAFETY: the default action is a valid one.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all bits zero are a valid set, which sigemptyset(3) then empties.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: both calls get a set that outlives them, and no place for the former one.
    let done = unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A command in an otherwise empty environment.
pub(crate) fn llm_bridge(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_llm-bridge"));
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// A command's output and exit.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit status; `None`: ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end with this input.
pub(crate) fn run(command: Command, input: &[u8]) -> Outcome {
    let mut running = Background::start(command);
    let mut stdin = running.take_stdin();
    // It may end without reading everything.
    let _ = stdin.write_all(input);
    drop(stdin);
    running.finish()
}

/// Runs a command to its end in a terminal of its own: its exit status, and everything written there, with the line
/// ends of the command.
pub(crate) fn run_in_terminal(command: Command) -> (Option<i32>, String) {
    run_in_terminal_of(command, (0, 0))
}

/// Like `run_in_terminal`, in a terminal with this many lines and columns; 0: unknown.
pub(crate) fn run_in_terminal_of(
    mut command: Command,
    (lines, columns): (u16, u16),
) -> (Option<i32>, String) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the two descriptors are written to, the size is read, and nothing else is passed.
    let opened = unsafe {
        libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &raw const size)
    };
    assert_eq!(opened, 0, "no terminal: {}", io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else owns them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
    let mut process = command.spawn().unwrap();
    // It holds the terminal's other side, which has to be closed for the end.
    drop(command);
    let reader = spawn("terminal", move || {
        let (mut ours, mut text) = (File::from(ours), Vec::new());
        // The end is reported as an error: nobody is left on the other side.
        let _ = ours.read_to_end(&mut text);
        String::from_utf8(text).unwrap().replace("\r\n", "\n")
    });
    let ended = wait_for("the command to end", || process.try_wait().unwrap());
    (ended.code(), reader.join().unwrap())
}

/// A running command. Dropping it kills it.
pub(crate) struct Background {
    process: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Background {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut stderr = process.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        spawn("command-out", move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8(line).unwrap());
            }
        });
        let stderr = spawn("command-err", move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { process, lines, stderr: Some(stderr) }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The writer of its standard input; dropping it ends the input.
    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.process.stdin.take().unwrap()
    }

    /// The next line of its standard output. `None`: there will be no more.
    pub(crate) fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line for {PATIENCE:?}"),
        }
    }

    /// Sends it a signal, such as `libc::SIGINT`, and waits until the kernel has delivered it.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.process.id()).unwrap();
        // SAFETY: kill(2) touches no memory of ours; the child is not reaped before `self` says so.
        let sent = unsafe { libc::kill(id, signal) };
        assert_eq!(sent, 0, "signal {signal} to {id}");
        wait_until("the signal to be handed over", || !has_pending_signals(id));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits until it ends by itself; the output has only the lines that `line` has not returned yet.
    pub(crate) fn finish(mut self) -> Outcome {
        let status = wait_for("the command to end", || self.process.try_wait().unwrap());
        let lines: Vec<String> = std::iter::from_fn(|| self.line()).collect();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Outcome { code: status.code(), stdout: lines.join("\n"), stderr }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().name(name.to_owned()).spawn(body).unwrap()
}

/// Whether signals to a process, or to its first thread, are pending; false once it has ended.
fn has_pending_signals(id: libc::pid_t) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    let is_over = status.lines().any(|line| line.starts_with("State:\tZ"));
    !is_over && masks.map(str::trim).any(|mask| mask.bytes().any(|digit| digit != b'0'))
}
