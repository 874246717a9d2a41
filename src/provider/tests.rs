use std::sync::Arc;

use super::*;

/// A generation in a provider's form: each payload's events in one line.
#[derive(Default)]
pub(super) struct Story {
    pub(super) progress: Progress,
    follows_end: bool,
}

impl Story {
    pub(super) fn emit(&mut self, form: Form, payload: &str) -> String {
        self.emit_as(form, payload, line)
    }

    /// The events of a payload, with the whole data of `custom` ones.
    pub(super) fn emit_all(&mut self, form: Form, payload: &str) -> String {
        self.emit_as(form, payload, |event| match event {
            Event::Custom { data } => format!("custom {data}"),
            event => line(event),
        })
    }

    fn emit_as(&mut self, form: Form, payload: &str, line: impl Fn(&Event<'_>) -> String) -> String {
        let before = self.progress.clone();
        let margin = Margin::default();
        let Ok(mut decoded) = read((form, payload.as_bytes()), &before, self.follows_end, &margin) else {
            return "malformed".to_owned();
        };
        if let Some(progress) = decoded.take_progress() {
            self.progress = Arc::unwrap_or_clone(progress);
        }
        let lines: Vec<String> = decoded.events().map(|event| line(&event)).collect();
        if decoded.events().any(|event| event.is_terminal()) {
            *self = Self { progress: Progress::NONE, follows_end: true };
        } else if !decoded.is_empty() {
            self.follows_end = false;
        }
        lines.join(" | ")
    }
}

fn line(event: &Event<'_>) -> String {
    match event {
        Event::Delta { text, channel, index } => format!("{channel}#{index} {text}"),
        Event::ToolCall { index, call, id, name, arguments } => {
            let (id, name) = (id.unwrap_or("-"), name.unwrap_or("-"));
            format!("tool#{index}.{call} {id} {name} {arguments}")
        }
        Event::End { finish_reason, usage } => {
            format!("end {} {}", finish_reason.unwrap_or("-"), usage.unwrap_or("-"))
        }
        Event::Error { code, message } => format!("error {code} {}", message.unwrap_or("-")),
        Event::Custom { data } => {
            let kind: serde_json::Value = serde_json::from_str(data).unwrap();
            format!("custom {}", kind["type"].as_str().unwrap_or("-"))
        }
        Event::Start { .. } | Event::Heartbeat => unreachable!("no provider says that"),
    }
}

/// Reads payloads and compares the lines; empty: no frame.
fn check(form: Form, story: &[(&str, &str)]) -> Story {
    let mut emitted = Story::default();
    for (payload, expected) in story {
        assert_eq!(emitted.emit(form, payload), *expected, "{payload}");
    }
    emitted
}

pub(super) fn openai(story: &[(&str, &str)]) -> Story {
    check(Form::OpenAi, story)
}

pub(super) fn anthropic(story: &[(&str, &str)]) -> Story {
    check(Form::Anthropic, story)
}

#[test]
fn a_chat_is_text_between_a_role_and_an_end() {
    openai(&[
        (r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}"#, ""),
        (r#" {"choices":[{"delta":{"content":"H\u00e4\n"},"finish_reason":null}]} "#, r"content#0 H\u00e4\n"),
        (r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#, ""),
        (r#"{"choices":[],"usage":{"total_tokens": 3}}"#, ""),
        ("[DONE]", r#"end stop {"total_tokens": 3}"#),
        // A late finish reason and usage do not count for the next generation.
        (r#"{"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"total_tokens":9}}"#, ""),
        (r#"{"choices":[{"delta":{"content":"x"}}]}"#, "content#0 x"),
        (" [DONE]\n", "end - -"),
    ]);
}

#[test]
fn a_chat_may_say_everything_at_once() {
    openai(&[
        (
            r#"{"choices":[{"index":1,"delta":{"content":"b","refusal":"r","reasoning":"w"},"finish_reason":"length"},
                {"delta":{"reasoning_content":"v","reasoning":"v","content":"a"},"finish_reason":"stop"}],"usage":{}}"#,
            "reasoning#1 w | content#1 b | refusal#1 r | reasoning#0 v | content#0 a",
        ),
        ("[DONE]", "end stop {}"),
        // The same if the chunk begins the next generation.
        (r#"{"choices":[{"delta":{"content":"c"},"finish_reason":"stop"}],"usage":{"a":1}}"#, "content#0 c"),
        ("[DONE]", r#"end stop {"a":1}"#),
    ]);
}

#[test]
fn a_generation_is_finishing_once_all_its_choices_are() {
    let mut story = openai(&[
        (
            r#"{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}"#,
            "content#1 b | content#0 a",
        ),
        (r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#, ""),
    ]);
    assert!(!story.progress.is_finishing());
    story.emit(Form::OpenAi, r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#);
    assert!(story.progress.is_finishing());
    assert_eq!(story.emit(Form::OpenAi, "[DONE]"), "end stop -");
    // Choices beyond the limit do not delay it.
    let story = openai(&[(
        r#"{"choices":[{"index":64,"delta":{"content":"b"},"finish_reason":"stop"}]}"#,
        "content#64 b",
    )]);
    assert!(story.progress.is_finishing());
}

#[test]
fn tool_calls_of_a_chat_are_emitted_in_pieces() {
    openai(&[
        (
            r#"{"choices":[{"delta":{"content":null,"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            "tool#0.0 c1 f ",
        ),
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"","function":{"name":null,"arguments":"{\"a\":"}},{"index":1,"id":"c2","function":{"name":"g"}}]}}]}"#,
            r#"tool#0.0 - - {\"a\": | tool#0.1 c2 g "#,
        ),
        (r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":""}}]}}]}"#, ""),
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
            "tool#0.0 - - 1}",
        ),
        (r#"{"choices":[{"delta":{"function_call":{"name":"h","arguments":"{}"}}}]}"#, "tool#0.2 - h {}"),
    ]);
    // Without numbers: an id begins another call, and each place of a list is a call of its own.
    openai(&[
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"c1","function":{"name":"f","arguments":"{"}}]}}]}"#,
            "tool#0.0 c1 f {",
        ),
        (r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"}"}}]}}]}"#, "tool#0.0 - - }"),
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"c2","function":{"arguments":"x"}},{"function":{"arguments":"y"}}]}}]}"#,
            "tool#0.1 c2 - x | tool#0.2 - - y",
        ),
        (
            r#"{"choices":[{"index":1,"delta":{"tool_calls":[{"id":"c3","function":{"arguments":"z"}}]}}]}"#,
            "tool#1.0 c3 - z",
        ),
    ]);
}

#[test]
fn parts_of_a_chat_without_a_native_form_are_custom() {
    openai(&[
        (r#"{"choices":[{"delta":{"role":"assistant","audio":{"data":"x"}}}],"type":"t"}"#, "custom t"),
        (r#"{"choices":[{"delta":{"content":"a","reasoning_details":[{}]}}]}"#, "content#0 a | custom -"),
        (r#"{"choices":[{"delta":{"audio":null,"annotations":[]}}]}"#, ""),
        (r#"{"choices":[{"message":{"content":"whole"}}],"type":"t"}"#, "custom t"),
        // Mistral's parts.
        (
            r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"t"}]},
                {"type":"text","text":"a"},{"type":"reference","reference_ids":[1]}]}}]}"#,
            "reasoning#0 t | content#0 a | custom reference",
        ),
        (r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":"u"}]}}]}"#, "reasoning#0 u"),
        (r#"{"foo":1}"#, "custom -"),
        (r#"{"object":"chat.completion.chunk","usage":{"n":1}}"#, ""),
        ("[DONE]", r#"end - {"n":1}"#),
    ]);
}

#[test]
fn errors_end_whatever_shape_they_have() {
    for (payload, expected) in [
        (r#"{"error":{"message":"m","type":"t","code":"c"}}"#, "error c m"),
        (r#"{"error":{"message":"m","type":"t","code":null}}"#, "error t m"),
        (r#"{"error":{"message":"m","code":429}}"#, "error 429 m"),
        (r#"{"error":{"message":["m"],"code":""}}"#, "error provider_error m"),
        (r#"{"error":"overloaded"}"#, "error provider_error overloaded"),
        (r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#, "error 400 m"),
        (
            r#"{"choices":[{"delta":{"content":"x"},"finish_reason":"error"}],"error":{"code":502,"message":"m"}}"#,
            "content#0 x | error 502 m",
        ),
        (r#"{"type":"error","code":"c","message":"m","param":null}"#, "error c m"),
        (r#"{"type":"error","error":{"type":"t","code":"c","message":"m"}}"#, "error c m"),
        (r#"{"type":"response.failed","response":{"error":{"code":"c","message":"m"}}}"#, "error c m"),
        (r#"{"type":"response.failed"}"#, "error provider_error -"),
    ] {
        openai(&[(payload, expected)]);
    }
    for (payload, expected) in [
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, "error overloaded_error m"),
        (r#"{"type":"error"}"#, "error error -"),
    ] {
        anthropic(&[(payload, expected)]);
    }
}

#[test]
fn entries_that_would_lose_text_are_malformed() {
    for payload in [
        "",
        "[]",
        "[DONE",
        "1",
        "{",
        r#"{"choices":{}}"#,
        r#"{"choices":[1]}"#,
        r#"{"choices":[{"index":-1,"delta":{}}]}"#,
        r#"{"choices":[{"delta":[1]}]}"#,
        r#"{"choices":[{"delta":{"content":5}}]}"#,
        r#"{"choices":[{"delta":{"content":"\ud800"}}]}"#,
        r#"{"choices":[{"delta":{"content":["x"]}}]}"#,
        r#"{"choices":[{"delta":{"content":[{"type":"text","text":5}]}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":{}}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":{}}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":"0"}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":[]}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"id":{},"function":{"arguments":""}}]}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":1}]}"#,
        r#"{"type":5}"#,
        r#"{"type":"response.output_text.delta"}"#,
        r#"{"type":"response.output_text.delta","delta":{}}"#,
        r#"{"type":"response.function_call_arguments.delta","output_index":"x","delta":""}"#,
        r#"{"type":"response.output_item.added"}"#,
    ] {
        openai(&[(payload, "malformed")]);
        assert!(
            !defect(Form::OpenAi, payload.as_bytes(), Malformed::Form).contains("unexpected type"),
            "{payload}"
        );
    }
    for payload in [
        "",
        "[DONE]",
        "{}",
        r#"{"type":null}"#,
        r#"{"type":"content_block_start","index":0}"#,
        r#"{"type":"content_block_delta","index":0}"#,
        r#"{"type":"content_block_delta","index":"0","delta":{"type":"text_delta","text":"x"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":1}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":1}}"#,
    ] {
        anthropic(&[(payload, "malformed")]);
        assert!(
            !defect(Form::Anthropic, payload.as_bytes(), Malformed::Form).contains("unexpected type"),
            "{payload}"
        );
    }
    let no_text = (Form::OpenAi, &b"{\"a\":\"\xff\"}"[..]);
    assert_eq!(read(no_text, &Progress::NONE, false, &Margin::default()), Err(Malformed::Form));
}

#[test]
fn responses_are_text_reasoning_and_calls() {
    openai(&[
        (r#"{"type":"response.created","response":{"status":"in_progress"}}"#, ""),
        (r#"{"type":"response.in_progress"}"#, ""),
        (r#"{"type":"keepalive","sequence_number":3}"#, ""),
        (r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning"}}"#, ""),
        (r#"{"type":"response.reasoning_summary_text.delta","delta":"s"}"#, "reasoning#0 s"),
        (r#"{"type":"response.reasoning_text.delta","delta":"t"}"#, "reasoning#0 t"),
        (r#"{"type":"response.output_text.delta","delta":""}"#, ""),
        (r#"{"type":"response.output_text.delta","delta":"a"}"#, "content#0 a"),
        (r#"{"type":"response.output_text.done","text":"a"}"#, ""),
        (r#"{"type":"response.refusal.delta","delta":"r"}"#, "refusal#0 r"),
        (
            r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","id":"i1","call_id":"c1","name":"f","arguments":""}}"#,
            "",
        ),
        (
            r#"{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","id":"i2","call_id":"c2","name":"g"}}"#,
            "",
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","item_id":"x","output_index":2,"delta":"{"}"#,
            "tool#0.0 c1 f  | tool#0.1 c2 g {",
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","item_id":"y","output_index":2,"delta":"}"}"#,
            "tool#0.1 - - }",
        ),
        (r#"{"type":"response.function_call_arguments.done","output_index":2,"arguments":"{}"}"#, ""),
        (
            r#"{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","arguments":"{}"}}"#,
            "",
        ),
        // Without a piece, the end brings everything.
        (
            r#"{"type":"response.function_call_arguments.done","output_index":1,"arguments":"{\"a\":1}"}"#,
            r#"tool#0.0 - - {\"a\":1}"#,
        ),
        (
            r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","arguments":"{}"}}"#,
            "",
        ),
        (
            r#"{"type":"response.output_item.done","output_index":3,"item":{"type":"function_call","call_id":"c3","name":"h","arguments":"1"}}"#,
            "tool#0.2 c3 h 1",
        ),
        (r#"{"type":"response.function_call_arguments.delta","item_id":"z","delta":"q"}"#, "tool#0.3 - - q"),
        (r#"{"type":"response.function_call_arguments.delta","item_id":"z","delta":"r"}"#, "tool#0.3 - - r"),
        (r#"{"type":"response.web_search_call.searching"}"#, "custom response.web_search_call.searching"),
        (
            r#"{"type":"response.output_item.added","item":{"type":"code_interpreter_call"}}"#,
            "custom response.output_item.added",
        ),
        (
            r#"{"type":"response.completed","response":{"status":"completed","error":null,"usage":{"n":1}}}"#,
            r#"end completed {"n":1}"#,
        ),
    ]);
    openai(&[(
        r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
        "end max_output_tokens -",
    )]);
}

#[test]
fn arguments_may_be_objects_and_ids_numbers() {
    openai(&[
        (
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":17,"function":{"name":"f","arguments":{"a": "\u00e4\\"}}},{"index":1,"id":"c","function":{"name":"g","arguments":{}}}]},"finish_reason":"tool_calls"}]}"#,
            r#"tool#0.0 17 f {\"a\": \"\\u00e4\\\\\"} | tool#0.1 c g {}"#,
        ),
        (
            r#"{"choices":[{"delta":{"function_call":{"name":"h","arguments":{"b":[]}}}}]}"#,
            r#"tool#0.2 - h {\"b\":[]}"#,
        ),
    ]);
    let calls = vec![r#"{"index":0,"function":{"arguments":{}}}"#; EVENTS_PER_ENTRY_MAX + 1];
    let chunk = |count: usize| {
        format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{}]}}}}]}}"#, calls[..count].join(","))
    };
    let emitted = Story::default().emit(Form::OpenAi, &chunk(EVENTS_PER_ENTRY_MAX));
    assert_eq!(emitted.matches("- - {}").count(), EVENTS_PER_ENTRY_MAX);
    openai(&[(&chunk(EVENTS_PER_ENTRY_MAX + 1), "malformed")]);
}

/// Differences between servers: other places for members, and other ways to write nothing.
#[test]
fn servers_differ() {
    let done = "[DONE]";
    // Azure.
    openai(&[
        (r#"{"choices":[],"id":"","object":"","prompt_filter_results":[{"prompt_index":0}]}"#, ""),
        (r#"{"choices":[{"index":0,"content_filter_offsets":{},"finish_reason":null}]}"#, ""),
        (done, "end - -"),
    ]);
    // Groq.
    openai(&[
        (r#"{"choices":[{"delta":{"content":"a"}}],"x_groq":{"id":"r"}}"#, "content#0 a"),
        (r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"x_groq":{"usage":{"n":1}}}"#, ""),
        (done, r#"end stop {"n":1}"#),
        (
            r#"{"choices":[{"delta":{"content":"b"}}],"x_groq":{"error":"cut"}}"#,
            "content#0 b | error provider_error cut",
        ),
    ]);
    // Moonshot, vLLM: in a choice, and in every chunk.
    openai(&[
        (r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"n":1}}"#, "content#0 a"),
        (r#"{"choices":[{"delta":{},"finish_reason":"stop","usage":{"n":2}}],"usage":null}"#, ""),
        (done, r#"end stop {"n":2}"#),
    ]);
    // OpenRouter.
    openai(&[(
        r#"{"choices":[{"delta":{"content":""},"finish_reason":"error","error":{"code":502,"message":"m"}}]}"#,
        "error 502 m",
    )]);
    // Servers that write all members they know, some of them in PHP.
    openai(&[
        (r#"{"choices":[{"delta":{"content":"a"},"error":{}}],"error":""}"#, "content#0 a"),
        (r#"{"choices":[{"delta":[],"finish_reason":"stop"}],"error":{}}"#, ""),
        (r#"{"choices":[],"usage":{"a":"\ud800"}}"#, ""),
        (done, "end stop -"),
    ]);
}

#[test]
fn a_message_begun_twice_begins_once() {
    anthropic(&[
        (r#"{"type":"message_start","message":{"id":"m1","usage":{"input_tokens":5}}}"#, ""),
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c1","name":"f"}}"#,
            "",
        ),
        (r#"{"type":"message_start","message":{"id":"m1"}}"#, ""),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"1"}}"#,
            "tool#0.0 c1 f 1",
        ),
        // Another message continues the same generation.
        (r#"{"type":"message_start","message":{"id":"m2"}}"#, ""),
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c2","name":"f"}}"#,
            "",
        ),
        (r#"{"type":"content_block_stop","index":0}"#, "tool#0.1 c2 f "),
        (r#"{"type":"message_stop"}"#, "end - -"),
    ]);
}
