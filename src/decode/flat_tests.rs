use proptest::prelude::*;

use super::*;
use crate::decode::entry::{DecodeContext, Form, plain_events};
use crate::model::{Entry, EntryId, LABEL_BYTES_MAX};

/// The content of one entry, owned: its events in debug form, `seq` and `ts`.
type PayloadEvents = (Vec<String>, Option<u64>, Option<u64>);

fn read_with(names: &config::Fields, pairs: &[(&str, &[u8])]) -> Result<PayloadEvents, Flaw> {
    let pairs: Vec<_> = pairs.iter().map(|&(name, value)| (name.as_bytes(), value)).collect();
    let entry = Entry { id: EntryId::new(1, 0), fields: Fields::from_pairs(&pairs) };
    let (context, margin) = (DecodeContext::new(names.clone()), Margin::default());
    let PlainEvents { first, end } = plain_events(Form::of(&entry.fields), &entry, &context, &margin)?;
    let events = std::iter::once(first.event).chain(end).map(|event| shown(&event)).collect();
    Ok((events, first.seq, first.ts_us))
}

fn shown(event: &Event<'_>) -> String {
    let or_none = |text: &Option<&str>| text.map_or("-".to_owned(), |text| format!("<{text}>"));
    match event {
        Event::Delta { text, channel, index } => format!("delta {channel} {index} <{text}>"),
        Event::ToolCall { index, call, id, name, arguments } => {
            format!("tool_call {index} {call} {} {} <{arguments}>", or_none(id), or_none(name))
        }
        Event::Start { generation, metadata } => {
            format!("start {} {}", or_none(generation), or_none(metadata))
        }
        Event::End { finish_reason, usage } => format!("end {} {}", or_none(finish_reason), or_none(usage)),
        Event::Error { code, message } => format!("error {code} {}", or_none(message)),
        Event::Heartbeat => "heartbeat".to_owned(),
        Event::Custom { data } => format!("custom {data}"),
    }
}

/// The events of a flat entry, written `name=value` with `|` between the fields.
fn flat(fields: &str) -> Result<Vec<String>, Flaw> {
    let pairs: Vec<_> = fields.split('|').filter_map(|field| field.split_once('=')).collect();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    read_with(&config::Fields::default(), &pairs).map(|(events, ..)| events)
}

fn object(json: &str) -> Result<Vec<String>, Flaw> {
    read_with(&config::Fields::default(), &[("data", json.as_bytes())]).map(|(events, ..)| events)
}

/// Checks the events of flat entries or objects.
fn check(read: fn(&str) -> Result<Vec<String>, Flaw>, cases: &[(&str, &[&str])]) {
    for (entry, expected) in cases {
        let events = read(entry).unwrap_or_else(|flaw| panic!("{entry}: {flaw:?}"));
        assert_eq!(events, *expected, "{entry}");
    }
}

#[test]
fn text_is_found_under_the_first_name_that_is_present() {
    check(
        flat,
        &[
            ("text=a", &["delta content 0 <a>"]),
            ("content=a", &["delta content 0 <a>"]),
            ("token=a", &["delta content 0 <a>"]),
            ("chunk=a", &["delta content 0 <a>"]),
            ("delta=a", &["delta content 0 <a>"]),
            ("delta=e|chunk=d|token=c|content=b|text=a", &["delta content 0 <a>"]),
            ("content=b|text=", &["delta content 0 <>"]),
            ("x=1|text=a|channel=reasoning|index=2|unknown=y", &["delta reasoning 2 <a>"]),
            ("text=a|channel=", &["delta  0 <a>"]),
            ("text=a|metadata=no json|usage=none|code=5", &["delta content 0 <a>"]),
            ("text=a|text=b", &["delta content 0 <a>"]),
        ],
    );
}

#[test]
fn types_have_many_names() {
    for kind in ["delta", "chunk", "token", "text", "content", "message"] {
        for name in ["type", "event"] {
            check(flat, &[(&format!("{name}={kind}|content=a"), &["delta content 0 <a>"])]);
        }
        assert_eq!(flat(&format!("type={kind}")), Err(Flaw::Missing(Member::Text)), "{kind}");
    }
    for kind in ["end", "done", "complete", "completed", "finish", "finished", "stop"] {
        check(
            flat,
            &[
                (&format!("type={kind}"), &["end - -"]),
                (
                    &format!("event={kind}|finish_reason=length|usage={{\"n\":1}}"),
                    &["end <length> <{\"n\":1}>"],
                ),
                (&format!("type={kind}|content=bye|usage= {{}} "), &["delta content 0 <bye>", "end - <{}>"]),
                (&format!("type={kind}|content=|usage=null|finish_reason=None"), &["end - -"]),
                (&format!("type={kind}|usage={{\"a\":NaN}}"), &["end - <{\"a\":null}>"]),
                (&format!("type={kind}|content=[DONE]"), &["end - -"]),
            ],
        );
    }
    check(
        flat,
        &[
            ("type=start|generation=g 1|metadata={\"a\":[1]}", &["start <g 1> <{\"a\":[1]}>"]),
            ("type=start", &["start - -"]),
            ("type=start|metadata=null", &["start - -"]),
            ("type=heartbeat|content=x", &["heartbeat"]),
            ("event=tool_call|arguments={\"q\":", &["tool_call 0 0 - - <{\\\"q\\\":>"]),
            ("type=tool_call|index=1|call=2|id=c|name=n|arguments=", &["tool_call 1 2 <c> <n> <>"]),
            ("type=delta|event=end|text=a", &["delta content 0 <a>"]),
        ],
    );
    assert_eq!(flat("type=tool_call|name=n"), Err(Flaw::Missing(Member::Arguments)));
}

#[test]
fn an_entry_of_text_can_end_its_generation() {
    for kind in ["", "type=chunk|", "type=status|", "type=metadata|", "event=delta|"] {
        for end in [
            "done=1",
            "done=true",
            "is_final=True",
            "final=TRUE",
            "finished=1",
            "status=completed",
            "status=complete",
            "status=done",
            "status=finished",
            "finish_reason=|final=1",
            "finish_reason=None|done=1",
        ] {
            check(
                flat,
                &[
                    (&format!("{kind}{end}"), &["end - -"]),
                    (&format!("{kind}{end}|content="), &["end - -"]),
                    (&format!("{kind}{end}|content=a|index=1"), &["delta content 1 <a>", "end - -"]),
                ],
            );
        }
        check(
            flat,
            &[
                (&format!("{kind}text=a|finish_reason=stop"), &["delta content 0 <a>", "end <stop> -"]),
                (&format!("{kind}finish_reason=stop|done=0"), &["end <stop> -"]),
                (&format!("{kind}text=[DONE]"), &["end - -"]),
                (&format!("{kind}text=[DONE]|usage={{}}|finish_reason=x"), &["end <x> <{}>"]),
            ],
        );
    }
    for no_end in [
        "done=0",
        "done=false",
        "done=yes",
        "done=",
        "is_final=2",
        "finish_reason=",
        "finish_reason=null",
        "finish_reason=None",
        "status=running",
        "status=Completed",
        "x=1",
    ] {
        check(flat, &[(&format!("text=a|{no_end}"), &["delta content 0 <a>"])]);
        assert_eq!(flat(no_end), Err(Flaw::Nothing), "{no_end}");
    }
    check(flat, &[("text= [DONE]", &["delta content 0 < [DONE]>"])]);
    // Only text can end a generation by itself.
    check(
        flat,
        &[
            ("type=heartbeat|done=1", &["heartbeat"]),
            ("type=start|status=done", &["start - -"]),
            ("type=tool_call|arguments=|finish_reason=x", &["tool_call 0 0 - - <>"]),
            ("type=own|done=1", &[r#"custom {"type":"own","done":"1"}"#]),
        ],
    );
}

#[test]
fn errors_have_many_forms() {
    check(
        flat,
        &[
            ("type=error", &["error error -"]),
            ("type=error|code=c|message=m|error=e|content=t", &["error c <m>"]),
            ("type=error|error=e|content=t", &["error error <e>"]),
            ("type=error|content=t", &["error error <t>"]),
            ("type=error|message=|error=e", &["error error <>"]),
            ("status=failed", &["error error -"]),
            ("type=status|status=error|code=x|done=1", &["error x -"]),
            ("status=failed|content=t", &["error error <t>"]),
            // A text that is not the message belongs to the model's output.
            ("type=chunk|status=failed|content=t|message=m", &["delta content 0 <t>", "error error <m>"]),
            ("status=failed|content=[DONE]", &["error error -"]),
        ],
    );
    assert_eq!(flat("error=boom"), Err(Flaw::Nothing));
}

#[test]
fn an_entry_of_another_type_is_an_object_of_strings() {
    check(
        flat,
        &[
            (
                "event=my.event|b=1|a=\"\n|seq=4|=",
                &[r#"custom {"event":"my.event","b":"1","a":"\"\n","seq":"4","":""}"#],
            ),
            ("type=|text=a", &[r#"custom {"type":"","text":"a"}"#]),
            (
                "type=status|status=running|text=a",
                &[r#"custom {"type":"status","status":"running","text":"a"}"#],
            ),
            ("type=metadata|model=m", &[r#"custom {"type":"metadata","model":"m"}"#]),
            ("type=Delta|text=a", &[r#"custom {"type":"Delta","text":"a"}"#]),
        ],
    );
    let seen = |fields: &[(&str, &[u8])]| read_with(&config::Fields::default(), fields);
    assert_eq!(
        seen(&[("type", b"own"), ("seq", b"4"), ("ts", b"x")]),
        Ok((vec![r#"custom {"type":"own","seq":"4","ts":"x"}"#.to_owned()], Some(4), None))
    );
    assert_eq!(seen(&[("type", b"own"), ("x", b"\xff")]), Err(Flaw::FieldsNotText));
    assert_eq!(seen(&[("type", b"\xff"), ("text", b"a")]), Err(Flaw::Kind(Member::Type)));
}

#[test]
fn numbers_are_digits_and_the_time_feeds_only_measurements() {
    let seen = |fields: &[(&str, &[u8])]| read_with(&config::Fields::default(), fields);
    let (_, seq, ts) = seen(&[("text", b"a"), ("seq", b"18446744073709551615"), ("ts", b"05")]).unwrap();
    assert_eq!((seq, ts), (Some(u64::MAX), Some(5)));
    for bad in ["", " 1", "1 ", "+1", "-1", "1.0", "1e3", "0x1", "18446744073709551616", "x", "\u{661}"] {
        for (name, member) in [("seq", Member::Seq), ("index", Member::Index)] {
            let fields: [(&str, &[u8]); 2] = [("text", b"a"), (name, bad.as_bytes())];
            assert_eq!(seen(&fields), Err(Flaw::Kind(member)), "{name} {bad:?}");
        }
        assert_eq!(seen(&[("text", b"a"), ("ts", bad.as_bytes())]).unwrap().2, None, "{bad:?}");
        let call: [(&str, &[u8]); 3] = [("type", b"tool_call"), ("arguments", b""), ("call", bad.as_bytes())];
        assert_eq!(seen(&call), Err(Flaw::Kind(Member::Call)), "{bad:?}");
    }
    let (events, seq, ts) = seen(&[("text", b"a"), ("done", b"1"), ("seq", b"7"), ("ts", b"9")]).unwrap();
    assert_eq!((events.len(), seq, ts), (2, Some(7), Some(9)));
}

#[test]
fn members_of_the_wrong_kind_and_size_are_undecodable() {
    let long = "x".repeat(LABEL_BYTES_MAX + 1);
    let metadata = format!("{{\"a\":\"{}\"}}", "x".repeat(64 * 1024));
    for (fields, flaw) in [
        ("type=start|metadata=", Flaw::Kind(Member::Metadata)),
        ("type=start|metadata=[]", Flaw::Kind(Member::Metadata)),
        ("type=start|metadata={} x", Flaw::Kind(Member::Metadata)),
        (r#"type=start|metadata={"a":"\ud800"}"#, Flaw::Kind(Member::Metadata)),
        ("type=end|usage=7", Flaw::Kind(Member::Usage)),
        ("text=a|done=1|usage={", Flaw::Kind(Member::Usage)),
        (&format!("type=start|generation={long}"), Flaw::TooLong(Member::Generation)),
        (&format!("type=start|metadata={metadata}"), Flaw::TooLong(Member::Metadata)),
        (&format!("type=tool_call|arguments=|id={long}"), Flaw::TooLong(Member::Id)),
        (&format!("type=tool_call|arguments=|name={long}"), Flaw::TooLong(Member::Name)),
    ] {
        assert_eq!(flat(fields), Err(flaw), "{fields}");
    }
    // The limit of an escaped name applies to its unescaped length.
    let quotes = "\"".repeat(LABEL_BYTES_MAX);
    check(
        flat,
        &[(
            &format!("type=start|generation={quotes}"),
            &[&format!("start <{}> -", "\\\"".repeat(LABEL_BYTES_MAX))],
        )],
    );
    let seen = |fields: &[(&str, &[u8])]| read_with(&config::Fields::default(), fields);
    for (name, member) in [("text", Member::Text), ("channel", Member::Channel)] {
        let fields: [(&str, &[u8]); 2] = [(name, b"\xed\xa0\x80"), ("content", b"a")];
        assert_eq!(seen(&fields), Err(Flaw::Kind(member)), "{name}");
    }
    assert!(seen(&[("text", b"a"), ("other", b"\xff")]).is_ok(), "what nobody reads may be anything");
}

#[test]
fn a_form_of_its_own_wins_over_flat_fields() {
    check(
        flat,
        &[
            (r#"text=a|type=end|data={"type":"delta","text":"b"}"#, &["delta content 0 <b>"]),
            (r#"openai={}|enc=x|data={"token":"b"}"#, &["delta content 0 <b>"]),
        ],
    );
    assert_eq!(flat("text=a|enc=x"), Err(Flaw::Encrypted));
    assert_eq!(flat("text=a|data="), Err(Flaw::NotAnObject));
    assert_eq!(flat("text=a|data=hello"), Err(Flaw::NotAnObject));
}

#[test]
fn objects_without_a_native_type_are_read_by_the_same_names() {
    check(
        object,
        &[
            (r#"{"token":"Hi","metadata":{"a":1}}"#, &["delta content 0 <Hi>"]),
            (
                r#" {"text":null,"content":"a\u00e4","index":1,"channel":"reason\u0069ng"} "#,
                &[r"delta reasoning 1 <a\u00e4>"],
            ),
            (r#"{"type":null,"text":"a"}"#, &["delta content 0 <a>"]),
            (r#"{"event":"chunk","token":"a"}"#, &["delta content 0 <a>"]),
            (r#"{"event":"done","finish_reason":"stop","usage":{"n":1}}"#, &["end <stop> <{\"n\":1}>"]),
            (r#"{"event":"start","generation":"g"}"#, &["start <g> -"]),
            (r#"{"text":"a","done":true}"#, &["delta content 0 <a>", "end - -"]),
            (r#"{"text":"a","is_final":1,"finish_reason":null}"#, &["delta content 0 <a>", "end - -"]),
            (r#"{"text":"a","final":"True"}"#, &["delta content 0 <a>", "end - -"]),
            (r#"{"text":"a","done":false,"status":200,"finish_reason":""}"#, &["delta content 0 <a>"]),
            (r#"{"text":"a","finish_reason":"length"}"#, &["delta content 0 <a>", "end <length> -"]),
            (r#"{"content":"[DONE]"}"#, &["end - -"]),
            (r#"{"status":"failed","error":{"message":"m"}}"#, &[r#"error error <{\"message\":\"m\"}>"#]),
            (r#"{"event":"own","text":"a"}"#, &[r#"custom {"event":"own","text":"a"}"#]),
            // The last of two members counts, and `null` means absent.
            (r#"{"text":"a","text":null,"token":"b"}"#, &["delta content 0 <b>"]),
        ],
    );
    for (json, flaw) in [
        ("{}", Flaw::NothingInObject),
        (r#"{"message":"a"}"#, Flaw::NothingInObject),
        (r#"{"text":5}"#, Flaw::Kind(Member::Text)),
        (r#"{"text":"\ud83d"}"#, Flaw::Kind(Member::Text)),
        (r#"{"event":5,"text":"a"}"#, Flaw::Kind(Member::Type)),
        (r#"{"event":"delta"}"#, Flaw::Missing(Member::Text)),
        (r#"{"text":"a","seq":"1"}"#, Flaw::Kind(Member::Seq)),
        (r#"{"text":"a","index":-1}"#, Flaw::Kind(Member::Index)),
        (r#"{"text":"a","finish_reason":5}"#, Flaw::Kind(Member::FinishReason)),
        (r#"["text"]"#, Flaw::NotAnObject),
    ] {
        assert_eq!(object(json), Err(flaw), "{json}");
    }
}

#[test]
fn some_types_of_objects_are_aliases_of_native_ones() {
    for kind in ["chunk", "token"] {
        check(
            object,
            &[
                (&format!(r#"{{"type":"{kind}","token":"a"}}"#), &["delta content 0 <a>"]),
                (
                    &format!(r#"{{"event":"end","type":"{kind}","content":"a","done":true}}"#),
                    &["delta content 0 <a>", "end - -"],
                ),
                (&format!(r#"{{"type":"{kind}","text":"[DONE]"}}"#), &["end - -"]),
            ],
        );
        for own in [r#"{"type":"KIND"}"#, r#"{ "type":"KIND", "done":true,"text":null}"#] {
            let own = own.replace("KIND", kind);
            check(object, &[(&own, &[&format!("custom {own}")])]);
        }
    }
    for kind in ["done", "complete", "completed", "finish", "finished", "stop"] {
        check(
            object,
            &[
                (
                    &format!(r#"{{"type":"{kind}","finish_reason":"stop","usage":{{}}}}"#),
                    &["end <stop> <{}>"],
                ),
                (&format!(r#"{{"type":"{kind}","text":"a"}}"#), &["delta content 0 <a>", "end - -"]),
            ],
        );
    }
    // Every other type is native or the producer's own.
    for own in ["text", "content", "message", "status", "metadata", "DONE"] {
        let own = format!(r#"{{"type":"{own}","text":"a","done":true}}"#);
        check(object, &[(&own, &[&format!("custom {own}")])]);
    }
    assert_eq!(object(r#"{"type":"delta","token":"a"}"#), Err(Flaw::Missing(Member::Text)));
    check(object, &[(r#"{"type":"delta","text":"a","done":true}"#, &["delta content 0 <a>"])]);
}

#[test]
fn other_names_can_be_configured() {
    let names = config::Fields { text: vec!["tok".into(), "message".into()], kind: vec!["kind".into()] };
    let read = |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        read_with(&names, &pairs).map(|(events, ..)| events)
    };
    assert_eq!(read(&[("message", "b"), ("tok", "a"), ("type", "end")]).unwrap(), ["delta content 0 <a>"]);
    assert_eq!(read(&[("text", "a")]), Err(Flaw::Nothing));
    assert_eq!(read(&[("kind", "error"), ("message", "m")]).unwrap(), ["error error <m>"]);
    assert_eq!(read(&[("data", r#"{"tok":"a","kind":"chunk"}"#)]).unwrap(), ["delta content 0 <a>"]);
    assert_eq!(read(&[("data", r#"{"type":"done","kind":"chunk"}"#)]).unwrap(), ["end - -"]);
}

proptest! {
    /// Text comes out byte for byte, whatever it is, from a field as from an object.
    #[test]
    fn text_is_taken_byte_for_byte(text in any::<String>()) {
        prop_assume!(text != "[DONE]");
        let of = |pairs: &[(&str, &[u8])]| -> String {
            let events = read_with(&config::Fields::default(), pairs).unwrap().0;
            let text = events[0].strip_prefix("delta content 0 <").unwrap().strip_suffix('>').unwrap();
            serde_json::from_str(&format!("\"{text}\"")).unwrap()
        };
        prop_assert_eq!(&of(&[("content", text.as_bytes())]), &text);
        let object = serde_json::json!({ "chunk": text }).to_string();
        prop_assert_eq!(&of(&[("data", object.as_bytes())]), &text);
    }

    /// No fields cause a panic, and a message contains no value.
    #[test]
    fn any_fields_are_read_or_refused(
        fields in prop::collection::vec(
            (
                prop::sample::select(vec!["text", "content", "type", "event", "seq", "ts", "done", "status", "error",
                    "finish_reason", "usage", "metadata", "index", "x", "data", "generation", "arguments", "message"]),
                prop_oneof![
                    Just(b"1".to_vec()), Just(b"true".to_vec()), Just(b"chunk".to_vec()), Just(b"tool_call".to_vec()),
                    Just(b"start".to_vec()), Just(b"[DONE]".to_vec()), Just(b"null".to_vec()), Just(b"{}".to_vec()),
                    Just(b"failed".to_vec()), prop::collection::vec(any::<u8>(), 0..6),
                ],
            ),
            0..6,
        ),
    ) {
        let pairs: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let names = config::Fields::default();
        if let Err(flaw) = read_with(&names, &pairs) {
            let pairs: Vec<_> = pairs.iter().map(|(name, _)| (name.as_bytes(), &b"qqq"[..])).collect();
            prop_assert!(!flaw.message(&Fields::from_pairs(&pairs), &names).contains("qqq"));
        }
    }
}
