//! Property tests of the seam between history and live text.

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

/// One event of a simulated run. They may come in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The producer writes this many entries.
    Write(u64),
    /// Live reading reads at most this many entries into one frame.
    ReadLive(u64),
    /// The delivery thread receives the oldest message of its inbox.
    Receive,
    /// The outstanding history reads read the stream, at most this many entries each.
    ReadHistory(u64),
    /// The results of history reads arrive.
    ReceiveHistory,
    /// Live reading breaks.
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

/// One viewer with its outstanding read, which is on its way to Redis or back.
struct Viewer {
    seam: Seam<Span>,
    asked: Option<Option<EntryId>>,
    found: Option<(Span, bool)>,
    start: u64,
    got: Vec<Span>,
}

/// A model of one stream, its live reading, one delivery thread and several viewers.
struct World {
    written: u64,
    /// The position of live reading, while it runs.
    live: Option<u64>,
    inbox: std::collections::VecDeque<Message>,
    hub: Live,
    viewers: Vec<Viewer>,
    room_bytes: usize,
    /// Whether connections accept more history.
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

    fn read_history(&mut self, viewer: usize, entries_max: u64) {
        let viewer = &mut self.viewers[viewer];
        let Some(until) = viewer.asked.take() else { return };
        let from = viewer.seam.position().id.ms;
        let end = until.map_or(self.written, |until| until.ms.min(self.written)).max(from);
        let to = end.min(from + entries_max);
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
            Step::ReadLive(entries_max) => {
                let Some(live) = &mut self.live else { return };
                let to = self.written.min(*live + entries_max);
                if to > *live {
                    // A multiple of 7 stands for an entry that is not delivered: only the position moves.
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
            Step::ReadHistory(entries_max) => {
                for viewer in 0..self.viewers.len() {
                    self.read_history(viewer, entries_max);
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

/// A frame between two positions, for an end that has no entry of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Between(Position, Position);

impl Piece for Between {
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
fn an_end_without_an_entry_reaches_viewers_that_lack_it() {
    let id = EntryId::new(9, 0);
    let (part, but_end, whole) = (Position::part(id, 1), Position::but_end(id), Position::whole(id));
    let end = Between(but_end, whole);
    for (position, taken) in
        [(at(8), Taken::Deliver), (part, Taken::Deliver), (but_end, Taken::Deliver), (whole, Taken::Ignored)]
    {
        let mut seam: Seam<Between> = Seam::new(position);
        assert_eq!(seam.read(Position::ZERO, true, true, Live::On(position)), (Vec::new(), Ask::Nothing));
        assert_eq!(seam.live(&end, 9), taken, "{position}");
        assert_eq!(seam.position(), whole);
    }
    // Also if it arrives before the viewer has joined live.
    for live in [part, but_end] {
        let mut seam: Seam<Between> = Seam::new(at(7));
        let bridge = Ask::Read { until: Some(id) };
        assert_eq!(seam.read(at(8), true, true, Live::On(live)), (Vec::new(), bridge));
        assert_eq!(seam.live(&end, 9), Taken::Held);
        assert_eq!(seam.read(part, true, true, Live::On(whole)), (vec![end], Ask::Nothing));
    }
}

#[test]
fn an_end_that_live_text_has_sent_already_is_read_to_the_end() {
    let id = EntryId::new(9, 0);
    let mut seam: Seam<Between> = Seam::new(at(7));
    let bridge = Ask::Read { until: Some(id) };
    let end_sent = Live::On(Position::whole(id));
    assert_eq!(seam.read(Position::part(id, 1), true, true, end_sent), (Vec::new(), bridge));
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
        // Finally, all steps run until the state settles: every viewer must have every entry.
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
