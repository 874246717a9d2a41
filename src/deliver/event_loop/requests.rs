//! Handles HTTP requests and begins their answers. [`crate::deliver::admission`] decides which requests are served.
//! [`super::endings`] completes the answers about streams.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;

use super::delivery::Delivery;
use crate::deliver::body::Body;
use crate::deliver::connection::{Phase, Purpose, Viewers, WebSocket};
use crate::deliver::format::{Format, Translator, Transport};
use crate::deliver::http_error::HttpError;
use crate::deliver::request::Request;
use crate::deliver::response::{Answer, Reply, go_on, switch_to_websocket};
use crate::deliver::route::{Representation, Route, StreamRequest};
use crate::deliver::viewer::{SubscribeOptions, Wire};
use crate::message::Slot;

impl Delivery {
    /// Sends an answer and closes the connection.
    pub(super) fn answer_and_close(&mut self, slot: Slot, answer: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send(answer);
        connection.close();
        self.connections.touch(slot);
    }

    // ----- HTTP -----

    /// Handles a request whose head is complete.
    pub(super) fn handle_request(&mut self, slot: Slot, request: &Request, now: Instant) {
        self.registry.counters().http_requests.inc();
        let origin = self.admission.judge_origin(request);
        let reply = Reply::to(request, origin.clone().unwrap_or_default());
        match self.check_request(slot, request, origin, now) {
            Ok(Route::Stream(wanted)) if wanted.representation == Representation::WebSocket => {
                self.upgrade(slot, request, Some(wanted), now);
            }
            Ok(Route::Stream(wanted)) => self.answer_stream(slot, wanted, reply, now),
            Ok(Route::Multiplex) => self.upgrade(slot, request, None, now),
            Ok(Route::Cancel(stream)) => {
                self.await_body(slot, (request, reply), Purpose::Cancel(stream), now);
            }
            Ok(Route::Page) if self.config.listen.demo_page => {
                let answer = reply.page(&crate::web::DEMO_PAGE_POLICY, crate::web::DEMO_PAGE);
                self.reply_whole(slot, &reply, answer, now);
            }
            Ok(Route::File(file)) => {
                let answer = reply.file(file, request.if_none_match.as_deref());
                self.reply_whole(slot, &reply, answer, now);
            }
            Ok(Route::Page) => {
                self.reply_error(slot, &reply, &HttpError::not_found("there is nothing here"), now)
            }
            Ok(Route::Preflight { methods }) => {
                let headers = request.preflight_headers.as_deref();
                self.reply(slot, &reply, now, |reply, out| reply.preflight(out, methods, headers));
            }
            Err(error) => self.refuse(slot, (request, &reply), &error, now),
        }
    }

    /// Begins to receive the body of a request, which is answered when its body is complete.
    fn await_body(
        &mut self,
        slot: Slot,
        (request, reply): (&Request, Reply),
        purpose: Purpose,
        now: Instant,
    ) {
        let body = match Body::of(request, purpose.body_bytes_max()) {
            Ok(body) => body,
            Err(error) => return self.refuse(slot, (request, &reply), &error, now),
        };
        let reply = Reply { keep_alive: request.keep_alive, ..reply };
        let is_empty = body.is_empty();
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.phase = Phase::Body { since: now, purpose, reply, body };
        if request.expects_continue && !is_empty {
            let mut interim = Vec::new();
            go_on(&mut interim);
            self.connections.send(slot, interim);
        }
    }

    /// Handles a request whose body is complete.
    pub(super) fn handle_body(&mut self, slot: Slot, body: &[u8], now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let next = Phase::Head { since: now, seen: 0 };
        let Phase::Body { purpose, reply, .. } = std::mem::replace(&mut connection.phase, next) else {
            return;
        };
        match purpose {
            Purpose::Cancel(stream) => self.cancel_by_request(slot, stream, (body, reply), now),
        }
    }

    /// Begins to look up the stream that a request is about. The answer follows when the result is known.
    fn answer_stream(&mut self, slot: Slot, wanted: StreamRequest, reply: Reply, now: Instant) {
        let wire = match wanted.representation {
            Representation::WebSocket => Wire::WebSocket,
            Representation::Sse => Wire::Sse,
            Representation::State => Wire::State,
            Representation::Head => Wire::Head,
        };
        let viewer = self.with_views(now, |views, cx| views.add_viewer(slot, options(wanted, wire), cx));
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.phase = Phase::LookingUp { viewer, reply };
        }
    }

    /// Upgrades a connection to a WebSocket: of the stream `wanted`, or a multiplexed one.
    fn upgrade(&mut self, slot: Slot, request: &Request, wanted: Option<StreamRequest>, now: Instant) {
        let Some(offer) = &request.websocket else { return };
        let mut head = Vec::new();
        switch_to_websocket(&mut head, offer);
        self.connections.send(slot, head);
        self.registry.counters().websocket_opened.inc();
        let viewers = match wanted {
            Some(wanted) => {
                let options = options(wanted, Wire::WebSocket);
                Viewers::One(self.with_views(now, |views, cx| views.add_viewer(slot, options, cx)))
            }
            None => Viewers::Many(HashMap::new()),
        };
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.phase = Phase::WebSocket(Box::new(WebSocket::new(viewers)));
        }
        self.connections.arm(slot, now + self.config.client.keepalive);
    }

    /// Sends a complete answer. Then the connection expects the next request, or closes.
    pub(super) fn reply(
        &mut self,
        slot: Slot,
        reply: &Reply,
        now: Instant,
        build: impl FnOnce(&Reply, &mut Vec<u8>),
    ) {
        let mut head = Vec::new();
        build(reply, &mut head);
        self.reply_whole(slot, reply, Answer { head, body: Bytes::new() }, now);
    }

    pub(super) fn reply_whole(&mut self, slot: Slot, reply: &Reply, answer: Answer, now: Instant) {
        self.connections.send_answer(slot, answer.head);
        if !answer.body.is_empty() {
            self.connections.send_answer(slot, answer.body);
        }
        if !reply.keep_alive || self.is_draining {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.close();
            }
            return;
        }
        let timeout = self.config.client.handshake_timeout;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.phase = Phase::Head { since: now, seen: 0 };
        self.connections.arm(slot, now + timeout);
    }

    pub(super) fn reply_error(&mut self, slot: Slot, reply: &Reply, error: &HttpError, now: Instant) {
        self.registry.counters().http_errors.inc();
        self.reply(slot, reply, now, |reply, out| reply.error(out, error));
    }
}

fn options(wanted: StreamRequest, wire: Wire) -> SubscribeOptions {
    let StreamRequest { stream, after, explicit_after, follow, wait, batch, format, .. } = wanted;
    let transport = match wire {
        Wire::Sse => Some(Transport::Events),
        Wire::WebSocket => Some(Transport::WebSocket),
        Wire::Multiplexed | Wire::State | Wire::Head => None,
    };
    let translator = format.zip(transport).map(|(format, transport)| {
        let only_unfinished = format == Format::AiSdk && !explicit_after && !follow;
        Box::new(Translator::new(format, transport, stream.clone(), only_unfinished))
    });
    SubscribeOptions { stream, after, follow, wait, batch, wire, translator }
}
