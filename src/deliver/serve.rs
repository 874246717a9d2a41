//! A delivery thread's life: it waits in its poll and takes its turn at its connections. Between its turns the threads
//! that bring live frames may deliver few of them themselves.

use std::io::{self, ErrorKind};

use mio::Events;

use super::delivery::{Delivery, DeliveryParts};
use crate::event::message::ToDelivery;
use crate::pulse;
use crate::queue::Shortcut;
use crate::turns::Turns;

/// Events that one round takes at most.
const EVENTS_MAX: usize = 32;

/// Serves until the daemon stops, or until everything is drained.
///
/// # Errors
/// When the operating system's poll fails, which leaves nothing to be served.
pub fn serve(parts: DeliveryParts) -> io::Result<()> {
    let inbox = parts.inbound.inbox.clone();
    let (delivery, mut poll) = Delivery::new(parts)?;
    let turns = Turns::new(delivery);
    inbox.offer_shortcut(BetweenRounds(turns.clone()));
    let mut events = Events::with_capacity(EVENTS_MAX);
    while let Some(timeout) = turns.own().and_then(|mut delivery| delivery.rest()) {
        pulse::beat();
        match poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        if let Some(mut delivery) = turns.own() {
            delivery.round(&events);
        }
    }
    if let Some(delivery) = turns.end() {
        delivery.shut();
    }
    Ok(())
}

/// Live frames for few clients are delivered by the thread that brings them.
#[derive(Debug)]
struct BetweenRounds(Turns<Delivery>);

impl Shortcut<ToDelivery> for BetweenRounds {
    fn take(&self, message: ToDelivery) -> Result<(), ToDelivery> {
        let ToDelivery::Live { news, .. } = &message else { return Err(message) };
        let is_done = self.0.if_free().is_some_and(|mut delivery| delivery.deliver_between_rounds(news));
        if is_done { Ok(()) } else { Err(message) }
    }
}
