//! Admission: accepts or refuses connections, and requests by their host, origin, name, rate and limits.
//!
//! The order of the checks is part of the contract: first the number of connections and the client's rate, when a
//! connection is accepted; then, for each request, its `Host`, its `Origin`, its name, and the client's limits. A
//! connection that is refused when it is accepted gets the refusal as the answer to its first request, because the
//! request determines its form: HTTP with CORS headers, or a close code for a browser's WebSocket. Only a few refused
//! connections wait for that, and only briefly; the others are answered at once.

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

/// The `Retry-After` of a client that is refused because there is no room, in seconds.
pub(super) const RETRY_AFTER_S: u32 = 1;
/// Messages to clients that exceed a limit, each with the configuration key of that limit. The reason of a WebSocket
/// close has room for 123 bytes.
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
/// How many bytes of a request header the log shows.
const LOGGED_BYTES_MAX: usize = 200;

/// The policies and limits by which clients are admitted.
pub(super) struct Admission {
    policies: swap::Reader<Policies>,
    /// The rates and caps of clients; shared by all delivery threads.
    rates: Arc<Mutex<Rates>>,
    /// How many connections all clients together may have.
    max_connections: usize,
    registry: Arc<Registry>,
}

impl Admission {
    /// Creates the admission with these policies and limits.
    pub(super) fn new(
        policies: swap::Reader<Policies>,
        (rates, max_connections): (Arc<Mutex<Rates>>, usize),
        registry: Arc<Registry>,
    ) -> Self {
        Self { policies, rates, max_connections, registry }
    }

    /// Adopts policies that were swapped in. They stay the same within a round.
    pub(super) fn refresh(&mut self) {
        self.policies.refresh();
    }

    /// The error with which a new connection is refused, or `None` if it is served. `connections` includes it.
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

    /// Refuses a request whose `Host` is not one of this server's names, as in a DNS rebinding attack.
    pub(super) fn check_host(&self, request: &Request) -> Result<(), HttpError> {
        if self.policies.hosts.allows(request.host.as_deref()) {
            return Ok(());
        }
        let host = request.host.as_deref().map(shortened).unwrap_or_default();
        warn_limited!(?host, "a request for a host that is not in listen.hosts was refused");
        Err(HttpError::misdirected())
    }

    /// Returns the origins whose scripts may read the answer, or the refusal if the request's origin is not allowed.
    pub(super) fn judge_origin(&self, request: &Request) -> Result<AllowedOrigin, HttpError> {
        let decision = self.policies.origins.decide(request.origin.as_deref(), request.host.as_deref());
        AllowedOrigin::from_decision(decision)
    }

    /// Checks the client's limits for a request. The first request that passes the limit of connections makes its
    /// connection count for the client; `counted` records that.
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

    /// Counts a cancel request against the client's rate; an error if the rate is exceeded.
    pub(super) fn allow_cancel(&self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.rates.lock().cancel(client, now)
    }

    /// Counts a request for a stream against the client's rate; an error if the rate is exceeded.
    pub(super) fn allow_subscribe(&self, client: &Principal, now: Instant) -> Result<(), RetryAfter> {
        self.rates.lock().subscribe(client, now)
    }

    /// Notes that a connection that counted for its client was removed.
    pub(super) fn uncount(&self, client: &Principal) {
        self.rates.lock().close(client);
    }
}

/// The beginning of a text, at most as long as the log shows.
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

    /// The bytes of a close frame's 125 that are left after the code.
    const REASON_BYTES_MAX: usize = 123;

    #[test]
    fn refusals_name_a_key_and_fit_into_a_close_reason() {
        for message in [OVER_CONNECTIONS, OVER_CONNECTS, OVER_ADDRESS, OVER_SUBSCRIBES, OVER_CANCELS] {
            assert!(message.contains("limits.") || message.contains("client."), "{message}");
            let reason = format!("{message}; try again in 3600 s");
            assert!(reason.len() <= REASON_BYTES_MAX, "{reason}");
        }
        assert!(HttpError::draining().message.len() <= REASON_BYTES_MAX);
    }
}
