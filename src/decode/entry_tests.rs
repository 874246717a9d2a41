use super::*;
use crate::decode::member::METADATA_BYTES_MAX;
use crate::model::{EntryId, Fields, LABEL_BYTES_MAX};

fn entry(pairs: &[(&str, &str)]) -> Entry {
    let pairs: Vec<_> = pairs.iter().map(|(f, v)| (f.as_bytes(), v.as_bytes())).collect();
    Entry { id: EntryId::new(1, 0), fields: Fields::from_pairs(&pairs) }
}

fn event(json: &str) -> Option<Event<'_>> {
    native(json.as_bytes()).ok().flatten().map(|decoded| decoded.event)
}

#[test]
fn the_form_is_chosen_by_name() {
    let delta = r#"{"type":"delta","text":"x"}"#;
    for (fields, form) in [
        (vec![("openai", "[DONE]"), ("x", "y")], Form::Raw(provider::Form::OpenAi, b"[DONE]")),
        (vec![("anthropic", "{}"), ("openai", "1")], Form::Raw(provider::Form::OpenAi, b"1")),
        (vec![("enc", ""), ("anthropic", "{}")], Form::Raw(provider::Form::Anthropic, b"{}")),
        (vec![("text", "x"), ("enc", "")], Form::Encrypted),
        (vec![("Data", delta)], Form::Flat),
        (vec![], Form::Flat),
        (vec![("openai", "{}"), ("enc", "?"), ("data", "{}")], Form::Data(b"{}")),
        (vec![("data", "1"), ("data", "2")], Form::Data(b"1")),
    ] {
        assert_eq!(Form::of(&entry(&fields).fields), form, "{fields:?}");
    }
    let entry = entry(&[("openai", "{}"), ("data", delta), ("enc", "?")]);
    let (context, margin) = (DecodeContext::default(), Margin::default());
    assert!(matches!(plain(&entry, &context, &margin).unwrap().event, Event::Delta { text: "x", .. }));
}

#[test]
fn an_entry_may_have_eight_mebibytes() {
    let largest = "x".repeat(crate::model::ENTRY_BYTES_MAX);
    assert_eq!(Form::of(&entry(&[("text", &largest)]).fields), Form::Flat);
    assert_eq!(Form::of(&entry(&[("text", &largest), ("a", "b")]).fields), Form::TooLarge);
    let fields = entry(&[("data", &format!("{largest} "))]).fields;
    assert_eq!(Form::of(&fields), Form::TooLarge);
    assert_eq!(Flaw::TooLarge.reason(), "too_large");
}

#[test]
fn kept_names_of_a_generation_are_short() {
    let start = |generation: &str| format!(r#"{{"type":"start","generation":"{generation}"}}"#);
    let call = |name: &str, text: &str| format!(r#"{{"type":"tool_call","arguments":"","{name}":"{text}"}}"#);
    let metadata =
        |bytes: usize| format!(r#"{{"type":"start","metadata":{{"a":"{}"}}}}"#, "x".repeat(bytes - 8));
    let (long, too_long) = ("x".repeat(LABEL_BYTES_MAX), "x".repeat(LABEL_BYTES_MAX + 1));
    let escaped = r"\u0078".repeat(LABEL_BYTES_MAX);
    for good in
        [start(&long), start(&escaped), call("id", &long), call("name", &long), metadata(METADATA_BYTES_MAX)]
    {
        assert!(event(&good).is_some(), "{}", &good[..60]);
    }
    for (bad, member) in [
        (start(&too_long), Member::Generation),
        (start(&format!("{escaped}y")), Member::Generation),
        (call("id", &too_long), Member::Id),
        (call("name", &too_long), Member::Name),
        (metadata(METADATA_BYTES_MAX + 1), Member::Metadata),
    ] {
        assert_eq!(native(bad.as_bytes()), Err(Flaw::TooLong(member)));
    }
}

#[test]
fn every_native_type_is_read() {
    assert_eq!(
        event(r#" {"type":"start","generation":"g","metadata":{"a":[1, 2]}} "#),
        Some(Event::Start { generation: Some("g"), metadata: Some(r#"{"a":[1, 2]}"#) })
    );
    assert_eq!(
        event(r#"{"type":"delta","text":"a\n\"b\u00e4","channel":"reasoning","index":2}"#),
        Some(Event::Delta { text: r#"a\n\"b\u00e4"#, channel: "reasoning", index: 2 })
    );
    assert_eq!(
        event(r#"{"type":"tool_call","index":1,"call":3,"id":"c","name":"n","arguments":"{\"q\":"}"#),
        Some(Event::ToolCall { index: 1, call: 3, id: Some("c"), name: Some("n"), arguments: r#"{\"q\":"# })
    );
    assert_eq!(
        event(r#"{"type":"end","finish_reason":"stop","usage":{"n":1}}"#),
        Some(Event::End { finish_reason: Some("stop"), usage: Some(r#"{"n":1}"#) })
    );
    assert_eq!(
        event(r#"{"type":"error","code":"x","message":"y"}"#),
        Some(Event::Error { code: "x", message: Some("y") })
    );
    assert_eq!(event(r#"{"type":"heartbeat"}"#), Some(Event::Heartbeat));
    let decoded = native(br#"{"ts":5,"seq":18446744073709551615,"type":"heartbeat"}"#).unwrap().unwrap();
    assert_eq!((decoded.seq, decoded.ts_us), (Some(u64::MAX), Some(5)));
}

#[test]
fn a_time_of_the_wrong_kind_is_ignored() {
    for ts in ["-5", "1.5", "\"5\"", "true", "{}", "18446744073709551616"] {
        let json = format!(r#"{{"type":"delta","text":"x","ts":{ts}}}"#);
        let decoded = native(json.as_bytes()).unwrap().unwrap();
        assert_eq!((decoded.event.is_terminal(), decoded.ts_us), (false, None), "{ts}");
    }
}

#[test]
fn null_is_absent_and_unknown_members_are_ignored() {
    assert_eq!(
        event(
            r#"{"type":"delta","text":"x","channel":null,"index":null,"seq":null,"other":[{}],"\ud800":"\ud800"}"#
        ),
        Some(Event::Delta { text: "x", channel: "content", index: 0 })
    );
    assert_eq!(
        event(r#"{"type":"end","finish_reason":null,"usage":null}"#),
        Some(Event::End { finish_reason: None, usage: None })
    );
    assert_eq!(
        event(r#"{"type":"start","text":5,"metadata":null}"#),
        Some(Event::Start { generation: None, metadata: None })
    );
}

#[test]
fn names_are_compared_by_meaning_and_the_last_of_two_members_counts() {
    assert_eq!(
        event(r#"{"type":"end","t\u0079pe":"d\u0065lta","text":"a","text":"b","channel":"reason\u0069ng"}"#),
        Some(Event::Delta { text: "b", channel: "reasoning", index: 0 })
    );
    assert_eq!(event(r#"{"type":"delta","text":"a","text":null}"#), None);
}

#[test]
fn malformed_objects_are_undecodable() {
    for bad in [
        "",
        "null",
        "[DONE]",
        "[]",
        r#""delta""#,
        "{}",
        r#"{"type":null}"#,
        r#"{"type":5,"text":"x"}"#,
        r#"{"type":"delta","text":"x"} x"#,
        r#"{"type":"delta","text":"x"}{}"#,
        r#"{"type":"delta","text":"x",}"#,
        r#"{"type":"delta","text":"x""#,
        "{\"type\":\"delta\",\"text\":\"a\nb\"}",
        r#"{"type":"delta"}"#,
        r#"{"type":"delta","text":null}"#,
        r#"{"type":"delta","text":5}"#,
        r#"{"type":"delta","text":{}}"#,
        r#"{"type":"delta","text":"x","channel":1}"#,
        r#"{"type":"delta","text":"x","index":-1}"#,
        r#"{"type":"delta","text":"x","index":"0"}"#,
        r#"{"type":"delta","text":"x","seq":1.5}"#,
        r#"{"type":"delta","text":"x","seq":18446744073709551616}"#,
        r#"{"type":"delta","text":"\ud83d"}"#,
        r#"{"type":"delta","text":"x","channel":"\udc00"}"#,
        r#"{"type":"delta","text":"\x"}"#,
        r#"{"type":"tool_call"}"#,
        r#"{"type":"tool_call","arguments":{}}"#,
        r#"{"type":"tool_call","arguments":"","call":-1}"#,
        r#"{"type":"tool_call","arguments":"","id":5}"#,
        r#"{"type":"tool_call","arguments":"","name":[]}"#,
        r#"{"type":"start","generation":5}"#,
        r#"{"type":"start","metadata":[]}"#,
        r#"{"type":"start","metadata":{"a":["\ud800"]}}"#,
        r#"{"type":"end","finish_reason":true}"#,
        r#"{"type":"end","usage":7}"#,
        r#"{"type":"error"}"#,
        r#"{"type":"error","code":404}"#,
        r#"{"type":"error","code":"x","message":{}}"#,
        r#"{"type":"heartbeat","seq":"1"}"#,
        "\u{feff}{\"type\":\"heartbeat\"}",
    ] {
        assert_eq!(event(bad), None, "{bad}");
    }
    assert_eq!(native(b"{\"type\":\"delta\",\"text\":\"\xff\"}"), Err(Flaw::NotText("data")));
}

#[test]
fn other_types_pass_byte_for_byte() {
    let object =
        "{ \"type\" : \"my.event\",\n \"b\": \"\\ud800\", \"\\udc00\":1, \"seq\": 4,\"a\":1e999,\"a\":2 }";
    let padded = format!("\r\n {object}\t");
    let decoded = native(padded.as_bytes()).unwrap().unwrap();
    assert_eq!(decoded, Decoded { event: Event::Custom { data: object }, seq: Some(4), ts_us: None });
    for own in [r#"{"type":"x","seq":"a","ts":-1,"text":5}"#, r#"{"type":"\ud800"}"#, r#"{"type":""}"#] {
        let decoded = native(own.as_bytes()).unwrap().unwrap();
        assert_eq!(decoded, Decoded { event: Event::Custom { data: own }, seq: None, ts_us: None });
    }
}

#[test]
fn deep_nesting_is_no_danger() {
    let deep = |kind: &str| {
        let (open, close) = ("[".repeat(200_000), "]".repeat(200_000));
        format!(r#"{{"type":"{kind}","text":"x","a":{open}{close}}}"#)
    };
    assert!(matches!(event(&deep("delta")), Some(Event::Delta { text: "x", .. })));
    assert!(matches!(event(&deep("x")), Some(Event::Custom { .. })));
    assert_eq!(event(&"{\"type\":".repeat(200_000)), None);
}
