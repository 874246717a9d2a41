//! Tool calls: which pieces belong to one call, and when an announced call is emitted.

use super::Form;
use super::tests::{Story, anthropic, openai};

/// A chunk whose first choice has these calls.
fn chunk(calls: &str) -> String {
    format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{calls}]}}}}]}}"#)
}

fn check_calls(story: &[(&str, &str)]) {
    let chunks: Vec<(String, &str)> = story.iter().map(|(calls, emitted)| (chunk(calls), *emitted)).collect();
    let story: Vec<(&str, &str)> = chunks.iter().map(|(chunk, emitted)| (&**chunk, *emitted)).collect();
    openai(&story);
}

#[test]
fn a_new_id_under_a_used_index_is_another_call() {
    check_calls(&[
        (r#"{"index":0,"id":"c1","function":{"name":"w","arguments":"1"}}"#, "tool#0.0 c1 w 1"),
        (r#"{"index":0,"id":"c2","function":{"name":"w","arguments":"2"}}"#, "tool#0.1 c2 w 2"),
        // Later pieces with that index belong to the call that took it last.
        (r#"{"index":0,"function":{"arguments":"3"}}"#, "tool#0.1 - - 3"),
        (r#"{"index":0,"id":"c1","function":{"arguments":"4"}}"#, "tool#0.0 c1 - 4"),
        (r#"{"index":0,"function":{"arguments":"5"}}"#, "tool#0.0 - - 5"),
        (r#"{"index":0,"id":"\u0063\u0031","function":{"arguments":"6"}}"#, "tool#0.0 \\u0063\\u0031 - 6"),
        // In one chunk too.
        (
            r#"{"index":0,"id":"c3","function":{"name":"w","arguments":"7"}},{"index":0,"id":"c4","function":{"name":"w","arguments":"8"}}"#,
            "tool#0.2 c3 w 7 | tool#0.3 c4 w 8",
        ),
    ]);
}

#[test]
fn calls_are_numbered_in_the_order_in_which_they_begin() {
    check_calls(&[
        (r#"{"index":7,"id":"c1","function":{"name":"f","arguments":""}}"#, "tool#0.0 c1 f "),
        (r#"{"index":3,"id":"c2","function":{"name":"g","arguments":""}}"#, "tool#0.1 c2 g "),
        (r#"{"index":7,"function":{"arguments":"1"}}"#, "tool#0.0 - - 1"),
        (r#"{"index":3,"function":{"arguments":"2"}}"#, "tool#0.1 - - 2"),
    ]);
    openai(&[
        (
            r#"{"choices":[{"index":1,"delta":{"tool_calls":[{"index":4,"id":"a","function":{"name":"f","arguments":"1"}}]}},{"delta":{"tool_calls":[{"index":4,"id":"a","function":{"name":"f","arguments":"2"}}]}}]}"#,
            "tool#1.0 a f 1 | tool#0.0 a f 2",
        ),
        // Choices above the limit keep the provider's numbers.
        (
            r#"{"choices":[{"index":5000,"delta":{"tool_calls":[{"index":4,"id":"a","function":{"name":"f","arguments":"1"}}]}}]}"#,
            "tool#5000.4 a f 1",
        ),
    ]);
}

#[test]
fn an_id_that_was_seen_continues_its_call() {
    check_calls(&[
        (r#"{"id":"c1","function":{"name":"a","arguments":"{\"p\""}}"#, r#"tool#0.0 c1 a {\"p\""#),
        (r#"{"id":"c2","function":{"name":"b","arguments":"["}}"#, "tool#0.1 c2 b ["),
        (r#"{"id":"c1","function":{"name":null,"arguments":":1}"}}"#, "tool#0.0 c1 - :1}"),
        (r#"{"function":{"arguments":"x"}}"#, "tool#0.0 - - x"),
        (r#"{"id":"c2","function":{"arguments":"]"}}"#, "tool#0.1 c2 - ]"),
    ]);
    // An id under another index: the call is announced, continued or repeated there.
    check_calls(&[
        (r#"{"index":0,"id":"c1","function":{"name":"f","arguments":""}}"#, "tool#0.0 c1 f "),
        (r#"{"index":1,"id":"c1","function":{"name":"f","arguments":"{}"}}"#, "tool#0.0 c1 f {}"),
        (r#"{"index":2,"id":"c1","function":{"name":"f","arguments":"{}"}}"#, "tool#0.0 c1 f "),
        (r#"{"index":3,"id":"c1","function":{"arguments":"!"}}"#, "tool#0.0 c1 - !"),
        (r#"{"index":3,"function":{"arguments":"?"}}"#, "tool#0.0 - - ?"),
        // Some servers give all calls the same id.
        (r#"{"index":4,"id":"c1","function":{"name":"f","arguments":"{1}"}}"#, "tool#0.1 c1 f {1}"),
    ]);
}

#[test]
fn a_piece_without_index_and_id_is_of_the_call_that_is_going_on() {
    check_calls(&[
        (r#"{"function":{"name":"f","arguments":"1"}}"#, "tool#0.0 - f 1"),
        (r#"{"function":{"name":"f","arguments":"2"}}"#, "tool#0.0 - f 2"),
        (r#"{"function":{"arguments":"3"}}"#, "tool#0.0 - - 3"),
        (r#"{"function":{"name":"g","arguments":"4"}}"#, "tool#0.1 - g 4"),
        // An index that comes later belongs to the call without one.
        (r#"{"index":0,"function":{"arguments":"5"}}"#, "tool#0.1 - - 5"),
        (r#"{"index":1,"function":{"arguments":"6"}}"#, "tool#0.2 - - 6"),
        (r#"{"index":0,"id":"late","function":{"arguments":"7"}}"#, "tool#0.1 late - 7"),
        (r#"{"index":0,"id":"new","function":{"arguments":"8"}}"#, "tool#0.3 new - 8"),
    ]);
}

#[test]
fn ids_and_names_are_short() {
    let of_len = |id: usize, name: usize| {
        format!(
            r#"{{"index":0,"id":"{}","function":{{"name":"{}","arguments":"1"}}}}"#,
            "i".repeat(id),
            "n".repeat(name)
        )
    };
    let emitted = |calls: &str| Story::default().emit(Form::OpenAi, &chunk(calls));
    assert_ne!(emitted(&of_len(1024, 1024)), "malformed");
    assert_eq!(emitted(&of_len(1025, 1)), "malformed");
    assert_eq!(emitted(&of_len(1, 1025)), "malformed");
    let escaped = format!(r#"{{"index":0,"id":"{}"}}"#, r"\u0041".repeat(1024));
    assert_ne!(emitted(&escaped), "malformed", "it is what is meant that counts");
    let escaped = format!(r#"{{"index":0,"id":"{}"}}"#, r"\u00e4".repeat(513));
    assert_eq!(emitted(&escaped), "malformed");
    let long = "i".repeat(1025);
    for (form, payload) in [
        (
            Form::Anthropic,
            format!(
                r#"{{"type":"content_block_start","content_block":{{"type":"tool_use","id":"{long}"}}}}"#
            ),
        ),
        (
            Form::Anthropic,
            format!(
                r#"{{"type":"content_block_start","content_block":{{"type":"tool_use","name":"{long}"}}}}"#
            ),
        ),
        (
            Form::OpenAi,
            format!(
                r#"{{"type":"response.output_item.added","item":{{"type":"function_call","call_id":"{long}"}}}}"#
            ),
        ),
        (
            Form::OpenAi,
            format!(
                r#"{{"type":"response.output_item.done","item":{{"type":"function_call","name":"{long}"}}}}"#
            ),
        ),
    ] {
        assert_eq!(Story::default().emit(form, &payload), "malformed");
    }
}

const BEGIN: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t1","name":"now","input":{}}}"#;
const BEGIN_WITH_INPUT: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t2","name":"now","input":{"a":1}}}"#;
const STOP_REASON: &str = r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#;

#[test]
fn a_block_that_is_never_closed_is_emitted() {
    anthropic(&[
        (r#"{"type":"message_start","message":{"id":"m1"}}"#, ""),
        (BEGIN, ""),
        (STOP_REASON, "tool#0.0 t1 now {}"),
        (r#"{"type":"message_stop"}"#, "end tool_use -"),
    ]);
    anthropic(&[
        (BEGIN_WITH_INPUT, ""),
        (r#"{"type":"message_stop"}"#, r#"tool#0.0 t2 now {\"a\":1} | end - -"#),
    ]);
    anthropic(&[(BEGIN, ""), (r#"{"type":"error","error":{"type":"t"}}"#, "tool#0.0 t1 now {} | error t -")]);
    anthropic(&[(BEGIN, ""), (r#"{"error":{"code":7}}"#, "tool#0.0 t1 now {} | error 7 -")]);
    // Something else takes its index: another call, a text, another message.
    anthropic(&[
        (BEGIN, ""),
        (BEGIN_WITH_INPUT, "tool#0.0 t1 now {}"),
        (BEGIN_WITH_INPUT, ""),
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}"#,
            r#"tool#0.1 t2 now {\"a\":1} | content#0 x"#,
        ),
        (BEGIN, ""),
        (r#"{"type":"message_start","message":{"id":"m2"}}"#, "tool#0.2 t1 now {}"),
        (BEGIN, ""),
        (r#"{"type":"content_block_stop","index":0}"#, "tool#0.3 t1 now {}"),
    ]);
    // Once nothing more has to follow, nothing waits.
    anthropic(&[
        (STOP_REASON, ""),
        (BEGIN_WITH_INPUT, r#"tool#0.0 t2 now {\"a\":1}"#),
        (r#"{"type":"content_block_stop","index":0}"#, ""),
        (r#"{"type":"message_stop"}"#, "end tool_use -"),
    ]);
}

#[test]
fn a_function_call_that_is_only_announced_is_emitted() {
    const ADDED: &str = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"i1","call_id":"c1","name":"f","arguments":"{\"a\":1}"}}"#;
    let emitted = r#"tool#0.0 c1 f {\"a\":1}"#;
    for (last, end) in [
        (r#"{"type":"response.completed"}"#, "end completed -"),
        (r#"{"type":"response.failed"}"#, "error provider_error -"),
        (r#"{"type":"error","message":"m"}"#, "error provider_error m"),
        (r#"{"error":"m"}"#, "error provider_error m"),
        ("[DONE]", "end - -"),
    ] {
        openai(&[(ADDED, ""), (last, &format!("{emitted} | {end}"))]);
    }
    // Another call takes its place.
    openai(&[
        (ADDED, ""),
        (ADDED, ""),
        (
            r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","id":"i2","call_id":"c2","name":"g","arguments":""}}"#,
            "",
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"i2","delta":"2"}"#,
            "tool#0.0 c1 f  | tool#0.1 c2 g 2",
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","output_index":0,"item_id":"i1","delta":"3"}"#,
            "tool#0.0 - - 3",
        ),
        ("[DONE]", "end - -"),
    ]);
}

/// Thousands of blocks and calls: none is dropped, and the thousandth costs as much as the first.
#[test]
fn many_calls_are_emitted() {
    let mut story = Story::default();
    for n in 0..3000 {
        let payload =
            chunk(&format!(r#"{{"index":{n},"id":"c{n}","function":{{"name":"f","arguments":"1"}}}}"#));
        assert_eq!(story.emit(Form::OpenAi, &payload), format!("tool#0.{n} c{n} f 1"));
    }
    let mut story = Story::default();
    for n in 0..3000 {
        let (begin, stop) = (
            format!(
                r#"{{"type":"content_block_start","index":{n},"content_block":{{"type":"tool_use","id":"c{n}","name":"f","input":{{}}}}}}"#
            ),
            format!(r#"{{"type":"content_block_stop","index":{n}}}"#),
        );
        assert_eq!(story.emit(Form::Anthropic, &begin), "");
        assert_eq!(story.emit(Form::Anthropic, &stop), format!("tool#0.{n} c{n} f {{}}"));
    }
    assert!(story.progress.len_bytes() < 100, "what is over takes no room");
}
