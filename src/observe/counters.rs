//! Counters (events since the start) and gauges (current values). Each is declared once with its name and its help,
//! so that text, JSON and Prometheus list all of them.
//!
//! Values are relaxed atomics: each is exact, two of them read together may differ by an instant. Counters only grow,
//! as long as the process lives.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A number of events since the start.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds 1.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds 1.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts 1.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Subtracts `n`.
    pub fn sub(&self, n: i64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Replaces a share of `before` by one of `after`.
    pub fn change(&self, before: usize, after: usize) {
        let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.add(signed(after) - signed(before));
    }

    /// Sets the value; for gauges with a single writer.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The value of a counter or gauge at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<T> {
    /// Its name, without prefix and suffix.
    pub name: &'static str,
    /// Its meaning, in one line.
    pub help: &'static str,
    /// Its value.
    pub value: T,
}

macro_rules! declare {
    ($(#[$about:meta])* $group:ident of $kind:ident reading $number:ty { $($name:ident: $help:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        pub struct $group {
            $(#[doc = $help] pub $name: $kind,)+
        }

        impl $group {
            /// All values, in the order of their declaration.
            #[must_use]
            pub fn read(&self) -> Vec<Reading<$number>> {
                vec![$(Reading { name: stringify!($name), help: $help, value: self.$name.get() },)+]
            }
        }
    };
}

declare! {
    /// Numbers of events since the start.
    Counters of Counter reading u64 {
        reads: "Reads of live streams.",
        reads_empty: "Reads of live streams that found nothing.",
        entries_read: "Entries read from live streams.",
        bytes_read: "Bytes of replies to reads of live streams.",
        acks_sent: "Acknowledgements to Redis: how often the position of a group was moved.",
        entries_dropped_retry: "Entries dropped because their number was not new.",
        entries_dropped_finished: "Entries dropped because their generation was finished.",
        entries_undecodable: "Entries that could not be decoded.",
        dead_letters_written: "Dead letters written.",
        dead_letters_deferred: "Times that a stream had to wait because too many dead letters were not written yet.",
        dead_letters_failed: "Dead letters that could not be written.",
        frames_encoded: "Frames encoded, each once however many clients receive it.",
        frames_written: "Frames written to clients.",
        bytes_written: "Bytes written to clients.",
        replay_reads: "Reads of history.",
        replay_entries: "Entries read from history.",
        checkpoints_used: "Times that a scan of a long history continued from another scan's checkpoint.",
        connections_accepted: "Client connections accepted.",
        connections_refused_full: "Client connections refused because too many were open.",
        connections_refused_rate: "Client connections refused because of a rate or a limit per client.",
        handshakes_timed_out: "Client connections closed before their request was complete.",
        http_requests: "HTTP requests of clients.",
        http_errors: "HTTP requests of clients answered with an error.",
        websocket_opened: "WebSocket connections opened.",
        sse_opened: "Responses with server-sent events begun.",
        client_messages: "Messages received from clients.",
        client_messages_refused: "Messages of clients that were refused.",
        subscriptions: "Subscriptions begun.",
        clients_fell_back: "Times that a slow client left live for history.",
        clients_slow_closed: "Clients closed because they made no progress.",
        clients_half_open_closed: "Clients closed because they had disappeared without closing.",
        streams_demoted: "Times that a stream was sent to history because a delivery inbox was full.",
        streams_broken: "Times that a stream lost its key or its group while it was read.",
        gaps_trimmed: "Gaps of entries that were trimmed before they were read.",
        gaps_recreated: "Gaps of streams that were deleted and recreated.",
        gaps_producer: "Gaps in the numbers that producers gave.",
        gaps_failover: "Gaps of streams that came back with older content.",
        grace_ends_written: "Generations ended by an entry because nothing came after their finish reason.",
        producers_lost_written: "Generations given up because their producer was silent.",
        redis_connects: "Connections made to Redis.",
        redis_errors: "Failed connections to and requests of Redis.",
        wakeups_sent: "Wake-ups sent to blocked readers.",
        tracking_pushes: "Names of changed streams that Redis pushed.",
        cancels_requested: "Cancel requests answered when they were on the control stream.",
        cancels_written: "Entries written to control streams: one for each generation that is to stop.",
        cancels_refused: "Cancel requests refused because they could not be written.",
        acks_received: "Acknowledgements received from clients.",
        acks_merged: "Acknowledgements that were repeated, or merged into a later one of the same viewer.",
        receipts_acked: "Receipts written of what clients acknowledged.",
        receipts_untaken: "Receipts written of generations that nobody acknowledged in time.",
        receipts_failed: "Receipts that could not be written or held.",
        leases_renewed: "Renewals of the instance's lease.",
        groups_removed: "Consumer groups removed from streams that nobody watches.",
    }
}

declare! {
    /// Current values.
    Gauges of Gauge reading i64 {
        connections_open: "Client connections open.",
        subscriptions_open: "Subscriptions open.",
        streams_live: "Streams read live.",
        streams_waited: "Names of streams that do not exist yet and are waited for.",
        replay_jobs: "Reads of history under way or waiting.",
        cancels_unwritten: "Control streams of streams that do not exist yet.",
        history_reply_bytes: "Bytes of entries read from history that are not decoded yet.",
        history_frame_bytes: "Bytes of frames from history that are not sent yet.",
        checkpoint_bytes: "Bytes of the checkpoints of scans of long histories.",
        letters_in_hand_bytes: "Bytes of dead letters that the recorder has taken from its queue and not written yet.",
        receipts_in_hand_bytes: "Bytes of acknowledgements that the recorder has taken from its queue and not written yet.",
        outbox_bytes: "Bytes of frames held for clients.",
        state_bytes: "Bytes of large JSON states that are being assembled or sent to clients, each counted once.",
        input_bytes: "Bytes held of requests and messages that clients have begun to send.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_counter_is_listed_once_with_its_value() {
        let counters = Counters::default();
        counters.entries_read.add(5);
        counters.groups_removed.inc();
        let read = counters.read();
        let value = |name| read.iter().find(|reading| reading.name == name).unwrap().value;
        assert_eq!((value("entries_read"), value("groups_removed"), value("reads")), (5, 1, 0));
        let names: BTreeSet<_> = read.iter().map(|reading| reading.name).collect();
        assert_eq!((names.len(), size_of::<Counters>()), (read.len(), read.len() * size_of::<Counter>()));
    }

    #[test]
    fn gauges_go_both_ways() {
        let gauge = Gauge::default();
        gauge.inc();
        gauge.add(10);
        gauge.sub(4);
        gauge.dec();
        gauge.change(7, 9);
        gauge.change(2, 0);
        assert_eq!(gauge.get(), 6);
        gauge.set(2);
        assert_eq!(gauge.get(), 2);
    }
}
