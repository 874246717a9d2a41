//! Admission: decides on new connections, the names and origins of requests, rates and caps; and sends refusals.
//!
//! The order is the contract's: connections and the address' rate when a connection is accepted, then for each request
//! its `Host`, its `Origin`, its name, and the limits of the client. A connection that is refused when it is
//! accepted is told so in answer to its first request, because only that says how: as HTTP with CORS headers, or to a
//! browser's WebSocket by a close code. Few connections wait like that, and not for long; the others are told at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::http_error::HttpError;
use super::request::Request;
use super::response::{AllowedOrigin, Reply, switch_to_websocket};
use super::route::{Route, RouteLimits, route};
use crate::event::message::Slot;
use crate::warn_limited;

/// How long a client that is refused for want of room is told to wait, in seconds.
pub(super) const RETRY_AFTER_S: u32 = 1;
/// Messages to clients that are over a limit, each with the configuration key of that limit. The reason of a
/// WebSocket's close has room for 123 bytes.
const OVER_CONNECTIONS: &str =
    "there is no room for another connection: client.max_connections says how many";
const OVER_CONNECTS: &str = "too many connections a second: limits.connects_per_second says how many";
const OVER_ADDRESS: &str = "too many connections from one address: limits.per_address says how many";
pub(super) const OVER_SUBSCRIBES: &str =
    "too many requests for streams a second: limits.subscribes_per_second says how many";
pub(super) const OVER_CANCELS: &str =
    "too many requests to cancel a second: limits.cancels_per_second says how many";
pub(super) const OVERLOADED: &str = "too many streams are being looked up at this moment; try again";
/// Refused connections that may wait for their first request. The descriptors that are kept free hold these and more.
const REFUSED_WAITING_MAX: usize = 64;
/// How long they may wait.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(2);
/// Bytes of a header of the request that the log shows.
const LOGGED_BYTES_MAX: usize = 200;

impl Delivery {
    /// Why a new connection is not served, if it is not.
    pub(super) fn admit(&mut self, address: SocketAddr, now: Instant) -> Option<HttpError> {
        let counters = self.registry.counters();
        if self.is_draining {
            return Some(HttpError::draining());
        }
        if self.connections_of_all() > self.max_connections() {
            counters.connections_refused_full.inc();
            return Some(HttpError::unavailable("full", OVER_CONNECTIONS, RETRY_AFTER_S));
        }
        let refused = self.rates.lock().connect(address.ip(), now).err()?;
        counters.connections_refused_rate.inc();
        Some(too_many(OVER_CONNECTS, refused.seconds()))
    }

    /// A connection is refused: it is told so in answer to its first request, or at once if too many wait for that.
    pub(super) fn refuse_when_asked(&mut self, slot: Slot, error: HttpError, now: Instant) {
        if self.refused_waiting >= REFUSED_WAITING_MAX {
            return self.refuse_connection(slot, &error);
        }
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.refusal = Some(Box::new(error));
        self.refused_waiting += 1;
        self.arm(slot, now + REFUSED_WAIT.min(self.config.client.handshake_timeout));
    }

    /// The resource that a request asks for, if it is allowed; else the refusal.
    pub(super) fn judge(
        &mut self,
        slot: Slot,
        request: &Request,
        origin: Result<AllowedOrigin, HttpError>,
        now: Instant,
    ) -> Result<Route, HttpError> {
        if let Some(refusal) = self.connections.get_mut(slot).and_then(|found| found.refusal.take()) {
            self.refused_waiting -= 1;
            return Err(*refusal);
        }
        self.check_host(request)?;
        origin?;
        let route = route(request, &self.route_limits())?;
        self.allow(slot, route, now)
    }

    /// The limits and the naming by which requests and messages are read.
    pub(super) fn route_limits(&self) -> RouteLimits {
        RouteLimits {
            max_wait: self.config.client.max_wait,
            max_batch: self.config.delivery.max_batch,
            naming: self.config.redis.stream_key.naming(),
        }
    }

    /// Refuses a request whose `Host` is none of this server's names, although it leads here.
    fn check_host(&self, request: &Request) -> Result<(), HttpError> {
        if self.hosts.allows(request.host.as_deref()) {
            return Ok(());
        }
        let host = request.host.as_deref().map(shortened).unwrap_or_default();
        warn_limited!(?host, "a request for a host that is not in listen.hosts was refused");
        Err(HttpError::misdirected())
    }

    /// The origins whose scripts may read the answer; the refusal if the request's is not allowed.
    pub(super) fn judge_origin(&self, request: &Request) -> Result<AllowedOrigin, HttpError> {
        let decision = self.origins.decide(request.origin.as_deref(), request.host.as_deref());
        AllowedOrigin::from_decision(decision)
    }

    /// Whether the state of this instance and the client's rates allow the request.
    fn allow(&mut self, slot: Slot, route: Route, now: Instant) -> Result<Route, HttpError> {
        if self.is_draining {
            return Err(HttpError::draining());
        }
        let Some(connection) = self.connections.get_mut(slot) else { return Ok(route) };
        let ip = connection.address.ip();
        let mut rates = self.rates.lock();
        if !connection.counted {
            if !rates.open(ip) {
                self.registry.counters().connections_refused_rate.inc();
                return Err(too_many(OVER_ADDRESS, u64::from(RETRY_AFTER_S)));
            }
            connection.counted = true;
        }
        let (rated, message) = match &route {
            Route::Stream(_) => (rates.subscribe(ip, now), OVER_SUBSCRIBES),
            Route::Cancel(_) => (rates.cancel(ip, now), OVER_CANCELS),
            Route::Multiplex | Route::Page | Route::File(_) | Route::Preflight { .. } => (Ok(()), ""),
        };
        rated.map_err(|refused| too_many(message, refused.seconds()))?;
        if self.has_too_many_jobs() {
            return Err(HttpError::unavailable("overloaded", OVERLOADED, RETRY_AFTER_S));
        }
        Ok(route)
    }

    // ----- telling -----

    /// Tells why a request is not served. A WebSocket is opened and closed with a code where that is the only thing
    /// that a browser shows to its page.
    pub(super) fn refuse(
        &mut self,
        slot: Slot,
        (request, reply): (&Request, &Reply),
        error: &HttpError,
        now: Instant,
    ) {
        if error.code == HttpError::ORIGIN_NOT_ALLOWED {
            let [origin, host] = [&request.origin, &request.host]
                .map(|name| name.as_deref().map(shortened).unwrap_or_default());
            warn_limited!(?origin, ?host, "a page's origin was refused: it is not in listen.origins");
        }
        let (Some(code), Some(offer)) = (error.close_code(), &request.websocket) else {
            return self.reply_error(slot, reply, error, now);
        };
        self.registry.counters().http_errors.inc();
        let mut head = Vec::new();
        switch_to_websocket(&mut head, offer);
        let reason = match error.retry_after {
            Some(seconds) => format!("{}; try again in {seconds} s", error.message),
            None => error.message.clone(),
        };
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send(head);
        connection.close_websocket(code, &reason);
        self.touch(slot);
    }

    /// Tells why a connection is not served whose request is not known, or could not be understood.
    pub(super) fn refuse_connection(&mut self, slot: Slot, error: &HttpError) {
        let mut answer = Vec::new();
        Reply::closing().error(&mut answer, error);
        self.answer_and_close(slot, answer);
    }
}

pub(super) fn too_many(message: &str, seconds: u64) -> HttpError {
    HttpError::too_many("too_many", message, u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// The beginning of a text, as much as the log shows.
fn shortened(text: &str) -> &str {
    let mut len = text.len().min(LOGGED_BYTES_MAX);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
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
