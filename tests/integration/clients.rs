//! The original clients of other formats against the daemon: OpenAI's, the AI SDK's, EventSource. The cases are in
//! `tests/clients/`, in the clients' language; here each is a test of its own.
//!
//! Needs Node and npm, which `tests/run.sh` installs.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::support::node;

/// The path of `node_modules`, which is filled once.
static MODULES: LazyLock<PathBuf> = LazyLock::new(|| node::install("clients"));

/// Each case is a test of the same name.
macro_rules! cases {
    ($($case:ident)*) => { $(
        #[test]
        fn $case() {
            node::check("clients", stringify!($case), &[("CLIENT_MODULES", MODULES.as_os_str())]);
        }
    )* };
}

cases! {
    openai_reads_an_answer_live_and_finished
    openai_resumes_at_every_id
    openai_throws_what_the_producer_said

    ai_sdk_reads_an_answer_live_and_finished
    ai_sdk_resumes_at_every_id
    ai_sdk_is_told_when_nothing_goes_on
    a_chat_that_is_loaded_again_goes_on
    a_chat_that_has_the_beginning_goes_on_behind_it

    event_sources_read_chunks_over_cuts
    event_sources_read_ui_messages_over_cuts
}

#[test]
fn every_case_is_a_test() {
    let files = ["openai.mjs", "ai-sdk.mjs", "event-source.mjs"];
    node::expect_all("clients", &files, include_str!("clients.rs"));
}
