//! The seam between history and live for one viewer of one stream. Pure.
//!
//! A viewer starts in history: it asks for reads until one comes to the end of the stream. Live text of
//! the stream meanwhile stands somewhere else, ahead or behind. The viewer joins it without gap or
//! repeat:
//!
//! - Live is behind the viewer: it joins at once and skips what it has.
//! - Live is ahead: a *bridge*, one bounded read from the viewer's position up to live's, while
//!   the live frames that come meanwhile are held.
//! - A live frame that begins before the viewer's position and ends behind it (a merged one) is bridged
//!   in the same way.
//! - Nobody reads the stream live yet: the viewer asks for it to begin exactly at its own position.
//!
//! INVARIANT: what [`Seam::read`] and [`Seam::live`] let through covers the stream's entries after the start
//! position, each once, in order. At most one read is outstanding for a viewer.

use crate::event::{EntryId, Frame, Position};
use std::sync::Arc;

/// The properties of a frame that the seam needs.
pub trait Piece: Clone {
    /// The viewer's position before it.
    fn after(&self) -> Position;
    /// The viewer's position after it.
    fn last(&self) -> Position;
    /// Cost of holding it, in bytes.
    fn len_bytes(&self) -> usize;
}

impl Piece for Arc<Frame> {
    fn after(&self) -> Position {
        self.after
    }

    fn last(&self) -> Position {
        self.last
    }

    fn len_bytes(&self) -> usize {
        self.json().len()
    }
}

/// How the delivery thread stands with a stream's live text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// It gets none.
    Off,
    /// It has asked for it.
    Attaching,
    /// It has got everything up to this position.
    On(Position),
}

/// The viewer's next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// A read of history from its position, up to an entry or to the end.
    Read {
        /// The last entry to be read.
        until: Option<EntryId>,
    },
    /// Live text from its position on.
    Attach,
}

/// The fate of a live frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is to be delivered now.
    Deliver,
    /// It is not for this viewer now.
    Ignored,
    /// It is kept until the bridge is finished.
    Held,
    /// The viewer has a part of it and needs a bridge to its end.
    Bridge {
        /// The end.
        until: EntryId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Road<P> {
    /// A read to the end is outstanding.
    History,
    /// No read is outstanding until the viewer's connection has drained.
    Paused,
    /// Waiting for live to begin.
    Joining,
    /// A read up to `until` is outstanding; `held` is `None` once holding cost too much.
    Bridging { until: Position, held: Option<Vec<P>>, held_bytes: usize },
    /// Gets live frames.
    Live,
}

/// One viewer's way through one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seam<P> {
    position: Position,
    road: Road<P>,
}

impl<P: Piece> Seam<P> {
    /// A viewer at `position` with a read to the end outstanding.
    #[must_use]
    pub const fn new(position: Position) -> Self {
        Self { position, road: Road::History }
    }

    /// The position up to which the viewer has been given everything.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Whether the viewer gets live frames.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.road, Road::Live)
    }

    /// Whether the viewer needs the stream's live text, now or soon.
    #[must_use]
    pub const fn needs_live(&self) -> bool {
        matches!(self.road, Road::Live | Road::Joining | Road::Bridging { .. })
    }

    /// Whether a read up to that position, or one behind it, is outstanding.
    #[must_use]
    pub fn bridges_to(&self, position: Position) -> bool {
        matches!(self.road, Road::Bridging { until, .. } if until >= position)
    }

    /// Whether the viewer waits for [`Seam::resume`].
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        matches!(self.road, Road::Paused)
    }

    /// The outstanding read has come back: the viewer was given everything up to `position`.
    ///
    /// `exhausted`: the read came to its end. `room`: the connection can take more history.
    /// Returns the held frames that are to be delivered now, and what is needed next.
    pub fn read(&mut self, position: Position, exhausted: bool, room: bool, live: Live) -> (Vec<P>, Ask) {
        self.position = self.position.max(position);
        match std::mem::replace(&mut self.road, Road::Paused) {
            Road::History if exhausted => (Vec::new(), self.join(live)),
            Road::History if room => (Vec::new(), self.read_on()),
            Road::History => (Vec::new(), Ask::Nothing),
            // The held frames are dropped and read again, once there is room.
            Road::Bridging { .. } if !exhausted && !room => (Vec::new(), Ask::Nothing),
            Road::Bridging { until, held, held_bytes } if !exhausted => {
                self.road = Road::Bridging { until, held, held_bytes };
                (Vec::new(), Ask::Read { until: Some(until.id) })
            }
            Road::Bridging { held: None, .. } => (Vec::new(), self.read_on()),
            Road::Bridging { until, held: Some(held), .. } => {
                // The entry at the end may have been deleted meanwhile; nothing more is coming before it.
                self.position = self.position.max(until);
                self.road = Road::Live;
                (held.into_iter().filter(|piece| self.take(piece) == Taken::Deliver).collect(), Ask::Nothing)
            }
            road => {
                debug_assert!(false, "a read came back that was not asked for");
                self.road = road;
                (Vec::new(), Ask::Nothing)
            }
        }
    }

    /// The outstanding read has brought the viewer to `position` at least, but not where live text follows.
    pub fn read_to_end(&mut self, position: Position) -> Ask {
        self.position = self.position.max(position);
        self.read_on()
    }

    /// Live text has begun: everything after `at` comes.
    pub fn attached(&mut self, at: Position) -> Ask {
        if matches!(self.road, Road::Joining) { self.join(Live::On(at)) } else { Ask::Nothing }
    }

    /// A live frame came. At most `room_bytes` are held.
    pub fn live(&mut self, piece: &P, room_bytes: usize) -> Taken {
        match &mut self.road {
            Road::Live => self.take(piece),
            Road::Bridging { until, held, held_bytes } => {
                if piece.last() <= *until && piece.after() < *until {
                    return Taken::Ignored;
                }
                *held_bytes += piece.len_bytes();
                if *held_bytes > room_bytes {
                    *held = None;
                }
                match held {
                    Some(held) => {
                        held.push(piece.clone());
                        Taken::Held
                    }
                    None => Taken::Ignored,
                }
            }
            Road::History | Road::Paused | Road::Joining => Taken::Ignored,
        }
    }

    /// Live text has ended for this delivery thread.
    pub fn broken(&mut self) -> Ask {
        match &mut self.road {
            Road::Live | Road::Joining => self.read_on(),
            Road::Bridging { held, .. } => {
                *held = None;
                Ask::Nothing
            }
            Road::History | Road::Paused => Ask::Nothing,
        }
    }

    /// The connection cannot take more: a live viewer leaves live.
    pub fn fall_back(&mut self) {
        if matches!(self.road, Road::Live) {
            self.road = Road::Paused;
        }
    }

    /// The connection has drained: a paused viewer goes on from history.
    pub fn resume(&mut self) -> Ask {
        if matches!(self.road, Road::Paused) { self.read_on() } else { Ask::Nothing }
    }

    fn read_on(&mut self) -> Ask {
        self.road = Road::History;
        Ask::Read { until: None }
    }

    fn join(&mut self, live: Live) -> Ask {
        match live {
            Live::Off => {
                self.road = Road::Joining;
                Ask::Attach
            }
            Live::Attaching => {
                self.road = Road::Joining;
                Ask::Nothing
            }
            Live::On(at) if at <= self.position => {
                self.road = Road::Live;
                Ask::Nothing
            }
            Live::On(at) => self.bridge(at),
        }
    }

    fn bridge(&mut self, until: Position) -> Ask {
        self.road = Road::Bridging { until, held: Some(Vec::new()), held_bytes: 0 };
        Ask::Read { until: Some(until.id) }
    }

    fn take(&mut self, piece: &P) -> Taken {
        if piece.after() >= self.position {
            self.position = piece.last().max(self.position);
            return Taken::Deliver;
        }
        if piece.last() <= self.position {
            return Taken::Ignored;
        }
        let until = piece.last();
        self.bridge(until);
        Taken::Bridge { until: until.id }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Entries `from + 1 ..= to` of a stream whose ids are 1, 2, 3, …
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Span {
        from: u64,
        to: u64,
    }

    fn at(n: u64) -> Position {
        if n == 0 { Position::ZERO } else { Position::whole(EntryId::new(n, 0)) }
    }

    impl Piece for Span {
        fn after(&self) -> Position {
            at(self.from)
        }
        fn last(&self) -> Position {
            at(self.to)
        }
        fn len_bytes(&self) -> usize {
            usize::try_from(self.to - self.from).unwrap()
        }
    }

    /// One event of a simulated run. They come in any order.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The producer writes so many entries.
        Write(u64),
        /// The live road reads at most so many entries and makes one frame of them.
        ReadLive(u64),
        /// The delivery thread takes the oldest message out of its inbox.
        Receive,
        /// The outstanding history reads look at the stream, taking at most so many entries.
        ReadHistory(u64),
        /// The results of history reads arrive.
        ReceiveHistory,
        /// The live road breaks.
        Break,
        /// The connection is full.
        Full,
        /// The connection has drained.
        Drained,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..5).prop_map(Step::Write),
            4 => (1_u64..5).prop_map(Step::ReadLive),
            6 => Just(Step::Receive),
            4 => (1_u64..6).prop_map(Step::ReadHistory),
            3 => Just(Step::ReceiveHistory),
            1 => Just(Step::Break),
            1 => Just(Step::Full),
            1 => Just(Step::Drained),
        ]
    }

    #[derive(Clone, Copy, Debug)]
    enum Message {
        Attached(u64),
        Live(Span),
        Position(u64),
        Broken,
    }

    /// One viewer with its outstanding read, on its way to Redis or back.
    struct Viewer {
        seam: Seam<Span>,
        asked: Option<Option<EntryId>>,
        found: Option<(Span, bool)>,
        start: u64,
        got: Vec<Span>,
    }

    /// A model of one stream, its live road, one delivery thread and several viewers.
    struct World {
        written: u64,
        /// Up to where the live road has read, while it runs.
        live: Option<u64>,
        inbox: std::collections::VecDeque<Message>,
        hub: Live,
        viewers: Vec<Viewer>,
        room_bytes: usize,
        /// Whether connections take more history.
        room: bool,
    }

    impl World {
        fn ask(&mut self, viewer: usize, ask: Ask) {
            match ask {
                Ask::Nothing => {}
                Ask::Read { until } => {
                    let viewer = &mut self.viewers[viewer];
                    assert!(viewer.asked.is_none() && viewer.found.is_none(), "one read at a time");
                    viewer.asked = Some(until);
                }
                Ask::Attach => {
                    assert_eq!(self.hub, Live::Off);
                    self.hub = Live::Attaching;
                    let from = self.viewers[viewer].seam.position().id.ms;
                    let live = *self.live.get_or_insert(from);
                    self.inbox.push_back(Message::Attached(live));
                }
            }
        }

        fn receive(&mut self) {
            let Some(message) = self.inbox.pop_front() else { return };
            match message {
                Message::Attached(live) => {
                    self.hub = Live::On(at(live));
                    for viewer in 0..self.viewers.len() {
                        let ask = self.viewers[viewer].seam.attached(at(live));
                        self.ask(viewer, ask);
                    }
                }
                Message::Broken => {
                    self.hub = Live::Off;
                    for viewer in 0..self.viewers.len() {
                        let ask = self.viewers[viewer].seam.broken();
                        self.ask(viewer, ask);
                    }
                }
                Message::Position(live) => self.hub = Live::On(at(live)),
                Message::Live(span) => {
                    self.hub = Live::On(at(span.to));
                    for viewer in 0..self.viewers.len() {
                        match self.viewers[viewer].seam.live(&span, self.room_bytes) {
                            Taken::Deliver => self.viewers[viewer].got.push(span),
                            Taken::Bridge { until } => self.ask(viewer, Ask::Read { until: Some(until) }),
                            Taken::Held | Taken::Ignored => {}
                        }
                    }
                }
            }
        }

        fn read_history(&mut self, viewer: usize, most: u64) {
            let viewer = &mut self.viewers[viewer];
            let Some(until) = viewer.asked.take() else { return };
            let from = viewer.seam.position().id.ms;
            let end = until.map_or(self.written, |until| until.ms.min(self.written)).max(from);
            let to = end.min(from + most);
            viewer.found = Some((Span { from, to }, to == end));
        }

        fn receive_history(&mut self, viewer: usize) {
            let hub = self.hub;
            let seen = &mut self.viewers[viewer];
            let Some((span, exhausted)) = seen.found.take() else { return };
            if span.to > span.from {
                seen.got.push(span);
            }
            let (held, ask) = seen.seam.read(at(span.to), exhausted, self.room, hub);
            seen.got.extend(held);
            self.ask(viewer, ask);
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Write(entries) => self.written += entries,
                Step::ReadLive(most) => {
                    let Some(live) = &mut self.live else { return };
                    let to = self.written.min(*live + most);
                    if to > *live {
                        // An odd end stands for an entry that is not delivered: the position moves alone.
                        let message = if to % 7 == 0 && to == *live + 1 {
                            Message::Position(to)
                        } else {
                            Message::Live(Span { from: *live, to })
                        };
                        self.inbox.push_back(message);
                        *live = to;
                    }
                }
                Step::Receive => self.receive(),
                Step::ReadHistory(most) => {
                    for viewer in 0..self.viewers.len() {
                        self.read_history(viewer, most);
                    }
                }
                Step::ReceiveHistory => {
                    for viewer in 0..self.viewers.len() {
                        self.receive_history(viewer);
                    }
                }
                Step::Break => {
                    if self.live.take().is_some() {
                        self.inbox.push_back(Message::Broken);
                    }
                }
                Step::Full => {
                    self.room = false;
                    self.viewers.iter_mut().for_each(|viewer| viewer.seam.fall_back());
                }
                Step::Drained => {
                    self.room = true;
                    for viewer in 0..self.viewers.len() {
                        let ask = self.viewers[viewer].seam.resume();
                        self.ask(viewer, ask);
                    }
                }
            }
        }
    }

    /// A frame with the id of an entry that was passed: the end that a generation comes to of itself.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Of(Position, Position);

    impl Piece for Of {
        fn after(&self) -> Position {
            self.0
        }
        fn last(&self) -> Position {
            self.1
        }
        fn len_bytes(&self) -> usize {
            1
        }
    }

    #[test]
    fn an_end_that_no_entry_says_reaches_whoever_has_not_had_it() {
        let id = EntryId::new(9, 0);
        let (part, but_end, whole) = (Position::part(id, 1), Position::but_end(id), Position::whole(id));
        let end = Of(but_end, whole);
        for (position, taken) in [
            (at(8), Taken::Deliver),
            (part, Taken::Deliver),
            (but_end, Taken::Deliver),
            (whole, Taken::Ignored),
        ] {
            let mut seam: Seam<Of> = Seam::new(position);
            assert_eq!(seam.read(Position::ZERO, true, true, Live::On(position)), (Vec::new(), Ask::Nothing));
            assert_eq!(seam.live(&end, 9), taken, "{position}");
            assert_eq!(seam.position(), whole);
        }
        // Also to whom it comes while live is being reached.
        for live in [part, but_end] {
            let mut seam: Seam<Of> = Seam::new(at(7));
            let bridge = Ask::Read { until: Some(id) };
            assert_eq!(seam.read(at(8), true, true, Live::On(live)), (Vec::new(), bridge));
            assert_eq!(seam.live(&end, 9), Taken::Held);
            assert_eq!(seam.read(part, true, true, Live::On(whole)), (vec![end], Ask::Nothing));
        }
    }

    #[test]
    fn an_end_that_live_text_has_told_already_is_read_to_the_end() {
        let id = EntryId::new(9, 0);
        let mut seam: Seam<Of> = Seam::new(at(7));
        let bridge = Ask::Read { until: Some(id) };
        let told = Live::On(Position::whole(id));
        assert_eq!(seam.read(Position::part(id, 1), true, true, told), (Vec::new(), bridge));
        assert!(seam.bridges_to(Position::whole(id)) && !seam.bridges_to(at(10)));
        assert_eq!(seam.read_to_end(Position::ZERO), Ask::Read { until: None });
        assert_eq!((seam.bridges_to(Position::whole(id)), seam.position()), (false, Position::part(id, 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// In every interleaving, every viewer gets every delivered entry after its start, once and in order.
        #[test]
        fn nothing_is_lost_or_repeated(
            steps in proptest::collection::vec(step(), 1..120),
            starts in proptest::collection::vec(0_u64..8, 1..4),
            room_bytes in 0_usize..12,
        ) {
            let viewer = |&start: &u64| {
                Viewer { seam: Seam::new(at(start)), asked: Some(None), found: None, start, got: Vec::new() }
            };
            let viewers: Vec<_> = starts.iter().map(viewer).collect();
            let mut world = World {
                written: 8,
                live: None,
                inbox: std::collections::VecDeque::new(),
                hub: Live::Off,
                viewers,
                room_bytes,
                room: true,
            };
            for step in steps {
                world.step(step);
            }
            // Then the world comes to rest, and everybody has everything.
            world.written += 1;
            for _ in 0..400 {
                world.step(Step::Drained);
                world.step(Step::ReadHistory(1_000));
                world.step(Step::ReceiveHistory);
                world.step(Step::ReadLive(1_000));
                world.step(Step::Receive);
            }
            for Viewer { seam, start, got, .. } in &world.viewers {
                let mut position = *start;
                for span in got {
                    prop_assert!(span.from >= position, "{span:?} repeats what is before {position}");
                    // Only entries that are never delivered may lie between two pieces.
                    prop_assert!((position + 1..=span.from).all(|id| id % 7 == 0), "{position} then {span:?}");
                    position = span.to;
                }
                prop_assert!((position + 1..=world.written).all(|id| id % 7 == 0), "ends at {position}");
                prop_assert!(seam.is_live());
            }
        }
    }
}
