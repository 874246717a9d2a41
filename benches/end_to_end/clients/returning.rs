//! Clients that leave and come back: all connections are closed at once without a closing frame, as when a network
//! fails, and all clients reconnect at once with the last id that each has received.
//!
//! Late clients are simulated: they reconnect as if they had received nearly all of the stored tokens in an earlier
//! connection.

use std::sync::atomic::Ordering;

use super::Clients;
use crate::judge::Judge;
use crate::load::Manner;
use crate::token::now_us;
use crate::wire::{self, stored_id};

/// How many of the stored tokens the late client with the most of them lacks.
const LATE_BEHIND: u64 = 100;
/// How many more tokens each further late client lacks, so that hardly any two request the same position.
const LATE_APART: u64 = 10;

/// The state that a client keeps while it is away.
#[derive(Default)]
pub(super) struct Left {
    pub(super) judge: Judge,
    pub(super) last_id: String,
}

impl Clients<'_> {
    /// Closes all connections once the conductor requests it.
    pub(super) fn leave_if_requested(&mut self) {
        let leaves = self.plan.manner == Manner::Returning && self.shared.leave.load(Ordering::Acquire);
        if !leaves || self.left.is_some() {
            return;
        }
        let clients = std::mem::take(&mut self.clients).into_iter();
        self.left =
            Some(clients.map(|client| Left { judge: client.judge, last_id: client.last_id }).collect());
        self.shared.connected.store(0, Ordering::Release);
    }

    /// Gives late clients the state of clients that received most of the stream, once they may connect.
    pub(super) fn come_late(&mut self) {
        let comes = self.plan.manner == Manner::Late && self.shared.back.load(Ordering::Acquire);
        if !comes || self.left.is_some() {
            return;
        }
        let left = (0..self.plan.clients).map(|index| {
            let stream = (self.plan.first_stream + index % self.plan.streams) as u64;
            let behind = LATE_BEHIND + LATE_APART * (index / self.plan.streams) as u64;
            let next = self.plan.backlog.saturating_sub(behind).max(1);
            Left { judge: Judge::at(stream, next), last_id: stored_id(next - 1) }
        });
        self.left = Some(left.collect());
    }

    /// Whether the clients have left and may not reconnect yet.
    pub(super) fn is_away(&self) -> bool {
        let was_there = self.left.is_some() || self.plan.manner == Manner::Late;
        was_there && !self.shared.back.load(Ordering::Acquire)
    }

    /// Keeps the id of a frame for the request with which the client reconnects.
    pub(super) fn keep_id(&mut self, index: usize, json: &[u8]) {
        if self.plan.manner != Manner::Returning || self.left.is_some() {
            return;
        }
        if let Some(id) = wire::id(json) {
            let last_id = &mut self.clients[index].last_id;
            last_id.clear();
            last_id.push_str(id);
        }
    }

    /// Records when a client that reconnected, or came to stored tokens, has everything written before that.
    pub(super) fn check_caught_up(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.behind && client.judge.next() >= self.shared.written[client.stream].load(Ordering::Acquire)
        {
            client.behind = false;
            let came_back = self.shared.measured.us().start;
            self.seen.back_us.saturating_record(now_us().saturating_sub(came_back));
            self.shared.caught_up.fetch_add(1, Ordering::AcqRel);
        }
    }
}
