//! Clients of Centrifugo: they wait until they are subscribed, read the publications of their channel, and answer the
//! server's pings.

use super::{Clients, Stage};
use crate::centrifugo::{self, Said};
use crate::wire;

impl Clients<'_> {
    /// Reads the messages in the payload of a frame.
    pub(super) fn centrifugo(&mut self, index: usize, payload: &[u8], now: u64) {
        for line in payload.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match centrifugo::said(line) {
                Said::Notice => {}
                Said::Ping => self.say(index, wire::TEXT, line),
                Said::Subscribed { recovered } => {
                    if !recovered {
                        self.seen.surprise(String::from_utf8_lossy(line));
                    }
                    if self.clients[index].stage == Stage::Subscribing {
                        self.opened(index);
                    }
                    self.publications(index, line, now);
                }
                Said::Insufficient => {
                    let client = &self.clients[index];
                    let number = self.plan.first_stream + client.stream;
                    let again = centrifugo::subscribe(number, client.judge.next());
                    self.say(index, wire::TEXT, again.as_bytes());
                }
                Said::Publication => self.publications(index, line, now),
                Said::Trouble => self.close(index, &format!("Centrifugo: {}", String::from_utf8_lossy(line))),
            }
        }
    }

    fn publications(&mut self, index: usize, line: &[u8], now: u64) {
        for data in centrifugo::publications(line) {
            self.message(index, data, now);
        }
    }
}
