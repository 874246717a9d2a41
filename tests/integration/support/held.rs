//! Suspends one thread of another process like a debugger; the rest of the process continues.

use std::fs;
use std::ptr;

/// A suspended thread. Dropping it resumes the thread. Only the test's thread that created it may drop it.
pub(crate) struct HeldThread {
    id: libc::pid_t,
}

impl HeldThread {
    /// Suspends the thread with that name in a child process.
    pub(crate) fn hold(process: u32, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_it = |path: &std::path::Path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let mut paths = tasks.map(|task| task.unwrap().path());
        let task = paths.find(|path| is_it(path)).unwrap_or_else(|| panic!("no thread {name}"));
        let id = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        request(libc::PTRACE_SEIZE, id);
        let held = Self { id };
        request(libc::PTRACE_INTERRUPT, id);
        // SAFETY: waitpid(2) may leave the status out.
        let waited = unsafe { libc::waitpid(id, ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, id, "{}", std::io::Error::last_os_error());
        held
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        request(libc::PTRACE_DETACH, self.id);
    }
}

fn request(what: libc::c_uint, id: libc::pid_t) {
    // SAFETY: none of the requests made here reads or writes memory of this process.
    let done =
        unsafe { libc::ptrace(what, id, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) };
    assert_eq!(done, 0, "ptrace, which this test needs: {}", std::io::Error::last_os_error());
}
