//! The state and the decisions of a client that follows one stream. Pure.
//!
//! INVARIANT: `last` is the id of the newest frame that was shown, so a request for what follows it loses and repeats
//! nothing.

use std::time::Duration;

use super::render::{Frame, Output, Renderer};
use crate::visible;

/// How a stream ended for the follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With `end`, or by an orderly close.
    Complete,
    /// With an `error` frame.
    Failed(String),
}

/// The next step after a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The stream is complete.
    Over(Ending),
    /// Connect again, after at least the time that the server asked for.
    Again { reason: String, wait: Option<Duration> },
    /// No other attempt would succeed.
    GiveUp(String),
}

/// A follower's state over all of its connections.
#[derive(Debug)]
pub(crate) struct Follower {
    last: Option<String>,
    ending: Option<Ending>,
    renderer: Renderer,
}

impl Follower {
    /// A follower that begins after `after`; `None`: at the server's default.
    pub(crate) const fn new(after: Option<String>, renderer: Renderer) -> Self {
        Self { last: after, ending: None, renderer }
    }

    /// The id after which the next request starts; `None`: at the server's default.
    pub(crate) fn after(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// For messages that come from no frame.
    pub(crate) const fn renderer(&mut self) -> &mut Renderer {
        &mut self.renderer
    }

    /// Takes one frame; `None` if it was shown before (the server repeats the terminal frame to a client that resumes
    /// after it).
    pub(crate) fn frame(&mut self, frame: &Frame<'_>) -> Option<Output> {
        let seen = frame.id.is_some() && frame.id == self.last && self.ending.is_some();
        match frame.kind.as_str() {
            // Words such as `$` become an id here; without it, the next request would skip what arrives between two
            // connections.
            "open" => self.last.clone_from(&frame.after),
            "end" => self.ending = Some(Ending::Complete),
            "error" => self.ending = Some(Ending::Failed(frame.code.clone().unwrap_or_default())),
            "start" | "delta" | "tool_call" | "custom" => self.ending = None,
            _ => {}
        }
        if let Some(id) = &frame.id {
            self.last = Some(id.clone());
        }
        (!seen).then(|| self.renderer.frame(frame))
    }

    /// The next step after a close code (1005 and 1006 mean that there was none).
    pub(crate) fn closed(&self, code: u16, reason: &str) -> Next {
        let reason = visible::line(reason);
        let words = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        match code {
            1000 => Next::Over(self.ending.clone().unwrap_or(Ending::Complete)),
            4404 if reason.is_empty() => Next::GiveUp("there is no such stream".to_owned()),
            4404 => Next::GiveUp(reason.into_owned()),
            1008 | 1009 | 4401 | 4403 => Next::GiveUp(format!("refused with {code}{words}")),
            _ => Next::Again { reason: format!("closed with {code}{words}"), wait: None },
        }
    }

    /// The next step after an HTTP answer instead of an upgrade.
    pub(crate) fn refused(status: u16, body: &[u8], retry_after: Option<&str>) -> Next {
        let words = serde_json::from_slice::<serde_json::Value>(body).ok();
        let words = words.as_ref().and_then(|value| value["error"]["message"].as_str()).map(visible::line);
        let text = words.map_or_else(|| format!("HTTP {status}"), |words| format!("HTTP {status}: {words}"));
        match status {
            408 | 429 | 500..=599 => {
                let seconds = retry_after.and_then(|value| value.trim().parse().ok());
                Next::Again { reason: text, wait: seconds.map(|s: u32| Duration::from_secs(s.into())) }
            }
            _ => Next::GiveUp(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::render::Look;
    use super::*;

    fn feed(follower: &mut Follower, frames: &[&str]) -> String {
        let mut text = String::new();
        for json in frames {
            let out = follower.frame(&serde_json::from_str(json).unwrap());
            text += &out.unwrap_or_default().text;
        }
        text
    }

    #[test]
    fn the_last_id_is_kept_over_connections() {
        let mut follower = Follower::new(Some("$".into()), Renderer::new(Look::default()));
        assert_eq!(follower.after(), Some("$"));
        feed(&mut follower, &[r#"{"type":"open","stream":"s/m","after":"5-0","state":"live"}"#]);
        assert_eq!(follower.after(), Some("5-0"));
        let first = feed(&mut follower, &[r#"{"type":"delta","id":"6-0.1","text":"a"}"#]);
        assert!(matches!(follower.closed(1006, ""), Next::Again { .. }));
        assert_eq!(follower.after(), Some("6-0.1"));
        let rest = feed(
            &mut follower,
            &[
                r#"{"type":"open","stream":"s/m","after":"6-0.1","state":"live"}"#,
                r#"{"type":"delta","id":"6-0","text":"b"}"#,
                r#"{"type":"status","state":"draining"}"#,
            ],
        );
        assert_eq!((first + &rest, follower.after()), ("ab".into(), Some("6-0")));
    }

    #[test]
    fn the_terminal_frame_decides_and_is_shown_once() {
        let error = r#"{"type":"error","id":"7-0","code":"producer_lost","message":"m"}"#;
        let mut follower = Follower::new(None, Renderer::new(Look::default()));
        feed(&mut follower, &[r#"{"type":"end","id":"5-0"}"#]);
        assert_eq!(follower.closed(1000, ""), Next::Over(Ending::Complete));
        feed(&mut follower, &[r#"{"type":"delta","id":"6-0","text":"next"}"#, error]);
        assert_eq!(follower.closed(1000, ""), Next::Over(Ending::Failed("producer_lost".into())));
        assert!(follower.frame(&serde_json::from_str(error).unwrap()).is_none());
        assert_eq!(follower.after(), Some("7-0"));
    }

    #[test]
    fn an_end_behind_a_gap_that_leads_to_it_is_shown() {
        let mut follower = Follower::new(Some("500-0".to_owned()), Renderer::new(Look::default()));
        let gap =
            r#"{"type":"gap","id":"100-2","after":"500-0","next":"100-2","lost":null,"reason":"failover"}"#;
        feed(&mut follower, &[r#"{"type":"open","after":"500-0","state":"ended"}"#, gap]);
        let end = serde_json::from_str(r#"{"type":"end","id":"100-2"}"#).unwrap();
        assert!(follower.frame(&end).is_some() && follower.frame(&end).is_none());
    }

    #[test]
    fn closes_and_answers_say_whether_to_come_back() {
        let follower = Follower::new(None, Renderer::new(Look::default()));
        for code in [1001, 1006, 1013, 4408, 4429] {
            assert!(matches!(follower.closed(code, ""), Next::Again { .. }), "{code}");
        }
        for code in [1008, 1009, 4401, 4403, 4404] {
            assert!(matches!(follower.closed(code, "why"), Next::GiveUp(_)), "{code}");
        }
        let missing = Next::GiveUp("there is no such stream".into());
        assert_eq!(follower.closed(4404, "there is no such stream"), missing);
        assert_eq!(follower.closed(4403, "a\x1b[2J\nb"), Next::GiveUp("refused with 4403: a␛[2J␊b".into()));
        let body = br#"{"error":{"message":"\u001b]0;x"}}"#;
        assert_eq!(Follower::refused(400, body, None), Next::GiveUp("HTTP 400: ␛]0;x".into()));
        let body = br#"{"error":{"code":"draining","message":"going down"}}"#;
        let expected =
            Next::Again { reason: "HTTP 503: going down".into(), wait: Some(Duration::from_secs(2)) };
        assert_eq!(Follower::refused(503, body, Some("2")), expected);
        assert_eq!(Follower::refused(404, b"?", None), Next::GiveUp("HTTP 404".into()));
    }
}
