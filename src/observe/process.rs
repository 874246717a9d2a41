//! Numbers about this process from `/proc/self`.
//!
//! Everything is best effort: a number that cannot be read is 0 or absent, and does not prevent the rest of the page.

use std::fs;

use serde::Serialize;

/// Clock ticks per second in `/proc/self/stat`: 100 on every Linux that Rust's standard library supports, whatever
/// the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The state of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Process {
    /// Memory in RAM.
    pub rss_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// The most descriptors that may be open.
    pub max_fds: u64,
    /// CPU time spent so far, of the program and of the kernel on its behalf.
    pub cpu_s: f64,
    /// The names of all threads, sorted.
    pub threads: Vec<String>,
}

impl Process {
    /// Reads the state.
    #[must_use]
    pub fn read() -> Self {
        let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Self {
            rss_bytes: rss_bytes(&text("status")).unwrap_or(0),
            open_fds: open_fds(),
            max_fds: max_fds(&text("limits")).unwrap_or(0),
            cpu_s: cpu_s(&text("stat")).unwrap_or(0.0),
            threads: threads(),
        }
    }
}

fn rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_s(stat: &str) -> Option<f64> {
    // The second field is the program's name in parentheses, which may itself contain parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn open_fds() -> u64 {
    // Linux 6.2 and later reports the number as the directory's size; counting 100,000 entries is slow.
    match fs::metadata("/proc/self/fd") {
        Ok(directory) if directory.len() > 0 => directory.len(),
        _ => fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

fn threads() -> Vec<String> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let mut names: Vec<String> =
        tasks.flatten().filter_map(name).map(|name| name.trim_end().to_owned()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let before = Process::read();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = Process::read();
        assert!(after.rss_bytes > 1 << 20 && after.max_fds >= after.open_fds);
        // Other tests of the same process open and close files too.
        assert!(after.open_fds + 25 > before.open_fds + files.len() as u64, "{before:?} {after:?}");
        let own = std::thread::Builder::new().name("seen-thread".into());
        own.spawn(|| assert!(threads().contains(&"seen-thread".to_owned()))).unwrap().join().unwrap();
    }

    #[test]
    fn the_formats_are_read() {
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t   12 kB\n"), Some(12_288));
        assert_eq!(
            max_fds("Max open files            1024                 4096                 files\n"),
            Some(1024)
        );
        assert_eq!(cpu_s("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0"), Some(2.0));
        assert_eq!((rss_bytes("VmRSS: many"), max_fds("x"), cpu_s("7 (a")), (None, None, None));
    }
}
