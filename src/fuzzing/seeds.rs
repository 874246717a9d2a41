//! Seeds of the fuzz targets, and words for inputs.

/// Payloads of providers, of all kinds.
pub(crate) const PAYLOADS: [&str; 25] = [
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

/// Objects in `data`.
const OBJECTS: [&str; 16] = [
    r#"{"seq":0,"type":"start","generation":"g1","metadata":{"a": 1}}"#,
    r#"{"type":"delta","text":"Hello ","seq":1}"#,
    r#"{"type":"delta","text":"w\u00f6r\ud83d\ude00","seq":2,"ts":1700000000000000}"#,
    r#"{"type":"delta","channel":"reasoning","text":"hm","index":1}"#,
    r#"{"type":"delta","text":"x","seq":7}"#,
    r#"{"type":"tool_call","id":"call_9","name":"search","arguments":"{\"q\":"}"#,
    r#"{"type":"tool_call","arguments":"1}","call":0,"index":0}"#,
    r#"{ "type":"own", "seq":4 }"#,
    r#"{"type":"heartbeat"}"#,
    r#"{"type":true}"#,
    r#"{"type":"end","seq":5,"finish_reason":"stop","usage":{"n":2}}"#,
    r#"{"type":"error","code":"upstream_timeout","message":"too \"late\""}"#,
    r#"{"token":"f","seq":2,"done":true}"#,
    r#"{"type":"chunk","content":"g","metadata":{"a":null}}"#,
    r#"{"type":"done","usage":NaN}"#,
    r#"{"\u0074ype":"delta","text":"a","text":null,"a":[1,{"":"b"}]}"#,
];

/// Flat entries.
const FLAT: [&str; 7] = [
    "type=chunk|content=g|seq=4|finish_reason=length",
    "text=h|done=1",
    "status=failed|text=i|message=j|seq=9",
    "type=heartbeat",
    "event=own|a=b",
    "token=[DONE]",
    "x=y",
];

pub(super) const RESP_WORDS: [&str; 14] = [
    "\r\n",
    "*2\r\n",
    "*0\r\n",
    "*-1\r\n",
    "$-1\r\n",
    "%1\r\n",
    "|1\r\n",
    "$3\r\n1-0\r\n",
    "+length\r\n",
    ":9\r\n",
    "-ERR x\r\n",
    ">2\r\n",
    "=6\r\ntxt:hi\r\n",
    "$17\r\nlast-generated-id\r\n",
];
pub(super) const HTTP_WORDS: [&str; 16] = [
    "GET ",
    "POST ",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "\r\n\r\n",
    "Host: ",
    "Content-Length: ",
    "Transfer-Encoding: chunked",
    "Connection: close",
    "Upgrade: websocket",
    "Accept: text/event-stream",
    "/v1/streams/",
    "%2F",
    "?after=",
    "text\n",
    "http://",
];
pub(super) const MESSAGE_WORDS: [&str; 12] = [
    "\"type\":",
    "\"subscribe\"",
    "\"unsubscribe\"",
    "\"cancel\"",
    "\"ack\"",
    "\"ping\"",
    "\"stream\":",
    "\"after\":",
    "\"wait\":",
    "\"nonce\":",
    "\"reason\":",
    "null",
];
pub(super) const HOST_WORDS: [&str; 8] =
    ["http://", "https://", "localhost", "[::1]", "127.0.0.1", ":443", ":80", "\n"];
pub(super) const ENTRY_WORDS: [&str; 40] = [
    "\u{1}",
    "\u{1}o",
    "\u{1}a",
    "\u{1}d",
    "\u{1}f",
    "\u{1}O",
    "\u{1}D",
    "\"type\":",
    "\"delta\"",
    "\"text\":",
    "\"seq\":",
    "\"index\":",
    "\"choices\":[{",
    "\"delta\":{",
    "\"content\":",
    "\"tool_calls\":[{",
    "\"function\":{",
    "\"arguments\":",
    "\"finish_reason\":",
    "\"usage\":",
    "\"error\":",
    "\"id\":",
    "\"name\":",
    "\"response.",
    "\"output_index\":",
    "\"item\":",
    "\"content_block\":",
    "\"partial_json\":",
    "[DONE]",
    "null",
    "NaN",
    "-Infinity",
    "\\ud83d",
    "\\ude00",
    "\\u0041",
    "done=1",
    "text=",
    "\"images\":[",
    "\"reasoning\":",
    "\"refusal\":",
];
pub(super) const NAME_WORDS: [&str; 8] =
    ["{session}", "{model}", "llm:", "stream:", "\n", "..", "/", "18446744073709551615-1.2"];
pub(super) const SSE_WORDS: [&str; 14] = [
    "data:",
    "event: error\n",
    "id:",
    "retry:",
    "\n\n",
    "\r\n",
    "\u{feff}",
    ": ",
    "[DONE]",
    "{\"error\":",
    "<html>",
    "HTTP/1.1 200",
    "message_start",
    "\"choices\":",
];

/// Each text after a byte that determines how to cut.
fn behind(steps: &[u8], texts: &[&str]) -> Vec<Vec<u8>> {
    let pairs = texts.iter().flat_map(|text| steps.iter().map(move |step| (*step, text)));
    pairs.map(|(step, text)| [&[step][..], text.as_bytes()].concat()).collect()
}

const INFO: &str = "%4\r\n+length\r\n:9\r\n$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n+first-entry\r\n*2\r\n$3\r\n1-0\r\n\
                    *2\r\n$1\r\na\r\n$1\r\nb\r\n+last-entry\r\n*2\r\n$3\r\n9-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
const FULL: &str = "*6\r\n+length\r\n:9\r\n$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n+entries\r\n*1\r\n*2\r\n$3\r\n1-0\r\n\
                    *2\r\n$1\r\na\r\n$1\r\nb\r\n";
const RANGE: &str = "*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$4\r\ndata\r\n$3\r\none\r\n*2\r\n$3\r\n2-0\r\n*2\r\n$4\r\ndata\r\n$0\r\n\r\n";

pub(super) fn resp() -> Vec<Vec<u8>> {
    let replies = [
        "*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        "%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        "*4\r\n%1\r\n+a\r\n,1.5\r\n|1\r\n+x\r\n:0\r\n#t\r\n-ERR no\r\n*2\r\n$1\r\nk\r\n:7\r\n",
        "*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$+1\r\nb\r\n",
        "*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$-0\r\n\r\n",
        ">2\r\n+invalidate\r\n*1\r\n$3\r\nk:1\r\n",
        "=6\r\ntxt:hi\r\n",
        "!12\r\nNOGROUP gone\r\n",
        "*2\r\n$10\r\n1700000000\r\n$6\r\n123456\r\n",
        "$-1\r\n",
        INFO,
        FULL,
    ];
    behind(&[0, 6, 255], &replies)
}

pub(super) fn sieve() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (form, info) in [(2_u8, INFO), (14, INFO), (3, FULL), (2, ":3\r\n"), (2, "-ERR no such key\r\n")] {
        for room in [4_u8, 40, 200] {
            seeds.push([&[0, room, form][..], RANGE.as_bytes(), info.as_bytes()].concat());
        }
    }
    seeds.push([&[1, 0, 2][..], &b"-EXECABORT discarded\r\n"[..]].concat());
    seeds
}

pub(super) fn request() -> Vec<Vec<u8>> {
    let requests = [
        "GET /v1/streams/s/m?after=5-1.2&follow=1&wait=0.5&batch_ms=20&format=ai-sdk HTTP/1.1\r\nHost: a\r\n\
         Accept: text/event-stream;q=0.5, */*\r\nLast-Event-ID: 5-1\r\nOrigin: http://a\r\n\r\nGET / HTTP/1.1\r\n",
        "GET /v1/ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: a, b\r\n\r\n",
        "POST /v1/streams/s/m%2Fx/cancel HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n{\"reason\":\"no\"}",
        "POST /v1/streams/s/m/cancel HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nT: u\r\n\r\n",
        "\r\n\r\nHEAD http://b:80/v1/streams/s/m HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Headers: x\r\n\r\n",
    ];
    behind(&[0, 20, 255], &requests)
}

pub(super) fn websocket() -> Vec<Vec<u8>> {
    let frame = |first: u8, payload: &[u8]| {
        let len = u8::try_from(payload.len()).unwrap_or(125);
        [&[first, 0x80 | len, 0, 0, 0, 0][..], &payload[..usize::from(len)]].concat()
    };
    let ping = frame(0x81, br#"{"type":"ping","nonce":{"a":1}}"#);
    let pieces =
        [frame(0x01, b"{\"type\":"), frame(0x89, b"p"), frame(0x80, b"\"ack\",\"id\":\"1-0\"}")].concat();
    let masked = vec![0x81, 0x82, 1, 2, 3, 4, b'{' ^ 1, b'}' ^ 2];
    let long = [&[0x82, 0xfe, 1, 0, 0, 0, 0, 0][..], &[7; 256]].concat();
    let close = [frame(0x8a, b""), frame(0x88, &[3, 232, b'x'])].concat();
    let all = [ping, pieces, masked, long, close];
    all.iter().flat_map(|frames| [0, 30].map(|step| [&[step][..], &frames[..]].concat())).collect()
}

pub(super) fn message() -> Vec<Vec<u8>> {
    let messages = [
        r#"{"type":"subscribe","stream":"s/a/b","after":"5-1.2","follow":true,"wait":0.5,"batch_ms":20,"x":[]}"#,
        r#"{"type":"subscribe","stream":"s\/m","after":"last","wait":null,"follow":0}"#,
        r#"{"type":"unsubscribe","stream":"s"}"#,
        r#"{"type":"cancel","stream":"s/m","reason":"enough"}"#,
        r#"{"type":"ack","id":"1-0","stream":"s/default"}"#,
        r#"{"type":"ping","nonce":{"a": [1, "\u00e9"]}}"#,
        r#"{"type":"auth","token":"x"}"#,
        r#"{"reason":"enough"}"#,
    ];
    messages.map(|message| message.as_bytes().to_vec()).to_vec()
}

pub(super) fn hosts() -> Vec<Vec<u8>> {
    let cases = [
        "http://localhost:8080\nlocalhost:8080\nchat.example.com\nhttps://app.example:8443",
        "https://chat.example.com\nCHAT.example.com:443\n[::1]\ncapacitor://native",
        "http://[::1]\n[::1]:80\n10.0.0.1",
        "null\n127.0.0.1.evil.example\n*",
    ];
    cases.map(|case| case.as_bytes().to_vec()).to_vec()
}

pub(super) fn admin() -> Vec<Vec<u8>> {
    let requests = [
        "GET /healthz?x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "HEAD http://admin.example:1/x HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: evil\r\nHost: b\r\n\r\n",
        "text\n",
        " json \nmore",
        "histograms\n",
        "reset",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    behind(&[0, 9], &requests)
}

/// Payloads one after another, each after the letter of its form.
pub(super) fn provider() -> Vec<Vec<u8>> {
    let letter = |payload: &str| {
        if payload.contains(r#""type":"message_"#) || payload.contains("content_block") { 'a' } else { 'o' }
    };
    let records: Vec<String> =
        PAYLOADS.iter().map(|payload| format!("{}{payload}", letter(payload))).collect();
    together(&records)
}

pub(super) fn entries() -> Vec<Vec<u8>> {
    let natives = OBJECTS.iter().map(|object| format!("d{object}"));
    let flat = FLAT.iter().map(|fields| format!("f{fields}"));
    let records: Vec<String> = natives.chain(flat).collect();
    let late =
        records.iter().map(|record| record[..1].to_ascii_uppercase() + &record[1..]).collect::<Vec<_>>();
    [together(&records), together(&late), provider()].concat()
}

/// The records one by one, and the first of them in groups of six.
fn together(records: &[String]) -> Vec<Vec<u8>> {
    let alone = records.iter().map(|record| record.as_bytes().to_vec());
    alone.chain(records.chunks(6).map(|records| records.join("\u{1}").into_bytes())).collect()
}

pub(super) fn json() -> Vec<Vec<u8>> {
    let texts = OBJECTS.iter().chain(&PAYLOADS).copied();
    let strings = [r"\ud83d\ude00 \\u\u0041\u20ac\n", r#"[1, {"a":[]} ,"x"]"#, "[NaN,-Infinity]"];
    texts.chain(strings).map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let cases = [
        "llm:stream:{session}:{model}\nllm\nllm:stream:s:m:x\ns\nm/x\n5-1.2",
        "chat/{session}/out\nllm\nchat/s/out\ns\ndefault\n7",
        "x:{model}|{session}:y\nllm\nx:m|s:y\n.s\nm\n0",
        "llm:{session}:{model}\nllm\nllm:dlq:m\ndlq\nm\n18446744073709551615-18446744073709551615",
    ];
    cases.map(|case| case.as_bytes().to_vec()).to_vec()
}

pub(super) fn events() -> Vec<Vec<u8>> {
    let bodies = [
        ": hi\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
        "\u{feff}event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{}}\r\n\r\nid: 7\rretry: 30\r\r",
        "event: error\ndata: quota\ndata: exceeded\n\ndata: late",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n",
        "{\"error\":{\"message\":\"no key\"}}",
        "<html><title>502</title>",
        "Unauthorized\n",
        "data: {\"error\":{\"message\":\"m\",\"code\":429}}\n\n",
    ];
    behind(&[0, 10, 255], &bodies)
}
