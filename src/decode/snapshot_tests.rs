use super::*;
use crate::decode::entry::{DecodeContext, plain};
use crate::decode::order::{Verdict, judge};
use crate::decode::test_streams::{entries, stream};
use crate::model::StreamState;
use crate::provider::Margin;

fn snapshot(objects: &[&str], bytes_max: usize) -> Snapshot {
    let mut snapshot = Snapshot::new(stream(), bytes_max);
    let mut state = StreamState::default();
    for entry in entries(objects) {
        let (context, margin) = (DecodeContext::default(), Margin::default());
        let decoded = plain(&entry, &context, &margin).unwrap();
        if let Verdict::Deliver { begins, .. } = judge(&mut state, entry.id, &decoded) {
            snapshot.push(&decoded, begins);
        }
    }
    snapshot
}

fn output(objects: &[&str], state: StreamStatus) -> String {
    let json = snapshot(objects, 10_000).render(state, EntryId::new(9, 0)).unwrap();
    let _: serde_json::Value = serde_json::from_slice(&json).unwrap();
    String::from_utf8(json).unwrap()
}

#[test]
fn a_generation_is_rendered_whole() {
    assert_eq!(
        output(&[], StreamStatus::Live),
        r#"{"stream":"s1/gpt-4o","state":"live","last_id":"9-0","entries":0,"content":""}"#
    );
    assert_eq!(
        output(
            &[
                r#"{"type":"delta","text":"of another generation"}"#,
                r#"{"type":"end","finish_reason":"length"}"#,
                r#"{"type":"start","generation":"g\"1","seq":0}"#,
                r#"{"type":"delta","channel":"reasoning","text":"h\u00e4","seq":1}"#,
                r#"{"type":"delta","channel":"reasoning","text":"h\u00e4","seq":1}"#,
                r#"{"type":"heartbeat","seq":2}"#,
                r#"{"type":"delta","text":"a\n","seq":3}"#,
                r#"{"type":"delta","text":"ä","seq":4}"#,
                r#"{"type":"own"}"#,
                r#"{"type":"end","finish_reason":"stop","usage":{"n": 1},"seq":5}"#,
            ],
            StreamStatus::Ended
        ),
        concat!(
            r#"{"stream":"s1/gpt-4o","state":"ended","last_id":"9-0","generation":"g\"1","entries":6,"#,
            r#""content":"a\nä","reasoning":"h\u00e4","finish_reason":"stop","usage":{"n": 1}}"#
        )
    );
}

#[test]
fn errors_and_other_channels_are_rendered() {
    assert_eq!(
        output(
            &[
                r#"{"type":"delta","channel":"refusal","text":"no"}"#,
                r#"{"type":"delta","channel":"state","text":"s"}"#,
                r#"{"type":"delta","channel":"audio","text":"a"}"#,
                r#"{"type":"error","code":"c","message":"m"}"#,
            ],
            StreamStatus::Failed
        ),
        concat!(
            r#"{"stream":"s1/gpt-4o","state":"failed","last_id":"9-0","entries":4,"content":"","refusal":"no","#,
            r#""channels":{"audio":"a","state":"s"},"error":{"code":"c","message":"m"}}"#
        )
    );
}

#[test]
fn tool_calls_have_the_shape_of_messages() {
    assert_eq!(
        output(
            &[
                r#"{"type":"tool_call","id":"a","name":"f","arguments":"{\"q\":"}"#,
                r#"{"type":"tool_call","call":5,"arguments":"x"}"#,
                r#"{"type":"tool_call","arguments":"1}"}"#,
                r#"{"type":"tool_call","id":"b","name":"g","arguments":"{}"}"#,
                r#"{"type":"tool_call","id":"b","arguments":" "}"#,
            ],
            StreamStatus::Live
        ),
        concat!(
            r#"{"stream":"s1/gpt-4o","state":"live","last_id":"9-0","entries":5,"content":"","tool_calls":["#,
            r#"{"id":"a","type":"function","function":{"name":"f","arguments":"{\"q\":1}"}},"#,
            r#"{"index":5,"type":"function","function":{"arguments":"x"}},"#,
            r#"{"index":0,"id":"b","type":"function","function":{"name":"g","arguments":"{} "}}]}"#
        )
    );
}

#[test]
fn several_choices_are_listed() {
    assert_eq!(
        output(
            &[
                r#"{"type":"delta","text":"b","index":1}"#,
                r#"{"type":"delta","text":"a"}"#,
                r#"{"type":"tool_call","index":1,"arguments":"{}"}"#,
                r#"{"type":"end","finish_reason":"stop"}"#,
            ],
            StreamStatus::Ended
        ),
        concat!(
            r#"{"stream":"s1/gpt-4o","state":"ended","last_id":"9-0","entries":4,"content":"a","choices":["#,
            r#"{"index":0,"content":"a","finish_reason":"stop"},"#,
            r#"{"index":1,"content":"b","tool_calls":[{"type":"function","function":{"arguments":"{}"}}],"#,
            r#""finish_reason":"stop"}],"finish_reason":"stop"}"#
        )
    );
}

#[test]
fn the_bound_holds_for_a_generation() {
    let large = format!(r#"{{"type":"delta","text":"{}"}}"#, "x".repeat(1_001));
    let small = r#"{"type":"delta","text":"x"}"#;
    let end = r#"{"type":"end"}"#;
    let render = |objects: &[&str]| snapshot(objects, 1_000).render(StreamStatus::Live, EntryId::ZERO);
    assert_eq!(render(&[&large, small, end]), Err(TooLarge { bytes_max: 1_000 }));
    assert!(render(&[&large, end, small]).is_ok());
    // Many small parts are bounded as well.
    let calls: Vec<_> =
        (0..20).map(|n| format!(r#"{{"type":"tool_call","call":{n},"arguments":""}}"#)).collect();
    let calls: Vec<_> = calls.iter().map(String::as_str).collect();
    assert!(render(&calls).is_err());
}
