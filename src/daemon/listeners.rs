//! The sockets on which the daemon listens: passed by systemd, or bound here.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::DaemonError;
use super::systemd::passed_sockets;
use crate::config::Config;
use crate::deliver::acceptor::Listener;
use crate::observe::stats_socket::{self, SocketFile};

/// The most connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 4096;

/// All sockets, listening.
pub(super) struct Listeners {
    /// Clients.
    pub(super) public: Listener,
    /// Operators.
    pub(super) admin: TcpListener,
    /// `llm-bridge stats`, with the socket file to remove at the end if the daemon created it.
    pub(super) stats: Option<(UnixListener, Option<SocketFile>)>,
}

impl Listeners {
    /// Takes the sockets that systemd passed and binds the others.
    ///
    /// # Errors
    /// If an address cannot be used; the message names the setting.
    pub(super) fn open(config: &Config) -> Result<Self, DaemonError> {
        let passed = passed_sockets()?;
        let is_passed = passed.public.is_some();
        let public = match passed.public {
            Some(socket) => socket,
            None => bind(config.listen.public, "listen.public")?,
        };
        let admin = match passed.admin {
            Some(socket) => socket,
            None => bind(config.listen.admin, "listen.admin")?,
        };
        let stats = match (passed.stats, &config.listen.stats_socket) {
            (Some(socket), _) => Some((socket, None)),
            (None, Some(path)) => bind_stats(path),
            (None, None) => None,
        };
        public.set_nonblocking(true)?;
        let public = Listener { socket: mio::net::TcpListener::from_std(public), is_passed };
        Ok(Self { public, admin, stats })
    }
}

/// The stats socket, without which the daemon can run.
fn bind_stats(path: &Path) -> Option<(UnixListener, Option<SocketFile>)> {
    match stats_socket::bind(path) {
        Ok((socket, file)) => Some((socket, Some(file))),
        Err(error) => {
            tracing::warn!(
                %error,
                fix = "let this user write to that directory, or set listen.stats_socket to a path of its own (\"\": \
                       none) and name it to `llm-bridge stats` with --socket",
                "there is no stats socket; the daemon runs without it"
            );
            None
        }
    }
}

fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, DaemonError> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait until the kernel has forgotten the connections of the former process.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|error| DaemonError::Listen { key, why: format!("{address}: {error}{}", advice(&error)) })
}

/// Advice to the operator about an address that cannot be used.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; stop the process that listens there, or choose another address",
        ErrorKind::AddrNotAvailable => {
            "; choose an address that this machine has, or 0.0.0.0 or [::] for all"
        }
        ErrorKind::PermissionDenied => "; choose a port from 1024 up, or let systemd pass the socket",
        _ => "",
    }
}
