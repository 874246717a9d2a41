//! Messages events: blocks of text, of reasoning and of tools.

use super::tests::{anthropic, openai};

#[test]
fn messages_are_blocks() {
    anthropic(&[
        (
            r#"{"type":"message_start","message":{"id":"m1","usage":{"input_tokens":5,"output_tokens":1,"a":{"b":1}}}}"#,
            "",
        ),
        (r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#, ""),
        (r#"{"type": "ping"}"#, ""),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"t"}}"#,
            "reasoning#0 t",
        ),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}"#,
            "custom content_block_delta",
        ),
        (r#"{"type":"content_block_stop","index":0}"#, ""),
        (
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"A"}}"#,
            "content#0 A",
        ),
        (
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"b"}}"#,
            "content#0 b",
        ),
        (
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{}}}"#,
            "custom content_block_delta",
        ),
        (r#"{"type":"surprise"}"#, "custom surprise"),
        (
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7,"input_tokens":null,"c":0}}"#,
            "",
        ),
        (
            r#"{"type":"message_stop"}"#,
            r#"end end_turn {"input_tokens":5,"output_tokens":7,"a":{"b":1},"c":0}"#,
        ),
    ]);
}

#[test]
fn tools_are_blocks() {
    anthropic(&[
        (
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"c1","name":"f","input":{}}}"#,
            "",
        ),
        (
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            "tool#0.0 c1 f ",
        ),
        (
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            "",
        ),
        (
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\""}}"#,
            r#"tool#0.0 - - {\"a\""#,
        ),
        (r#"{"type":"content_block_stop","index":2}"#, ""),
        (
            r#"{"type":"content_block_start","index":3,"content_block":{"type":"server_tool_use","id":"x"}}"#,
            "custom content_block_start",
        ),
        (
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{"}}"#,
            "custom content_block_delta",
        ),
        (r#"{"type":"content_block_stop","index":3}"#, ""),
        (
            r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"c2","name":"g","input":{"x":"y"}}}"#,
            "",
        ),
        (r#"{"type":"content_block_stop","index":4}"#, r#"tool#0.1 c2 g {\"x\":\"y\"}"#),
        (r#"{"type":"surprise"}"#, "custom surprise"),
        (
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":7,"input_tokens":null,"c":0}}"#,
            "",
        ),
        (r#"{"type":"message_stop"}"#, r#"end tool_use {"output_tokens":7,"input_tokens":null,"c":0}"#),
        // A late reason; then another message.
        (r#"{"type":"message_delta","delta":{"stop_reason":"late"}}"#, ""),
        (r#"{"type":"message_start","message":{"id":"m2","usage":{"input_tokens":6}}}"#, ""),
        (
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c3","name":"f"}}"#,
            "",
        ),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"1"}}"#,
            "tool#0.0 c3 f 1",
        ),
        (r#"{"type":"message_stop"}"#, r#"end - {"input_tokens":6}"#),
    ]);
}

#[test]
fn arguments_given_at_once_count_where_no_piece_has_any() {
    let begin = |index: u32, input: &str| {
        format!(
            r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"tool_use","id":{index},"name":"f","input":{input}}}}}"#
        )
    };
    let piece = |index: u32, piece: &str| {
        format!(
            r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"input_json_delta","partial_json":"{piece}"}}}}"#
        )
    };
    let stop = |index: u32| format!(r#"{{"type":"content_block_stop","index":{index}}}"#);
    anthropic(&[
        (&begin(1, "{}"), ""),
        (&piece(1, ""), "tool#0.0 1 f "),
        (&piece(1, ""), ""),
        (&stop(1), "tool#0.0 - - {}"),
        (&begin(2, r#"{"a":1}"#), ""),
        (&piece(2, ""), "tool#0.1 2 f "),
        (&stop(2), r#"tool#0.1 - - {\"a\":1}"#),
        (&begin(3, r#"{"a":1}"#), ""),
        (&piece(3, ""), "tool#0.2 3 f "),
        (&piece(3, "[2]"), "tool#0.2 - - [2]"),
        (&piece(3, ""), ""),
        (&stop(3), ""),
        (&begin(4, "{}"), ""),
        (&stop(4), "tool#0.3 4 f {}"),
    ]);
    openai(&[
        (
            r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","call_id":"c1","name":"f","arguments":""}}"#,
            "",
        ),
        (
            r#"{"type":"response.function_call_arguments.delta","output_index":1,"delta":""}"#,
            "tool#0.0 c1 f ",
        ),
        (
            r#"{"type":"response.function_call_arguments.done","output_index":1,"arguments":{"a":"b"}}"#,
            r#"tool#0.0 - - {\"a\":\"b\"}"#,
        ),
        (
            r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","arguments":"{}"}}"#,
            "",
        ),
    ]);
}
