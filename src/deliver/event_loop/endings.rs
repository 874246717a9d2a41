//! Ends viewers on their connections: sends whole answers, closes event streams and WebSockets whose stream is over,
//! and removes streams from multiplexed connections.

use std::time::Instant;

use bytes::Bytes;

use super::delivery::Delivery;
use crate::deliver::connection::{Phase, Viewers, WebSocket};
use crate::deliver::http_error::HttpError;
use crate::deliver::response::{Answer, Reply};
use crate::deliver::viewer::{Ending, Viewer, Wire};
use crate::deliver::views::{Effect, WholeAnswer};
use crate::message::Slot;
use crate::model::control_frames::{self, Unsubscribed};
use crate::model::{StreamName, websocket_text};

impl Delivery {
    /// Carries out an effect of the viewers. It does nothing if the viewer no longer exists.
    pub(super) fn carry_out(&mut self, effect: Effect, now: Instant) {
        match effect {
            Effect::Ended { viewer, ending } => self.end_viewer(viewer, ending, now),
            Effect::Answered { viewer, answer: WholeAnswer::State(document) } => {
                self.answer_viewer(viewer, now, |reply| reply.json(200, document));
            }
            Effect::Answered { viewer, answer: WholeAnswer::Exists } => {
                self.answer_viewer(viewer, now, |reply| single_part(|out| reply.head(out, 200)));
            }
            Effect::Answered { viewer, answer: WholeAnswer::Error(error) } => {
                self.answer_error(viewer, &error, now);
            }
        }
    }

    fn end_viewer(&mut self, slot: Slot, ending: Ending, now: Instant) {
        let Some(viewer) = self.views.viewer(slot) else { return };
        let connection = viewer.connection;
        if viewer.options.wire == Wire::Multiplexed {
            let stream = viewer.options.stream.clone();
            let reason = match ending {
                Ending::Ended | Ending::NothingLeft => Unsubscribed::Ended,
                Ending::NotFound => Unsubscribed::NotFound,
            };
            return self.unsubscribe(connection, &stream, reason, now);
        }
        self.end_connection(connection, slot, ending, now);
    }

    // ----- answers -----

    /// Removes the viewer, and answers its request with the answer that `build` creates.
    fn answer_viewer(&mut self, viewer: Slot, now: Instant, build: impl FnOnce(&Reply) -> Answer) {
        let Some(slot) = self.views.viewer(viewer).map(|viewer| viewer.connection) else { return };
        self.with_views(now, |views, cx| views.remove_viewer(viewer, cx));
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::LookingUp { reply, .. } =
            std::mem::replace(&mut connection.phase, Phase::Head { since: now, seen: 0 })
        else {
            return;
        };
        self.reply_whole(slot, &reply, build(&reply), now);
        self.connections.read_further(slot);
    }

    /// Answers the viewer's request with an error.
    pub(super) fn answer_error(&mut self, viewer: Slot, error: &HttpError, now: Instant) {
        self.registry.counters().http_errors.inc();
        self.answer_viewer(viewer, now, |reply| single_part(|out| reply.error(out, error)));
    }

    // ----- connections -----

    /// Closes a connection whose only stream is over, or answers its request if the answer has not begun.
    fn end_connection(&mut self, slot: Slot, viewer: Slot, ending: Ending, now: Instant) {
        let found = self.views.viewer(viewer);
        let wants_only_unfinished = found.is_some_and(Viewer::wants_only_unfinished);
        let is_head = found.is_some_and(|viewer| viewer.options.wire == Wire::Head);
        if !self.connections.has_begun(slot) {
            match ending {
                Ending::NotFound if is_head => {
                    return self.answer_viewer(viewer, now, |reply| single_part(|out| reply.head(out, 404)));
                }
                Ending::NotFound if !wants_only_unfinished => {
                    return self.answer_error(viewer, &HttpError::not_found("there is no such stream"), now);
                }
                Ending::Ended if !wants_only_unfinished => {}
                Ending::NothingLeft | Ending::NotFound | Ending::Ended => {
                    return self.answer_viewer(viewer, now, |reply| single_part(|out| reply.no_content(out)));
                }
            }
        }
        self.with_views(now, |views, cx| views.remove_viewer(viewer, cx));
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match &connection.phase {
            Phase::WebSocket(_) => {
                let (code, reason) = ending.close();
                connection.close_websocket(code, reason);
            }
            _ => connection.close(),
        }
        self.connections.touch(slot);
    }

    /// Removes a stream from a multiplexed connection. Its acknowledgement state is kept, so that the client can still
    /// acknowledge frames of it. The oldest is dropped when more than `client.max_subscriptions` are kept.
    pub(super) fn unsubscribe(
        &mut self,
        slot: Slot,
        stream: &StreamName,
        reason: Unsubscribed,
        now: Instant,
    ) {
        let Some(WebSocket { viewers: Viewers::Many(viewers), .. }) = self.connections.websocket(slot) else {
            return;
        };
        let Some(viewer) = viewers.remove(stream) else { return };
        if let Some(closed) = self.with_views(now, |views, cx| views.leave(viewer, cx))
            && let Some(websocket) = self.connections.websocket(slot)
        {
            let kept = websocket.closed.get_or_insert_default();
            kept.push_back(closed);
            if kept.len() > self.config.client.max_subscriptions {
                kept.pop_front();
            }
        }
        self.connections.send_answer(slot, websocket_text(&control_frames::unsubscribed(stream, reason)));
    }
}

/// An answer that consists of the bytes that `build` writes, without a separate body.
fn single_part(build: impl FnOnce(&mut Vec<u8>)) -> Answer {
    let mut head = Vec::new();
    build(&mut head);
    Answer { head, body: Bytes::new() }
}
