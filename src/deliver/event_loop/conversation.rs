//! Handles and answers the messages that WebSocket clients send after the upgrade.

use std::time::Instant;

use bytes::Bytes;

use super::delivery::Delivery;
use crate::deliver::admission::{OVER_CANCELS, OVER_SUBSCRIBES, OVERLOADED};
use crate::deliver::close_code::CloseCode;
use crate::deliver::connection::{Viewers, WebSocket};
use crate::deliver::message::{self, ClientMessage, Refusal};
use crate::deliver::viewer::{SubscribeOptions, Wire};
use crate::deliver::websocket::{Incoming, close_frame, pong_frame};
use crate::message::Slot;
use crate::model::control_frames::{self, Unsubscribed};
use crate::model::{StreamName, websocket_text, with_stream};

/// A WebSocket is closed after this many malformed or forbidden messages.
const BAD_MESSAGES_MAX: u32 = 10;

impl Delivery {
    /// Handles a WebSocket frame from a client.
    pub(super) fn handle_frame(&mut self, slot: Slot, incoming: Incoming, now: Instant) {
        match incoming {
            Incoming::Pong => {}
            Incoming::Ping(payload) => self.connections.send_answer(slot, pong_frame(&payload)),
            Incoming::Close(code) => {
                let code = code.unwrap_or(CloseCode::Normal.number());
                self.close_with(slot, close_frame(code, ""), now);
            }
            Incoming::Text(text) => self.handle_text(slot, &text, now),
            Incoming::Binary => {
                self.registry.counters().client_messages.inc();
                self.refuse_message(slot, &Refusal::new("malformed", "messages are text"), now);
            }
        }
    }

    pub(super) fn close_websocket(&mut self, slot: Slot, code: CloseCode, reason: &str, now: Instant) {
        self.close_with(slot, close_frame(code.number(), reason), now);
    }

    /// Removes a WebSocket's viewers, sends the close frame, and closes the connection.
    fn close_with(&mut self, slot: Slot, frame: Bytes, now: Instant) {
        self.remove_viewers_of(slot, now);
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.send(frame);
            connection.close();
        }
        self.connections.touch(slot);
    }

    fn handle_text(&mut self, slot: Slot, text: &str, now: Instant) {
        self.registry.counters().client_messages.inc();
        let Some(viewers) = self.connections.websocket(slot).map(|websocket| &websocket.viewers) else {
            return;
        };
        let multiplexed = matches!(viewers, Viewers::Many(_));
        let naming = self.config.redis.stream_key.naming();
        let result = message::parse(text, multiplexed, naming).and_then(|message| {
            let stream = multiplexed.then(|| message.stream().cloned()).flatten();
            self.handle_message(slot, message, now).map_err(|refusal| refusal.about(stream))
        });
        if let Err(refusal) = result {
            self.refuse_message(slot, &refusal, now);
        }
    }

    pub(super) fn refuse_message(&mut self, slot: Slot, refusal: &Refusal, now: Instant) {
        self.registry.counters().client_messages_refused.inc();
        let json = control_frames::refused(refusal.code, &refusal.message);
        self.answer_message(slot, refusal.stream.as_ref(), &json, now);
        let Some(websocket) = self.connections.websocket(slot) else { return };
        if is_bad(refusal) {
            websocket.bad_messages += 1;
            if websocket.bad_messages >= BAD_MESSAGES_MAX {
                self.close_websocket(slot, CloseCode::Policy, "too many malformed messages", now);
            }
        }
    }

    /// Answers a message. On a multiplexed connection, `stream` is the stream that the answer is about. An answer
    /// about a subscribed stream is sent after the `open` of that stream.
    pub(super) fn answer_message(
        &mut self,
        slot: Slot,
        stream: Option<&StreamName>,
        json: &[u8],
        now: Instant,
    ) {
        let Some(websocket) = self.connections.websocket(slot) else { return };
        let viewer = match &websocket.viewers {
            Viewers::One(viewer) => Some(*viewer),
            Viewers::Many(viewers) => stream.and_then(|stream| viewers.get(stream)).copied(),
        };
        match (viewer, stream) {
            (Some(viewer), _) => self.with_views(now, |views, cx| views.answer(viewer, json, cx)),
            (None, Some(stream)) => {
                self.connections.send_answer(slot, websocket_text(&with_stream(json, stream)));
            }
            (None, None) => self.connections.send_answer(slot, websocket_text(json)),
        }
    }

    fn handle_message(&mut self, slot: Slot, message: ClientMessage, now: Instant) -> Result<(), Refusal> {
        match message {
            ClientMessage::Ping { nonce } => {
                self.answer_message(slot, None, &control_frames::pong(nonce.as_deref()), now);
                Ok(())
            }
            ClientMessage::Ack { stream, id } => self.acknowledge(slot, stream, id, now),
            ClientMessage::Cancel { stream, reason } => {
                let multiplexed = stream.clone();
                let is_many = self
                    .connections
                    .websocket(slot)
                    .is_some_and(|found| matches!(found.viewers, Viewers::Many(_)));
                // A multiplexed connection may cancel a stream to which it is not subscribed.
                let stream = match stream {
                    Some(stream) if is_many => stream,
                    stream => self.subscribed(slot, stream)?,
                };
                let Some(connection) = self.connections.get(slot) else { return Ok(()) };
                let rated = self.admission.allow_cancel(&connection.principal, now);
                rated.map_err(|refused| over_rate(OVER_CANCELS, refused.seconds()))?;
                self.cancel_by_message(slot, (stream, reason), multiplexed, now)
            }
            ClientMessage::Subscribe { stream, after, follow, wait, batch } => {
                let limits = self.route_limits();
                let (wait, batch) = (limits.wait(wait), limits.batch(batch));
                self.subscribe(
                    slot,
                    SubscribeOptions {
                        stream,
                        after,
                        follow,
                        wait,
                        batch,
                        wire: Wire::Multiplexed,
                        translator: None,
                    },
                    now,
                )
            }
            ClientMessage::Unsubscribe { stream } => {
                self.subscribed(slot, Some(stream.clone()))?;
                self.unsubscribe(slot, &stream, Unsubscribed::Requested, now);
                Ok(())
            }
        }
    }

    fn subscribe(&mut self, slot: Slot, options: SubscribeOptions, now: Instant) -> Result<(), Refusal> {
        let limit = self.config.client.max_subscriptions;
        if self.views.has_too_many_jobs() {
            return Err(Refusal::new("overloaded", OVERLOADED));
        }
        let Some(WebSocket { viewers: Viewers::Many(viewers), .. }) = self.connections.websocket(slot) else {
            return Ok(());
        };
        if viewers.contains_key(&options.stream) {
            return Err(Refusal::new("already_subscribed", format!("{} is subscribed to", options.stream)));
        }
        if viewers.len() >= limit {
            let message = format!(
                "a connection carries at most {limit} streams (client.max_subscriptions): open another one"
            );
            return Err(Refusal::new("too_many", message));
        }
        if let Some(connection) = self.connections.get(slot) {
            let rated = self.admission.allow_subscribe(&connection.principal, now);
            rated.map_err(|refused| over_rate(OVER_SUBSCRIBES, refused.seconds()))?;
        }
        let stream = options.stream.clone();
        let viewer = self.with_views(now, |views, cx| views.add_viewer(slot, options, cx));
        if let Some(WebSocket { viewers: Viewers::Many(viewers), closed, .. }) =
            self.connections.websocket(slot)
        {
            if let Some(closed) = closed {
                closed.retain(|closed| closed.stream != stream);
            }
            viewers.insert(stream, viewer);
        }
        Ok(())
    }

    /// Returns the stream that a message is about, or refuses the message if the connection does not carry that
    /// stream.
    pub(super) fn subscribed(
        &mut self,
        slot: Slot,
        stream: Option<StreamName>,
    ) -> Result<StreamName, Refusal> {
        let not_carried =
            |stream: &StreamName| Refusal::new("not_subscribed", format!("{stream} is not subscribed to"));
        let viewer = match self.connections.websocket(slot).map(|websocket| &websocket.viewers) {
            Some(Viewers::One(viewer)) => Some(*viewer),
            Some(Viewers::Many(viewers)) => stream.as_ref().and_then(|stream| viewers.get(stream).copied()),
            None => None,
        };
        let own =
            viewer.and_then(|viewer| self.views.viewer(viewer)).map(|viewer| viewer.options.stream.clone());
        match (own, stream) {
            (Some(own), None) => Ok(own),
            (Some(own), Some(stream)) if own == stream => Ok(own),
            (_, Some(stream)) => Err(not_carried(&stream)),
            (None, None) => Err(Refusal::new("not_subscribed", "there is no stream")),
        }
    }
}

fn over_rate(message: &str, seconds: u64) -> Refusal {
    Refusal::new("too_many", format!("{message}; try again in {seconds} s"))
}

/// Whether a refused message was malformed or forbidden, rather than one that only cannot be accepted now.
fn is_bad(refusal: &Refusal) -> bool {
    !matches!(
        refusal.code,
        "too_many"
            | "overloaded"
            | "draining"
            | "redis_unreachable"
            | "redis_refuses"
            | "redis_timeout"
            | "wrong_type"
            | "already_subscribed"
            | "not_subscribed"
            | "not_sent"
    )
}
