//! The only way to start threads: every thread has a role and a name, can be joined, and reports its end to the
//! supervisor, even if it panics or ends too early.
//!
//! Each has a pulse ([`pulse`]), which its loop has to renew.
//!
//! The name is what `/proc/PID/task/*/comm` shows, so it stays within 15 bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::pulse;
use crate::queue::Sender;

/// The longest thread name that Linux keeps.
const NAME_BYTES_MAX: usize = 15;

/// How a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its function returned.
    Returned,
    /// It panicked; the message is in the log.
    Panicked,
}

/// The report that a thread has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The thread's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// A running thread.
#[derive(Debug)]
pub struct Handle {
    name: String,
    inner: std::thread::JoinHandle<()>,
}

/// Starts a thread named `name` that runs `body` and then reports to `ended`.
///
/// `ended` must have room for one report per thread, so that reporting never waits.
///
/// # Errors
/// If the operating system refuses another thread.
pub fn spawn(
    name: impl Into<String>,
    ended: &Sender<Ended>,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<Handle> {
    let name = name.into();
    assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "a thread name has 1 to 15 bytes: {name:?}");
    let (reported_name, ended) = (name.clone(), ended.clone());
    let inner = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let living = pulse::begin(&reported_name);
        let outcome = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(()) => Outcome::Returned,
            Err(_) => Outcome::Panicked,
        };
        drop(living);
        let report = Ended { name: reported_name, outcome };
        if let Err(error) = ended.try_send(report) {
            tracing::error!(%error, "the end of a thread could not be reported");
        }
    })?;
    Ok(Handle { name, inner })
}

/// Asks the kernel not to round this thread's sleeps up by its usual 50 µs. If it refuses, sleeps are less precise.
pub fn sleep_precisely() {
    // SAFETY: PR_SET_TIMERSLACK takes one number, touches no memory and affects only the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}

impl Handle {
    /// The thread's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the thread has ended, so that joining would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.inner.is_finished()
    }

    /// Waits for the thread, whose panics were caught and reported before.
    pub fn join(self) {
        if self.inner.join().is_err() {
            tracing::error!(thread = self.name, "a thread ended outside its own supervision");
        }
    }
}

/// Joins the threads that have ended and returns the names of the others.
#[must_use]
pub fn join_finished(handles: Vec<Handle>) -> Vec<String> {
    let (finished, running): (Vec<_>, Vec<_>) = handles.into_iter().partition(Handle::is_finished);
    finished.into_iter().for_each(Handle::join);
    running.into_iter().map(|handle| handle.name).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::queue;

    #[test]
    fn a_panic_is_reported_by_name() {
        let (sender, receiver) = queue::bounded("ended", 2);
        let handle = spawn("doomed", &sender, || panic!("on purpose")).unwrap();
        let report = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(report, Ended { name: "doomed".into(), outcome: Outcome::Panicked });
        handle.join();
    }

    #[test]
    fn late_threads_are_named() {
        let (sender, receiver) = queue::bounded("ended", 2);
        let (release, wait) = queue::bounded::<()>("release", 1);
        let quick = spawn("quick", &sender, || {}).unwrap();
        let late = spawn("late", &sender, move || {
            wait.recv_timeout(Duration::from_secs(60));
        })
        .unwrap();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap().name, "quick");
        while !quick.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!(join_finished(vec![quick, late]), ["late"]);
        release.try_send(()).unwrap();
    }
}
