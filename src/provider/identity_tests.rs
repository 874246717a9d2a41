//! Items to which a server gives the same place, and ids that it changes: nothing is dropped, and nothing is emitted
//! twice.

use super::tests::openai;

fn event(kind: &str, rest: &str) -> String {
    format!(r#"{{"type":"response.{kind}","output_index":0,{rest}}}"#)
}

/// How a server writes a kind of text.
struct Voice {
    event: &'static str,
    member: &'static str,
    sub: &'static str,
    part: &'static str,
    step: &'static str,
    channel: &'static str,
}

const VOICES: [Voice; 4] = [
    Voice {
        event: "output_text",
        member: "text",
        sub: "content_index",
        part: "output_text",
        step: "content_part.done",
        channel: "content",
    },
    Voice {
        event: "refusal",
        member: "refusal",
        sub: "content_index",
        part: "refusal",
        step: "content_part.done",
        channel: "refusal",
    },
    Voice {
        event: "reasoning_text",
        member: "text",
        sub: "content_index",
        part: "reasoning_text",
        step: "content_part.done",
        channel: "reasoning",
    },
    Voice {
        event: "reasoning_summary_text",
        member: "text",
        sub: "summary_index",
        part: "summary_text",
        step: "reasoning_summary_part.done",
        channel: "reasoning",
    },
];

impl Voice {
    fn delta(&self, item: &str, text: &str) -> String {
        let Self { event: kind, sub, .. } = self;
        event(&format!("{kind}.delta"), &format!(r#""{sub}":0,"item_id":"{item}","delta":"{text}""#))
    }

    fn done(&self, item: &str, text: &str) -> String {
        let Self { event: kind, member, sub, .. } = self;
        event(&format!("{kind}.done"), &format!(r#""{sub}":0,"item_id":"{item}","{member}":"{text}""#))
    }

    fn part(&self, text: &str) -> String {
        format!(r#"{{"type":"{}","{}":"{text}"}}"#, self.part, self.member)
    }

    fn part_done(&self, item: &str, text: &str) -> String {
        let part = self.part(text);
        event(self.step, &format!(r#""{}":0,"item_id":"{item}","part":{part}"#, self.sub))
    }

    fn item(&self, item: &str, text: &str) -> String {
        let (kind, list) = match self.part {
            "summary_text" => ("reasoning", "summary"),
            "reasoning_text" => ("reasoning", "content"),
            _ => ("message", "content"),
        };
        format!(r#"{{"type":"{kind}","id":"{item}","{list}":[{}]}}"#, self.part(text))
    }

    fn item_done(&self, item: &str, text: &str) -> String {
        event("output_item.done", &format!(r#""item":{}"#, self.item(item, text)))
    }

    fn emitted(&self, text: &str) -> String {
        format!("{}#0 {text}", self.channel)
    }
}

fn added(item: &str) -> String {
    event("output_item.added", &format!(r#""item":{{"type":"message","id":"{item}","content":[]}}"#))
}

fn completed(items: &[String]) -> String {
    event("completed", &format!(r#""response":{{"output":[{}]}}"#, items.join(",")))
}

fn story(story: &[(String, String)]) {
    openai(&story.iter().map(|(payload, emitted)| (&**payload, &**emitted)).collect::<Vec<_>>());
}

#[test]
fn a_whole_of_another_item_in_the_same_place_is_emitted() {
    let nothing = String::new;
    for voice in &VOICES {
        for pieces in [&["One"][..], &["On", "e"]] {
            let mut begun: Vec<(String, String)> =
                pieces.iter().map(|piece| (voice.delta("m1", piece), voice.emitted(piece))).collect();
            let repeats = [
                voice.done("m2", "Two"),
                voice.part_done("m2", "Two"),
                voice.item_done("m2", "Two"),
                completed(&[voice.item("m1", "One"), voice.item("m2", "Two")]),
            ];
            let end = "end completed -".to_owned();
            // Whichever event is the first with the whole text.
            for first in 0..repeats.len() {
                let mut events = begun.clone();
                events.push((voice.item_done("m1", "One"), nothing()));
                events.extend(repeats[first..].iter().map(|event| (event.clone(), nothing())));
                let place = begun.len() + 1;
                events[place].1 = voice.emitted("Two");
                let last = events.len() - 1;
                events[last].1 =
                    if last == place { format!("{} | {end}", voice.emitted("Two")) } else { end.clone() };
                story(&events);
                // The first item is not complete before.
                events.remove(place - 1);
                story(&events);
            }
            // In the response it is the only item.
            begun.push((completed(&[voice.item("m2", "Two")]), format!("{} | {end}", voice.emitted("Two"))));
            story(&begun);
        }
    }
}

#[test]
fn an_announced_item_is_a_separate_one_whatever_its_text() {
    let voice = &VOICES[0];
    for text in ["One", "One and more", "Two"] {
        story(&[
            (added("m1"), String::new()),
            (voice.delta("m1", "One"), voice.emitted("One")),
            (added("m2"), String::new()),
            (voice.done("m2", text), voice.emitted(text)),
            (voice.done("m1", "One"), String::new()),
            (voice.part_done("m2", text), String::new()),
            (completed(&[voice.item("m1", "One"), voice.item("m2", text)]), "end completed -".to_owned()),
        ]);
    }
    story(&[
        (added("m1"), String::new()),
        (voice.delta("m1", "One"), voice.emitted("One")),
        (added("m2"), String::new()),
        (voice.delta("m2", "Tw"), voice.emitted("Tw")),
        (voice.delta("m1", " more"), voice.emitted(" more")),
        (voice.delta("m2", "o"), voice.emitted("o")),
        (voice.done("m1", "One more"), String::new()),
        (voice.item_done("m2", "Two"), String::new()),
    ]);
}

#[test]
fn pieces_of_another_item_are_its_own_where_ids_are_steady() {
    let voice = &VOICES[0];
    story(&[
        (voice.delta("m1", "O"), voice.emitted("O")),
        (voice.delta("m1", "ne"), voice.emitted("ne")),
        (voice.delta("m2", "Two"), voice.emitted("Two")),
        (voice.done("m1", "One"), String::new()),
        (voice.done("m2", "Two"), String::new()),
        (voice.item_done("m1", "One"), String::new()),
        (voice.item_done("m2", "Two"), String::new()),
    ]);
}

#[test]
fn ids_that_change_from_event_to_event_mean_one_item() {
    let voice = &VOICES[0];
    story(&[
        (voice.delta("a", "O"), voice.emitted("O")),
        (voice.delta("b", "n"), voice.emitted("n")),
        (voice.delta("c", "e"), voice.emitted("e")),
        (voice.done("d", "One"), String::new()),
        (voice.part_done("e", "One"), String::new()),
        (voice.item_done("f", "One"), String::new()),
        (completed(&[voice.item("g", "One")]), "end completed -".to_owned()),
    ]);
    // A complete text that contradicts is not emitted as text, nor is a later one in its place.
    let custom = "custom response.output_text.done".to_owned();
    story(&[
        (voice.delta("a", "O"), voice.emitted("O")),
        (voice.delta("b", "n"), voice.emitted("n")),
        (voice.done("c", "Uno"), custom.clone()),
        (voice.part_done("d", "Uno"), String::new()),
        (voice.done("b", "n"), custom),
    ]);
}

fn arguments(step: &str, item: &str, arguments: &str) -> String {
    let member = if step == "delta" { "delta" } else { "arguments" };
    let kind = format!("function_call_arguments.{step}");
    event(&kind, &format!(r#""item_id":"{item}","{member}":"{arguments}""#))
}

fn call(item: &str, id: &str, arguments: &str) -> String {
    format!(
        r#"{{"type":"function_call","id":"{item}","call_id":"{id}","name":"f","arguments":"{arguments}"}}"#
    )
}

fn call_done(item: &str, id: &str, arguments: &str) -> String {
    event("output_item.done", &format!(r#""item":{}"#, call(item, id, arguments)))
}

#[test]
fn calls_in_one_place_are_distinguished() {
    let emitted = |events: &str| events.to_owned();
    let end = [
        (call_done("i1", "c1", "1"), emitted("tool#0.0 c1 f ")),
        (call_done("i2", "c2", "2"), emitted("tool#0.1 c2 f ")),
        (completed(&[call("i1", "c1", "1"), call("i2", "c2", "2")]), emitted("end completed -")),
    ];
    for begin in [
        vec![
            (arguments("done", "i1", "1"), emitted("tool#0.0 - - 1")),
            (arguments("done", "i2", "2"), emitted("tool#0.1 - - 2")),
        ],
        vec![
            (arguments("delta", "i1", "1"), emitted("tool#0.0 - - 1")),
            (arguments("done", "i2", "2"), emitted("tool#0.1 - - 2")),
        ],
        vec![
            (arguments("delta", "i1", "1"), emitted("tool#0.0 - - 1")),
            (arguments("done", "i1", "1"), String::new()),
            (arguments("delta", "i2", "2"), emitted("tool#0.1 - - 2")),
            (arguments("done", "i2", "2"), String::new()),
        ],
    ] {
        story(&[begin, end.to_vec()].concat());
    }
    // Several pieces with one id, then another id.
    story(&[
        (arguments("delta", "i1", "1"), emitted("tool#0.0 - - 1")),
        (arguments("delta", "i1", "1"), emitted("tool#0.0 - - 1")),
        (arguments("delta", "i2", "2"), emitted("tool#0.1 - - 2")),
        (arguments("done", "i1", "11"), String::new()),
        (arguments("done", "i2", "2"), String::new()),
    ]);
    // Another id with each event: one call.
    story(&[
        (arguments("delta", "a", "1"), emitted("tool#0.0 - - 1")),
        (arguments("delta", "b", "1"), emitted("tool#0.0 - - 1")),
        (arguments("done", "c", "11"), String::new()),
        (call_done("d", "c1", "11"), emitted("tool#0.0 c1 f ")),
    ]);
    // A call with the same id that contradicts itself is still the same call.
    story(&[
        (call_done("i1", "c1", "1"), emitted("tool#0.0 c1 f 1")),
        (call_done("i1", "c1", "2"), emitted("custom response.output_item.done")),
    ]);
}
