//! The admin listener: health checks, metrics, the state as JSON, and the dashboard.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 `ok`: the process is alive |
//! | `/readyz` | 200 while Redis answers and the daemon is not draining, else 503; JSON gives the reasons |
//! | `/metrics` | Prometheus' text format |
//! | `/stats.json` | [`super::Snapshot`] |
//! | `/` | a page that shows it live |
//!
//! A request for a host that is not one of ours gets 421, so that no web page can read it by DNS rebinding.
//!
//! It has no authentication. It reveals no tokens and no content, but stream counts, errors and names of threads, so
//! it belongs on loopback or a private network.

use std::borrow::Cow;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::json;

use super::Registry;
use super::http::{self, Answer};
use super::prometheus;
use crate::security::host::HostPolicy;
use crate::stop::Stop;

const DASHBOARD: &str = include_str!("../web/dashboard.html");
const DASHBOARD_STYLE: &str = include_str!("../web/dashboard.css");
const DASHBOARD_SCRIPT: &str = include_str!("../web/dashboard.js");

/// Serves requests for one of our `hosts` on `listener` until the stop signal.
///
/// # Errors
/// If the listener fails; never because of a client.
pub fn run(listener: TcpListener, hosts: HostPolicy, registry: Arc<Registry>, stop: Stop) -> io::Result<()> {
    http::serve(listener, &hosts, &stop, |path| page(&registry, path))
}

fn page(registry: &Registry, path: &str) -> Answer {
    let ok = |content_type, body: Cow<'static, str>| Answer { status: 200, content_type, body };
    match path {
        "/healthz" => ok("text/plain; charset=utf-8", "ok\n".into()),
        "/readyz" => ready(registry),
        "/metrics" => ok(prometheus::CONTENT_TYPE, registry.render_prometheus().into()),
        "/stats.json" => ok("application/json", registry.render_json().into()),
        "/" => ok("text/html; charset=utf-8", DASHBOARD.into()),
        "/dashboard.css" => ok("text/css; charset=utf-8", DASHBOARD_STYLE.into()),
        "/dashboard.js" => ok("text/javascript; charset=utf-8", DASHBOARD_SCRIPT.into()),
        _ => Answer::error(404, "there is /healthz, /readyz, /metrics, /stats.json and /\n"),
    }
}

fn ready(registry: &Registry) -> Answer {
    let reasons = registry.health().is_ready().err().unwrap_or_default();
    let status = if reasons.is_empty() { 200 } else { 503 };
    let body = json!({ "ready": reasons.is_empty(), "not_ready": reasons });
    Answer { status, content_type: "application/json", body: format!("{body}\n").into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::testing::{exposition, sample};
    use crate::observe::{Lease, exchange};
    use std::io::{Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpStream};
    use std::time::Duration;

    /// A listener that serves until the test ends.
    struct Running {
        address: SocketAddr,
        registry: Arc<Registry>,
        stop: Stop,
        thread: Option<std::thread::JoinHandle<io::Result<()>>>,
    }

    impl Running {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (address, registry, stop) = (listener.local_addr().unwrap(), Arc::new(sample()), Stop::new());
            let (inner_registry, inner_stop) = (Arc::clone(&registry), stop.clone());
            let hosts = HostPolicy::from(&["admin.example".to_owned()], &[]);
            let body = move || run(listener, hosts, inner_registry, inner_stop);
            let thread = std::thread::Builder::new().spawn(body).unwrap();
            Self { address, registry, stop, thread: Some(thread) }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        }

        /// Sends bytes and returns the status, the head and the body of the answer.
        fn send(&self, request: &[u8]) -> (u16, String, String) {
            let mut stream = self.connect();
            stream.write_all(request).unwrap();
            answer_of(stream)
        }

        fn get(&self, path: &str) -> (u16, String, String) {
            self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.stop.request();
            let result = self.thread.take().unwrap().join();
            if !std::thread::panicking() {
                result.unwrap().unwrap();
            }
        }
    }

    fn answer_of(mut stream: TcpStream) -> (u16, String, String) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        assert!(body.is_empty() || body.len() == length.parse::<usize>().unwrap());
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
    }

    #[test]
    fn every_page_is_there() {
        let running = Running::start();
        assert_eq!(running.get("/healthz?from=probe").2, "ok\n");
        let (status, head, body) = running.get("/metrics");
        assert!(status == 200 && head.contains("text/plain; version=0.0.4"));
        exposition(&body).unwrap();
        let (status, head, body) = running.get("/stats.json");
        assert!(status == 200 && head.contains("Content-Type: application/json\r\n"));
        let stats: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(stats["counters"]["entries_read"], 120);
        let (status, head, body) = running.get("/");
        assert!(status == 200 && head.contains("text/html") && body.contains("stats.json"));
    }

    #[test]
    fn readiness_names_the_problems() {
        let running = Running::start();
        let (status, _, body) = running.get("/readyz");
        assert_eq!((status, body.as_str()), (200, "{\"not_ready\":[],\"ready\":true}\n"));
        running.registry.health().set_lease(Lease::Lost);
        let (status, _, body) = running.get("/readyz");
        assert!(status == 503 && body.contains("the lease of the instance id is lost"), "{body}");
        assert_eq!(running.get("/healthz").0, 200, "not ready is still alive");
    }

    #[test]
    fn only_get_and_head_of_known_pages_are_answered() {
        let running = Running::start();
        assert_eq!(running.get("/nothing").0, 404);
        let (status, head, body) = running.send(b"HEAD /healthz HTTP/1.0\r\n\r\n");
        assert_eq!((status, body.as_str()), (200, ""));
        assert!(head.contains("Content-Length: 3\r\n"));
        let post = format!("POST /stats.json HTTP/1.1\r\nContent-Length: 9000\r\n\r\n{}", "x".repeat(9000));
        let (status, head, _) = running.send(post.as_bytes());
        assert!(status == 405 && head.contains("Allow: GET, HEAD\r\n"));
        assert_eq!(running.send(b"GET /healthz HTTP/9\r\n\r\n").0, 400);
        assert_eq!(running.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").0, 400);
        let headers = "a: b\r\n".repeat(100);
        assert_eq!(running.send(format!("GET / HTTP/1.1\r\n{headers}\r\n").as_bytes()).0, 431);
        let long = format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(9000));
        assert_eq!(running.send(long.as_bytes()).0, 431);
    }

    #[test]
    fn clients_that_hang_are_closed_and_hinder_nobody() {
        let running = Running::start();
        let mut silent = running.connect();
        let mut slow = running.connect();
        slow.write_all(b"GET /healthz HT").unwrap();
        let gone = running.connect();
        gone.shutdown(Shutdown::Both).unwrap();
        assert_eq!(running.get("/healthz").0, 200);
        slow.write_all(b"TP/1.1\r\n\r\n").unwrap();
        assert_eq!(answer_of(slow).0, 200);
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "the deadline closes it");
    }

    #[test]
    fn the_oldest_of_too_many_gives_way() {
        let running = Running::start();
        let mut oldest = running.connect();
        let crowd: Vec<_> = (0..exchange::CONNECTIONS_MAX).map(|_| running.connect()).collect();
        assert_eq!(running.get("/healthz").0, 200);
        assert_eq!(oldest.read(&mut [0]).unwrap(), 0);
        drop(crowd);
        assert_eq!(running.get("/readyz").0, 200);
    }

    #[test]
    fn a_request_for_a_foreign_host_is_misdirected() {
        let running = Running::start();
        for (host, status) in [
            ("localhost:9464", 200),
            ("127.0.0.1", 200),
            ("[::1]:9464", 200),
            ("Admin.Example:80", 200),
            ("evil.example", 421),
            ("\u{e9}.example", 421),
            ("", 421),
        ] {
            let (found, _, body) =
                running.send(format!("GET /stats.json HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
            assert_eq!(found, status, "{host}");
            assert!(status == 200 || body.contains("listen.hosts"), "{body}");
        }
        let absolute = b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(running.send(absolute).0, 421);
        let absolute = b"GET http://localhost/healthz?x HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        assert_eq!(running.send(absolute).2, "ok\n");
        assert_eq!(running.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n").0, 400);
        assert_eq!(running.send(b"GET /healthz HTTP/1.0\r\n\r\n").0, 200);
    }

    #[test]
    fn the_dashboard_asks_no_other_host_and_needs_nothing_inline() {
        for text in [DASHBOARD, DASHBOARD_STYLE, DASHBOARD_SCRIPT] {
            for outside in ["http:", "https:", "@import", "url(", "innerHTML"] {
                assert!(!text.contains(outside), "the dashboard has {outside}");
            }
        }
        for inline in ["<style", "<script>", "style=", "onclick="] {
            assert!(!DASHBOARD.contains(inline), "the dashboard has {inline}");
        }
        let running = Running::start();
        let (_, head, _) = running.get("/");
        assert!(head.contains("script-src 'self'") && !head.contains("unsafe"), "{head}");
        for (path, kind) in [("/dashboard.css", "text/css"), ("/dashboard.js", "text/javascript")] {
            let (status, head, _) = running.get(path);
            assert!(status == 200 && head.contains(kind) && head.contains("nosniff"), "{head}");
        }
    }
}
