//! Payloads torn and glued with a fixed seed: nothing panics, what is kept stays bounded, and what is said is valid.

use super::*;
use crate::event::PROGRESS_BYTES_MAX;

/// Payloads of all kinds, from which others are made.
const SEEDS: [&str; 25] = [
    r#"{"choices":[{"delta":{"tool_calls":[{"id":7,"function":{"arguments":{"a":"\\"}}},{"function":{"arguments":{}}}]},"error":{}}],"x_groq":{"usage":{"n":1}}}"#,
    r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"H\u00e4 \ud83d\ude00"},"finish_reason":null}],"usage":null}"#,
    r#"{"choices":[{"index":1,"delta":{"reasoning":"a","refusal":"b"},"finish_reason":"stop"}],"usage":{"n":1}}"#,
    r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"a\""}}]}}]}"#,
    r#"{"choices":[{"delta":{"tool_calls":[{"id":"d","function":{"arguments":"1"}},{"function":{"arguments":"2"}}]}}]}"#,
    r#"{"choices":[{"delta":{"content":[{"type":"text","text":"x"},{"type":"thinking","thinking":[{"type":"text","text":"y"}]},{"type":"z"}]}}]}"#,
    r#"{"choices":[],"usage":{"total_tokens":3,"d":{"e":[1,2]}},"error":null}"#,
    r#"{"error":{"message":"m","type":"t","code":429}}"#,
    r#"{"error":"m"}"#,
    "[DONE]",
    r#"{"type":"response.created","response":{"usage":null}}"#,
    r#"{"type":"response.output_text.delta","output_index":0,"delta":"ab\n"}"#,
    r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","id":"i","call_id":"c","name":"f","arguments":""}}"#,
    r#"{"type":"response.function_call_arguments.delta","item_id":"i","output_index":1,"delta":"{"}"#,
    r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","arguments":"{}"}}"#,
    r#"{"type":"response.completed","response":{"status":"completed","usage":{"n":1}}}"#,
    r#"{"type":"message_start","message":{"id":"m","usage":{"input_tokens":5,"output_tokens":1}}}"#,
    r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":{"a":"b"}}}"#,
    r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\""}}"#,
    r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"x"}}"#,
    r#"{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":"x"}}"#,
    r#"{"type":"content_block_stop","index":0}"#,
    r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}"#,
    r#"{"type":"message_stop"}"#,
    r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
];

/// A small generator of numbers (xorshift64*), so that a failure can be met again.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % end.max(1)
    }
}

/// What JSON is made of, to be put anywhere.
const TOKENS: [&str; 20] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "null",
    "0",
    "-1",
    "18446744073709551616",
    "1e9",
    "\\",
    "\\u",
    r"\ud800",
    "true",
    r#""index":"#,
    r#""type":"#,
    r#""delta":"#,
    "\u{e9}",
];

fn mutate(numbers: &mut Numbers, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..numbers.below(4) {
        let (from, to) = (numbers.below(bytes.len() + 1), numbers.below(bytes.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        match numbers.below(6) {
            0 => drop(bytes.drain(from..to.min(from + 12))),
            1 => drop(bytes.splice(from..from, TOKENS[numbers.below(TOKENS.len())].bytes())),
            2 => {
                let piece = bytes[from..to].to_vec();
                let at = numbers.below(bytes.len() + 1);
                drop(bytes.splice(at..at, piece));
            }
            3 if from < bytes.len() => bytes[from] = u8::try_from(numbers.below(256)).unwrap(),
            4 => {
                let other = &seeds[numbers.below(seeds.len())];
                let at = numbers.below(other.len() + 1);
                bytes.truncate(from);
                bytes.extend_from_slice(&other[at..]);
            }
            _ => drop(bytes.splice(from..to.min(from + 8), TOKENS[numbers.below(TOKENS.len())].bytes())),
        }
    }
    bytes
}

fn expect_valid(event: &Event<'_>) {
    let string = |escaped: &str| {
        serde_json::from_str::<String>(&format!("\"{escaped}\""))
            .unwrap_or_else(|error| panic!("{error}: {escaped}"));
    };
    let object = |json: &str| {
        serde_json::from_str::<serde::de::IgnoredAny>(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert!(json.starts_with('{'), "{json}");
    };
    match *event {
        Event::Delta { text, channel, .. } => [text, channel].into_iter().for_each(string),
        Event::ToolCall { id, name, arguments, .. } => {
            [id, name, Some(arguments)].into_iter().flatten().for_each(string);
        }
        Event::End { finish_reason, usage } => {
            finish_reason.into_iter().for_each(string);
            usage.into_iter().for_each(object);
        }
        Event::Error { code, message } => [Some(code), message].into_iter().flatten().for_each(string),
        Event::Custom { data } => object(data),
        Event::Start { .. } | Event::Heartbeat => panic!("no provider says that"),
    }
}

/// Tells mutated payloads one after another; some are understood.
fn tell(seeds: &[Vec<u8>], seed: u64, payloads: usize) {
    let mut numbers = Numbers(seed | 1);
    let (mut progress, mut follows_end, mut understood) = (Progress::NONE, false, 0);
    for _ in 0..payloads {
        let bytes = mutate(&mut numbers, seeds);
        let form = if numbers.below(2) == 0 { Form::OpenAi } else { Form::Anthropic };
        let before = std::mem::take(&mut progress);
        let margin = Margin::default();
        let Ok(mut said) = read((form, &bytes), &before, follows_end, &margin) else {
            progress = before;
            continue;
        };
        understood += 1;
        assert!(said.len() <= EVENTS_PER_ENTRY_MAX);
        let events: Vec<_> = said.events().collect();
        events.iter().for_each(expect_valid);
        let ends = events.iter().position(Event::is_terminal);
        assert!(ends.is_none_or(|place| place + 1 == events.len()), "nothing follows an end");
        progress = said.take_progress().map_or_else(|| before.clone(), Arc::unwrap_or_clone);
        assert!(progress.len_bytes() <= PROGRESS_BYTES_MAX);
        if ends.is_some() {
            (progress, follows_end) = (Progress::NONE, true);
        } else if !events.is_empty() {
            follows_end = false;
        }
    }
    assert!(understood * 20 > payloads, "{understood} of {payloads} were understood");
}

#[test]
fn torn_payloads_do_no_harm() {
    let seeds: Vec<Vec<u8>> = SEEDS.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    for seed in 1..=8 {
        tell(&seeds, seed, 4_000);
    }
}

/// Payloads of recordings, where such are at hand: see `tests/integration/fixtures.rs`.
#[test]
fn torn_recordings_do_no_harm() {
    let folder = std::env::var_os("LLM_BRIDGE_FIXTURES").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"),
        std::path::PathBuf::from,
    );
    let mut folders = vec![folder];
    let mut seeds = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "txt" || extension == "sse") {
                let text = std::fs::read_to_string(path).unwrap();
                let payloads = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
                // A few of each: most lines of a recording are alike.
                let payloads = payloads.filter(|payload| payload.starts_with('{')).step_by(23);
                seeds.extend(payloads.map(|payload| payload.as_bytes().to_vec()));
            }
        }
    }
    if seeds.is_empty() {
        eprintln!("no recordings here: LLM_BRIDGE_FIXTURES can name their directory");
        return;
    }
    seeds.sort();
    tell(&seeds, 77, 20_000);
}
