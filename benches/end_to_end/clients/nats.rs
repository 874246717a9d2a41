//! Clients of NATS: they wait until their consumer exists, read the messages that it pushes, and answer the server's
//! pings and its flow control.

use super::{Clients, Stage};
use crate::nats::{self, Message, Said};
use crate::wire;

impl Clients<'_> {
    /// Reads the messages in the payload of a frame.
    pub(super) fn nats(&mut self, index: usize, payload: &[u8], now: u64) {
        let mut used = 0;
        while let Some((said, len)) = nats::said(&payload[used..]) {
            match said {
                Said::Notice => {}
                Said::Ping => self.say(index, wire::BINARY, b"PONG\r\n"),
                Said::Trouble(line) => self.close(index, &format!("NATS: {}", String::from_utf8_lossy(line))),
                Said::Message(message) if message.sid == nats::SID_CREATED.as_bytes() => {
                    self.consumer_created(index, &message);
                }
                Said::Message(message) if message.headers.is_empty() => {
                    self.message(index, message.payload, now)
                }
                Said::Message(message) => self.answer_flow_control(index, &message),
            }
            used += len;
        }
        if used < payload.len() {
            self.seen.surprise("a message of NATS that does not end with its frame");
        }
    }

    fn consumer_created(&mut self, index: usize, answer: &Message) {
        if !nats::is_confirmation(answer) {
            let why = String::from_utf8_lossy(answer.payload);
            self.close(index, &format!("NATS refused a consumer: {why}"));
        } else if self.clients[index].stage == Stage::Subscribing {
            self.opened(index);
        }
    }

    fn answer_flow_control(&mut self, index: usize, message: &Message) {
        let Some(subject) = message.flow_control() else { return };
        let answer = [b"PUB ", subject, b" 0\r\n\r\n"].concat();
        self.say(index, wire::BINARY, &answer);
    }
}
