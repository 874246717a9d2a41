//! The stats socket: a Unix socket that answers one line (`text`, `json`, `histograms` or `reset`)
//! and closes.
//!
//! It serves one client at a time, each for four seconds at most, so a client that hangs delays the
//! others but cannot block them. Who may ask is decided by the file's mode (0660) and directory.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Registry;
use crate::stop::Stop;
use crate::{pulse, warn_limited};

/// Bytes of a request, its newline included.
const LINE_BYTES_MAX: usize = 64;
/// For the client to send its line, and again to take the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// Reads after the answer, of 4 KiB each.
const DISCARDED_READS_MAX: usize = 64;
/// How often the stop signal is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Why there is no stats socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers there.
    #[error("{0}: another process answers on this socket")]
    Live(PathBuf),
    /// The file there is not ours to replace.
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

/// The file of a socket that [`bind`] made; dropping it removes the file, unless another daemon has
/// put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself, opened without access to it: while it is, no other file gets its inode number.
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

/// Listens on a socket file at `path`, for its owner and group. A missing directory is made, and a
/// socket that nobody answers on, left behind by a process that was killed, is replaced.
///
/// # Errors
/// When somebody answers there, when the file is no socket, or when the system refuses.
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
    // Without waiting: a process that is busy and has a full backlog is a live one.
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

/// Answers on `listener` until the stop signal is given.
///
/// # Errors
/// When the listener cannot be watched; never because of a client.
pub fn run(listener: UnixListener, registry: Arc<Registry>, stop: Stop) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(1);
    while !stop.requested() {
        pulse::beat();
        if let Err(error) = poll.poll(&mut events, Some(TICK))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        accept_all(&listener, &registry, &stop);
    }
    Ok(())
}

fn accept_all(listener: &UnixListener, registry: &Registry, stop: &Stop) {
    while !stop.requested() {
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = serve(client, registry, stop) {
                    tracing::debug!(%error, "a client of the stats socket was not served");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => {
                warn_limited!(%error, "the stats socket cannot accept a connection");
                return;
            }
        }
    }
}

fn serve(mut client: UnixStream, registry: &Registry, stop: &Stop) -> io::Result<()> {
    let line = read_line(&mut client, stop)?;
    let answer = match line.as_deref().map(<[u8]>::trim_ascii) {
        Some(b"text") => registry.render_text(),
        Some(b"json") => registry.render_json() + "\n",
        Some(b"histograms") => registry.render_histograms(),
        Some(b"reset") => {
            registry.reset();
            "the latency histograms begin anew\n".to_owned()
        }
        Some(_) => "error: send one line: text, json, histograms or reset\n".to_owned(),
        None => format!("error: a line has at most {LINE_BYTES_MAX} bytes\n"),
    };
    write_all(&mut client, answer.as_bytes(), stop)?;
    discard(&mut client)
}

/// Takes what else the client has sent: closing over unread bytes would show the client an error in
/// place of the end of its answer.
fn discard(client: &mut UnixStream) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let mut buffer = [0_u8; 4096];
    for _ in 0..DISCARDED_READS_MAX {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The client's line up to its newline or the end of what it sends; `None` if it is too long.
fn read_line(client: &mut UnixStream, stop: &Stop) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + CLIENT_TIME;
    let mut line = Vec::new();
    let mut buffer = [0_u8; LINE_BYTES_MAX];
    loop {
        let count = until(deadline, stop, |wait| {
            client.set_read_timeout(Some(wait))?;
            client.read(&mut buffer)
        })?;
        line.extend_from_slice(&buffer[..count]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok((line.len() < LINE_BYTES_MAX).then_some(line));
        }
        if line.len() >= LINE_BYTES_MAX {
            return Ok(None);
        }
        if count == 0 {
            return Ok(Some(line));
        }
    }
}

fn write_all(client: &mut UnixStream, mut bytes: &[u8], stop: &Stop) -> io::Result<()> {
    let deadline = Instant::now() + CLIENT_TIME;
    while !bytes.is_empty() {
        let count = until(deadline, stop, |wait| {
            client.set_write_timeout(Some(wait))?;
            client.write(bytes)
        })?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Repeats a call that waits for a tick at most, until it has done something, the deadline has passed
/// or the daemon stops.
fn until(
    deadline: Instant,
    stop: &Stop,
    mut call: impl FnMut(Duration) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.requested() {
            return Err(ErrorKind::TimedOut.into());
        }
        match call(left.min(TICK)) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Stage;
    use crate::observe::testing::sample;

    /// A socket in a directory of its own that answers until the test is over.
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
        assert!(running.ask("reset\n").contains("anew"));
        let end_to_end =
            |running: &Running| running.registry.snapshot().latency_us[Stage::EndToEnd as usize].1.count();
        assert_eq!(end_to_end(&running), 0);
        assert_eq!(running.registry.counters().entries_read.get(), 120);
    }

    #[test]
    fn anything_else_is_told_what_there_is() {
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
