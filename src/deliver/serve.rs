//! A delivery thread's life: it waits in its poll and takes its turn at its connections. Between its turns the threads
//! that bring live frames may deliver few of them themselves.

use std::io::{self, ErrorKind};

use mio::Events;

use super::delivery::{Delivery, DeliveryParts};
use crate::inline_stage::SharedStage;
use crate::message::ToDelivery;
use crate::pulse;
use crate::queue::InlineStage;

/// Events that one round takes at most.
const EVENTS_MAX: usize = 32;

/// Serves until the daemon stops, or until everything is drained.
///
/// # Errors
/// When the operating system's poll fails, which leaves nothing to be served.
pub fn serve(parts: DeliveryParts) -> io::Result<()> {
    let inbox = parts.inbound.inbox.clone();
    let (delivery, mut poll) = Delivery::new(parts)?;
    let stage = SharedStage::new(delivery);
    inbox.offer_inline(BetweenRounds(stage.clone()));
    let mut events = Events::with_capacity(EVENTS_MAX);
    while let Some(timeout) = stage.own().and_then(|mut delivery| delivery.rest()) {
        pulse::beat();
        match poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        if let Some(mut delivery) = stage.own() {
            delivery.round(&events);
        }
    }
    if let Some(delivery) = stage.end() {
        delivery.shut();
    }
    Ok(())
}

/// Live frames for few clients are delivered by the thread that brings them.
#[derive(Debug)]
struct BetweenRounds(SharedStage<Delivery>);

impl InlineStage<ToDelivery> for BetweenRounds {
    fn take(&self, message: ToDelivery) -> Result<(), ToDelivery> {
        let ToDelivery::Live { news, .. } = &message else { return Err(message) };
        let is_done = self.0.if_free().is_some_and(|mut delivery| delivery.deliver_between_rounds(news));
        if is_done { Ok(()) } else { Err(message) }
    }
}
