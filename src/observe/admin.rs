//! The admin listener: health checks, metrics, the state as JSON, and the dashboard.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 `ok`: the process is alive |
//! | `/readyz` | 200 while Redis answers and the daemon is not draining, else 503; JSON says what is not well |
//! | `/metrics` | Prometheus' text format |
//! | `/stats.json` | [`super::Snapshot`] |
//! | `/` | a page that shows it live |
//!
//! It has no authentication and reveals no tokens and no content, but stream counts, errors and names
//! of threads: it belongs on loopback or a private network.

use std::borrow::Cow;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::json;

use super::Registry;
use super::http::{self, Answer};
use super::prometheus;
use crate::stop::Stop;

const DASHBOARD: &str = include_str!("../web/dashboard.html");

/// Answers on `listener` until the stop signal is given.
///
/// # Errors
/// When the listener cannot be watched; never because of a client.
pub fn run(listener: TcpListener, registry: Arc<Registry>, stop: Stop) -> io::Result<()> {
    http::serve(listener, &stop, |path| page(&registry, path))
}

fn page(registry: &Registry, path: &str) -> Answer {
    let ok = |content_type, body: Cow<'static, str>| Answer { status: 200, content_type, body };
    match path {
        "/healthz" => ok("text/plain; charset=utf-8", "ok\n".into()),
        "/readyz" => ready(registry),
        "/metrics" => ok(prometheus::CONTENT_TYPE, registry.render_prometheus().into()),
        "/stats.json" => ok("application/json", registry.render_json().into()),
        "/" => ok("text/html; charset=utf-8", DASHBOARD.into()),
        _ => Answer::error(404, "there is /healthz, /readyz, /metrics, /stats.json and /\n"),
    }
}

fn ready(registry: &Registry) -> Answer {
    let reasons = registry.health().is_ready().err().unwrap_or_default();
    let status = if reasons.is_empty() { 200 } else { 503 };
    let body = json!({ "ready": reasons.is_empty(), "not_ready": reasons });
    Answer { status, content_type: "application/json", body: format!("{body}\n").into() }
}
