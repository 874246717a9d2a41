//! Target for fuzzing: requests to the admin listener and the stats socket. See [`crate::fuzzing`].

use std::borrow::Cow;
use std::sync::LazyLock;

use super::Registry;
use super::exchange::Reaction;
use super::http::{Answer, respond};
use super::stats_socket::react;
use crate::fuzzing::cut;
use crate::security::host::HostPolicy;

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new("fuzz-8080"));

/// The reaction to a request does not change when more bytes arrive, and a complete request is not waited for.
pub(crate) fn requests(data: &[u8]) {
    let Some((step, sent)) = cut(data) else { return };
    let hosts = HostPolicy::from(&["admin.example".to_owned()], &[]);
    let page =
        |path: &str| Answer { status: 200, content_type: "text/plain", body: Cow::Owned(path.to_owned()) };
    let http = |sent: &[u8], is_over| respond(sent, is_over, &hosts, &page);
    if let Some(answer) = judged(http, sent, step) {
        let answer = String::from_utf8(answer).expect("an answer is text");
        assert!(answer.starts_with("HTTP/1.1 ") && answer.contains("\r\n\r\n"), "{answer}");
        assert!(answer.len() <= 1024 + sent.len(), "{} bytes", answer.len());
    }
    if let Some(answer) = judged(|sent, is_over| react(sent, is_over, &REGISTRY), sent, step) {
        let answer = String::from_utf8(answer).expect("an answer is text");
        assert!(answer.ends_with('\n'), "{answer}");
    }
}

fn judged(react: impl Fn(&[u8], bool) -> Reaction, sent: &[u8], step: usize) -> Option<Vec<u8>> {
    let early = react(&sent[..step.min(sent.len())], false);
    let later = react(sent, false);
    assert!(matches!(early, Reaction::Wait) || !matches!(later, Reaction::Wait), "waits for more again");
    match react(sent, true) {
        Reaction::Wait => panic!("waits for more of what is over"),
        Reaction::Close => None,
        Reaction::Answer(answer) => Some(answer),
    }
}
