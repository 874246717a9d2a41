//! Handles Ctrl-C and the end of the terminal, for the commands that have to stop in order.
//!
//! SIGINT and SIGHUP remain ignored if the process started with them ignored: `nohup` ignores SIGHUP, and a shell
//! without job control ignores SIGINT for a background command, so that a Ctrl-C reaches only the foreground command.
//! SIGTERM is always handled, because it is meant for this process.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

use super::{CliError, FAILED};

/// A flag that the first SIGINT, SIGTERM or SIGHUP sets; a second SIGINT or SIGTERM ends the process at once.
///
/// A terminal that is closed sends SIGHUP more than once (the shell and the kernel do), and a session that systemd ends
/// gets SIGTERM and SIGHUP: a SIGHUP is never the second one.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let (flag, is_asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in signals().map_err(uncaught)? {
        if signal != SIGHUP {
            // In this order: the handler that ends the process reads the flag as it was before the signal.
            register_conditional_shutdown(signal, FAILED.into(), Arc::clone(&is_asked)).map_err(uncaught)?;
            register(signal, Arc::clone(&is_asked)).map_err(uncaught)?;
        }
        register(signal, Arc::clone(&flag)).map_err(uncaught)?;
    }
    Ok(flag)
}

/// A flag that SIGINT, SIGTERM and SIGHUP set, for a command that ends soon by itself and must clean up: further
/// signals have no effect.
pub(crate) fn patient_stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in signals().map_err(uncaught)? {
        register(signal, Arc::clone(&flag)).map_err(uncaught)?;
    }
    Ok(flag)
}

/// The signals to handle.
fn signals() -> io::Result<Vec<c_int>> {
    let mut signals = vec![SIGTERM];
    for signal in [SIGINT, SIGHUP] {
        if !is_ignored(signal)? {
            signals.push(signal);
        }
    }
    Ok(signals)
}

fn is_ignored(signal: c_int) -> io::Result<bool> {
    // SAFETY: all bits zero are a valid `sigaction`, which is overwritten.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is given, and the memory for the present one outlives the call.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

fn uncaught(error: io::Error) -> CliError {
    CliError::Failed(format!("signals cannot be caught: {error}"))
}
