//! One thread's connection to Redis over the life of the daemon: opened when needed, closed when it fails, opened
//! again after a pause that grows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Backoff, Ending, Link, Phase, RedisError, Target};
use crate::observe::Registry;

/// The first pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// After a failure, an idle connection counts as working once it has been open for this long.
const STANDS: Duration = Duration::from_secs(1);

/// A connection that is reopened.
pub struct Connector {
    target: Arc<Target>,
    /// Names the thread and the connection's purpose; Redis shows it in CLIENT LIST.
    name: String,
    backoff: Backoff,
    link: Option<Link>,
    retry_at: Option<Instant>,
    /// Counts the connections that were opened.
    generation: u64,
    connected_at: Instant,
    /// Whether something has failed and nothing has worked since.
    has_failed: bool,
    response_timeout: Duration,
    registry: Arc<Registry>,
    ending: Ending,
}

impl Connector {
    /// A connector without a connection yet.
    #[must_use]
    pub fn new(
        target: Arc<Target>,
        name: impl Into<String>,
        config: &crate::config::Redis,
        registry: Arc<Registry>,
    ) -> Self {
        let name = name.into();
        let seed = name
            .bytes()
            .fold(u64::from(std::process::id()), |seed, byte| seed.rotate_left(7) ^ u64::from(byte));
        Self {
            target,
            backoff: Backoff::new(PAUSE_MIN, config.backoff_max, seed),
            name,
            link: None,
            retry_at: None,
            generation: 0,
            connected_at: Instant::now(),
            has_failed: false,
            response_timeout: config.response_timeout,
            registry,
            ending: Ending::default(),
        }
    }

    /// Makes the connections wait no longer than until `ending`.
    #[must_use]
    pub fn until(self, ending: Ending) -> Self {
        Self { ending, ..self }
    }

    /// The connection, opened now if there is none and the pause after the last failure is over.
    pub fn link(&mut self, now: Instant) -> Option<&mut Link> {
        if self.link.is_none() && self.retry_at.is_none_or(|at| at <= now) {
            match Link::connect_until(&self.target, &self.name, &self.ending) {
                Ok(link) => {
                    self.registry.counters().redis_connects.add(1);
                    if !self.has_failed {
                        self.registry.redis_works(&self.name, now);
                    }
                    tracing::debug!(
                        connection = self.name,
                        address = self.target.address(),
                        "connected to Redis"
                    );
                    self.generation += 1;
                    self.connected_at = now;
                    self.retry_at = None;
                    self.link = Some(link);
                }
                Err(error) => self.failed(&error, Phase::Connecting, Instant::now()),
            }
        }
        let stands = now.saturating_duration_since(self.connected_at) >= STANDS;
        if self.has_failed && self.link.is_some() && stands {
            self.recovered(now);
        }
        self.link.as_mut()
    }

    /// Sends a question that may be repeated. If the server or a proxy has closed the connection since it was last
    /// used, which does not mean that Redis is down, the question is repeated on a new connection.
    ///
    /// # Errors
    /// The error; the connection is kept, and the caller closes it with [`Connector::lost`] if that helps. `None` if
    /// there is no connection.
    pub fn ask<T>(
        &mut self,
        now: Instant,
        ask: impl Fn(&mut Link) -> Result<T, RedisError>,
    ) -> Result<T, Option<RedisError>> {
        let was_open = self.link.is_some();
        let first = self.link(now).map(&ask).ok_or(None)?;
        match first {
            Err(RedisError::Closed | RedisError::Io(_)) if was_open => {
                self.close();
                self.link(now).map(ask).ok_or(None)?.map_err(Some)
            }
            result => result.map_err(Some),
        }
    }

    /// Keeps an idle connection ready: detects that it was closed, and reopens it when the pause is over.
    pub fn keep(&mut self, now: Instant) {
        if let Some(Err(error)) = self.link(now).map(Link::try_receive) {
            self.lost(&error, now);
        }
    }

    /// The connection, if there is one.
    pub fn open(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.link.is_some()
    }

    /// Counts the connections: a different number means a different connection.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How long a reply may take.
    #[must_use]
    pub fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// Records that the connection works: the next failure counts as the first.
    pub fn works(&mut self) {
        self.backoff.reset();
        if self.has_failed {
            self.recovered(Instant::now());
        }
    }

    fn recovered(&mut self, now: Instant) {
        self.has_failed = false;
        self.registry.redis_works(&self.name, now);
    }

    /// Closes the connection because of `error`; the next attempt comes after a pause.
    pub fn lost(&mut self, error: &RedisError, now: Instant) {
        self.failed(error, Phase::Connected, now);
    }

    fn failed(&mut self, error: &RedisError, phase: Phase, now: Instant) {
        self.link = None;
        let pause = self.backoff.next();
        self.retry_at = Some(now + pause);
        self.has_failed = true;
        self.registry.counters().redis_errors.add(1);
        let (trouble, address) = (error.trouble(phase), self.target.address());
        tracing::debug!(connection = self.name, address, %error, ?phase, ?pause, "{}", trouble.what);
        self.registry.redis_fails(&self.name, trouble, &format!("{address}: {error}"), now);
    }

    /// Closes the connection without counting a failure.
    pub fn close(&mut self) {
        self.link = None;
    }
}
