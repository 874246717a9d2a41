//! Complete texts beside pieces, failures of every shape, and members beside text.

use super::Form;
use super::tests::{Story, anthropic, openai};

/// Reads payloads and compares the events, with the data of `custom` ones.
fn check(form: Form, story: &[(&str, &str)]) {
    let mut emitted = Story::default();
    for (payload, expected) in story {
        assert_eq!(emitted.emit_all(form, payload), *expected, "{payload}");
    }
}

/// An event of the Responses API.
fn event(kind: &str, rest: &str) -> String {
    format!(r#"{{"type":"response.{kind}",{rest}}}"#)
}

const AT: &str = r#""output_index":0,"content_index":0,"item_id":"m1""#;

fn delta(text: &str) -> String {
    event("output_text.delta", &format!(r#"{AT},"delta":"{text}""#))
}

/// The four events that repeat a text.
fn wholes(text: &str) -> [String; 4] {
    let part = format!(r#"{{"type":"output_text","text":"{text}","annotations":[]}}"#);
    let item = format!(
        r#"{{"type":"message","id":"m1","role":"assistant","status":"completed","content":[{part}]}}"#
    );
    [
        event("output_text.done", &format!(r#"{AT},"text":"{text}""#)),
        event("content_part.done", &format!(r#"{AT},"part":{part}"#)),
        event("output_item.done", &format!(r#""output_index":0,"item":{item}"#)),
        event("completed", &format!(r#""response":{{"status":"completed","output":[{item}]}}"#)),
    ]
}

#[test]
fn of_a_whole_only_the_missing_part_is_emitted() {
    // Whichever of the four events come, and whatever was emitted before.
    for come in 1..16_u8 {
        for (pieces, rest) in
            [(&[][..], "Whole answer"), (&["Whole"][..], " answer"), (&["Wh", "ole answer"][..], "")]
        {
            let mut story = Story::default();
            for piece in pieces {
                assert_eq!(story.emit(Form::OpenAi, &delta(piece)), format!("content#0 {piece}"));
            }
            let mut emitted = Vec::new();
            for (_, whole) in (0..4).zip(wholes("Whole answer")).filter(|(n, _)| come & 1 << n != 0) {
                emitted.push(story.emit(Form::OpenAi, &whole));
            }
            emitted.retain(|emitted| !emitted.is_empty());
            let mut expected = if rest.is_empty() { vec![] } else { vec![format!("content#0 {rest}")] };
            match come & 8 != 0 {
                true if come == 8 && !rest.is_empty() => {
                    expected = vec![format!("content#0 {rest} | end completed -")]
                }
                true => expected.push("end completed -".to_owned()),
                false => {}
            }
            assert_eq!(emitted, expected, "{come:b} {pieces:?}");
        }
    }
}

#[test]
fn escapes_do_not_matter_for_what_was_emitted() {
    openai(&[
        (&delta("\u{e4}\\n"), "content#0 \u{e4}\\n"),
        (&wholes("\\u00e4\\u000a\\ud83d\\ude00x")[0], "content#0 \\ud83d\\ude00x"),
        (&wholes("\u{e4}\\n\u{1f600}x")[2], ""),
    ]);
}

#[test]
fn all_channels_and_calls_may_come_as_a_whole() {
    openai(&[
        (r#"{"type":"response.refusal.done","refusal":"r"}"#, "refusal#0 r"),
        (r#"{"type":"response.reasoning_text.done","text":"t"}"#, "reasoning#0 t"),
        (r#"{"type":"response.reasoning_summary_text.done","summary_index":0,"text":"s"}"#, "reasoning#0 s"),
        (r#"{"type":"response.reasoning_summary_text.done","summary_index":1,"text":"u"}"#, "reasoning#0 u"),
        (
            r#"{"type":"response.reasoning_summary_part.done","summary_index":1,"part":{"type":"summary_text","text":"u"}}"#,
            "",
        ),
        (
            r#"{"type":"response.function_call_arguments.done","output_index":3,"item_id":"i","arguments":"{}"}"#,
            "tool#0.0 - - {}",
        ),
        (
            r#"{"type":"response.output_item.done","output_index":3,"item":{"type":"function_call","id":"i","call_id":"c","name":"f","arguments":"{}"}}"#,
            "tool#0.0 c f ",
        ),
        (
            r#"{"type":"response.content_part.done","output_index":4,"content_index":0,"part":{"type":"refusal","refusal":"v"}}"#,
            "refusal#0 v",
        ),
    ]);
    openai(&[(
        r#"{"type":"response.completed","response":{"output":[
            {"type":"reasoning","id":"r","summary":[{"type":"summary_text","text":"s"}],"content":[{"type":"reasoning_text","text":"t"}]},
            {"type":"message","content":[{"type":"output_text","text":"a"},{"type":"refusal","refusal":"b"}]},
            {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
            {"type":"web_search_call","id":"w"},
            {"type":"message","content":"d"}]}}"#,
        "reasoning#0 s | reasoning#0 t | content#0 a | refusal#0 b | tool#0.0 c f {} | custom response.output_item.done | content#0 d | end completed -",
    )]);
    openai(&[(
        r#"{"type":"response.completed","response":{"output_text":"a"}}"#,
        "content#0 a | end completed -",
    )]);
    openai(&[
        (&delta("a"), "content#0 a"),
        (
            r#"{"type":"response.failed","response":{"error":{"code":"c"},"output":[{"type":"message","content":[{"type":"output_text","text":"ab"}]}]}}"#,
            "content#0 b | error c -",
        ),
    ]);
}

#[test]
fn parts_are_distinguished() {
    // Two parts with the same text, one after another in one place, or in places of their own.
    let done = |at: &str, text: &str| event("output_text.done", &format!(r#"{at}"text":"{text}""#));
    openai(&[
        (&done(r#""output_index":0,"#, "a"), "content#0 a"),
        (&done(r#""output_index":1,"#, "a"), "content#0 a"),
        (&done(r#""output_index":1,"#, "a"), ""),
        (&done(r#""output_index":1,"#, "b"), "content#0 b"),
    ]);
    // Without any names, each belongs to the part in progress.
    let plain = |text: &str| event("output_text.delta", &format!(r#""delta":"{text}""#));
    openai(&[
        (&plain("a"), "content#0 a"),
        (&done("", "a"), ""),
        (&plain("b"), "content#0 b"),
        (&plain("c"), "content#0 c"),
        (&done(r#""output_index":1,"item_id":"m1","#, "bc"), ""),
        (
            &event(
                "content_part.done",
                r#""output_index":1,"item_id":"m1","part":{"type":"output_text","text":"bc"}"#,
            ),
            "",
        ),
        (
            r#"{"type":"response.completed","response":{"output":[{"type":"message","content":[{"type":"output_text","text":"a"},{"type":"output_text","text":"bc"}]}]}}"#,
            "end completed -",
        ),
    ]);
    // Places that differ between the events and the response, or are omitted in it.
    for output in [
        r#"[{"type":"reasoning"},{"type":"message","content":[{"type":"output_text","text":"a"}]}]"#,
        r#"[{"type":"message","content":[{"type":"output_text","text":"a"}]}]"#,
    ] {
        openai(&[
            (&event("output_text.delta", r#""output_index":5,"item_id":"x","delta":"a""#), "content#0 a"),
            (
                &format!(r#"{{"type":"response.completed","response":{{"output":{output}}}}}"#),
                "end completed -",
            ),
        ]);
    }
    // One part of three came only at the end.
    openai(&[
        (&event("output_text.delta", r#""output_index":0,"delta":"a""#), "content#0 a"),
        (&event("output_text.delta", r#""output_index":2,"delta":"c""#), "content#0 c"),
        (
            r#"{"type":"response.completed","response":{"output":[{"type":"message","content":"a"},{"type":"message","content":"b"},{"type":"message","content":"c"}]}}"#,
            "content#0 b | end completed -",
        ),
    ]);
}

#[test]
fn a_whole_that_contradicts_is_passed_on_once() {
    let [text, part, item, completed] = wholes("Hello world");
    check(
        Form::OpenAi,
        &[
            (&delta("Hello wrld"), "content#0 Hello wrld"),
            (&text, &format!("custom {text}")),
            (&part, ""),
            (&item, ""),
            (&completed, "end completed -"),
        ],
    );
}

#[test]
fn a_different_response_starts_over() {
    openai(&[
        (r#"{"type":"response.created","response":{"id":"r1"}}"#, ""),
        (&delta("a"), "content#0 a"),
        (r#"{"type":"response.created","response":{"id":"r1"}}"#, ""),
        (&wholes("a")[0], ""),
        (r#"{"type":"response.created","response":{"id":"r2"}}"#, ""),
        (&wholes("a")[0], "content#0 a"),
        (&wholes("a")[3], "end completed -"),
    ]);
}

#[test]
fn any_error_is_a_failure() {
    for (payload, expected) in [
        (r#"{"error":["quota"]}"#, "error provider_error quota"),
        (r#"{"error":[7]}"#, "error provider_error [7]"),
        (r#"{"error":500,"message":"boom"}"#, "error 500 boom"),
        (r#"{"error":true,"message":"boom"}"#, "error provider_error boom"),
        (r#"{"error":true,"code":"c","detail":[{"msg":"boom"}]}"#, "error c boom"),
        (r#"{"error":true}"#, "error provider_error -"),
        (r#"{"error":{"code":"x","message":{"detail":"d"}}}"#, "error x d"),
        (r#"{"error":{"foo":1}}"#, r#"error provider_error {\"foo\":1}"#),
        (r#"{"error":{"code":429}}"#, "error 429 -"),
        (r#"{"error":{"code":["odd"],"type":"t","details":[{"reason":"why"}]}}"#, "error t why"),
        (r#"{"error":"invalid_request","message":"the thing"}"#, "error invalid_request the thing"),
        (r#"{"error":"not found","message":null}"#, "error provider_error not found"),
        (r#"{"detail":"d","error":{}}"#, "custom -"),
        (r#"{"error":false}"#, "custom -"),
        (
            r#"{"choices":[{"delta":{"content":"x"}}],"error":["quota"]}"#,
            "content#0 x | error provider_error quota",
        ),
        (r#"{"choices":[{"delta":{},"error":true,"message":"m"}]}"#, "custom - | error provider_error m"),
        (r#"{"choices":[],"x_groq":{"error":5}}"#, "error 5 -"),
        (r#"{"type":"response.error","code":"c","message":"m"}"#, "error c m"),
        (
            r#"{"type":"response.output_text.delta","delta":"x","error":{"code":"c"}}"#,
            "content#0 x | error c -",
        ),
        (r#"{"type":"response.completed","response":{"error":["m"]}}"#, "error provider_error m"),
        (r#"{"type":"error","error":true,"message":"m"}"#, "error provider_error m"),
    ] {
        openai(&[(payload, expected)]);
    }
    for (payload, expected) in [
        (r#"{"error":["quota"]}"#, "error provider_error quota"),
        (r#"{"type":"error","error":"m"}"#, "error provider_error m"),
        (r#"{"type":"error","error":500,"message":"m"}"#, "error 500 m"),
        (r#"{"type":"message_stop","error":{"message":"m"}}"#, "error provider_error m"),
        (r#"{"type":"ping","error":null}"#, ""),
        (r#"{"error":false}"#, "malformed"),
    ] {
        anthropic(&[(payload, expected)]);
    }
}

#[test]
fn other_members_of_a_chunk_follow_its_text() {
    let image = r#""images":[{"type":"image_url","image_url":{"url":"data:,"}}]"#;
    let alone = format!(r#"{{"choices":[{{"delta":{{"content":"",{image}}}}}]}}"#);
    check(
        Form::OpenAi,
        &[
            (
                &format!(
                    r#"{{"id":"x","choices":[{{"delta":{{"role":"assistant","content":"Here:",{image}}},"logprobs":{{"a":1}}}}]}}"#
                ),
                &format!(
                    r#"content#0 Here: | custom {{"object":"chat.completion.chunk","choices":[{{"index":0,"delta":{{{image}}}}}]}}"#
                ),
            ),
            (&alone, &format!("custom {alone}")),
            (
                r#"{"choices":[{"delta":{"reasoning":"r","reasoning_details":[{"type":"reasoning.text","text":"r"}]}}]}"#,
                r#"reasoning#0 r | custom {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"reasoning_details":[{"type":"reasoning.text","text":"r"}]}}]}"#,
            ),
            // Members of calls, with the number that the frames have.
            (
                r#"{"choices":[{"index":2,"delta":{"tool_calls":[{"index":9,"id":"c","type":"function","function":{"name":"f","arguments":"1","strict":true},"extra_content":{"google":{"thought_signature":"s"}}}]},"matched_stop":5,"citations":["u"]}]}"#,
                r#"tool#2.0 c f 1 | custom {"object":"chat.completion.chunk","choices":[{"index":2,"delta":{"tool_calls":[{"index":0,"id":"c","extra_content":{"google":{"thought_signature":"s"}},"function":{"strict":true}}]},"citations":["u"]}]}"#,
            ),
            (
                r#"{"choices":[{"index":2,"delta":{"tool_calls":[{"index":9,"extra_content":{"a":1}}]}}]}"#,
                r#"custom {"choices":[{"index":2,"delta":{"tool_calls":[{"index":9,"extra_content":{"a":1}}]}}]}"#,
            ),
            (
                r#"{"choices":[{"delta":{"content":[{"type":"text","text":"x","cited":[1]}]}}]}"#,
                r#"content#0 x | custom {"type":"text","cited":[1]}"#,
            ),
            // The chunk's own members apply to the whole answer, and are emitted once.
            (
                r#"{"choices":[{"delta":{"content":"a"}}],"citations":["u"],"latency":5}"#,
                r#"content#0 a | custom {"object":"chat.completion.chunk","choices":[],"citations":["u"]}"#,
            ),
            (r#"{"choices":[{"delta":{"content":"b"}}],"citations":["u"],"latency":6}"#, "content#0 b"),
            (
                r#"{"choices":[{"delta":{"content":"c"}}],"citations":["u","v"]}"#,
                r#"content#0 c | custom {"object":"chat.completion.chunk","choices":[],"citations":["u","v"]}"#,
            ),
            ("[DONE]", "end - -"),
            (r#"{"choices":[],"citations":["w"],"usage":{"n":1}}"#, ""),
        ],
    );
    // Together repeats the text in the choice.
    check(
        Form::OpenAi,
        &[
            (r#"{"choices":[{"text":"a","delta":{"content":"a","token_id":5},"seed":1}]}"#, "content#0 a"),
            (r#"{"choices":[{"text":"a"}]}"#, r#"custom {"choices":[{"text":"a"}]}"#),
        ],
    );
}

#[test]
fn other_members_of_events_follow_their_text() {
    check(
        Form::OpenAi,
        &[
            (
                &event("output_text.delta", r#""delta":"a","images":["i"],"logprobs":[1]"#),
                r#"content#0 a | custom {"type":"response.output_text.delta","images":["i"]}"#,
            ),
            (
                &event(
                    "output_item.added",
                    r#""output_index":1,"item":{"type":"reasoning","id":"r","summary":[],"encrypted_content":"e"}"#,
                ),
                r#"custom {"type":"response.output_item.added","output_index":1,"item":{"type":"reasoning","id":"r","encrypted_content":"e"}}"#,
            ),
            (
                &event(
                    "output_item.done",
                    r#""output_index":1,"item":{"type":"reasoning","id":"r","summary":[],"encrypted_content":"f"}"#,
                ),
                r#"custom {"type":"response.output_item.done","output_index":1,"item":{"type":"reasoning","id":"r","encrypted_content":"f"}}"#,
            ),
            (
                &event("output_text.annotation.added", r#""annotation":{"url":"u"}"#),
                &format!("custom {}", event("output_text.annotation.added", r#""annotation":{"url":"u"}"#)),
            ),
            (
                &event(
                    "content_part.done",
                    r#""output_index":2,"content_index":1,"part":{"type":"output_text","text":"b","annotations":[{"url":"u"},{"url":"v"}]}"#,
                ),
                r#"content#0 b | custom {"type":"response.content_part.done","output_index":2,"content_index":1,"part":{"type":"output_text","annotations":[{"url":"v"}]}}"#,
            ),
            (
                &event(
                    "completed",
                    r#""response":{"output":[{"type":"reasoning","id":"r","summary":[],"encrypted_content":"f"},{"type":"message","content":[{"type":"output_text","text":"ab","annotations":[{"url":"v"}]},{"type":"audio"}]}]}"#,
                ),
                r#"custom {"type":"response.content_part.done","output_index":1,"content_index":1,"part":{"type":"audio"}} | end completed -"#,
            ),
        ],
    );
    check(
        Form::Anthropic,
        &[
            (
                r#"{"type":"message_start","message":{"id":"m","content":[{"type":"text","text":"pre"},{"type":"tool_use","id":"t","name":"f","input":{}},{"type":"odd"}]}}"#,
                r#"content#0 pre | tool#0.0 t f {} | custom {"type":"odd"}"#,
            ),
            (
                r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"a","citations":[1]}}"#,
                r#"content#0 a | custom {"type":"content_block_start","index":1,"content_block":{"type":"text","citations":[1]}}"#,
            ),
            (
                r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t2","name":"f","input":{},"caller":{"type":"code"}}}"#,
                r#"custom {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t2","caller":{"type":"code"}}}"#,
            ),
            (
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"b","signature":"s"}}"#,
                r#"content#0 b | custom {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","signature":"s"}}"#,
            ),
            (
                r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null,"container":{"id":"c"}}}"#,
                r#"tool#0.1 t2 f {} | custom {"type":"message_delta","delta":{"container":{"id":"c"}}}"#,
            ),
        ],
    );
}

#[test]
fn an_element_that_is_null_is_absent_from_every_list() {
    openai(&[
        (r#"{"choices":[null,{"delta":{"content":"a","tool_calls":[null]}}]}"#, "content#0 a"),
        (
            r#"{"choices":[{"delta":{"tool_calls":[null,{"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}"#,
            "tool#0.0 c f {}",
        ),
        (
            r#"{"choices":[{"delta":{"content":[null,{"type":"thinking","thinking":[null,{"type":"text","text":"b"}]}]}}]}"#,
            "reasoning#0 b",
        ),
        (r#"{"choices":[null]}"#, ""),
    ]);
    let part = r#"{"type":"output_text","text":"c","annotations":[null]}"#;
    let item = format!(r#"{{"type":"message","summary":[null],"content":[null,{part}]}}"#);
    let done = event("output_item.done", &format!(r#""output_index":1,"item":{item}"#));
    let end = event("completed", &format!(r#""response":{{"output":[null,{item},null]}}"#));
    // A null keeps its place, so that the same part is recognized again.
    check(Form::OpenAi, &[(&done, "content#0 c"), (&end, "end completed -")]);
    check(
        Form::Anthropic,
        &[(
            r#"{"type":"message_start","message":{"content":[null,{"type":"text","text":"d"}]}}"#,
            "content#0 d",
        )],
    );
}

#[test]
fn invalid_numbers_lose_no_text() {
    check(
        Form::OpenAi,
        &[
            (
                r#"{"choices":[{"delta":{"content":"NaN\n","tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":{"a":NaN}}}]},"logprobs":{"top":[-Infinity]}}],"usage":{"a":Infinity}}"#,
                r#"content#0 NaN\n | tool#0.0 c f {\"a\":null}"#,
            ),
            (r#"{"own":NaN}"#, r#"custom {"own":null}"#),
            ("[DONE]", r#"end - {"a":null}"#),
            ("NaN", "malformed"),
            (r#"{"choices":[{"delta":{"content":NaN}}]}"#, ""),
        ],
    );
    anthropic(&[(
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"},"score":-Infinity}"#,
        "content#0 x",
    )]);
}
