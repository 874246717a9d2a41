//! The stats socket: a Unix socket that answers one line (`text`, `json`, `histograms` or `reset`)
//! and closes.
//!
//! It serves one client at a time, each for four seconds at most, so a client that hangs delays the
//! others but cannot block them. Who may ask is decided by the file's mode (0660) and directory.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io::Error};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Registry;
use crate::stop::Stop;

/// Bytes of a request, its newline included.
const LINE_BYTES_MAX: usize = 64;
/// For the client to send its line, and again to take the answer.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// How often the stop signal is looked at.
const TICK: Duration = Duration::from_millis(250);

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
        source: Error,
    },
}

/// The file of a socket that [`bind`] made; dropping it removes the file, unless another daemon has
/// put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
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
    let file = fs::symlink_metadata(path).map_err(failed)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: (file.dev(), file.ino()) }))
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
                tracing::warn!(%error, "the stats socket cannot accept a connection");
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
    write_all(&mut client, answer.as_bytes(), stop)
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
