//! Handles deadlines: sends keep-alives, closes connections of slow and vanished clients, ends waits that run out, and
//! drains the instance.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::delivery::Delivery;
use crate::deliver::admission::REFUSED_WAIT;
use crate::deliver::close_code::CloseCode;
use crate::deliver::connection::{Connection, Phase, Viewers};
use crate::deliver::http_error::HttpError;
use crate::deliver::websocket::{close_frame, ping_frame};
use crate::message::Slot;
use crate::model::control_frames;
use crate::model::{StreamStatus, websocket_text};

/// An empty SSE comment. It keeps proxies from closing a response in which nothing is sent.
pub(super) const COMMENT: &[u8] = b":\n\n";
/// Keep-alive intervals after which a client that has not answered a ping is considered gone.
const PINGS_UNANSWERED: u32 = 2;
/// How often per `client.slow_timeout` a client for which bytes wait is checked for progress.
pub(super) const PROGRESS_CHECKS: u32 = 4;

/// A part of `whole` that differs between connections with neighbouring indices: the fractional part of multiples of
/// the golden ratio. By it, the first keep-alives of connections that fell silent at once, such as all viewers of one
/// stream, are spread over time.
fn spread(index: usize, whole: Duration) -> Duration {
    const GOLDEN: u32 = 0x9E37_79B9;
    let fraction = u32::try_from(index & 0xFFFF_FFFF).unwrap_or(0).wrapping_mul(GOLDEN);
    whole.mul_f64(f64::from(fraction) / f64::from(u32::MAX))
}

impl Delivery {
    /// Handles the deadlines of a connection that have passed. Returns when to check it again.
    pub(super) fn check_deadlines(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let slow_timeout = self.config.client.slow_timeout;
        let connection = self.connections.get_mut(slot)?;
        let slow_at = match connection.slow_at(slow_timeout, now) {
            Ok(slow_at) => slow_at,
            Err(error) => {
                tracing::debug!(%error, "a client's socket is broken");
                self.connections.end(slot);
                return None;
            }
        };
        if slow_at.is_some_and(|at| at <= now) && !matches!(connection.phase, Phase::Closing { .. }) {
            return self.close_slow(slot, now);
        }
        let phase_at = match &connection.phase {
            Phase::Closing { until } => {
                let over_at = until.or(slow_at);
                if over_at.is_some_and(|at| at <= now) {
                    self.connections.end(slot);
                    return None;
                }
                over_at
            }
            // The previous answer has not been sent completely, so the next request need not be there yet.
            Phase::Head { .. } if !connection.outbox.is_empty() => slow_at,
            // The request may already be in the socket, unread because this thread is late.
            Phase::Head { .. } | Phase::Body { .. } if connection.has_unread() && connection.queued => {
                Some(now + self.config.client.handshake_timeout)
            }
            Phase::Head { since, .. } | Phase::Body { since, .. } => {
                let timeout = self.config.client.handshake_timeout;
                let timeout = if connection.refusal.is_some() { timeout.min(REFUSED_WAIT) } else { timeout };
                let at = *since + timeout;
                if at <= now {
                    return self.time_out_request(slot);
                }
                Some(at)
            }
            Phase::LookingUp { .. } | Phase::Recording { .. } => None,
            Phase::Sse { .. } => self.keep_alive(slot, now),
            Phase::WebSocket(_) => {
                let begun_at = self.check_unfinished(slot, now);
                [self.keep_alive(slot, now), begun_at].into_iter().flatten().min()
            }
        };
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        let progress_at = slow_at.map(|at| at.min(now + slow_timeout / PROGRESS_CHECKS));
        let mut next = [phase_at, progress_at].into_iter().flatten().min();
        for viewer in viewers {
            let at = self.with_views(now, |views, cx| views.check_deadlines(viewer, cx));
            next = [next, at].into_iter().flatten().min();
        }
        next
    }

    /// Closes a connection whose client has accepted no bytes for too long.
    fn close_slow(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        self.registry.counters().clients_slow_closed.inc();
        self.remove_viewers_of(slot, now);
        let connection = self.connections.get_mut(slot)?;
        let frame = matches!(connection.phase, Phase::WebSocket(_))
            .then(|| close_frame(CloseCode::Slow.number(), "no progress for too long"));
        connection.close_slow(frame, now);
        self.connections.touch(slot);
        match self.connections.get(slot)?.phase {
            Phase::Closing { until } => until,
            _ => None,
        }
    }

    /// Ends a connection whose request did not arrive in time. It is answered with the refusal that waits for the
    /// request, or with 408. A connection that was idle between two requests ends without an answer.
    fn time_out_request(&mut self, slot: Slot) -> Option<Instant> {
        if let Some(refusal) = self.connections.take_refusal(slot) {
            self.refuse_connection(slot, &refusal);
            return None;
        }
        let connection = self.connections.get(slot)?;
        if matches!(connection.phase, Phase::Head { .. }) && connection.input.is_empty() && connection.counted
        {
            self.connections.end(slot);
            return None;
        }
        self.registry.counters().handshakes_timed_out.inc();
        let error = HttpError::new(408, "request_timeout", "the request did not come in time");
        self.refuse_connection(slot, &error);
        None
    }

    /// Sends a keep-alive on a silent connection, and ends a WebSocket whose client no longer answers pings. Returns
    /// when to check it again.
    fn keep_alive(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let interval = self.config.client.keepalive;
        let connection = self.connections.get_mut(slot)?;
        let is_kept_alive = connection.kept_alive_at == Some(connection.sent_at);
        let early = if is_kept_alive { Duration::ZERO } else { spread(slot.index, interval / 2) };
        let due = connection.sent_at + interval - early;
        let is_due = due <= now;
        if let Phase::WebSocket(websocket) = &mut connection.phase {
            if let Some(pinged_at) = websocket.pinged_at
                && now.duration_since(pinged_at) >= interval * PINGS_UNANSWERED
            {
                self.registry.counters().clients_half_open_closed.inc();
                self.connections.end(slot);
                return None;
            }
            // No ping is sent while other bytes wait: `client.slow_timeout` applies to those.
            if is_due && connection.outbox.is_empty() {
                websocket.pinged_at.get_or_insert(now);
            }
        }
        if !is_due {
            return Some(due);
        }
        let bytes = match connection.phase {
            Phase::WebSocket(_) => ping_frame(&[]),
            _ => Bytes::from_static(COMMENT),
        };
        if connection.outbox.is_empty() {
            connection.kept_alive_at = Some(now);
            self.connections.send(slot, bytes);
        }
        Some(now + interval)
    }

    // ----- draining -----

    /// Begins to drain: sends `draining` to the clients, and closes every connection on which no request or answer is
    /// in progress.
    pub(super) fn drain(&mut self, now: Instant) {
        self.is_draining = true;
        self.views.drain();
        self.acceptor.drain();
        for slot in self.connections.slots() {
            let Some(connection) = self.connections.get(slot) else { continue };
            let viewers = connection.viewers();
            match &connection.phase {
                Phase::LookingUp { .. } => {
                    let error = HttpError::draining();
                    for viewer in viewers {
                        self.answer_error(viewer, &error, now);
                    }
                }
                Phase::Sse { .. } => {
                    for viewer in viewers {
                        self.with_views(now, |views, cx| {
                            views.send_draining(viewer, cx);
                            views.remove_viewer(viewer, cx);
                        });
                    }
                    if let Some(connection) = self.connections.get_mut(slot) {
                        connection.close();
                    }
                    self.connections.touch(slot);
                }
                Phase::WebSocket(websocket) => {
                    let is_many = matches!(websocket.viewers, Viewers::Many(_));
                    for viewer in viewers {
                        self.with_views(now, |views, cx| {
                            if !views.is_closing(viewer) {
                                views.send_draining(viewer, cx);
                            }
                            views.pass_on_last_ack(viewer, cx);
                        });
                    }
                    if is_many {
                        self.connections
                            .send(slot, websocket_text(&control_frames::status(StreamStatus::Draining)));
                    }
                    self.close_if_drained(slot, now);
                }
                Phase::Head { .. } if connection.input.is_empty() && connection.outbox.is_empty() => {
                    self.connections.end(slot);
                }
                Phase::Head { .. } if connection.input.is_empty() => {
                    if let Some(connection) = self.connections.get_mut(slot) {
                        connection.close();
                    }
                }
                // Finish the request or the answer that is in progress first.
                Phase::Head { .. } | Phase::Body { .. } | Phase::Recording { .. } | Phase::Closing { .. } => {
                }
            }
        }
    }

    /// Closes a WebSocket of an instance that drains, unless its client still waits for an answer.
    pub(super) fn close_if_drained(&mut self, slot: Slot, now: Instant) {
        if !self.is_draining || self.connections.websocket(slot).is_none() || self.owes_answers(slot, now) {
            return;
        }
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        if viewers.into_iter().any(|viewer| self.views.is_closing(viewer)) {
            return self.close_websocket(slot, CloseCode::Normal, "ended", now);
        }
        self.close_websocket(slot, CloseCode::GoingAway, "draining", now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_spread_evenly() {
        let whole = Duration::from_secs(1);
        let mut tenths = [0; 10];
        for index in 0..1_000 {
            let part = spread(index, whole);
            assert!(part <= whole);
            tenths[(part.as_millis() / 100).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| (90..=110).contains(&count)), "{tenths:?}");
    }
}
