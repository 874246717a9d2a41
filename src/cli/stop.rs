//! Ctrl-C for the commands that have something to leave in order.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

use super::{CliError, FAILED};

/// A flag that the first SIGINT or SIGTERM raises; the second ends the process at once.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the one that ends the process acts on what the flag was before the signal.
        register_conditional_shutdown(signal, FAILED.into(), Arc::clone(&flag)).map_err(uncaught)?;
        register(signal, Arc::clone(&flag)).map_err(uncaught)?;
    }
    Ok(flag)
}

/// A flag that SIGINT and SIGTERM raise, for a command that ends soon by itself and must leave nothing behind:
/// further signals change nothing.
pub(crate) fn patient_stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        register(signal, Arc::clone(&flag)).map_err(uncaught)?;
    }
    Ok(flag)
}

fn uncaught(error: std::io::Error) -> CliError {
    CliError::Failed(format!("signals cannot be caught: {error}"))
}
