//! The main function of a delivery thread: it waits in its poll, and runs a round of the event loop for each batch of
//! events. Between rounds, the threads that have live frames may deliver small numbers of them themselves.

use std::io::{self, ErrorKind};
use std::time::Instant;

use mio::event::Event;
use mio::{Events, Token};

use super::Ready;
use super::delivery::{Delivery, DeliveryParts, INBOX, LISTENER};
use crate::deliver::connection::Peer;
use crate::inline_stage::SharedStage;
use crate::message::ToDelivery;
use crate::pulse;
use crate::queue::InlineStage;

/// Events handled in one round, at most.
const EVENTS_MAX: usize = 32;

/// Serves clients until the daemon stops, or until everything is drained.
///
/// # Errors
/// When the operating system's poll fails: then no connection can be served.
pub fn serve(parts: DeliveryParts) -> io::Result<()> {
    let inbox = parts.inbound.inbox.clone();
    let (delivery, mut poll) = Delivery::new(parts, Instant::now())?;
    let stage = SharedStage::new(delivery);
    inbox.offer_inline(BetweenRounds(stage.clone()));
    let mut events = Events::with_capacity(EVENTS_MAX);
    while let Some(timeout) = stage.own().and_then(|mut delivery| delivery.time_to_sleep(Instant::now())) {
        pulse::beat();
        match poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        if let Some(mut delivery) = stage.own() {
            delivery.round(events.iter().filter_map(ready), Instant::now());
        }
    }
    if let Some(delivery) = stage.end() {
        delivery.shut_down(Instant::now());
    }
    Ok(())
}

/// Converts an event of the poll; `None` for the inbox, because every round checks it anyhow.
fn ready(event: &Event) -> Option<Ready> {
    let Token(index) = match event.token() {
        INBOX => return None,
        LISTENER => return Some(Ready::Listener),
        token => token,
    };
    let is_over = event.is_error() || event.is_read_closed() && event.is_write_closed();
    let peer = match (is_over, event.is_read_closed()) {
        (true, _) => Some(Peer::Gone),
        (false, true) => Some(Peer::Finishing),
        (false, false) => None,
    };
    Some(Ready::Socket { index, is_readable: event.is_readable() || peer.is_some(), peer })
}

/// Lets the thread that has live frames for few clients deliver them itself.
#[derive(Debug)]
struct BetweenRounds(SharedStage<Delivery>);

impl InlineStage<ToDelivery> for BetweenRounds {
    fn take(&self, message: ToDelivery) -> Result<(), ToDelivery> {
        let ToDelivery::Live { news, .. } = &message else { return Err(message) };
        let is_done = self
            .0
            .if_free()
            .is_some_and(|mut delivery| delivery.deliver_between_rounds(news, Instant::now()));
        if is_done { Ok(()) } else { Err(message) }
    }
}
