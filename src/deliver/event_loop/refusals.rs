//! Decides whether a request is served, and answers it with the reason if it is not.

use std::time::Instant;

use super::delivery::Delivery;
use crate::deliver::admission::{OVERLOADED, RETRY_AFTER_S, shortened};
use crate::deliver::http_error::HttpError;
use crate::deliver::request::Request;
use crate::deliver::response::{AllowedOrigin, Reply, switch_to_websocket};
use crate::deliver::route::{Route, RouteLimits, route};
use crate::message::Slot;
use crate::warn_limited;

impl Delivery {
    /// Returns the route of a request that is allowed, or the reason why it is refused.
    pub(super) fn check_request(
        &mut self,
        slot: Slot,
        request: &Request,
        origin: Result<AllowedOrigin, HttpError>,
        now: Instant,
    ) -> Result<Route, HttpError> {
        if let Some(refusal) = self.connections.take_refusal(slot) {
            return Err(refusal);
        }
        self.admission.check_host(request)?;
        origin?;
        let route = route(request, &self.route_limits())?;
        if self.is_draining {
            return Err(HttpError::draining());
        }
        if let Some(connection) = self.connections.get_mut(slot) {
            self.admission.allow(&connection.principal, &mut connection.counted, &route, now)?;
        }
        if self.views.has_too_many_jobs() {
            return Err(HttpError::unavailable("overloaded", OVERLOADED, RETRY_AFTER_S));
        }
        Ok(route)
    }

    /// The limits and the naming of keys with which requests and messages are parsed.
    pub(super) fn route_limits(&self) -> RouteLimits {
        RouteLimits {
            max_wait: self.config.client.max_wait,
            max_batch: self.config.delivery.max_batch,
            naming: self.config.redis.stream_key.naming(),
        }
    }

    /// Answers a request with the reason why it is not served. If the client asked for a WebSocket and the error has a
    /// close code, the WebSocket is opened and closed with that code, because a page in a browser can read no other
    /// answer to it.
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
        self.connections.touch(slot);
    }

    /// Answers a connection whose request is unknown or malformed with the reason why it is not served, and closes it.
    pub(super) fn refuse_connection(&mut self, slot: Slot, error: &HttpError) {
        let mut answer = Vec::new();
        Reply::closing().error(&mut answer, error);
        self.answer_and_close(slot, answer);
    }
}
