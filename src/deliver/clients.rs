//! What clients say and are answered: requests, WebSocket messages, time running out, draining.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connection::{Connection, Phase, ReadOutcome, Viewers, WebSocket};
use super::event_loop::Delivery;
use super::message::{self, BODY_BYTES_MAX, ClientMessage, Refusal, parse_cancel_body};
use super::request::{Parsed, Request, parse_grown};
use super::response::{AllowedOrigin, HttpError, Reply, go_on, switch_to_websocket};
use super::route::{Representation, Route, RouteLimits, StreamRequest, route};
use super::streams::Ending;
use super::viewer::{Wire, Wish};
use super::websocket::{Decoder, Incoming, close, close_frame, ping_frame, pong_frame};
use crate::event::message::{Errand, Slot};
use crate::event::notice::{self, Unsubscribed};
use crate::event::{StreamName, StreamStatus, websocket_text, with_stream};

/// Malformed or forbidden messages after which a WebSocket is closed.
const BAD_MESSAGES_MAX: u32 = 10;
/// What a client that is refused for want of room is told to wait, in seconds.
const RETRY_AFTER_S: u32 = 1;
/// An SSE comment: it keeps proxies from closing a silent response.
const COMMENT: &[u8] = b":\n\n";
/// Silent intervals after which an unanswered ping means that the client is gone.
const PINGS_UNANSWERED: u32 = 2;
/// Reads of one connection in one round, so that a flood does not keep the others waiting.
const READS_PER_ROUND: usize = 16;
/// When a connection that had more to read is looked at again.
const READ_PAUSE: Duration = Duration::from_millis(1);
/// What may wait for a client that keeps asking and does not read its answers.
const ANSWERS_BYTES_MAX: usize = 256 * 1024;

impl Delivery {
    // ----- admission -----

    /// Why a new connection is not served, if it is not.
    pub(super) fn admit(&mut self, address: SocketAddr, now: Instant) -> Option<HttpError> {
        let counters = self.registry.counters();
        if self.draining.is_some() {
            return Some(HttpError::unavailable("draining", "this instance is going down", RETRY_AFTER_S));
        }
        if self.connections_of_all() > self.max_connections() {
            counters.connections_refused_full.inc();
            return Some(HttpError::unavailable("full", "no more connections are taken now", RETRY_AFTER_S));
        }
        let refused = self.rates.lock().connect(address.ip(), now).err()?;
        counters.connections_refused_rate.inc();
        Some(too_many("too many connections a second", refused.seconds()))
    }

    pub(super) fn refuse_connection(&mut self, slot: Slot, error: &HttpError) {
        let mut answer = Vec::new();
        Reply::closing().error(&mut answer, error);
        self.answer_and_close(slot, answer);
    }

    fn answer_and_close(&mut self, slot: Slot, answer: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.send(answer.into(), None);
        connection.close();
        self.touch(slot);
    }

    // ----- reading -----

    pub(super) fn read_connection(&mut self, slot: Slot, buffer: &mut [u8], now: Instant) {
        for _ in 0..READS_PER_ROUND {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            match connection.read(buffer) {
                ReadOutcome::Some(len) => self.hear(slot, &buffer[..len], now),
                ReadOutcome::Blocked => return,
                ReadOutcome::Over => return self.drop_connection(slot),
            }
        }
        // More is waiting and no event will tell: the connection is looked at again at once.
        self.arm(slot, now + READ_PAUSE);
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.unread = true;
        }
    }

    fn hear(&mut self, slot: Slot, bytes: &[u8], now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match &mut connection.phase {
            Phase::Head { .. } | Phase::Body { .. } => {
                connection.input.extend_from_slice(bytes);
                self.hear_requests(slot, now);
            }
            // A client that sends its next requests early finds them answered in order, within a bound.
            Phase::Asked { .. } => {
                connection.input.extend_from_slice(bytes);
                if connection.input.len() > BODY_BYTES_MAX {
                    self.drop_connection(slot);
                }
            }
            Phase::Sse { .. } | Phase::Closing { .. } => {}
            Phase::WebSocket(_) => self.hear_websocket(slot, bytes, now),
        }
    }

    // ----- HTTP -----

    /// Takes whole requests out of the input, until one has to wait for its answer.
    fn hear_requests(&mut self, slot: Slot, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            match &mut connection.phase {
                Phase::Head { seen, .. } => {
                    let parsed = parse_grown(&connection.input, *seen);
                    *seen = connection.input.len();
                    match parsed {
                        Parsed::Partial => return,
                        Parsed::Invalid(error) => {
                            self.registry.counters().http_errors.inc();
                            return self.refuse_connection(slot, &error);
                        }
                        Parsed::Complete { head_bytes, request } => {
                            connection.input.drain(..head_bytes);
                            self.answer(slot, &request, now);
                        }
                    }
                }
                Phase::Body { bytes, .. } => {
                    if connection.input.len() < *bytes {
                        return;
                    }
                    self.take_cancel(slot, now);
                }
                Phase::WebSocket(_) => {
                    let early = std::mem::take(&mut connection.input);
                    return self.hear_websocket(slot, &early, now);
                }
                Phase::Asked { .. } | Phase::Sse { .. } | Phase::Closing { .. } => return,
            }
        }
    }

    fn answer(&mut self, slot: Slot, request: &Request, now: Instant) {
        self.registry.counters().http_requests.inc();
        let decision = self.origins.decide(request.origin.as_deref(), request.host.as_deref());
        let origin = AllowedOrigin::from_decision(decision);
        let reply = Reply::to(request, origin.clone().unwrap_or_default());
        let limits =
            RouteLimits { max_wait: self.config.client.max_wait, max_batch: self.config.delivery.max_batch };
        let route =
            origin.and_then(|_| route(request, &limits)).and_then(|route| self.allow(slot, route, now));
        match route {
            Ok(Route::Stream(wanted)) if wanted.representation == Representation::WebSocket => {
                self.upgrade(slot, request, Some(wanted), now);
            }
            Ok(Route::Stream(wanted)) => self.answer_stream(slot, wanted, reply),
            Ok(Route::Multiplex) => self.upgrade(slot, request, None, now),
            Ok(Route::Cancel(stream)) => {
                let bytes = request.content_length.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
                let reply = Reply { keep_alive: request.keep_alive, ..reply };
                let Some(connection) = self.connections.get_mut(slot) else { return };
                connection.phase = Phase::Body { since: now, stream, reply, bytes };
                if request.expects_continue && bytes > 0 {
                    let mut interim = Vec::new();
                    go_on(&mut interim);
                    self.send(slot, interim.into(), None);
                }
            }
            Ok(Route::Page) if self.config.listen.demo_page => {
                let page = crate::web::DEMO_PAGE.as_bytes();
                self.reply(slot, &reply, now, |reply, out| {
                    reply.content(out, 200, "text/html; charset=utf-8", page)
                });
            }
            Ok(Route::Page) => {
                self.reply_error(slot, &reply, &HttpError::not_found("there is nothing here"), now)
            }
            Ok(Route::Preflight { methods }) => {
                self.reply(slot, &reply, now, |reply, out| reply.preflight(out, methods));
            }
            Err(error) => self.reply_error(slot, &reply, &error, now),
        }
    }

    /// Whether the state of this instance and the client's rates allow the request.
    fn allow(&mut self, slot: Slot, route: Route, now: Instant) -> Result<Route, HttpError> {
        if self.draining.is_some() {
            return Err(HttpError::unavailable("draining", "this instance is going down", RETRY_AFTER_S));
        }
        let Some(connection) = self.connections.get_mut(slot) else { return Ok(route) };
        let ip = connection.address.ip();
        let mut rates = self.rates.lock();
        if !connection.counted {
            if !rates.open(ip) {
                return Err(too_many("too many connections from one address", u64::from(RETRY_AFTER_S)));
            }
            connection.counted = true;
        }
        let rated = match &route {
            Route::Stream(_) => rates.subscribe(ip, now),
            Route::Cancel(_) => rates.cancel(ip, now),
            Route::Multiplex | Route::Page | Route::Preflight { .. } => Ok(()),
        };
        rated.map_err(|refused| too_many("too many requests a second", refused.seconds()))?;
        if self.has_too_many_jobs() {
            return Err(HttpError::unavailable("overloaded", "try again", RETRY_AFTER_S));
        }
        Ok(route)
    }

    fn answer_stream(&mut self, slot: Slot, wanted: StreamRequest, reply: Reply) {
        let wire = match wanted.representation {
            Representation::WebSocket => Wire::WebSocket,
            Representation::Sse => Wire::Sse,
            Representation::State => Wire::State,
            Representation::Head => Wire::Head,
        };
        let viewer = self.add_viewer(slot, wish(wanted, wire));
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.phase = Phase::Asked { viewer, reply };
        }
    }

    fn upgrade(&mut self, slot: Slot, request: &Request, wanted: Option<StreamRequest>, now: Instant) {
        let Some(offer) = &request.websocket else { return };
        let mut head = Vec::new();
        switch_to_websocket(&mut head, offer);
        self.send(slot, head.into(), None);
        self.registry.counters().websocket_opened.inc();
        let viewers = match wanted {
            Some(wanted) => Viewers::One(self.add_viewer(slot, wish(wanted, Wire::WebSocket))),
            None => Viewers::Many(HashMap::new()),
        };
        let websocket = WebSocket { decoder: Decoder::new(), viewers, bad_messages: 0, pinged_at: None };
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.phase = Phase::WebSocket(Box::new(websocket));
            connection.input.shrink_to_fit();
        }
        self.arm(slot, now + self.config.client.keepalive);
    }

    fn take_cancel(&mut self, slot: Slot, now: Instant) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let since = Phase::Head { since: now, seen: 0 };
        let Phase::Body { stream, reply, bytes, .. } = std::mem::replace(&mut connection.phase, since) else {
            return;
        };
        let body: Vec<u8> = connection.input.drain(..bytes).collect();
        let by = connection.address.to_string();
        let asked = parse_cancel_body(&body).and_then(|reason| {
            self.cancel(stream, reason, by)
                .map_err(|()| HttpError::unavailable("overloaded", "try again", RETRY_AFTER_S))
        });
        match asked {
            Ok(()) => self.reply(slot, &reply, now, |reply, out| reply.json(out, 202, b"{}")),
            Err(error) => self.reply_error(slot, &reply, &error, now),
        }
    }

    fn cancel(&mut self, stream: StreamName, reason: Option<String>, by: String) -> Result<(), ()> {
        self.registry.counters().cancels_requested.inc();
        if self.errand_now(Errand::Cancel { stream, reason, by }) { Ok(()) } else { Err(()) }
    }

    /// Sends a whole answer; the connection takes the next request or ends.
    fn reply(&mut self, slot: Slot, reply: &Reply, now: Instant, build: impl FnOnce(&Reply, &mut Vec<u8>)) {
        let mut answer = Vec::new();
        build(reply, &mut answer);
        if !reply.keep_alive || self.draining.is_some() {
            return self.answer_and_close(slot, answer);
        }
        self.send(slot, answer.into(), None);
        let timeout = self.config.client.handshake_timeout;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        // A client that keeps asking and does not read its answers is not asked for more.
        if connection.outbox.cost_bytes() > self.config.client.max_state + ANSWERS_BYTES_MAX {
            return connection.close();
        }
        connection.phase = Phase::Head { since: now, seen: 0 };
        self.arm(slot, now + timeout);
    }

    fn reply_error(&mut self, slot: Slot, reply: &Reply, error: &HttpError, now: Instant) {
        self.registry.counters().http_errors.inc();
        self.reply(slot, reply, now, |reply, out| reply.error(out, error));
    }

    // ----- answers about streams -----

    /// Answers the viewer's request with what `build` makes; the viewer is gone then.
    fn answer_viewer(&mut self, viewer: Slot, now: Instant, build: impl FnOnce(&Reply, &mut Vec<u8>)) {
        let Some(slot) = self.viewers.get(viewer).map(|viewer| viewer.connection) else { return };
        self.remove_viewer(viewer);
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::Asked { reply, .. } =
            std::mem::replace(&mut connection.phase, Phase::Head { since: now, seen: 0 })
        else {
            return;
        };
        self.reply(slot, &reply, now, build);
        self.hear_requests(slot, now);
    }

    pub(super) fn answer_state(&mut self, viewer: Slot, document: &[u8], now: Instant) {
        self.answer_viewer(viewer, now, |reply, out| reply.json(out, 200, document));
    }

    pub(super) fn answer_head(&mut self, viewer: Slot, now: Instant) {
        self.answer_viewer(viewer, now, |reply, out| reply.head(out, 200));
    }

    pub(super) fn answer_no_content(&mut self, viewer: Slot, now: Instant) {
        self.answer_viewer(viewer, now, Reply::no_content);
    }

    pub(super) fn answer_error(&mut self, viewer: Slot, error: &HttpError, now: Instant) {
        self.registry.counters().http_errors.inc();
        self.answer_viewer(viewer, now, |reply, out| reply.error(out, error));
    }

    /// Whether the viewer's answer has begun, so that its status can no longer change.
    pub(super) fn has_begun(&self, viewer: Slot) -> bool {
        let connection = self.viewers.get(viewer).and_then(|viewer| self.connections.get(viewer.connection));
        connection.is_some_and(|connection| !matches!(connection.phase, Phase::Asked { .. }))
    }

    /// An event stream's head is sent once it is known that there is something to send.
    pub(super) fn begin_events(&mut self, viewer: Slot, now: Instant) {
        let Some(slot) = self.viewers.get(viewer).map(|viewer| viewer.connection) else { return };
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::Asked { reply, .. } = &connection.phase else { return };
        let mut head = Vec::new();
        reply.sse(&mut head);
        connection.phase = Phase::Sse { viewer };
        connection.input = Vec::new();
        self.registry.counters().sse_opened.inc();
        self.send(slot, head.into(), None);
        self.arm(slot, now + self.config.client.keepalive);
    }

    /// A connection whose one stream is over is closed.
    pub(super) fn end_connection(&mut self, slot: Slot, viewer: Slot, ending: Ending, now: Instant) {
        if ending == Ending::NotFound && !self.has_begun(viewer) {
            let head = self.viewers.get(viewer).is_some_and(|viewer| viewer.wish.wire == Wire::Head);
            return if head {
                self.answer_viewer(viewer, now, |reply, out| reply.head(out, 404));
            } else {
                self.answer_error(viewer, &HttpError::not_found("there is no such stream"), now);
            };
        }
        self.remove_viewer(viewer);
        let Some(connection) = self.connections.get_mut(slot) else { return };
        match (&connection.phase, ending) {
            (Phase::WebSocket(_), Ending::Ended) => connection.close_websocket(close::NORMAL, "ended"),
            (Phase::WebSocket(_), Ending::NotFound) => {
                connection.close_websocket(close::NOT_FOUND, "there is no such stream");
            }
            _ => connection.close(),
        }
        self.touch(slot);
    }

    // ----- WebSocket -----

    fn hear_websocket(&mut self, slot: Slot, bytes: &[u8], now: Instant) {
        let mut rest = bytes;
        loop {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            let Phase::WebSocket(websocket) = &mut connection.phase else { return };
            websocket.pinged_at = None;
            if connection.outbox.cost_bytes() > self.config.client.send_budget + ANSWERS_BYTES_MAX {
                return self.close_websocket(slot, close::SLOW, "answers are not read");
            }
            let Some(websocket) = self.websocket(slot) else { return };
            match websocket.decoder.next(&mut rest) {
                Ok(None) => return,
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Ping(payload))) => self.send(slot, pong_frame(&payload), None),
                Ok(Some(Incoming::Close(code))) => {
                    let code = code.unwrap_or(close::NORMAL);
                    return self.close_websocket(slot, code, "");
                }
                Ok(Some(Incoming::Text(text))) => self.obey_message(slot, &text, now),
                Ok(Some(Incoming::Binary)) => {
                    self.registry.counters().client_messages.inc();
                    self.refuse_message(slot, &Refusal::new("malformed", "messages are text"));
                }
                Err(reason) => return self.close_websocket(slot, reason.code, reason.reason),
            }
        }
    }

    fn close_websocket(&mut self, slot: Slot, code: u16, reason: &str) {
        let Some(connection) = self.connections.get(slot) else { return };
        for viewer in connection.viewers() {
            self.remove_viewer(viewer);
        }
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.close_websocket(code, reason);
        }
        self.touch(slot);
    }

    fn obey_message(&mut self, slot: Slot, text: &str, now: Instant) {
        self.registry.counters().client_messages.inc();
        let Some(viewers) = self.websocket(slot).map(|websocket| &websocket.viewers) else { return };
        let multiplexed = matches!(viewers, Viewers::Many(_));
        let result = message::parse(text, multiplexed).and_then(|message| {
            let stream = multiplexed.then(|| message.stream().cloned()).flatten();
            self.obey(slot, message, now).map_err(|refusal| refusal.about(stream))
        });
        if let Err(refusal) = result {
            self.refuse_message(slot, &refusal);
        }
    }

    fn refuse_message(&mut self, slot: Slot, refusal: &Refusal) {
        self.registry.counters().client_messages_refused.inc();
        let json = notice::refused(refusal.code, &refusal.message);
        let json = match &refusal.stream {
            Some(stream) => with_stream(&json, stream),
            None => json,
        };
        self.send(slot, websocket_text(&json), None);
        let Some(websocket) = self.websocket(slot) else { return };
        if is_bad(refusal) {
            websocket.bad_messages += 1;
            if websocket.bad_messages >= BAD_MESSAGES_MAX {
                self.close_websocket(slot, close::POLICY, "too many malformed messages");
            }
        }
    }

    fn websocket(&mut self, slot: Slot) -> Option<&mut WebSocket> {
        match &mut self.connections.get_mut(slot)?.phase {
            Phase::WebSocket(websocket) => Some(websocket),
            _ => None,
        }
    }

    fn obey(&mut self, slot: Slot, message: ClientMessage, now: Instant) -> Result<(), Refusal> {
        match message {
            ClientMessage::Ping { nonce } => {
                self.send(slot, websocket_text(&notice::pong(nonce.as_deref())), None);
                Ok(())
            }
            ClientMessage::Ack { stream, .. } => self.subscribed(slot, stream).map(drop),
            ClientMessage::Cancel { stream, reason } => {
                let multiplexed = stream.clone();
                let stream = self.subscribed(slot, stream)?;
                let Some(address) = self.connections.get(slot).map(|connection| connection.address) else {
                    return Ok(());
                };
                let rated = self.rates.lock().cancel(address.ip(), now);
                rated.map_err(|_| Refusal::new("too_many", "too many cancel requests a second"))?;
                self.cancel(stream, reason, address.to_string())
                    .map_err(|()| Refusal::new("overloaded", "try again"))?;
                let json = notice::cancel_requested();
                let json = multiplexed.map_or_else(|| json.clone(), |stream| with_stream(&json, &stream));
                self.send(slot, websocket_text(&json), None);
                Ok(())
            }
            ClientMessage::Subscribe { stream, after, follow, wait, batch } => {
                let limits = RouteLimits {
                    max_wait: self.config.client.max_wait,
                    max_batch: self.config.delivery.max_batch,
                };
                let (wait, batch) = (limits.wait(wait), limits.batch(batch));
                self.subscribe(
                    slot,
                    Wish { stream, after, follow, wait, batch, wire: Wire::Multiplexed },
                    now,
                )
            }
            ClientMessage::Unsubscribe { stream } => {
                self.subscribed(slot, Some(stream.clone()))?;
                self.unsubscribe(slot, &stream, Unsubscribed::Requested);
                Ok(())
            }
        }
    }

    fn subscribe(&mut self, slot: Slot, wish: Wish, now: Instant) -> Result<(), Refusal> {
        let most = self.config.client.max_subscriptions;
        if self.has_too_many_jobs() {
            return Err(Refusal::new("overloaded", "try again"));
        }
        let Some(WebSocket { viewers: Viewers::Many(viewers), .. }) = self.websocket(slot) else {
            return Ok(());
        };
        if viewers.contains_key(&wish.stream) {
            return Err(Refusal::new("already_subscribed", format!("{} is subscribed to", wish.stream)));
        }
        if viewers.len() >= most {
            return Err(Refusal::new("too_many", format!("a connection carries at most {most} streams")));
        }
        if let Some(address) = self.connections.get(slot).map(|connection| connection.address) {
            let rated = self.rates.lock().subscribe(address.ip(), now);
            rated.map_err(|_| Refusal::new("too_many", "too many subscriptions a second"))?;
        }
        let stream = wish.stream.clone();
        let viewer = self.add_viewer(slot, wish);
        if let Some(WebSocket { viewers: Viewers::Many(viewers), .. }) = self.websocket(slot) {
            viewers.insert(stream, viewer);
        }
        Ok(())
    }

    /// The stream that a message is about, which the connection must carry.
    fn subscribed(&mut self, slot: Slot, stream: Option<StreamName>) -> Result<StreamName, Refusal> {
        let not_carried =
            |stream: &StreamName| Refusal::new("not_subscribed", format!("{stream} is not subscribed to"));
        let carried = match self.websocket(slot).map(|websocket| &websocket.viewers) {
            Some(Viewers::One(viewer)) => Some(*viewer),
            Some(Viewers::Many(viewers)) => stream.as_ref().and_then(|stream| viewers.get(stream).copied()),
            None => None,
        };
        let own =
            carried.and_then(|viewer| self.viewers.get(viewer)).map(|viewer| viewer.wish.stream.clone());
        match (own, stream) {
            (Some(own), None) => Ok(own),
            (Some(own), Some(stream)) if own == stream => Ok(own),
            (_, Some(stream)) => Err(not_carried(&stream)),
            (None, None) => Err(Refusal::new("not_subscribed", "there is no stream")),
        }
    }

    /// A stream leaves a multiplexed connection.
    pub(super) fn unsubscribe(&mut self, slot: Slot, stream: &StreamName, reason: Unsubscribed) {
        let Some(WebSocket { viewers: Viewers::Many(viewers), .. }) = self.websocket(slot) else { return };
        let Some(viewer) = viewers.remove(stream) else { return };
        self.flush_batch(viewer);
        self.remove_viewer(viewer);
        self.send(slot, websocket_text(&notice::unsubscribed(stream, reason)), None);
    }

    // ----- time -----

    /// Does what is due on a connection, and says when to look again.
    pub(super) fn judge_time(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let connection = self.connections.get_mut(slot)?;
        if std::mem::take(&mut connection.unread) {
            self.read_again(slot, now);
        }
        let connection = self.connections.get(slot)?;
        let slow_at = connection.blocked_since.map(|since| since + self.config.client.slow_timeout);
        if slow_at.is_some_and(|at| at <= now) && !matches!(connection.phase, Phase::Closing { .. }) {
            return self.close_slow(slot, now);
        }
        let phase_at = match &connection.phase {
            Phase::Closing { until } => {
                let over_at = until.or(slow_at);
                if over_at.is_some_and(|at| at <= now) {
                    self.drop_connection(slot);
                    return None;
                }
                over_at
            }
            // The last answer is still on its way.
            Phase::Head { .. } if !connection.outbox.is_empty() => slow_at,
            Phase::Head { since, .. } | Phase::Body { since, .. } => {
                let at = *since + self.config.client.handshake_timeout;
                if at <= now {
                    return self.time_out(slot);
                }
                Some(at)
            }
            Phase::Asked { .. } => None,
            Phase::Sse { .. } | Phase::WebSocket(_) => self.keep_alive(slot, now),
        };
        let viewers = self.connections.get(slot).map(Connection::viewers).unwrap_or_default();
        let mut next = [phase_at, slow_at].into_iter().flatten().min();
        for viewer in viewers {
            for at in [self.judge_wait(viewer, now), self.judge_batch(viewer, now)].into_iter().flatten() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        next
    }

    fn read_again(&mut self, slot: Slot, now: Instant) {
        let mut buffer = vec![0; 16 * 1024];
        self.read_connection(slot, &mut buffer, now);
    }

    /// A client that takes nothing any more is closed.
    fn close_slow(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        self.registry.counters().clients_slow_closed.inc();
        let connection = self.connections.get(slot)?;
        for viewer in connection.viewers() {
            self.remove_viewer(viewer);
        }
        let connection = self.connections.get_mut(slot)?;
        let frame = matches!(connection.phase, Phase::WebSocket(_))
            .then(|| close_frame(close::SLOW, "no progress for too long"));
        connection.close_slow(frame, now);
        self.touch(slot);
        match self.connections.get(slot)?.phase {
            Phase::Closing { until } => until,
            _ => None,
        }
    }

    /// A request did not come in time. Between two requests that is no fault.
    fn time_out(&mut self, slot: Slot) -> Option<Instant> {
        let connection = self.connections.get(slot)?;
        if connection.input.is_empty() && connection.counted {
            self.drop_connection(slot);
            return None;
        }
        self.registry.counters().handshakes_timed_out.inc();
        let error = HttpError::new(408, "request_timeout", "the request did not come in time");
        self.refuse_connection(slot, &error);
        None
    }

    /// Keeps a silent connection from being taken for dead, and notices one that is.
    fn keep_alive(&mut self, slot: Slot, now: Instant) -> Option<Instant> {
        let interval = self.config.client.keepalive;
        let connection = self.connections.get_mut(slot)?;
        let due = connection.sent_at + interval;
        let is_due = due <= now;
        if let Phase::WebSocket(websocket) = &mut connection.phase {
            if let Some(pinged_at) = websocket.pinged_at
                && now.duration_since(pinged_at) >= interval * PINGS_UNANSWERED
            {
                self.registry.counters().clients_half_open_closed.inc();
                self.drop_connection(slot);
                return None;
            }
            // What cannot be sent now is sign enough: the slow client's limit runs.
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
            self.send(slot, bytes, None);
        }
        Some(now + interval)
    }

    // ----- draining -----

    /// Tells everybody, and closes what is flushed.
    pub(super) fn drain(&mut self, now: Instant, grace: Duration) {
        self.draining = Some(now + grace);
        for slot in self.connections.slots() {
            let Some(connection) = self.connections.get(slot) else { continue };
            let viewers = connection.viewers();
            match &connection.phase {
                Phase::Asked { .. } => {
                    let error =
                        HttpError::unavailable("draining", "this instance is going down", RETRY_AFTER_S);
                    for viewer in viewers {
                        self.answer_error(viewer, &error, now);
                    }
                }
                Phase::Sse { .. } => {
                    for viewer in viewers {
                        self.tell(viewer, StreamStatus::Draining);
                        self.remove_viewer(viewer);
                    }
                    if let Some(connection) = self.connections.get_mut(slot) {
                        connection.close();
                    }
                    self.touch(slot);
                }
                Phase::WebSocket(websocket) => {
                    let single = matches!(websocket.viewers, Viewers::One(_));
                    for viewer in viewers {
                        self.tell(viewer, StreamStatus::Draining);
                    }
                    if !single {
                        self.send(slot, websocket_text(&notice::status(StreamStatus::Draining)), None);
                    }
                    self.close_websocket(slot, close::GOING_AWAY, "draining");
                }
                Phase::Head { .. } if connection.input.is_empty() && connection.outbox.is_empty() => {
                    self.drop_connection(slot);
                }
                Phase::Head { .. } if connection.input.is_empty() => {
                    if let Some(connection) = self.connections.get_mut(slot) {
                        connection.close();
                    }
                }
                Phase::Head { .. } | Phase::Body { .. } | Phase::Closing { .. } => {}
            }
        }
    }
}

fn wish(wanted: StreamRequest, wire: Wire) -> Wish {
    let StreamRequest { stream, after, follow, wait, batch, .. } = wanted;
    Wish { stream, after, follow, wait, batch, wire }
}

fn too_many(message: &str, seconds: u64) -> HttpError {
    HttpError::too_many("too_many", message, u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// Whether a message was the client's fault, and not only out of place at the moment.
fn is_bad(refusal: &Refusal) -> bool {
    !matches!(refusal.code, "too_many" | "overloaded" | "already_subscribed" | "not_subscribed")
}
