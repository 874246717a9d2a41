//! Generates answers with a fixed seed, writes them in any of the shapes that servers use, and compares the emitted
//! events with the answers: every text once, every call separately, every additional member.

use serde_json::{Value, json};

use super::{Form, Margin, read};
use crate::fuzzing::Numbers;
use crate::model::{Event, PROGRESS_BYTES_MAX, Progress};

/// A tool call that a model made.
#[derive(Clone, Debug, Default, PartialEq)]
struct Call {
    choice: u64,
    id: String,
    name: String,
    arguments: String,
}

/// The parts of an answer that are compared.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    /// The additional members that must not be lost.
    marks: Vec<String>,
}

/// The answer that the events of `payloads` add up to, and the data of the `custom` ones.
fn emitted(form: Form, payloads: &[String]) -> (Answer, Vec<String>) {
    let (mut progress, mut answer, mut customs) = (Progress::NONE, Answer::default(), Vec::new());
    let mut numbers: Vec<(u64, u64)> = Vec::new();
    let mut is_over = false;
    for payload in payloads {
        assert!(!is_over, "only the last one ends it");
        let before = std::mem::take(&mut progress);
        let margin = Margin::default();
        let mut decoded = read((form, payload.as_bytes()), &before, false, &margin)
            .unwrap_or_else(|error| panic!("{error}: {payload}"));
        for event in decoded.events() {
            let text = |escaped: &str| serde_json::from_str::<String>(&format!("\"{escaped}\"")).unwrap();
            match event {
                Event::Delta { text: piece, channel: "content", index: 0 } => answer.content += &text(piece),
                Event::Delta { text: piece, channel: "reasoning", .. } => answer.reasoning += &text(piece),
                Event::ToolCall { index, call, id, name, arguments } => {
                    let place =
                        numbers.iter().position(|known| *known == (index, call)).unwrap_or_else(|| {
                            let expected =
                                numbers.iter().filter(|(choice, _)| *choice == index).count() as u64;
                            assert_eq!(call, expected, "numbers follow each other: {payload}");
                            numbers.push((index, call));
                            answer.calls.push(Call { choice: index, ..Call::default() });
                            numbers.len() - 1
                        });
                    let call = &mut answer.calls[place];
                    for (known, emitted) in [(&mut call.id, id), (&mut call.name, name)] {
                        if let Some(emitted) = emitted.map(text) {
                            assert!(known.is_empty() || *known == emitted, "{payload}");
                            *known = emitted;
                        }
                    }
                    call.arguments += &text(arguments);
                }
                Event::Custom { data } => customs.push(data.to_owned()),
                Event::End { .. } => is_over = true,
                event => panic!("{event:?} of {payload}"),
            }
        }
        progress = decoded.take_progress().map_or_else(|| before.clone(), std::sync::Arc::unwrap_or_clone);
        assert!(progress.len_bytes() <= PROGRESS_BYTES_MAX);
    }
    assert!(is_over);
    (answer, customs)
}

fn check(form: Form, payloads: &[String], expected: &Answer) {
    let (mut answer, customs) = emitted(form, payloads);
    answer.calls.sort_by_key(|call| call.choice);
    let shown = payloads.join("\n");
    assert_eq!((&answer.content, &answer.reasoning), (&expected.content, &expected.reasoning), "{shown}");
    assert_eq!(answer.calls, expected.calls, "{shown}");
    for mark in &expected.marks {
        let found = customs.iter().filter(|data| data.contains(mark)).count();
        assert_eq!(found, 1, "{mark} in {customs:?}\n{shown}");
    }
    if expected.marks.is_empty() {
        assert_eq!(customs, Vec::<String>::new(), "{shown}");
    }
}

impl Numbers {
    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn text(&mut self) -> String {
        const PIECES: [&str; 8] = ["a", "\u{e4}", "\u{1f600}", "\n", "\"", "\\", "NaN", "{} "];
        (0..1 + self.below(6)).map(|_| PIECES[self.below(PIECES.len())]).collect()
    }

    fn arguments(&mut self) -> String {
        json!({"a": self.text(), "n": self.below(100)}).to_string()
    }

    /// A text in pieces of at least one character each.
    fn cut(&mut self, text: &str) -> Vec<String> {
        let (mut pieces, mut piece) = (Vec::new(), String::new());
        for char in text.chars() {
            piece.push(char);
            if self.chance(3) {
                pieces.push(std::mem::take(&mut piece));
            }
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
        pieces
    }

    fn calls(&mut self, choice: u64) -> Vec<Call> {
        let calls = 0..self.below(4);
        let calls = calls.map(|n| Call {
            choice,
            id: format!("id{choice}-{n}"),
            name: ["f", "g"][self.below(2)].to_owned(),
            arguments: self.arguments(),
        });
        calls.collect()
    }

    /// Merges several sequences, keeping the order of each.
    fn interleave<T>(&mut self, sequences: Vec<Vec<T>>) -> Vec<T> {
        let mut ahead: Vec<_> =
            sequences.into_iter().map(|sequence| sequence.into_iter().peekable()).collect();
        let mut all = Vec::new();
        loop {
            ahead.retain_mut(|sequence| sequence.peek().is_some());
            if ahead.is_empty() {
                return all;
            }
            let next = self.below(ahead.len());
            all.extend(ahead[next].next());
        }
    }
}

/// JSON in which some characters are escaped that need not be.
fn written(numbers: &mut Numbers, value: &Value) -> String {
    let json = value.to_string();
    if numbers.chance(2) {
        json.replace('\u{e4}', "\\u00e4").replace('\u{1f600}', "\\ud83d\\ude00")
    } else {
        json
    }
}

/// The pieces of a call as some server writes them. `by_index`: whether the index distinguishes calls.
fn chat_pieces(
    numbers: &mut Numbers,
    call: &Call,
    (place, by_index): (usize, bool),
    marks: &mut Vec<String>,
) -> Vec<Value> {
    let index = if by_index { Some(place * 2 + 1) } else { [None, Some(0)][numbers.below(2)] };
    let repeats_id = numbers.chance(2);
    let mut pieces = numbers.cut(&call.arguments);
    if numbers.chance(3) {
        pieces.insert(0, String::new());
    }
    let mut written = Vec::new();
    for (n, arguments) in pieces.into_iter().enumerate() {
        let mut piece = json!({"function": {"arguments": arguments}});
        if let Some(index) = index {
            piece["index"] = json!(index);
        }
        if n == 0 {
            piece["function"]["name"] = json!(call.name);
        }
        if n == 0 || repeats_id {
            piece["id"] = json!(call.id);
        }
        if numbers.chance(8) {
            marks.push(format!("mark{}x{}-{n}", call.id, marks.len()));
            piece["extra_content"] = json!({"s": marks.last()});
        }
        written.push(piece);
    }
    written
}

fn chat(numbers: &mut Numbers) -> (Vec<String>, Answer) {
    let mut answer = Answer { content: numbers.text(), reasoning: numbers.text(), ..Answer::default() };
    let mut sequences = Vec::new();
    let delta = |choice: u64, delta: Value| json!({"choices": [{"index": choice, "delta": delta, "finish_reason": null}]});
    let pieces = numbers.cut(&answer.reasoning).into_iter().map(|text| delta(0, json!({"reasoning": text})));
    sequences.push(pieces.collect::<Vec<_>>());
    let mut texts = Vec::new();
    for text in numbers.cut(&answer.content.clone()) {
        let mut chunk = delta(0, json!({"content": text}));
        let mark = format!("mark-{}-", answer.marks.len());
        match numbers.below(12) {
            0 => chunk["choices"][0]["delta"]["images"] = json!([mark]),
            1 => chunk["choices"][0]["citations"] = json!([mark]),
            2 => chunk["search_results"] = json!({"r": mark}),
            3 => chunk["system_fingerprint"] = json!(mark),
            4 => chunk["choices"][0]["logprobs"] = json!({"content": [mark]}),
            _ => {}
        }
        let has_value =
            ["images", "citations", "search_results"].iter().any(|name| chunk.to_string().contains(name));
        if has_value {
            answer.marks.push(mark);
        }
        texts.push(chunk);
    }
    sequences.push(texts);
    for choice in 0..1 + numbers.below(2) as u64 {
        let (calls, by_index) = (numbers.calls(choice), numbers.chance(2));
        let mut pieces = Vec::new();
        for (place, call) in calls.iter().enumerate() {
            pieces.push(chat_pieces(numbers, call, (place, by_index), &mut answer.marks));
        }
        // Interleaved calls are distinguished by their index alone, and begin here in their order.
        let pieces = if by_index && numbers.chance(2) {
            let firsts: Vec<Value> = pieces.iter_mut().map(|pieces| pieces.remove(0)).collect();
            [firsts, numbers.interleave(pieces)].concat()
        } else {
            pieces.concat()
        };
        sequences
            .push(pieces.into_iter().map(|piece| delta(choice, json!({"tool_calls": [piece]}))).collect());
        answer.calls.extend(calls);
    }
    let mut payloads: Vec<String> =
        numbers.interleave(sequences).iter().map(|chunk| written(numbers, chunk)).collect();
    payloads.push("[DONE]".to_owned());
    (payloads, answer)
}

fn messages(numbers: &mut Numbers) -> (Vec<String>, Answer) {
    let mut answer = Answer { content: numbers.text(), calls: numbers.calls(0), ..Answer::default() };
    let mut payloads = vec![json!({"type": "message_start", "message": {"id": "m"}})];
    for text in numbers.cut(&answer.content.clone()) {
        payloads.push(
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        );
    }
    let has_one_index = numbers.chance(3);
    for (place, call) in answer.calls.iter_mut().enumerate() {
        let index = if has_one_index { 0 } else { place + 1 };
        let comes_at_once = numbers.chance(2);
        let input = if comes_at_once { serde_json::from_str(&call.arguments).unwrap() } else { json!({}) };
        let block = json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input});
        let begin = json!({"type": "content_block_start", "index": index, "content_block": block});
        payloads.push(begin.clone());
        if numbers.chance(4) {
            payloads.push(begin);
        }
        if !comes_at_once {
            for piece in numbers.cut(&call.arguments) {
                let delta = json!({"type": "input_json_delta", "partial_json": piece});
                payloads.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
            }
        }
        if numbers.chance(2) {
            payloads.push(json!({"type": "content_block_stop", "index": index}));
        }
    }
    if numbers.chance(2) {
        payloads.push(json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}));
    }
    payloads.push(json!({"type": "message_stop"}));
    // Arguments that are an object are emitted as they are written.
    let payloads: Vec<String> = payloads.iter().map(Value::to_string).collect();
    (payloads, answer)
}

/// An event with all names of its part, or with some, as `names` selects.
fn named(names: usize, mut event: Value, place: usize, item: &str) -> Value {
    if names != 1 {
        event["output_index"] = json!(place);
    }
    if names != 2 {
        event["item_id"] = json!(item);
    }
    event
}

/// The beginning of a message.
fn announced(place: usize, item: &str) -> Value {
    let item = json!({"type": "message", "id": item, "role": "assistant", "content": []});
    json!({"type": "response.output_item.added", "output_index": place, "item": item})
}

/// `crowded`: the server puts all items into one place and distinguishes them only by their ids, which every event
/// has.
fn response(numbers: &mut Numbers, crowded: bool) -> (Vec<String>, Answer) {
    let mut answer = Answer::default();
    let (mut events, mut output) =
        (vec![json!({"type": "response.created", "response": {"id": "r"}})], Vec::new());
    let has_output = numbers.chance(2);
    for number in 0..1 + numbers.below(4) {
        let (item, is_call, names) = (format!("item{number}"), numbers.chance(2), numbers.below(3));
        let (place, names) = if crowded { (0, 0) } else { (number, names) };
        if is_call {
            let call = Call {
                id: format!("call{number}"),
                name: "f".to_owned(),
                arguments: numbers.arguments(),
                choice: 0,
            };
            let whole = json!({"type": "function_call", "id": item, "call_id": call.id, "name": call.name, "arguments": call.arguments});
            let mut empty = whole.clone();
            empty["arguments"] = json!(if numbers.chance(4) { &*call.arguments } else { "" });
            events.push(json!({"type": "response.output_item.added", "output_index": place, "item": empty}));
            let (pieces, repeats) = (numbers.cut(&call.arguments), 1 + numbers.below(3));
            let come = if numbers.chance(2) { pieces.len() } else { numbers.below(pieces.len() + 1) };
            for piece in pieces.iter().take(come) {
                let event = json!({"type": "response.function_call_arguments.delta", "delta": piece});
                events.push(named(names, event, place, &item));
            }
            let is_whole = has_output || come == pieces.len();
            if repeats & 1 != 0 || !is_whole {
                let event =
                    json!({"type": "response.function_call_arguments.done", "arguments": call.arguments});
                events.push(named(names, event, place, &item));
            }
            if repeats & 2 != 0 {
                events
                    .push(json!({"type": "response.output_item.done", "output_index": place, "item": whole}));
            }
            output.push(whole);
            answer.calls.push(call);
            continue;
        }
        let mut text = numbers.text();
        if crowded && numbers.chance(2) {
            events.push(announced(place, &item));
        } else if crowded {
            // Only its text distinguishes such an item from the one before it.
            text = format!("{number}{text}");
        }
        let part = json!({"type": "output_text", "text": text, "annotations": []});
        let whole = json!({"type": "message", "id": item, "role": "assistant", "content": [part]});
        let (pieces, repeats) = (numbers.cut(&text), numbers.below(8));
        let come = if numbers.chance(2) { pieces.len() } else { numbers.below(pieces.len() + 1) };
        for piece in pieces.iter().take(come) {
            let event = json!({"type": "response.output_text.delta", "content_index": 0, "delta": piece});
            events.push(named(names, event, place, &item));
        }
        // The pieces of an item that was not announced could belong to this one if it were not complete.
        if repeats & 1 != 0 || come < pieces.len() || crowded {
            let event = json!({"type": "response.output_text.done", "content_index": 0, "text": text});
            events.push(named(names, event, place, &item));
        }
        if repeats & 2 != 0 {
            let event = json!({"type": "response.content_part.done", "content_index": 0, "part": part});
            events.push(named(names, event, place, &item));
        }
        if repeats & 4 != 0 {
            events.push(json!({"type": "response.output_item.done", "output_index": place, "item": whole}));
        }
        output.push(whole);
        answer.content += &text;
    }
    let output = if has_output { json!(output) } else { json!([]) };
    events.push(json!({"type": "response.completed", "response": {"status": "completed", "output": output}}));
    (events.iter().map(|event| written(numbers, event)).collect(), answer)
}

#[test]
fn nothing_is_dropped_and_nothing_is_emitted_twice() {
    let mut numbers = Numbers(0x5eed_0009);
    for _ in 0..500 {
        let (payloads, answer) = chat(&mut numbers);
        check(Form::OpenAi, &payloads, &answer);
        for crowded in [false, true] {
            let (payloads, answer) = response(&mut numbers, crowded);
            check(Form::OpenAi, &payloads, &answer);
        }
        let (payloads, answer) = messages(&mut numbers);
        check(Form::Anthropic, &payloads, &answer);
    }
}
