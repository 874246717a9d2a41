//! Passes cancel requests to the recorder, and its answers back to the clients. A client is answered when its request
//! has been written, or when it is certain that it will not be.
//!
//! Bounded: an HTTP connection has one request in progress, and further input waits behind it; a WebSocket has at most
//! [`CANCELS_PER_SOCKET_MAX`]. The recorder's queue bounds the number and the bytes of all requests together.

use std::time::Instant;

use bytes::Bytes;

use super::delivery::Delivery;
use crate::deliver::admission::RETRY_AFTER_S;
use crate::deliver::connection::Phase;
use crate::deliver::http_error::HttpError;
use crate::deliver::message::{Refusal, parse_cancel_body};
use crate::deliver::response::Reply;
use crate::message::record::{Asker, CancelRequest, Refused};
use crate::message::{RECORDER, Slot};
use crate::model::StreamName;
use crate::model::control_frames;

/// Cancel requests of one WebSocket that wait for an answer, at most.
const CANCELS_PER_SOCKET_MAX: u32 = 64;

impl Delivery {
    /// Handles an HTTP request to cancel `stream`, which is answered with `reply`.
    pub(super) fn cancel_by_request(
        &mut self,
        slot: Slot,
        stream: StreamName,
        (body, reply): (&[u8], Reply),
        now: Instant,
    ) {
        let result = parse_cancel_body(body).and_then(|reason| {
            self.cancel(slot, (stream, reason), None, now).map_err(|why| http_error(&why))
        });
        match result {
            Ok(()) => {
                if let Some(connection) = self.connections.get_mut(slot) {
                    connection.phase = Phase::Recording { reply };
                }
            }
            Err(error) => self.reply_error(slot, &reply, &error, now),
        }
    }

    /// Handles a message of a WebSocket client that cancels `stream`. The answer names the stream `about`.
    pub(super) fn cancel_by_message(
        &mut self,
        slot: Slot,
        (stream, reason): (StreamName, Option<String>),
        about: Option<StreamName>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Some(websocket) = self.connections.websocket(slot) else { return Ok(()) };
        if websocket.cancels_pending >= CANCELS_PER_SOCKET_MAX {
            let message = "too many requests to cancel are not answered yet: wait for the answers";
            return Err(Refusal::new("too_many", message));
        }
        self.cancel(slot, (stream, reason), about, now)
            .map_err(|Refused { code, message, .. }| Refusal::new(code, message))?;
        if let Some(websocket) = self.connections.websocket(slot) {
            websocket.cancels_pending += 1;
        }
        Ok(())
    }

    /// Passes a cancel request to the recorder, or returns the reason why that is not possible.
    fn cancel(
        &mut self,
        slot: Slot,
        (stream, reason): (StreamName, Option<String>),
        about: Option<StreamName>,
        now: Instant,
    ) -> Result<(), Refused> {
        if self.is_draining {
            return Err(Refused::new("draining", HttpError::draining().message));
        }
        let health = self.registry.health();
        if health.is_down(RECORDER) {
            let trouble = health.trouble().unwrap_or("Redis cannot serve now");
            return Err(Refused::new("redis_unreachable", trouble));
        }
        let by = self.connections.get(slot).map(|connection| connection.principal.to_string());
        let asker = Asker { delivery: self.outbound.delivery(), connection: slot, about };
        let request = CancelRequest { stream, reason, by: by.unwrap_or_default(), asker, asked_at: now };
        if self.outbound.cancel(request) {
            return Ok(());
        }
        Err(Refused::new("overloaded", "too many requests to cancel wait to be written; try again"))
    }

    /// Passes the recorder's answer on to the client, if it is still connected.
    pub(super) fn cancel_answered(&mut self, asker: Asker, outcome: Result<(), Refused>, now: Instant) {
        let Asker { connection: slot, about, .. } = asker;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match &mut connection.phase {
            Phase::Recording { .. } => {
                let since = Phase::Head { since: now, seen: 0 };
                let Phase::Recording { reply } = std::mem::replace(&mut connection.phase, since) else {
                    return;
                };
                match outcome {
                    Ok(()) => {
                        let answer = reply.json(202, Bytes::from_static(b"{}"));
                        self.reply_whole(slot, &reply, answer, now);
                    }
                    Err(why) => self.reply_error(slot, &reply, &http_error(&why), now),
                }
                self.connections.read_further(slot);
            }
            Phase::WebSocket(websocket) => {
                websocket.cancels_pending = websocket.cancels_pending.saturating_sub(1);
                match outcome {
                    Ok(()) => {
                        self.answer_message(slot, about.as_ref(), &control_frames::cancel_requested(), now);
                    }
                    Err(Refused { code, message, .. }) => {
                        self.refuse_message(slot, &Refusal::new(code, message).about(about), now);
                    }
                }
                self.close_if_drained(slot, now);
            }
            _ => {}
        }
    }
}

fn http_error(why: &Refused) -> HttpError {
    if let Some(seconds) = why.retry_after_s() {
        return HttpError::too_many(why.code, &why.message, seconds);
    }
    HttpError::unavailable(why.code, &why.message, RETRY_AFTER_S)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn too_many_says_when_to_try_again() {
        let error = http_error(&Refused::too_many("full", Duration::from_millis(41_200)));
        assert_eq!((error.status, error.retry_after), (429, Some(42)));
        assert_eq!(error.message, "full; try again in 42 s");
        assert_eq!(http_error(&Refused::new("redis_refuses", "x")).retry_after, Some(RETRY_AFTER_S));
    }
}
