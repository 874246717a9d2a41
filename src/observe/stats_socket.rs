//! The stats socket: a Unix socket that answers one line (`text`, `json`, `histograms` or `reset`)
//! and closes.
//!
//! `exchange` limits the connections. The file's mode (0660) and directory decide who may connect.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use super::exchange::{self, Reaction};
use crate::stop::Stop;

/// The most bytes of a request, including its newline.
const LINE_BYTES_MAX: usize = 64;
/// The time limit from the connection to the end of the answer.
const EXCHANGE_TIME: Duration = Duration::from_secs(4);

/// Why there is no stats socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers there.
    #[error("{0}: another process answers on this socket")]
    Live(PathBuf),
    /// The file is not a socket, so it is not replaced.
    #[error("{0}: there is a file that is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The file of a socket that [`bind`] created; dropping it removes the file, unless another daemon has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself, opened without access to it: while it is open, no other file gets its inode number.
    own: fs::File,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let own = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        Ok(Self { path: path.to_owned(), own })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let (there, own) = (fs::symlink_metadata(&self.path)?, self.own.metadata()?);
        Ok((there.dev(), there.ino()) == (own.dev(), own.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place().unwrap_or(false)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the stats socket cannot be removed");
        }
    }
}

/// Listens on a socket file at `path`, for its owner and group. Creates a missing directory, and replaces a socket
/// that was left behind by a killed process.
///
/// # Errors
/// If another process answers there, if the file is not a socket, or if the system refuses.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) if is_live(path).map_err(failed)? => return Err(BindError::Live(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    let file = SocketFile::new(path).map_err(failed)?;
    Ok((listener, file))
}

fn is_live(path: &Path) -> io::Result<bool> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // Without waiting: a process that is busy and has a full backlog is alive.
    socket.set_nonblocking(true)?;
    match socket.connect(&socket2::SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Ok(true),
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        },
    }
}

/// Serves on `listener` until the stop signal.
///
/// # Errors
/// If the listener fails; never because of a client.
pub fn run(listener: UnixListener, registry: Arc<Registry>, stop: Stop) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = mio::net::UnixListener::from_std(listener);
    exchange::serve(listener, &stop, EXCHANGE_TIME, |sent, is_over| react(sent, is_over, &registry))
}

/// The reaction to the bytes of a client: its line ends with a newline, or with the end of its data.
pub(super) fn react(sent: &[u8], is_over: bool, registry: &Registry) -> Reaction {
    let end = sent.iter().position(|&byte| byte == b'\n');
    let line = &sent[..end.unwrap_or(sent.len())];
    if line.len() >= LINE_BYTES_MAX {
        return Reaction::Answer(format!("error: a line has at most {LINE_BYTES_MAX} bytes\n").into_bytes());
    }
    if end.is_none() && !is_over {
        return Reaction::Wait;
    }
    let answer = match line.trim_ascii() {
        b"text" => registry.render_text(),
        b"json" => registry.render_json() + "\n",
        b"histograms" => registry.render_histograms(),
        b"reset" => {
            registry.reset();
            "the latency histograms were reset\n".to_owned()
        }
        _ => "error: send one line: text, json, histograms or reset\n".to_owned(),
    };
    Reaction::Answer(answer.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::observe::Stage;
    use crate::observe::testing::sample;

    /// A socket in a directory of its own that serves until the test ends.
    struct Running {
        directory: tempfile::TempDir,
        registry: Arc<Registry>,
        stop: Stop,
        thread: Option<std::thread::JoinHandle<io::Result<()>>>,
    }

    impl Running {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (listener, file) = bind(&directory.path().join("run/stats.sock")).unwrap();
            let (registry, stop) = (Arc::new(sample()), Stop::new());
            let (inner_registry, inner_stop) = (Arc::clone(&registry), stop.clone());
            let body = move || {
                let _file = file;
                run(listener, inner_registry, inner_stop)
            };
            let thread = std::thread::Builder::new().spawn(body).unwrap();
            Self { directory, registry, stop, thread: Some(thread) }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("run/stats.sock")
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(self.path()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        }

        fn ask(&self, line: &str) -> String {
            let mut stream = self.connect();
            stream.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }

        fn stop(&mut self) {
            self.stop.request();
            self.thread.take().unwrap().join().unwrap().unwrap();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.request();
        }
    }

    #[test]
    fn every_line_is_answered() {
        let running = Running::start();
        assert!(running.ask("text\n").starts_with("llm-bridge "));
        let json = running.ask("json\r\n");
        let stats: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(stats["instance"], "host-8080");
        assert!(running.ask("histograms\n").starts_with("stage produced_to_read count 0"));
        assert!(running.ask("reset\n").contains("were reset"));
        let end_to_end =
            |running: &Running| running.registry.snapshot().latency_us[Stage::EndToEnd as usize].1.count();
        assert_eq!(end_to_end(&running), 0);
        assert_eq!(running.registry.counters().entries_read.get(), 120);
    }

    #[test]
    fn anything_else_gets_the_list_of_commands() {
        let running = Running::start();
        for line in ["\n", "JSON\n", "\u{0}\u{7f}\n", "text json\n"] {
            assert!(running.ask(line).starts_with("error: send one line: text"), "{line:?}");
        }
        assert!(running.ask(&format!("{}\n", "x".repeat(LINE_BYTES_MAX))).contains("at most 64 bytes"));
        assert!(running.ask(&"x".repeat(LINE_BYTES_MAX)).contains("at most 64 bytes"));
        assert!(running.ask(&"x".repeat(100 * LINE_BYTES_MAX)).contains("at most 64 bytes"));
    }

    #[test]
    fn a_line_may_come_in_pieces_and_end_with_the_stream() {
        let running = Running::start();
        let mut stream = running.connect();
        stream.write_all(b"te").unwrap();
        stream.write_all(b"xt").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("llm-bridge "));
    }

    #[test]
    fn clients_that_hang_or_leave_delay_others_only_for_a_while() {
        let running = Running::start();
        let mut hanging = running.connect();
        drop(running.connect());
        let mut unread = running.connect();
        unread.write_all(b"json\n").unwrap();
        drop(unread);
        assert!(running.ask("text\n").starts_with("llm-bridge "));
        assert_eq!(hanging.read(&mut [0]).unwrap(), 0, "it was closed without an answer");
    }

    #[test]
    fn idle_clients_shut_nobody_out() {
        let running = Running::start();
        let idle: Vec<_> = (0..3 * exchange::CONNECTIONS_MAX).map(|_| running.connect()).collect();
        // None of them has reached its deadline yet, and each answer arrives at once.
        for _ in 0..5 {
            assert!(running.ask("text\n").starts_with("llm-bridge "));
        }
        drop(idle);
    }

    #[test]
    fn the_file_is_for_owner_and_group_and_goes_at_the_end() {
        let mut running = Running::start();
        let path = running.path();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        let mut hanging = running.connect();
        running.stop();
        assert!(!path.exists());
        assert!(matches!(hanging.read(&mut [0]), Ok(0) | Err(_)));
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener that is gone leaves its file");
        let (listener, file) = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Live(_))));
        UnixStream::connect(&path).unwrap();
        drop(listener);
        let (_other, _other_file) = bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "the file of another is left alone");
    }

    #[test]
    fn a_live_socket_with_a_full_backlog_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.sock");
        let busy = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        busy.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Live(_))));
    }

    #[test]
    fn another_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(matches!(bind(&path.join("stats.sock")), Err(BindError::Io { .. })));
    }
}
