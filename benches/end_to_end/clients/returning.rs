//! Clients that leave and come back: all connections end at once and without a word, as in a network that
//! fails; all clients come back at once, each by the last id that it has.
//!
//! Late ones were there before the bench, and nearly to the end of what is stored now.

use std::sync::atomic::Ordering;

use super::Clients;
use crate::judge::Judge;
use crate::load::Manner;
use crate::token::now_us;
use crate::wire::{self, stored_id};

/// How many of the stored tokens the late client that has most of them has not.
const LATE_BEHIND: u64 = 100;
/// How many more each of the others has not: so that hardly two of them want the same.
const LATE_APART: u64 = 10;

/// The state that a client keeps while it is away.
#[derive(Default)]
pub(super) struct Left {
    pub(super) judge: Judge,
    pub(super) last_id: String,
}

impl Clients<'_> {
    /// Ends all connections once that is wanted.
    pub(super) fn leave_if_told(&mut self) {
        let leaves = self.plan.manner == Manner::Returning && self.shared.leave.load(Ordering::Acquire);
        if !leaves || self.left.is_some() {
            return;
        }
        let clients = std::mem::take(&mut self.clients).into_iter();
        self.left =
            Some(clients.map(|client| Left { judge: client.judge, last_id: client.last_id }).collect());
        self.shared.connected.store(0, Ordering::Release);
    }

    /// Gives late clients the state of clients that were there before, once they may come.
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

    /// Whether the clients have left and may not yet come back.
    pub(super) fn is_away(&self) -> bool {
        let was_there = self.left.is_some() || self.plan.manner == Manner::Late;
        was_there && !self.shared.back.load(Ordering::Acquire)
    }

    /// Keeps the id of a frame for the request by which the client comes back.
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

    /// Notes when a client that came back has everything that has been written.
    pub(super) fn see_whether_caught_up(&mut self, index: usize) {
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
