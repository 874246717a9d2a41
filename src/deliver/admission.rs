//! Admission: decides on new connections, the names and origins of requests, rates and caps.
//!
//! The order is the contract's: connections and the client's rate when a connection is accepted, then for each request
//! its `Host`, its `Origin`, its name, and the limits of the client. A connection that is refused when it is
//! accepted is told so in answer to its first request, because only that says how: as HTTP with CORS headers, or to a
//! browser's WebSocket by a close code. Few connections wait like that, and not for long; the others are told at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::http_error::HttpError;
use super::request::Request;
use super::response::AllowedOrigin;
use super::route::Route;
use crate::observe::Registry;
use crate::security::policies::Policies;
use crate::security::principal::Principal;
use crate::security::rate::{Rates, RetryAfter};
use crate::{swap, warn_limited};

/// How long a client that is refused for want of room is told to wait, in seconds.
pub(super) const RETRY_AFTER_S: u32 = 1;
/// Messages to clients that are over a limit, each with the configuration key of that limit. The reason of a
/// WebSocket's close has room for 123 bytes.
const OVER_CONNECTIONS: &str =
    "there is no room for another connection: client.max_connections says how many";
const OVER_CONNECTS: &str = "too many connections a second: limits.connects_per_second says how many";
const OVER_ADDRESS: &str = "too many connections of one client: limits.per_client says how many";
pub(super) const OVER_SUBSCRIBES: &str =
    "too many requests for streams a second: limits.subscribes_per_second says how many";
pub(super) const OVER_CANCELS: &str =
    "too many requests to cancel a second: limits.cancels_per_second says how many";
pub(super) const OVERLOADED: &str = "too many streams are being looked up at this moment; try again";
/// How long a refused connection may wait for its first request.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(2);
/// Bytes of a header of the request that the log shows.
const LOGGED_BYTES_MAX: usize = 200;

/// The policies and limits by which clients are admitted.
pub(super) struct Admission {
    policies: swap::Reader<Policies>,
    /// The rates and caps of clients; shared by all delivery threads.
    rates: Arc<Mutex<Rates>>,
    /// How many connections all clients may have.
    max_connections: usize,
    registry: Arc<Registry>,
}

impl Admission {
    /// These policies and limits.
    pub(super) fn new(
        policies: swap::Reader<Policies>,
        (rates, max_connections): (Arc<Mutex<Rates>>, usize),
        registry: Arc<Registry>,
    ) -> Self {
        Self { policies, rates, max_connections, registry }
    }

    /// Takes policies that were exchanged. Within a round they stay the same.
    pub(super) fn refresh(&mut self) {
        self.policies.refresh();
    }

    /// Why a new connection is not served, if it is not; `connections` counts it too.
    pub(super) fn admit(&self, client: &Principal, connections: usize, now: Instant) -> Option<HttpError> {
        let counters = self.registry.counters();
        if connections > self.max_connections {
            counters.connections_refused_full.inc();
            return Some(HttpError::unavailable("full", OVER_CONNECTIONS, RETRY_AFTER_S));
        }
        let refused = self.rates.lock().connect(client, now).err()?;
        counters.connections_refused_rate.inc();
        Some(too_many(OVER_CONNECTS, refused.seconds()))
    }

    /// Refuses a request whose `Host` is none of this server's names, although it leads here.
    pub(super) fn check_host(&self, request: &Request) -> Result<(), HttpError> {
        if self.policies.hosts.allows(request.host.as_deref()) {
            return Ok(());
        }
        let host = request.host.as_deref().map(shortened).unwrap_or_default();
        warn_limited!(?host, "a request for a host that is not in listen.hosts was refused");
        Err(HttpError::misdirected())
    }

    /// The origins whose scripts may read the answer; the refusal if the request's is not allowed.
    pub(super) fn judge_origin(&self, request: &Request) -> Result<AllowedOrigin, HttpError> {
        let decision = self.policies.origins.decide(request.origin.as_deref(), request.host.as_deref());
        AllowedOrigin::from_decision(decision)
    }

    /// Whether the client's rates allow the request. The first request that may be served makes its connection count
    /// for its client, which `counted` notes.
    pub(super) fn allow(
        &self,
        client: &Principal,
        counted: &mut bool,
        route: &Route,
        now: Instant,
    ) -> Result<(), HttpError> {
        let mut rates = self.rates.lock();
        if !*counted {
            if !rates.open(client) {
                self.registry.counters().connections_refused_rate.inc();
                return Err(too_many(OVER_ADDRESS, u64::from(RETRY_AFTER_S)));
            }
            *counted = true;
        }
        let (rated, message) = match route {
            Route::Stream(_) => (rates.subscribe(client, now), OVER_SUBSCRIBES),
            Route::Cancel(_) => (rates.cancel(client, now), OVER_CANCELS),
            Route::Multiplex | Route::Page | Route::File(_) | Route::Preflight { .. } => (Ok(()), ""),
        };
        rated.map_err(|refused| too_many(message, refused.seconds()))
    }

    /// Whether the client's rate allows another request to cancel.
    pub(super) fn allow_cancel(&self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.rates.lock().cancel(client, now)
    }

    /// Whether the client's rate allows another request for a stream.
    pub(super) fn allow_subscribe(&self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.rates.lock().subscribe(client, now)
    }

    /// A connection that counted for its client is gone.
    pub(super) fn uncount(&self, client: &Principal) {
        self.rates.lock().close(client);
    }
}

/// The beginning of a text, as much as the log shows.
pub(super) fn shortened(text: &str) -> &str {
    let mut len = text.len().min(LOGGED_BYTES_MAX);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

pub(super) fn too_many(message: &str, seconds: u64) -> HttpError {
    HttpError::too_many("too_many", message, u32::try_from(seconds).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a close frame's 125 that are left beside the code.
    const REASON_BYTES_MAX: usize = 123;

    #[test]
    fn what_is_told_names_a_key_and_fits_into_the_reason_of_a_close() {
        for message in [OVER_CONNECTIONS, OVER_CONNECTS, OVER_ADDRESS, OVER_SUBSCRIBES, OVER_CANCELS] {
            assert!(message.contains("limits.") || message.contains("client."), "{message}");
            let reason = format!("{message}; try again in 3600 s");
            assert!(reason.len() <= REASON_BYTES_MAX, "{reason}");
        }
        assert!(HttpError::draining().message.len() <= REASON_BYTES_MAX);
    }
}
