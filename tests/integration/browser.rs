//! The browser client: served by the daemon, and run in headless Chromium against it. The cases are in
//! `tests/browser/`, in the client's language; here each is a test of its own.
//!
//! Needs Node, npm and Chromium, which `tests/run.sh` installs; two packages come from npm's registry, pinned
//! by a lock file, into the target directory.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::LazyLock;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::support::command::program;
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::node;
use crate::support::redis::RedisServer;

/// How many cases use the browser at once: more would leave too little of a small machine for the other tests.
const CASES_AT_ONCE: usize = 2;

/// One item for each case that runs; full while [`CASES_AT_ONCE`] run.
static TURNS: LazyLock<(Sender<()>, Receiver<()>)> = LazyLock::new(|| bounded(CASES_AT_ONCE));

/// The path of `node_modules`, which is filled once.
static MODULES: LazyLock<PathBuf> = LazyLock::new(|| node::install("browser"));

/// One browser for all cases, started once. It ends with this process, which closes its input.
static BROWSER: LazyLock<Browser> = LazyLock::new(Browser::start);

struct Browser {
    address: String,
    _process: Child,
}

impl Browser {
    fn start() -> Self {
        let mut process = program("node")
            .arg(node::sources("browser").join("browser.mjs"))
            .env("BROWSER_MODULES", &*MODULES)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed; ./tests/run.sh does that");
        let mut address = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut address).expect("the browser prints its address");
        Self { address: address.trim_end().to_owned(), _process: process }
    }
}

/// A turn of a case, until it is dropped.
struct Turn;

impl Turn {
    fn take() -> Self {
        TURNS.0.send(()).unwrap();
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.1.try_recv().ok();
    }
}

/// Runs one case to its end.
fn check(case: &str) {
    let _turn = Turn::take();
    let variables =
        [("BROWSER_MODULES", MODULES.as_os_str()), ("BROWSER_ADDRESS", OsStr::new(&BROWSER.address))];
    node::check("browser", case, &variables);
}

/// Each case is a test of the same name.
macro_rules! cases {
    ($($case:ident)*) => { $(
        #[test]
        fn $case() {
            check(stringify!($case));
        }
    )* };
}

cases! {
    ids_are_ordered_as_the_stream_is
    however_frames_are_merged_they_amount_to_the_same
    generations_follow_each_other_in_a_transcript
    event_streams_are_read_however_they_are_cut
    waits_grow_within_their_bound
    expiry_is_read_where_it_can_be
    the_types_fit_an_application

    a_browsers_own_event_source_reads_the_other_formats
    a_websocket_cut_at_any_frame_loses_and_repeats_nothing
    an_event_stream_cut_at_any_frame_loses_and_repeats_nothing
    cuts_over_whichever_transport_lose_and_repeat_nothing
    a_killed_and_a_drained_daemon_are_outlived
    a_reloaded_tab_goes_on_with_all_of_the_text
    an_answer_too_long_to_be_stored_comes_again_from_its_beginning
    stop_reaches_the_producer_and_both_tabs_see_the_same_end
    what_a_tab_acknowledges_is_written_down
    without_websockets_it_goes_by_events_and_remembers_that
    channels_choices_and_tool_calls_are_put_together
    merged_frames_give_the_same_text
    a_new_generation_clears_the_text_when_its_first_frame_comes
    a_refused_origin_is_said_once_with_its_reason
    slow_tabs_and_slow_iterators_get_everything
    a_dead_connection_is_noticed
    a_network_that_is_back_is_used_at_once
    what_is_not_there_is_said_once
    the_demo_page_cuts_resumes_switches_and_stops

    a_refused_token_is_asked_for_once_more
    events_carry_the_token_and_obey_what_the_status_says
    a_token_is_renewed_before_it_expires
    closes_mean_what_the_contract_says
    final_closes_are_final
    draining_and_malformed_frames_lead_to_another_connection
    acks_and_cancels_are_answered_each_for_itself
}

#[test]
fn every_case_is_a_test() {
    node::expect_all("browser", &["pages.mjs", "servers.mjs", "pure.mjs"], include_str!("browser.rs"));
}

#[test]
fn the_client_is_served_also_without_the_demo_page() {
    let redis = RedisServer::start();
    let daemon = Daemon::options(&redis).set(r#"listen.origins=["https://chat.example"]"#).start();
    assert_eq!(http::get(daemon.public, "/").status, 404);
    for (path, kind, file) in [
        ("/llm-bridge.js", "text/javascript; charset=utf-8", "src/web/llm-bridge.js"),
        ("/llm-bridge.d.ts", "application/typescript; charset=utf-8", "src/web/llm-bridge.d.ts"),
    ] {
        let expected = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let chat = ("Origin", "https://chat.example");
        let whole = http::request(daemon.public, "GET", path, &[chat]);
        assert_eq!((whole.status, whole.header("content-type")), (200, Some(kind)));
        assert_eq!(whole.header("access-control-allow-origin"), Some("https://chat.example"));
        assert_eq!(whole.header("cache-control"), Some("no-cache"));
        assert!(whole.body == expected, "{path} is not the file");
        let tag = whole.header("etag").unwrap();
        let known = http::request(daemon.public, "GET", path, &[("If-None-Match", tag)]);
        assert_eq!((known.status, known.body.len()), (304, 0));
        let head = http::request(daemon.public, "HEAD", path, &[]);
        assert_eq!((head.status, head.header("etag"), head.body.len()), (200, Some(tag), 0));
        assert_eq!(head.header("content-length"), Some(expected.len().to_string().as_str()));
        http::request(daemon.public, "POST", path, &[("Content-Length", "0")]).expect_error(405);
        http::request(daemon.public, "GET", path, &[("Origin", "https://evil.example")]).expect_error(403);
    }
}
