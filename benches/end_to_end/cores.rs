//! The state of the machine's cores during a run: quiet, or half taken by others.
//!
//! Half taken means that on each core a thread of normal priority, pinned to it, loops without end, so that everything
//! measured has to share the core with it, as on a machine with other work.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use serde::{Deserialize, Serialize};

/// Whether others use the cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cores {
    /// Nobody else uses the cores
    #[default]
    Quiet,
    /// A busy loop of normal priority is pinned beside the run on each core
    HalfTaken,
}

impl Cores {
    /// The words for titles.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet cores",
            Self::HalfTaken => "cores half taken",
        }
    }

    /// Takes the cores until the result is dropped.
    pub(crate) fn take(self) -> io::Result<Loops> {
        let mut loops = Loops { is_over: Arc::default(), threads: Vec::new() };
        if self == Self::HalfTaken {
            for core in usable()? {
                loops.begin(core)?;
            }
        }
        Ok(loops)
    }
}

/// Busy loops, which end when this is dropped.
pub(crate) struct Loops {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Loops {
    /// Starts the loop on a core, and waits until it is pinned.
    fn begin(&mut self, core: usize) -> io::Result<()> {
        let is_over = Arc::clone(&self.is_over);
        let (report, pinned) = std::sync::mpsc::sync_channel(1);
        let thread = Builder::new().name(format!("busy-{core}")).spawn(move || {
            // Nobody receives the report if the bench is ending.
            report.send(pin(core)).ok();
            while !is_over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })?;
        self.threads.push(thread);
        pinned.recv().map_err(io::Error::other)?
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It fails only if the loop panicked, and it has nothing that could.
            thread.join().ok();
        }
    }
}

/// The cores that this process may use.
fn usable() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `set` is a valid place of the given size; all zeros are an empty set.
    let (failed, set) = unsafe {
        let failed = libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr());
        (failed, set.assume_init())
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let all = 0..usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)?;
    // SAFETY: every number is below the size of the set.
    Ok(all.filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Pins the calling thread to a core.
fn pin(core: usize) -> io::Result<()> {
    // SAFETY: all zeros are an empty set, and `core` is one that `usable` found, so it is below the size of the set.
    let set = unsafe {
        let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: `set` is valid and of the given size.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
