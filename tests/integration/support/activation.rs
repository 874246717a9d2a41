//! Starts the daemon with sockets that another process has opened, like systemd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;

use super::command::{Background, program};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;

/// Runs `llm-bridge` with these arguments, variables and named sockets. `LISTEN_PID` is its own id, or another
/// process' id.
pub(crate) fn start(
    arguments: &[String],
    variables: &[(&str, &str)],
    sockets: &[(&str, BorrowedFd)],
    is_meant: bool,
) -> Background {
    // Only the process itself knows its id, so a shell sets it and becomes the daemon.
    let script =
        if is_meant { "LISTEN_PID=$$ exec \"$0\" \"$@\"" } else { "LISTEN_PID=1 exec \"$0\" \"$@\"" };
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    let mut command = program("/bin/sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_llm-bridge")]).args(arguments);
    command.env_clear().envs(variables.iter().copied());
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let descriptors: Vec<RawFd> = sockets.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
    // SAFETY: between fork and exec only fcntl(2) and dup2(2) are called, which are safe there, and the
    // vector was allocated before; its descriptors are open as long as this function runs.
    unsafe { command.pre_exec(move || pass(&descriptors)) };
    Background::start(command)
}

/// Moves the descriptors to the expected numbers, in order. First out of the way, because they may be there already
/// in another order.
fn pass(descriptors: &[RawFd]) -> io::Result<()> {
    let mut aside = [0; 8];
    for (descriptor, aside) in descriptors.iter().zip(&mut aside) {
        // SAFETY: fcntl(2) and dup2(2) touch no memory.
        *aside = check(unsafe { libc::fcntl(*descriptor, libc::F_DUPFD_CLOEXEC, 64) })?;
    }
    for (number, aside) in (FIRST..).zip(&aside[..descriptors.len()]) {
        // SAFETY: as above.
        check(unsafe { libc::dup2(*aside, number) })?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
