//! Commands that are ended by a signal, or whose terminal is closed, leave everything in order; signals that were
//! ignored when they were started remain ignored.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use serde_json::json;

use crate::support::command::{Background, llm_bridge};
use crate::support::daemon::Daemon;
use crate::support::patience::{wait_for, wait_until};
use crate::support::redis::RedisServer;
use crate::support::viewer::{Kind, Viewer};

/// `produce` into `s1/m`.
fn produce(redis: &RedisServer) -> Command {
    let setting = format!("redis.url={}", redis.url());
    llm_bridge(&["produce", "--session", "s1", "--model", "m", "--set", &setting])
}

/// A viewer of `s1/m` that has seen this text.
fn viewer_of(daemon: &Daemon, text: &str) -> Viewer {
    let mut viewer = Viewer::open(daemon.public, Kind::Sse, "s1/m", "after=last&follow=1");
    let mut seen = String::new();
    viewer.read_until(text, |frame| {
        seen += frame.value["text"].as_str().unwrap_or_default();
        seen == text
    });
    viewer
}

fn expect_interrupted(viewer: &mut Viewer) {
    let error = viewer.read_until("an error", |frame| frame.is_terminal());
    assert_eq!(error.value["code"], "producer_failed", "{error:?}");
    assert_eq!(error.value["message"], "the producer was interrupted");
}

/// A command that is started with these signals ignored, as `nohup` and shells do.
fn ignoring(mut command: Command, signals: &'static [libc::c_int]) -> Command {
    let ignore = move || {
        for &signal in signals {
            // SAFETY: ignoring a signal is a valid action.
            if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only signal(2) is called, which is safe there.
    unsafe { command.pre_exec(ignore) };
    command
}

/// Starts a command as the leader of a session whose terminal is the other side of the returned file.
fn start_in_session(mut command: Command) -> (Child, File) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: the two descriptors are written to, and nothing else is passed.
    let opened = unsafe {
        libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), std::ptr::null())
    };
    assert_eq!(opened, 0, "no terminal: {}", io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else owns them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    // The command must not hold our side too. SAFETY: fcntl(2) with F_SETFD touches no memory.
    let kept = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    assert_eq!(kept, 0, "{}", io::Error::last_os_error());
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
    let lead = || {
        // SAFETY: setsid(2) and ioctl(2) with TIOCSCTTY touch no memory; standard input is the terminal.
        let done = unsafe { libc::setsid() != -1 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only system calls are made, which are safe there.
    unsafe { command.pre_exec(lead) };
    (command.spawn().unwrap(), File::from(ours))
}

#[test]
fn an_answer_ends_as_interrupted_if_the_terminal_of_its_producer_closes() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    // A terminal that is closed sends it twice: from the shell and from the kernel.
    for times in [1, 2] {
        let mut process = Background::start(produce(&redis));
        let mut stdin = process.take_stdin();
        stdin.write_all(b"half of it ").unwrap();
        let mut viewer = viewer_of(&daemon, "half of it ");
        for _ in 0..times {
            process.signal(libc::SIGHUP);
        }
        let outcome = process.finish();
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        expect_interrupted(&mut viewer);
        redis.connect().run::<i64>(&["DEL", "llm:stream:s1:m"]);
    }
}

#[test]
fn an_answer_that_is_typed_into_a_terminal_which_is_closed_ends_as_interrupted() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let (mut process, mut terminal) = start_in_session(produce(&redis));
    terminal.write_all(b"half of it\n").unwrap();
    let mut viewer = viewer_of(&daemon, "half of it\n");
    drop(terminal);
    let ended = wait_for("the command to end", || process.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
    expect_interrupted(&mut viewer);
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut process = Background::start(ignoring(produce(&redis), &[libc::SIGHUP, libc::SIGINT]));
    let mut stdin = process.take_stdin();
    stdin.write_all(b"one ").unwrap();
    let mut viewer = viewer_of(&daemon, "one ");
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGINT, libc::SIGHUP] {
        process.signal(signal);
    }
    stdin.write_all(b"two").unwrap();
    viewer.read_until("the rest", |frame| frame.value["text"] == "two");
    drop(stdin);
    let outcome = process.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let end = viewer.read_until("the end", |frame| frame.is_terminal());
    assert_eq!(end.value["finish_reason"], json!("stop"));
}

#[test]
fn a_worker_that_is_hung_up_leaves_the_group() {
    let redis = RedisServer::start();
    let setting = format!("redis.url={}", redis.url());
    let url = "http://127.0.0.1:1/v1/chat/completions";
    let worker = Background::start(llm_bridge(&["relay", "--url", url, "--set", &setting]));
    let asked = |about: &[&str]| -> Vec<redis::Value> {
        redis.connect().try_run(&[&["XINFO"], about].concat()).unwrap_or_default()
    };
    wait_until("the worker to be there", || !asked(&["GROUPS", "llm:requests"]).is_empty());
    worker.signal(libc::SIGHUP);
    let outcome = worker.finish();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(asked(&["CONSUMERS", "llm:requests", "llm:relay:llm-bridge"]).is_empty());
}
