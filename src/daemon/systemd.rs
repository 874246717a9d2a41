//! Messages to systemd and sockets from it: the notify protocol (`READY=1`, `STATUS=`,
//! `WATCHDOG=1`, `STOPPING=1`) and sockets that it opened for the daemon.
//!
//! Without systemd, this module does nothing. A notification that fails is only logged: the clients come first. The
//! sd-notify crate formats the messages and finds watchdog and sockets; this module sends them, because the crate
//! does not support addresses in the abstract namespace (`@…`), which container managers use.

use crate::warn_limited;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::{Domain, SockRef, Type};

/// How long a notification may wait for room in systemd's socket.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Notifies systemd of the daemon's state.
#[derive(Debug)]
pub struct Notifier {
    /// `None`: there is nobody to notify.
    target: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// A notifier according to `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    #[must_use]
    pub fn from_environment() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET");
        Self::new(address.as_deref(), sd_notify::watchdog_enabled())
    }

    /// Sends to `address`, a path or `@` and an abstract name; `watchdog` is systemd's timeout.
    #[must_use]
    pub fn new(address: Option<&OsStr>, watchdog: Option<Duration>) -> Self {
        let open = |address: &OsStr| {
            let target = match address.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(address)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            Ok::<_, io::Error>((socket, target))
        };
        let target = address.filter(|address| !address.is_empty()).and_then(|address| {
            open(address)
                .inspect_err(|error| tracing::warn!(?address, %error, "systemd cannot be notified"))
                .ok()
        });
        Self { target, watchdog: watchdog.filter(|interval| !interval.is_zero()) }
    }

    /// Reports that the daemon serves.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.send(&[NotifyState::Status(&one_line(text))]);
    }

    /// Reports that the daemon is alive: to be called at every [`Notifier::watchdog_interval`], and only while all
    /// threads make progress.
    pub fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send(&[NotifyState::Watchdog]);
        }
    }

    /// After how much silence systemd would kill the daemon; `None`: never.
    #[must_use]
    pub fn watchdog_patience(&self) -> Option<Duration> {
        self.watchdog
    }

    /// How often systemd expects a notification: half of the time after which it would kill the daemon; `None`:
    /// never.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    /// Reports that the daemon is stopping.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some((socket, target)) = &self.target else { return };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send_to_addr(lines.join("\n").as_bytes(), target) {
            warn_limited!(%error, message = lines[0], "systemd could not be notified");
        }
    }
}

/// A line break in a status would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// The sockets that systemd opened for the daemon. They are blocking; an event loop has to change that.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listens for clients.
    pub public: Option<TcpListener>,
    /// Listens for operators.
    pub admin: Option<TcpListener>,
    /// Listens for `llm-bridge stats`.
    pub stats: Option<UnixListener>,
}

/// Why passed sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// `LISTEN_FDS` and the like contradict each other or the open descriptors.
    #[error("the sockets passed by systemd cannot be taken: {0}")]
    Environment(#[from] io::Error),
    /// The name is none of the three names.
    #[error("a passed socket is named {name:?}; FileDescriptorName= is public, admin or stats")]
    Name {
        /// Its name.
        name: String,
    },
    /// The name occurs more than once.
    #[error("more than one passed socket is named {name:?}")]
    Twice {
        /// Their name.
        name: String,
    },
    /// The socket is not of the kind that its name requires.
    #[error("the passed socket {name:?} is not a listening {wanted} socket")]
    Kind {
        /// Its name.
        name: String,
        /// The kind that its name requires.
        wanted: &'static str,
    },
}

/// Takes the sockets that systemd passed, by their names in `LISTEN_FDNAMES`; a single socket without
/// a name of its own is the public one.
///
/// A second call returns nothing, because the first one owns the sockets.
///
/// # Errors
/// If a socket has another name or is of another kind, which leads to exit status 78.
pub fn passed_sockets() -> Result<Passed, PassedError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Passed::default());
    }
    // Sockets that were inherited through another process are not ours; their names may be anything.
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string()) {
        return Ok(Passed::default());
    }
    let sockets: Vec<(RawFd, String)> = sd_notify::listen_fds_with_names()?.collect();
    let owned = |(fd, name): (RawFd, String)| {
        // SAFETY: systemd passed the open descriptor to this process, the crate has checked that it is open, and it
        // is taken once, so that nobody else owns it.
        (unsafe { OwnedFd::from_raw_fd(fd) }, name)
    };
    sort(sockets.into_iter().map(owned).collect())
}

fn sort(sockets: Vec<(OwnedFd, String)>) -> Result<Passed, PassedError> {
    let is_alone = sockets.len() == 1;
    let mut passed = Passed::default();
    for (socket, name) in sockets {
        match name.as_str() {
            "public" => put(&mut passed.public, tcp(socket, name)?, "public")?,
            "admin" => put(&mut passed.admin, tcp(socket, name)?, "admin")?,
            "stats" => put(&mut passed.stats, unix(socket, name)?, "stats")?,
            unnamed if is_alone && is_default_name(unnamed) => passed.public = Some(tcp(socket, name)?),
            _ => return Err(PassedError::Name { name }),
        }
    }
    Ok(passed)
}

/// Whether nobody chose the name: systemd then uses the socket unit's name, and the crate `unknown` if there are no
/// names at all.
fn is_default_name(name: &str) -> bool {
    matches!(name, "" | "unknown") || name.ends_with(".socket")
}

fn put<T>(place: &mut Option<T>, socket: T, name: &str) -> Result<(), PassedError> {
    match place.replace(socket) {
        None => Ok(()),
        Some(_) => Err(PassedError::Twice { name: name.to_owned() }),
    }
}

fn tcp(socket: OwnedFd, name: String) -> Result<TcpListener, PassedError> {
    if is_listening(&socket, &[Domain::IPV4, Domain::IPV6]) {
        return Ok(TcpListener::from(socket));
    }
    Err(PassedError::Kind { name, wanted: "TCP" })
}

fn unix(socket: OwnedFd, name: String) -> Result<UnixListener, PassedError> {
    if is_listening(&socket, &[Domain::UNIX]) {
        return Ok(UnixListener::from(socket));
    }
    Err(PassedError::Kind { name, wanted: "Unix stream" })
}

fn is_listening(socket: &OwnedFd, domains: &[Domain]) -> bool {
    let socket = SockRef::from(socket);
    socket.domain().is_ok_and(|domain| domains.contains(&domain))
        && socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests;
