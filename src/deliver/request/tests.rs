use proptest::prelude::*;

use super::*;

const UPGRADE: &str = "GET /v1/ws?x=1 HTTP/1.1\r\nHost: h:1\r\nUpgrade: WebSocket\r\n\
    Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: a, b\r\n\
    Sec-WebSocket-Protocol: c\r\n\r\n";

fn complete(head: &str) -> Request {
    match parse(head.as_bytes()) {
        Parsed::Complete { head_bytes, request } => {
            assert_eq!(head_bytes, head.len());
            request
        }
        other => panic!("{head:?}: {other:?}"),
    }
}

fn refused(head: &[u8]) -> u16 {
    match parse(head) {
        Parsed::Invalid(error) => error.status,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(head)),
    }
}

#[test]
fn a_request_is_taken_apart() {
    let request = complete(
        "POST /v1/streams/s/m/cancel?a=1?b HTTP/1.1\r\nhost: H.example:80\r\nCONTENT-LENGTH: 12\r\n\
         Accept: text/event-stream\r\nAccept: */*;q=0.1\r\nOrigin: http://o\r\nLast-Event-ID: 5-1 \r\n\
         Authorization: Bearer x\r\nExpect: 100-Continue\r\n\r\n",
    );
    assert_eq!((request.method, request.version, request.keep_alive), (Method::Post, Version::Http11, true));
    assert_eq!((request.path.as_str(), request.query.as_str()), ("/v1/streams/s/m/cancel", "a=1?b"));
    assert_eq!(request.host.as_deref(), Some("H.example:80"));
    assert_eq!(request.accept.as_deref(), Some("text/event-stream,*/*;q=0.1"));
    assert_eq!(request.origin.as_deref(), Some("http://o"));
    assert_eq!(request.last_event_id.as_deref(), Some("5-1"));
    assert_eq!(request.authorization.as_deref(), Some("Bearer x"));
    assert_eq!((request.content_length, request.expects_continue), (Some(12), true));
    assert!(request.websocket.is_none() && !request.keeps_alive_unread());
    assert!(!format!("{request:?}").contains("Bearer"));
}

#[test]
fn a_preflight_asks_for_names_of_headers() {
    let request = complete(
        "OPTIONS / HTTP/1.1\r\nHost: h\r\nAccess-Control-Request-Headers: x-a, a b,\r\n\
         Access-Control-Request-Headers: \"q\", Last-Event-ID\r\n\r\n",
    );
    assert_eq!(request.preflight_headers.as_deref(), Some("x-a,Last-Event-ID"));
}

#[test]
fn connections_persist_as_their_version_has_it() {
    for (version, connection, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
    ] {
        let request = complete(&format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n"));
        assert_eq!(request.keep_alive, keep_alive, "{version} {connection}");
    }
    assert_eq!(complete("GET / HTTP/1.0\r\n\r\n").host, None);
}

#[test]
fn targets_have_three_forms() {
    for (target, path, query) in [
        ("/a%20b?c", "/a%20b", "c"),
        ("http://h:1/a?b", "/a", "b"),
        ("HTTPS://h", "/", ""),
        ("http://h?b", "/", "b"),
        ("/a://b", "/a://b", ""),
        ("*", "*", ""),
    ] {
        let request = complete(&format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!((request.path.as_str(), request.query.as_str()), (path, query), "{target}");
    }
    for (target, host) in
        [("/", "h:2"), ("http://O.example:1/a", "O.example:1"), ("https://[::1]?b", "[::1]")]
    {
        let request = complete(&format!("GET {target} HTTP/1.1\r\nHost: h:2\r\n\r\n"));
        assert_eq!(request.host.as_deref(), Some(host), "the target's host counts: {target}");
    }
    for target in ["h:443", "ftp://h/", "a/b", "?x", "http://u@h/", "http:///a", "https://"] {
        assert_eq!(refused(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()), 400, "{target}");
    }
}

#[test]
fn ambiguous_requests_are_refused() {
    for (lines, status) in [
        ("", 400),
        ("Host: h\r\nHost: h\r\n", 400),
        ("Host: a b\r\n", 400),
        ("Host: user@h\r\n", 400),
        ("Host : h\r\n", 400),
        ("Host: h\r\nX: a\r\n b\r\n", 400),
        (" Host: h\r\n", 400),
        ("Host: h\r\nX: a\nContent-Length: 3\r\n", 400),
        ("Host: h\r\nX: a\rb\r\n", 400),
        ("Host: h\r\nX: a\0b\r\n", 400),
        ("Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Host: h\r\nTransfer-Encoding: chunked, chunked\r\n", 411),
        ("Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Host: h\r\nTransfer-Encoding: identity\r\n", 411),
        ("Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("Host: h\r\nContent-Length: 1, 1\r\n", 400),
        ("Host: h\r\nContent-Length: +1\r\n", 400),
        ("Host: h\r\nContent-Length: \r\n", 400),
        ("Host: h\r\nContent-Length: 99999999999999999999\r\n", 400),
        ("Host: h\r\nExpect: 200-fine\r\n", 417),
        ("Host: h\r\nLast-Event-ID: 1\r\nLast-Event-ID: 2\r\n", 400),
    ] {
        let head = format!("POST / HTTP/1.1\r\n{lines}\r\n");
        assert_eq!(refused(head.as_bytes()), status, "{head:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let line = |len: usize| format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(len));
    let room = HEAD_BYTES_MAX - line(0).len();
    assert_eq!(complete(&line(room)).path, "/");
    assert_eq!(refused(line(room + 1).as_bytes()), 431);
    assert!(matches!(parse(&line(room + 9).as_bytes()[..HEAD_BYTES_MAX - 1]), Parsed::Partial));
    assert_eq!(refused(&line(room + 9).as_bytes()[..HEAD_BYTES_MAX]), 431);
    let lines = |count| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(complete(&lines(HEADERS_MAX - 1)).path, "/");
    assert_eq!(refused(lines(HEADERS_MAX).as_bytes()), 431);
    assert_eq!(refused(&b"\r\n".repeat(BLANK_LINES_MAX + 1)), 400);
}

#[test]
fn other_protocols_are_refused_at_once() {
    assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01"), 400);
    assert_eq!(refused(b"GET / HTTP/1.1\nHost: h\n\n"), 400);
    assert_eq!(refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
}

#[test]
fn offers_of_websocket_are_whole_or_refused() {
    let offer = complete(UPGRADE).websocket.unwrap();
    assert_eq!(offer.key, "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(offer.protocols, ["a", "b", "c"]);
    for (from, to, status) in [
        ("GET", "POST", 400),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("keep-alive, Upgrade", "keep-alive", 400),
        ("Version: 13", "Version: 8", 426),
        ("Sec-WebSocket-Version: 13\r\n", "", 400),
        ("b25jZQ==", "b25jZQ=", 400),
        ("dGhl", "d*hl", 400),
        ("Sec-WebSocket-Key", "X-Key", 400),
    ] {
        assert!(UPGRADE.contains(from));
        let Parsed::Invalid(error) = parse(UPGRADE.replace(from, to).as_bytes()) else { panic!("{to}") };
        assert_eq!((error.status, error.code), (status, "bad_upgrade"), "{to}");
    }
    assert!(complete(&UPGRADE.replace("WebSocket\r", "h2c\r")).websocket.is_none());
}

#[test]
fn bytes_after_a_request_remain() {
    let head = "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let bytes = format!("{head}body\n\nGET /");
    let Parsed::Complete { head_bytes, .. } = parse(bytes.as_bytes()) else { panic!() };
    assert_eq!(head_bytes, head.len());
}

/// Feeds bytes in pieces, as a connection does.
fn trickle(bytes: &[u8], mut cuts: Vec<usize>) -> Parsed {
    cuts.retain(|&cut| cut < bytes.len());
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let steps = cuts.windows(2).map(|step| parse_grown(&bytes[..step[1]], step[0]));
    steps.fold(Parsed::Partial, |result, next| if matches!(result, Parsed::Partial) { next } else { result })
}

proptest! {
    #[test]
    fn heads_may_come_in_pieces(cuts in prop::collection::vec(0..400_usize, 0..40), blank in 0..3_usize) {
        let bytes = "\r\n".repeat(blank) + UPGRADE;
        let Parsed::Complete { head_bytes, request } = trickle(bytes.as_bytes(), cuts) else {
            return Err(TestCaseError::fail("not complete"));
        };
        prop_assert_eq!((head_bytes, request), (bytes.len(), complete(UPGRADE)));
    }

    #[test]
    fn any_bytes_are_judged(bytes: Vec<u8>, cuts in prop::collection::vec(0..100_usize, 0..9)) {
        let _ = trickle(&bytes, cuts);
    }

    /// Near misses get deeper into the parser than noise does; the end of an accepted head does not depend on how it
    /// arrived.
    #[test]
    fn damaged_heads_are_judged(
        damage in prop::collection::vec((0..300_usize, any::<u8>()), 1..4),
        cuts in prop::collection::vec(0..300_usize, 0..9),
    ) {
        let mut bytes = UPGRADE.as_bytes().to_vec();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        match (parse(&bytes), trickle(&bytes, cuts)) {
            (
                Parsed::Complete { head_bytes, request },
                Parsed::Complete { head_bytes: trickled_bytes, request: trickled },
            ) => prop_assert_eq!((head_bytes, request), (trickled_bytes, trickled)),
            (whole, trickled) => {
                prop_assert!(!matches!(whole, Parsed::Complete { .. }), "{:?}", whole);
                prop_assert!(!matches!(trickled, Parsed::Complete { .. }), "{:?}", trickled);
            }
        }
    }
}
