//! The frame of each native entry: every member in its place, text unchanged, foreign objects byte for byte, and an
//! entry that cannot be decoded is reported instead of ignored.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::producer::Producer;
use crate::support::redis::RedisServer;
use crate::support::transcript::Frame;
use crate::support::viewer::{KINDS, Kind, view};

/// Separates the entries of a test, so that nothing is merged.
const SEPARATOR: &str = r#"{"type":"separator"}"#;

/// Writes entries, each as the fields of an XADD, and a final `end`; returns the frame of each entry for each kind of
/// viewer, after checking that each entry has one frame with its own id.
fn frames_of(entries: &[Vec<(&str, &[u8])>]) -> Vec<(Kind, Vec<Frame>)> {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let mut ids = Vec::new();
    for fields in entries {
        ids.push(producer.write_fields("*", fields));
        producer.write_text(SEPARATOR);
    }
    producer.write_text(r#"{"type":"end"}"#);
    let frames_for = |kind| {
        let mut frames = view(daemon.public, kind, "s1/m", "follow=0").frames;
        frames.retain(|frame| frame.kind() != "open" && frame.value["data"]["type"] != "separator");
        frames.pop();
        let frame_ids: Vec<&str> = frames.iter().map(|frame| frame.id().unwrap()).collect();
        assert_eq!(frame_ids, ids, "one frame for each entry: {frames:#?}");
        (kind, frames)
    };
    KINDS.map(frames_for).into()
}

/// Checks the frame of each `data`; the `id` is added here.
fn check(expected: &[(&str, Value)]) {
    let entries: Vec<_> = expected.iter().map(|(data, _)| vec![("data", data.as_bytes())]).collect();
    for (kind, frames) in frames_of(&entries) {
        for (frame, (data, value)) in frames.iter().zip(expected) {
            let mut value = value.clone();
            value["id"] = frame.value["id"].clone();
            assert_eq!(frame.value, value, "{kind:?}: frame of {data}");
        }
    }
}

/// Checks that each of these entries is skipped and reported.
fn check_skipped(entries: &[Vec<(&str, &[u8])>]) {
    for (kind, frames) in frames_of(entries) {
        for (frame, fields) in frames.iter().zip(entries) {
            let shown: Vec<_> =
                fields.iter().map(|(name, data)| (name, String::from_utf8_lossy(data))).collect();
            assert_eq!(frame.kind(), "skipped", "{kind:?}: frame of {shown:?}: {}", frame.raw);
            assert!(frame.value["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{}", frame.raw);
        }
    }
}

fn data_entries<'a>(objects: &[&'a str]) -> Vec<Vec<(&'a str, &'a [u8])>> {
    objects.iter().map(|data| vec![("data", data.as_bytes())]).collect()
}

#[test]
fn each_native_type_has_its_frame() {
    check(&[
        (
            r#"{"type":"start","generation":"g1","metadata":{"a":[1,{"b":null}]},"seq":0,"ts":1763800000000000}"#,
            json!({"type": "start", "seq": 0, "generation": "g1", "metadata": {"a": [1, {"b": null}]}}),
        ),
        (r#"{"type":"delta","text":"Hi"}"#, json!({"type": "delta", "text": "Hi"})),
        (
            r#"{"seq":1,"text":"Hmm","channel":"reasoning","type":"delta"}"#,
            json!({"type": "delta", "seq": 1, "channel": "reasoning", "text": "Hmm"}),
        ),
        (
            r#"{"type":"delta","text":"no","channel":"refusal"}"#,
            json!({"type": "delta", "channel": "refusal", "text": "no"}),
        ),
        (
            r#"{"type":"delta","text":"x","channel":"my own","index":2}"#,
            json!({"type": "delta", "channel": "my own", "index": 2, "text": "x"}),
        ),
        (
            r#"{"type":"delta","text":"default","channel":"content","index":0,"more":true}"#,
            json!({"type": "delta", "text": "default"}),
        ),
        (
            r#"{"type":"delta","text":"nulls","channel":null,"index":null,"seq":null,"ts":null}"#,
            json!({"type": "delta", "text": "nulls"}),
        ),
        (
            r#"{"type":"tool_call","id":"call_9","name":"search","arguments":"{\"q\":"}"#,
            json!({"type": "tool_call", "index": 0, "call": 0, "call_id": "call_9", "name": "search",
                   "arguments": "{\"q\":"}),
        ),
        (
            r#"{"type":"tool_call","index":1,"call":3,"arguments":"1}","seq":2}"#,
            json!({"type": "tool_call", "seq": 2, "index": 1, "call": 3, "arguments": "1}"}),
        ),
        (
            r#"{"type":"end","finish_reason":"stop","usage":{"total_tokens":120,"x":{"y":1.5}},"seq":3}"#,
            json!({"type": "end", "seq": 3, "finish_reason": "stop",
                   "usage": {"total_tokens": 120, "x": {"y": 1.5}}}),
        ),
        (
            r#"{"type":"error","code":"upstream_timeout","message":"it took \"too\" long"}"#,
            json!({"type": "error", "code": "upstream_timeout", "message": "it took \"too\" long"}),
        ),
    ]);
}

#[test]
fn a_heartbeat_is_not_delivered() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    for object in [
        json!({"type": "heartbeat"}),
        json!({"type": "delta", "text": "a"}),
        json!({"type": "heartbeat", "ts": 5}),
        json!({"type": "end"}),
    ] {
        producer.write(&object);
    }
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        assert_eq!(all.outline(), ["delta a", "end"], "{kind:?}");
        assert_eq!(all.entries(), 2, "{kind:?}");
    }
}

/// Any text that JSON can contain, in any pieces.
#[test]
fn text_comes_unchanged() {
    let texts = [
        "plain",
        "",
        "quote \" backslash \\ slash / tab \t newline \n return \r",
        "null \u{0} bell \u{7} escape \u{1b} delete \u{7f}",
        "ä ß € 漢字 한국어 العربية עברית",
        "emoji \u{1F469}\u{200D}\u{1F4BB} flag \u{1F1E9}\u{1F1EA} astral \u{10FFFF}",
        "line \u{2028} paragraph \u{2029} no-break \u{a0} mark \u{feff} replacement \u{fffd}",
        "e\u{301} is not é",
        "data: id: event:\n\ndata: [DONE]\r\n\r\n: comment",
        "</script><!-- {\"type\":\"end\"}",
    ];
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let escaped = |text: &str| text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect::<String>();
    for text in texts {
        producer.write(&json!({"type": "delta", "text": text}));
        // The same with every character escaped, astral ones as surrogate pairs.
        producer.write_text(&format!(r#"{{"type":"delta","text":"{}"}}"#, escaped(text)));
    }
    let end = producer.end();
    let expected: String = texts.iter().flat_map(|text| [*text, *text]).collect();
    for kind in KINDS {
        for query in ["", "batch_ms=200"] {
            let all = view(daemon.public, kind, "s1/m", query);
            assert_eq!(all.text(), expected, "{kind:?} {query}");
            assert_eq!(all.entries(), 2 * texts.len() + 1, "{kind:?} {query}");
            all.expect_finished(&end);
        }
    }
}

#[test]
fn a_large_text_comes_whole() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let mut producer = Producer::new(&redis, "s1", "m");
    let large = "0123456789abcdéf".repeat(60_000);
    producer.delta(&large);
    producer.delta("more");
    let end = producer.end();
    for kind in KINDS {
        let all = view(daemon.public, kind, "s1/m", "");
        assert!(all.text() == format!("{large}more"), "{kind:?}");
        all.expect_finished(&end);
    }
}

#[test]
fn a_custom_object_comes_byte_for_byte() {
    let objects = [
        r#"{"type":"mine"}"#,
        r#"{ "b" : 1 ,"a":2, "type" : "mine" , "a" : 3 }"#,
        r#"{"type":"mine","big":123456789012345678901234567890.10e+40,"neg":-0.0,"e":1E5}"#,
        r#"{"type":"mine","text":"\u00e9 é \/ \"","lone":"\ud83d\ude00"}"#,
        r#"{"type":"mine","nested":[[[]],{},{"type":"end"}],"seq":null}"#,
        "{\n  \"type\": \"mine\",\n\n\t\"lines\": true\n}",
        "{\"type\":\"mine\",\"text\":\"\u{2028}\u{7f}\u{1F9ED}\"}",
        r#"{"type":"","empty":"type"}"#,
        r#"{"type":"Delta","text":5}"#,
    ];
    for (kind, frames) in frames_of(&data_entries(&objects)) {
        for (frame, object) in frames.iter().zip(&objects) {
            assert_eq!(frame.kind(), "custom", "{kind:?}: {}", frame.raw);
            assert!(frame.raw.contains(&format!("\"data\":{object}")), "{kind:?}: {object} in {}", frame.raw);
        }
    }
    let with_return = "{\r\"type\":\r\n\"mine\"\r}";
    for (kind, frames) in frames_of(&data_entries(&[with_return])) {
        let (raw, expected) = match kind {
            Kind::WebSocket => (frames[0].raw.clone(), with_return.to_owned()),
            // Between tokens, SSE has only one kind of line end.
            Kind::Sse => {
                let as_lf = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n");
                (as_lf(&frames[0].raw), as_lf(with_return))
            }
        };
        assert!(raw.contains(&format!("\"data\":{expected}")), "{kind:?}: {raw:?}");
    }
}

#[test]
fn an_entry_without_an_object_is_skipped() {
    check_skipped(&[
        vec![("other", b"{}")],
        vec![("Data", br#"{"type":"delta","text":"x"}"#)],
        vec![("openai", b"no json")],
        vec![("openai", b"[DONE],")],
        vec![("anthropic", b"[]")],
        vec![("enc", b"!")],
        vec![("data", b"broken"), ("openai", b"{}")],
        vec![("data", b"\xff\xfe")],
        vec![("data", b"{\"type\":\"delta\",\"text\":\"\xc3\"}")],
        vec![("data", b"{\"type\":\"delta\",\"text\":\"new\nline\"}")],
    ]);
    check_skipped(&data_entries(&[
        "",
        " ",
        "null",
        "17",
        "\"delta\"",
        "[]",
        r#"[{"type":"delta","text":"x"}]"#,
        r#"{"type":"delta","text":"x""#,
        r#"{"type":"delta","text":"x"}}"#,
        r#"{"type":"delta","text":"x"} {}"#,
        r#"{"type":"delta","text":"x",}"#,
        r#"{'type':'delta','text':'x'}"#,
        "[DONE]",
    ]));
}

#[test]
fn an_entry_with_a_wrong_member_is_skipped() {
    check_skipped(&data_entries(&[
        "{}",
        r#"{"type":null,"txt":"x"}"#,
        r#"{"type":1}"#,
        r#"{"type":["delta"],"text":"x"}"#,
        r#"{"type":"delta"}"#,
        r#"{"type":"delta","text":null}"#,
        r#"{"type":"delta","text":5}"#,
        r#"{"type":"delta","text":["x"]}"#,
        r#"{"type":"delta","text":"\ud83d"}"#,
        r#"{"type":"delta","text":"\udc00\ud83d"}"#,
        r#"{"type":"delta","text":"x","channel":1}"#,
        r#"{"type":"delta","text":"x","channel":"\ud83d"}"#,
        r#"{"type":"delta","text":"x","index":-1}"#,
        r#"{"type":"delta","text":"x","index":"0"}"#,
        r#"{"type":"delta","text":"x","index":0.5}"#,
        r#"{"type":"delta","text":"x","seq":-1}"#,
        r#"{"type":"delta","text":"x","seq":"1"}"#,
        r#"{"type":"delta","text":"x","seq":1.5}"#,
        r#"{"type":"heartbeat","seq":true}"#,
        r#"{"type":"start","generation":7}"#,
        r#"{"type":"start","generation":"g","metadata":"text"}"#,
        r#"{"type":"tool_call","id":"c","name":"f"}"#,
        r#"{"type":"tool_call","arguments":{}}"#,
        r#"{"type":"tool_call","arguments":"{}","call":-1}"#,
        r#"{"type":"tool_call","arguments":"{}","call":"0"}"#,
        r#"{"type":"tool_call","arguments":"{}","id":9}"#,
        r#"{"type":"tool_call","arguments":"{}","name":{}}"#,
        r#"{"type":"end","finish_reason":1}"#,
        r#"{"type":"error","message":"no code"}"#,
        r#"{"type":"error","code":500,"message":"m"}"#,
        r#"{"type":"error","code":"c","message":1}"#,
    ]));
}

#[test]
fn the_native_field_wins() {
    let entry: Vec<(&str, &[u8])> = vec![
        ("openai", b"broken"),
        ("note", b"ignored"),
        ("data", br#"{"type":"delta","text":"native"}"#),
        ("anthropic", b"{}"),
    ];
    for (kind, frames) in frames_of(&[entry]) {
        assert_eq!(frames[0].value["text"], "native", "{kind:?}");
    }
}
