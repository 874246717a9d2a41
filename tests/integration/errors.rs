//! Requests that are refused at once: for their names, ids, queries, methods or origins. All errors have the same
//! shape.

use crate::support::daemon::Daemon;
use crate::support::http::{self, Response};
use crate::support::patience::wait_until;
use crate::support::producer::Producer;
use crate::support::raw::Raw;
use crate::support::redis::RedisServer;
use crate::support::transcript::Ending;
use crate::support::viewer::{KINDS, Kind, view};

const SSE: (&str, &str) = ("Accept", "text/event-stream");

/// Sends the request in all three ways.
fn ask_each_way(daemon: &Daemon, target: &str) -> [Response; 3] {
    [
        http::get(daemon.public, target),
        http::request(daemon.public, "GET", target, &[SSE]),
        http::upgrade(daemon.public, target, &[]),
    ]
}

#[test]
fn a_malformed_name_is_a_bad_request() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let long = "x".repeat(129);
    for name in [
        "s%20s/m",
        "s:1/m",
        "s1/m%20m",
        "s1/m%00",
        "s1/%C3%A9",
        "./m",
        "../m",
        "%2E%2E/m",
        "s1/..",
        "s1/a/../b",
        "s1/a/./b",
        "s1/a//b",
        "s1/a%2F%2Fb",
        "s1/m/",
        "s1/m%2",
        "s1/m%zz",
        &format!("{long}/m"),
        &format!("s1/{long}"),
    ] {
        for response in ask_each_way(&daemon, &format!("/v1/streams/{name}")) {
            assert_eq!(response.status, 400, "{name}: {}", response.text());
            response.expect_error(400);
        }
    }
    assert!(redis.connect().keys("llm:stream:*").is_empty());
}

#[test]
fn a_malformed_query_is_a_bad_request() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").end();
    for query in [
        "after=x",
        "after=",
        "after=-1",
        "after=1-",
        "after=1-2-3",
        "after=1-2.x",
        "after=99999999999999999999999",
        "after=first",
        "follow=maybe",
        "format=xml",
        "wait=x",
        "wait=-1",
        "batch_ms=x",
        "batch_ms=-5",
    ] {
        for response in ask_each_way(&daemon, &format!("/v1/streams/s1/m?{query}")) {
            assert_eq!(response.status, 400, "{query}: {}", response.text());
            response.expect_error(400);
        }
    }
    let headers = [SSE, ("Last-Event-ID", "nonsense")];
    http::request(daemon.public, "GET", "/v1/streams/s1/m", &headers).expect_error(400);
}

#[test]
fn unknown_query_keys_are_ignored() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    let end = Producer::new(&redis, "s1", "m").end();
    for kind in KINDS {
        view(daemon.public, kind, "s1/m", "x=1&utm=%zz&after=0&flag&=").expect_finished(&end);
    }
}

#[test]
fn a_name_that_does_not_exist_is_not_found() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    assert_eq!(view(daemon.public, Kind::Sse, "s1/none", "wait=0").ending, Some(Ending::Status(404)));
    http::request(daemon.public, "GET", "/v1/streams/s1/none?wait=0", &[SSE]).expect_error(404);
    let closed = view(daemon.public, Kind::WebSocket, "s1/none", "wait=0");
    assert_eq!(closed.ending, Some(Ending::Closed(4404)));
    assert!(redis.connect().keys("llm:stream:*").is_empty());
}

#[test]
fn other_paths_and_methods_are_refused() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").end();
    for path in ["/nothing", "/v1", "/v1/nothing", "/v2/streams/s1/m"] {
        http::get(daemon.public, path).expect_error(404);
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let response = http::request(daemon.public, method, "/v1/streams/s1/m", &[("Content-Length", "0")]);
        response.expect_error(405);
        assert!(response.header("allow").is_some_and(|allow| allow.contains("GET")), "{method}");
    }
    http::get(daemon.public, "/v1/streams/s1/m").json();
}

#[test]
fn other_protocols_are_bad_requests() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for bytes in ["nonsense\r\n\r\n", "GET  HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n"] {
        let response = http::Exchange::raw(daemon.public, bytes.as_bytes()).unwrap().whole().unwrap();
        assert_eq!(response.status, 400, "{bytes:?}");
    }
}

#[test]
fn a_model_may_have_slashes_however_they_are_written() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    for (model, written) in [
        ("gpt-4o", vec!["gpt-4o", "gpt%2D4o"]),
        ("llama3:8b", vec!["llama3:8b", "llama3%3A8b", "llama3%3a8b"]),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            vec!["meta-llama/Llama-3.1-8B-Instruct", "meta-llama%2FLlama-3.1-8B-Instruct"],
        ),
        ("a/b/c@v1+x~y_z", vec!["a/b/c@v1+x~y_z", "a%2Fb/c%40v1%2Bx~y_z"]),
        ("m/cancel", vec!["m%2Fcancel"]),
        (&"m".repeat(128), vec![&"m".repeat(128)]),
    ] {
        let mut producer = Producer::new(&redis, "A.b_c~1-2", model);
        producer.delta("hello");
        let end = producer.end();
        for name in written {
            for kind in KINDS {
                let all = view(daemon.public, kind, &format!("A.b_c~1-2/{name}"), "");
                assert_eq!(all.open()["stream"], format!("A.b_c~1-2/{model}"), "{kind:?} {name}");
                assert_eq!(all.text(), "hello", "{kind:?} {name}");
                all.expect_finished(&end);
            }
        }
    }
}

#[test]
fn only_post_to_a_literal_cancel_is_the_action() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m/cancel").end();
    let (literal, model) = ("/v1/streams/s1/m/cancel", "/v1/streams/s1/m%2Fcancel");
    for path in [literal, model] {
        assert_eq!(http::get(daemon.public, path).json()["stream"], "s1/m/cancel");
        assert_eq!(http::request(daemon.public, "HEAD", path, &[]).status, 200);
    }
    assert_eq!(http::request(daemon.public, "POST", literal, &[("Content-Length", "0")]).status, 202);
    http::request(daemon.public, "POST", model, &[("Content-Length", "0")]).expect_error(405);
}

#[test]
fn pages_from_elsewhere_are_refused() {
    let redis = RedisServer::start();
    let daemon = Daemon::start(&redis);
    Producer::new(&redis, "s1", "m").end();
    let same = format!("http://{}", daemon.public);
    let ask = |origin: &str| http::request(daemon.public, "GET", "/v1/streams/s1/m", &[("Origin", origin)]);
    assert_eq!(ask(&same).status, 200);
    for origin in ["https://evil.example", "http://127.0.0.1:1", "null"] {
        ask(origin).expect_error(403);
        let target = "/v1/streams/s1/m";
        http::request(daemon.public, "GET", target, &[SSE, ("Origin", origin)]).expect_error(403);
        // A browser does not show a page the status of an upgrade: the WebSocket is opened, and closed with a code.
        for target in [target, "/v1/ws", "/v1/streams/../m", "/nothing"] {
            let mut raw = Raw::websocket_with(daemon.public, target, &[("Origin", origin)]);
            assert_eq!(raw.close_code(), Some(4403), "{target} {origin}");
        }
    }
    wait_until("the log to name the origin", || daemon.log().contains("https://evil.example"));
    assert!(daemon.log().contains("listen.origins"));
    assert_eq!(http::upgrade(daemon.public, "/v1/streams/s1/m", &[("Origin", &same)]).status, 101);
}

#[test]
fn configured_origins_may_read() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set(r#"listen.origins=["https://chat.example"]"#).start();
    Producer::new(&redis, "s1", "m").end();
    let target = "/v1/streams/s1/m";
    let chat = ("Origin", "https://chat.example");
    for headers in [vec![chat], vec![chat, SSE]] {
        let response = http::request(daemon.public, "GET", target, &headers);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("access-control-allow-origin"), Some("https://chat.example"));
    }
    assert_eq!(http::upgrade(daemon.public, target, &[chat]).status, 101);
    http::request(daemon.public, "GET", target, &[("Origin", "https://evil.example")]).expect_error(403);
    // They come in addition to the same origin, whose scheme a proxy may have changed.
    for scheme in ["http", "https"] {
        let same = format!("{scheme}://{}", daemon.public);
        assert_eq!(http::request(daemon.public, "GET", target, &[("Origin", &same)]).status, 200, "{scheme}");
    }

    let preflight = [chat, ("Access-Control-Request-Method", "GET")];
    let response = http::request(daemon.public, "OPTIONS", target, &preflight);
    assert!(matches!(response.status, 200 | 204), "{}", response.status);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://chat.example"));
}

#[test]
fn any_origin_may_read_if_so_configured() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set(r#"listen.origins=["*"]"#).start();
    Producer::new(&redis, "s1", "m").end();
    let anywhere = [("Origin", "https://any.example")];
    let response = http::request(daemon.public, "GET", "/v1/streams/s1/m", &anywhere);
    assert_eq!(response.status, 200);
    let allowed = response.header("access-control-allow-origin");
    assert!(matches!(allowed, Some("*" | "https://any.example")), "{allowed:?}");
    assert_eq!(http::upgrade(daemon.public, "/v1/ws", &anywhere).status, 101);
}

/// A page can make its own name resolve to this machine; its Origin and Host agree then, and only the name shows the
/// difference.
#[test]
fn a_name_that_only_leads_here_is_misdirected() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set(r#"listen.hosts=["Bridge.example"]"#)
        .set(r#"listen.origins=["https://chat.example"]"#)
        .start();
    Producer::new(&redis, "s1", "m").end();
    let target = "/v1/streams/s1/m";
    let port = daemon.public.port();
    for host in [
        "localhost",
        "127.0.0.1:1",
        "[::1]",
        "bridge.example",
        &format!("BRIDGE.example:{port}"),
        "chat.example",
    ] {
        assert_eq!(http::request(daemon.public, "GET", target, &[("Host", host)]).status, 200, "{host}");
        assert_eq!(http::upgrade(daemon.public, "/v1/ws", &[("Host", host)]).status, 101, "{host}");
    }
    let evil = format!("evil.example:{port}");
    let origin = format!("http://{evil}");
    for host in [evil.as_str(), "localhost.evil.example", "bridge.example.evil.example"] {
        for path in [target, "/", "/llm-bridge.js", "/v1/streams/../m", "/nothing"] {
            let response = http::request(daemon.public, "GET", path, &[("Host", host), ("Origin", &origin)]);
            assert_eq!(response.expect_error(421), "misdirected", "{host} {path}");
            assert!(response.text().contains("listen.hosts"), "{}", response.text());
        }
        http::upgrade(daemon.public, "/v1/ws", &[("Host", host), ("Origin", &origin)]).expect_error(421);
    }
    // In absolute form the target's host counts; HTTP/1.0 needs none.
    for (request, status) in [
        (format!("GET http://evil.example{target} HTTP/1.1\r\nHost: localhost\r\n\r\n"), "421"),
        (format!("GET http://bridge.example{target} HTTP/1.1\r\nHost: evil.example\r\n\r\n"), "200"),
        (format!("GET {target} HTTP/1.0\r\n\r\n"), "200"),
    ] {
        let head = Raw::begin(daemon.public, request.as_bytes()).head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
    }
    for setting in [r#"listen.hosts=["*"]"#, "auth.allow_anonymous=true"] {
        let open = Daemon::options(&redis).set(setting).start();
        assert_eq!(
            http::request(open.public, "GET", target, &[("Host", "any.example")]).status,
            200,
            "{setting}"
        );
    }
}

/// Preflights allow the path's methods and the requested headers; every answer's Content-Type is binding.
#[test]
fn preflights_and_answers_carry_what_browsers_need() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis)
        .set(r#"listen.origins=["https://chat.example"]"#)
        .set("listen.demo_page=true")
        .start();
    Producer::new(&redis, "s1", "m").end();
    let chat = ("Origin", "https://chat.example");
    let asked = "authorization,traceparent,x-stainless-os,last-event-id,idempotency-key";
    for (path, method) in [("/v1/streams/s1/m", "GET"), ("/v1/streams/s1/m/cancel", "POST")] {
        let headers =
            [chat, ("Access-Control-Request-Method", method), ("Access-Control-Request-Headers", asked)];
        let response = http::request(daemon.public, "OPTIONS", path, &headers);
        assert_eq!(response.status, 204);
        assert_eq!(response.header("access-control-allow-headers"), Some(asked), "{path}");
        assert!(response.header("access-control-allow-methods").unwrap().contains(method), "{path}");
        let foreign = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", method)];
        let refused = http::request(daemon.public, "OPTIONS", path, &foreign);
        refused.expect_error(403);
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    for (path, headers) in [
        ("/v1/streams/s1/m", vec![]),
        ("/v1/streams/s1/m", vec![SSE]),
        ("/v1/streams/s1/m?after=$", vec![SSE]),
        ("/v1/streams/s1/none?wait=0", vec![]),
        ("/nothing", vec![]),
        ("/", vec![]),
        ("/llm-bridge.js", vec![]),
        ("/llm-bridge.js", vec![("If-None-Match", "*")]),
    ] {
        let response = http::request(daemon.public, "GET", path, &headers);
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path} {headers:?}");
    }
    let page = http::get(daemon.public, "/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}
