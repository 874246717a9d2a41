use proptest::prelude::*;

use super::*;
use crate::deliver::request::{self, Parsed};
use crate::model::EntryId;

const LIMITS: RouteLimits = RouteLimits {
    max_wait: Duration::from_secs(60),
    max_batch: Duration::from_millis(250),
    naming: Naming::SessionAndModel,
};
const SSE: &str = "Accept: text/event-stream\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn routed(line: &str, headers: &str) -> Result<Route, HttpError> {
    let head = format!("{line} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
    match request::parse(head.as_bytes()) {
        Parsed::Complete { request, .. } => route(&request, &LIMITS),
        other => panic!("{head:?}: {other:?}"),
    }
}

fn stream(target: &str, headers: &str) -> StreamRequest {
    match routed(&format!("GET {target}"), headers) {
        Ok(Route::Stream(request)) => request,
        other => panic!("{target}: {other:?}"),
    }
}

fn refused(line: &str, headers: &str) -> (u16, &'static str) {
    let error = routed(line, headers).expect_err(line);
    (error.status, error.code)
}

fn at(ms: u64, n: u64) -> After {
    After::At(EntryId::new(ms, n).into())
}

#[test]
fn without_models_the_session_is_the_stream_s_name() {
    let limits = RouteLimits { naming: Naming::Session, ..LIMITS };
    let routed = |line: &str| {
        let head = format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n");
        match request::parse(head.as_bytes()) {
            Parsed::Complete { request, .. } => route(&request, &limits).map_err(|error| error.status),
            other => panic!("{head:?}: {other:?}"),
        }
    };
    for path in ["s1", "s1/default", "s%31"] {
        let Ok(Route::Stream(request)) = routed(&format!("GET /v1/streams/{path}")) else { panic!("{path}") };
        assert_eq!(request.stream.as_str(), "s1/default");
        let Ok(Route::Cancel(stream)) = routed(&format!("POST /v1/streams/{path}/cancel")) else {
            panic!("{path}")
        };
        assert_eq!(stream.as_str(), "s1/default");
    }
    assert_eq!(routed("GET /v1/streams/s1/gpt-4o"), Err(404));
    assert_eq!(routed("GET /v1/streams/s1/cancel"), Err(404));
    assert_eq!(routed("GET /v1/streams/a:b"), Err(400));
}

#[test]
fn the_model_is_the_rest_of_the_path() {
    for (path, name) in [
        ("s1/gpt-4o", "s1/gpt-4o"),
        ("s/llama3:8b", "s/llama3:8b"),
        ("s/meta-llama/Llama-3.1-8B-Instruct", "s/meta-llama/Llama-3.1-8B-Instruct"),
        ("s/meta-llama%2FLlama", "s/meta-llama/Llama"),
        ("s/a%2fb%3A1%40x+y%2B", "s/a/b:1@x+y+"),
        ("%73%31/m", "s1/m"),
        ("s/cancel", "s/cancel"),
        ("s/m/cancel", "s/m/cancel"),
        ("s/a%2Fb/cancel", "s/a/b/cancel"),
        ("s/m%2Fcancel", "s/m/cancel"),
        ("s/m/cancel%2Fcancel", "s/m/cancel/cancel"),
        ("s/m/%63ancel", "s/m/cancel"),
    ] {
        assert_eq!(stream(&format!("/v1/streams/{path}"), "").stream.as_str(), name, "{path}");
    }
    for path in [
        "s", "s/", "/m", "s//m", "s/../m", "s/a%20b", "s/%C3%A4", "s/m/", "s%252Fm", "../s/m", "s%2Fm",
        "s%2Fx/m",
    ] {
        assert_eq!(refused(&format!("GET /v1/streams/{path}"), ""), (400, "bad_name"), "{path}");
    }
    for path in ["s/%", "s/%4", "s/%zz", "s/%FF"] {
        assert_eq!(refused(&format!("GET /v1/streams/{path}"), ""), (400, "bad_request"), "{path}");
    }
}

#[test]
fn cancel_is_a_literal_last_segment() {
    for (path, name) in [
        ("s/m/cancel", "s/m"),
        ("s/a/b/cancel", "s/a/b"),
        ("s/a%2Fb/cancel", "s/a/b"),
        ("s/cancel/cancel", "s/cancel"),
    ] {
        let route = routed(&format!("POST /v1/streams/{path}"), "").unwrap();
        assert_eq!(route, Route::Cancel(name.parse().unwrap()), "{path}");
        let error = routed(&format!("DELETE /v1/streams/{path}"), "").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some(ALL_METHODS)), "{path}");
    }
    assert_eq!(refused("POST /v1/streams/s%2Fm/cancel", ""), (400, "bad_name"));
    for path in ["s/m%2Fcancel", "s/cancel", "s/m"] {
        let error = routed(&format!("POST /v1/streams/{path}"), "").unwrap_err();
        assert_eq!((error.status, error.allow), (405, Some(STREAM_METHODS)), "{path}");
    }
    assert!(routed("POST /v1/streams/s/m/cancel", "Content-Length: 65536\r\n").is_ok());
}

#[test]
fn the_other_resources() {
    assert_eq!(routed("GET /", ""), Ok(Route::Page));
    assert_eq!(routed("HEAD /?x", ""), Ok(Route::Page));
    assert_eq!(routed("GET /v1/ws", UPGRADE), Ok(Route::Multiplex));
    assert_eq!(refused("GET /v1/ws", ""), (426, "bad_upgrade"));
    assert_eq!(refused("HEAD /v1/ws", ""), (405, "method_not_allowed"));
    assert_eq!(refused("GET /v1/ws?format=openai", UPGRADE), (400, "unsupported_format"));
    for path in ["/x", "/v1", "/v1/", "/v1/streams", "/v1/streams/", "/v1/ws/", "/V1/ws", "//", "*"] {
        assert_eq!(refused(&format!("GET {path}"), ""), (404, "not_found"), "{path}");
    }
    for (path, methods) in [
        ("/", PAGE_METHODS),
        ("*", ALL_METHODS),
        ("/v1/ws", MULTIPLEX_METHODS),
        ("/v1/streams/s/m", STREAM_METHODS),
        ("/v1/streams/s/m/cancel", ALL_METHODS),
    ] {
        assert_eq!(routed(&format!("OPTIONS {path}"), ""), Ok(Route::Preflight { methods }), "{path}");
    }
    assert_eq!(refused("OPTIONS /x", "").0, 404);
    assert_eq!(refused("DELETE /v1/streams/s/m", "").0, 405);
}

#[test]
fn one_resource_has_four_representations() {
    let target = "/v1/streams/s/m";
    for (headers, representation) in [
        ("", Representation::State),
        ("Accept: */*\r\n", Representation::State),
        ("Accept: text/*\r\n", Representation::State),
        ("Accept: application/json\r\n", Representation::State),
        ("Accept: text/event-stream;q=0.0\r\n", Representation::State),
        (SSE, Representation::Sse),
        ("Accept: application/json, Text/Event-Stream ; q=0.5\r\n", Representation::Sse),
        ("Accept: */*\r\nAccept: text/event-stream\r\n", Representation::Sse),
        (UPGRADE, Representation::WebSocket),
    ] {
        assert_eq!(stream(target, headers).representation, representation, "{headers}");
    }
    let head = routed("HEAD /v1/streams/s/m", SSE);
    assert!(matches!(head, Ok(Route::Stream(StreamRequest { representation: Representation::Head, .. }))));
}

#[test]
fn defaults_follow_the_representation() {
    let sse = stream("/v1/streams/s/m", SSE);
    assert_eq!((sse.after, sse.explicit_after, sse.follow), (After::At(Position::ZERO), false, false));
    assert_eq!((sse.wait, sse.batch), (Duration::from_secs(30), Duration::ZERO));
    assert_eq!(stream("/v1/streams/s/m", UPGRADE).wait, Duration::from_secs(30));
    assert_eq!(stream("/v1/streams/s/m", "").wait, Duration::ZERO);
    assert_eq!(stream("/v1/streams/s/m?wait=2", "").wait, Duration::from_secs(2));
}

#[test]
fn queries_are_read() {
    let query = "after=5-2.3&follow=1&wait=0.25&batch_ms=16&format=native&unknown=%zz&%zz=1&&x";
    let request = stream(&format!("/v1/streams/s/m?{query}"), UPGRADE);
    assert_eq!(request.after, After::At(Position { id: EntryId::new(5, 2), part: 3 }));
    assert!(request.explicit_after && request.follow);
    assert_eq!((request.wait, request.batch), (Duration::from_millis(250), Duration::from_millis(16)));
    for (query, after) in [
        ("after=0", After::At(Position::ZERO)),
        ("after=7", at(7, 0)),
        ("after=last", After::Last),
        ("after=$", After::Tail),
        ("after=%24", After::Tail),
        ("%61fter=7%2D1", at(7, 1)),
        ("after=bad&after=7-1", at(7, 1)),
    ] {
        assert_eq!(stream(&format!("/v1/streams/s/m?{query}"), "").after, after, "{query}");
    }
    let capped = stream("/v1/streams/s/m?wait=1e9&wait=99999999999999999999999&batch_ms=9999", SSE);
    assert_eq!((capped.wait, capped.batch), (LIMITS.max_wait, LIMITS.max_batch));
    let limits = RouteLimits { max_wait: Duration::from_secs(10), ..LIMITS };
    assert_eq!((limits.wait(None), limits.batch(None)), (Duration::from_secs(10), Duration::ZERO));
}

#[test]
fn malformed_values_are_refused_by_name() {
    for query in [
        "after=",
        "after",
        "after=-1",
        "after=1-2-3",
        "after=LAST",
        "after=5.1",
        "follow=true",
        "follow=",
        "wait=-1",
        "wait=",
        "wait=.",
        "wait=1e3",
        "wait=inf",
        "wait=NaN",
        "batch_ms=x",
        "batch_ms=%31%",
        "format=xml",
        "after=7&after=x",
    ] {
        let error = routed(&format!("GET /v1/streams/s/m?{query}"), "").expect_err(query);
        assert_eq!((error.status, error.code), (400, "bad_query"), "{query}");
        let key = query.split('=').next().unwrap();
        assert!(error.message.contains(&format!("`{key}`")), "{query}: {error}");
    }
}

#[test]
fn formats_are_event_streams_whatever_is_accepted() {
    let target = "/v1/streams/s/m?format=";
    for headers in ["", "Accept: application/json\r\n", SSE] {
        let openai = stream(&format!("{target}openai"), headers);
        assert_eq!((openai.representation, openai.format), (Representation::Sse, Some(Format::OpenAi)));
        assert_eq!((openai.after, openai.wait), (After::At(Position::ZERO), WAIT_DEFAULT));
        let ai_sdk = stream(&format!("{target}ai-sdk"), headers);
        assert_eq!((ai_sdk.representation, ai_sdk.format), (Representation::Sse, Some(Format::AiSdk)));
        assert_eq!((ai_sdk.after, ai_sdk.explicit_after), (After::Last, false));
        assert_eq!(ai_sdk.wait, Duration::ZERO);
        let resumed = stream(&format!("{target}ai-sdk&wait=3"), &format!("{headers}Last-Event-ID: 9-1\r\n"));
        assert_eq!((resumed.after, resumed.explicit_after), (at(9, 1), true));
        assert_eq!(resumed.wait, Duration::from_secs(3));
    }
    let socket = stream(&format!("{target}ai-sdk"), UPGRADE);
    assert_eq!((socket.representation, socket.wait), (Representation::WebSocket, Duration::ZERO));
    assert_eq!(stream(&format!("{target}native"), "").format, None);
    let head = routed("HEAD /v1/streams/s/m?format=openai", "");
    assert!(matches!(head, Ok(Route::Stream(StreamRequest { representation: Representation::Head, .. }))));
}

#[test]
fn the_client_is_files_that_can_only_be_read() {
    for path in ["/llm-bridge.js", "/llm-bridge.d.ts"] {
        for method in ["GET", "HEAD"] {
            let route = routed(&format!("{method} {path}?v=1"), "");
            assert!(matches!(route, Ok(Route::File(file)) if file.path == path), "{route:?}");
        }
        assert_eq!(refused(&format!("POST {path}"), ""), (405, "method_not_allowed"));
        assert_eq!(refused(&format!("GET {path}/"), ""), (404, "not_found"));
    }
}

#[test]
fn the_last_event_id_wins_for_events_only() {
    let header = "Last-Event-ID: 9-1\r\n";
    let both = format!("{SSE}{header}");
    assert_eq!(stream("/v1/streams/s/m?after=5", &both).after, at(9, 1));
    assert!(stream("/v1/streams/s/m", &both).explicit_after);
    assert_eq!(stream("/v1/streams/s/m?after=5", header).after, at(5, 0));
    assert_eq!(stream("/v1/streams/s/m?after=5", &format!("{SSE}Last-Event-ID:\r\n")).after, at(5, 0));
    assert_eq!(
        refused("GET /v1/streams/s/m", &format!("{SSE}Last-Event-ID: last\r\n")),
        (400, "bad_request")
    );
    assert_eq!(refused("GET /v1/streams/s/m?after=x", &both), (400, "bad_query"));
}

proptest! {
    #[test]
    fn every_name_can_be_asked_for(
        session in "[A-Za-z0-9_~-]{1,20}",
        model in "[A-Za-z0-9_~:@+-]{1,9}(/[A-Za-z0-9_~:@+-]{1,9}){0,2}",
        encoded in prop::collection::vec(any::<bool>(), 60),
    ) {
        let name = format!("{session}/{model}");
        let path: String = name.bytes().zip(encoded).enumerate().map(|(at, (byte, encode))| {
            if encode && at != session.len() { format!("%{byte:02X}") } else { char::from(byte).to_string() }
        }).collect();
        let stream = stream(&format!("/v1/streams/{path}"), "").stream;
        prop_assert_eq!(stream.as_str(), name.as_str());
        let cancel = routed(&format!("POST /v1/streams/{path}/cancel"), "");
        prop_assert_eq!(cancel, Ok(Route::Cancel(stream)));
    }

    #[test]
    fn any_target_is_judged(path in "[!-~]{0,40}", query in "[!-~]{0,40}") {
        let head = format!("GET /v1/streams/{path}?{query} HTTP/1.1\r\nHost: h\r\n\r\n");
        if let Parsed::Complete { request, .. } = request::parse(head.as_bytes()) {
            let _ = route(&request, &LIMITS);
        }
    }
}
