//! Child processes that end with the process that started them.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The pause between two checks of a process that is ending.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running process in a process group of its own, so that a Ctrl-C reaches only its parent, which then stops all
/// children in order.
#[derive(Debug)]
pub(super) struct Child {
    name: &'static str,
    inner: std::process::Child,
}

impl Child {
    /// Starts `command` without stdin and stdout; its stderr is ours.
    ///
    /// # Errors
    /// If the program does not exist, or the system refuses.
    pub(super) fn spawn(name: &'static str, command: &mut Command) -> std::io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(end_with_parent) };
        Ok(Self { name, inner: command.spawn()? })
    }

    /// The name of the process, for people.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// The exit status, if the process has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.inner.try_wait().ok().flatten()
    }

    /// Asks the process to end and waits; kills it after `grace`.
    pub(super) fn stop(&mut self, grace: Duration) {
        if self.ended().is_some() {
            return;
        }
        if let Ok(pid) = libc::pid_t::try_from(self.inner.id()) {
            // SAFETY: kill(2) touches no memory; the process is our child and not reaped, so the id is its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let until = Instant::now() + grace;
        while self.ended().is_none() && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.inner.kill().ok();
            self.inner.wait().ok();
        }
    }
}

/// Makes the kernel end the process if its parent dies without stopping it.
fn end_with_parent() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_asked_to_end_and_then_made_to() {
        let mut quick = Child::spawn("sleep", Command::new("sleep").arg("600")).unwrap();
        assert!(quick.ended().is_none());
        quick.stop(Duration::from_secs(60));
        assert!(quick.ended().is_some());
        let script = "trap '' TERM; while :; do sleep 1; done";
        let mut deaf = Child::spawn("sh", Command::new("sh").args(["-c", script])).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        deaf.stop(Duration::from_millis(50));
        let pid = deaf.inner.id();
        drop(deaf);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
