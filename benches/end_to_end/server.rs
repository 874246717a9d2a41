//! Who serves in a run: what each server is, its name in reports, and how it starts.

use std::error::Error;
use std::net::SocketAddr;

use crate::daemon::Process;
use crate::floor::Mode;

/// What a server is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What is measured.
    Daemon,
    /// What the least cost is.
    Floor,
    /// What Redis alone has to do.
    Bare,
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Server {
    /// The daemon
    Daemon,
    /// The floor with a blocked connection to Redis per stream
    Blocking,
    /// The floor that is told which streams have news
    Told,
    /// No server: a reader without clients that knows which streams have news
    Bare,
}

impl Server {
    /// Everyone who serves.
    pub(crate) const ALL: [Self; 4] = [Self::Daemon, Self::Blocking, Self::Told, Self::Bare];

    /// The name in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Blocking => "floor, blocking",
            Self::Told => "floor, told",
            Self::Bare => "bare reader",
        }
    }

    /// What it is there for.
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Daemon => Kind::Daemon,
            Self::Blocking | Self::Told => Kind::Floor,
            Self::Bare => Kind::Bare,
        }
    }

    /// Whether a report's name is the one of a server of this kind.
    pub(crate) fn is_a(kind: Kind, name: &str) -> bool {
        Self::ALL.iter().any(|server| server.kind() == kind && server.name() == name)
    }

    /// Starts it on a Redis, if it is a process; `settings` are those of the daemon.
    pub(crate) fn start(
        self,
        redis: SocketAddr,
        settings: &[String],
    ) -> Result<Option<Process>, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Daemon => Process::daemon(redis, settings).map(Some),
            Self::Blocking => Process::floor(redis, Mode::Blocking).map(Some),
            Self::Told => Process::floor(redis, Mode::Told).map(Some),
            Self::Bare => Ok(None),
        }
    }
}
