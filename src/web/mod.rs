//! Files for browsers that are built into the binary, so that they need no installation: the client as one module
//! with its types, and the pages.
//!
//! Each is one self-contained file that sends no request to another host. The client is always served, even if the
//! demo page is off: it contains nothing that is not public, and applications import it from here, in the version
//! that fits the daemon.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest;

/// The demo page: shows a stream's text live, with buttons that cut the connection and resume it. HTML, UTF-8; served
/// at `/` of the public listener if `listen.demo_page` is set.
pub const DEMO_PAGE: &str = include_str!("page.html");

/// The demo page's Content-Security-Policy: it allows the page's own style and script, and the client and streams of
/// this server.
pub static DEMO_PAGE_POLICY: LazyLock<String> = LazyLock::new(|| policy(DEMO_PAGE));

/// A strict Content-Security-Policy for a page of ours: its inline scripts and styles, modules and requests of its
/// own origin, and nothing else. So text that a model wrote cannot run, whatever the page does with it.
#[must_use]
pub fn policy(page: &str) -> String {
    let (scripts, styles) = (hashes(page, "script"), hashes(page, "style"));
    format!(
        "default-src 'none'; script-src 'self'{scripts}; style-src{styles}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The hashes of the content between tags with that name, for a policy.
fn hashes(page: &str, tag: &str) -> String {
    let (begin, end) = (format!("<{tag}"), format!("</{tag}>"));
    let inside = page.split(begin.as_str()).skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once('>')?;
        Some(rest.split_once(end.as_str())?.0)
    });
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    inside.map(|text| format!(" 'sha256-{}'", BASE64_STANDARD.encode(hash(text)))).collect()
}

/// A file that the public listener serves unchanged.
#[derive(Debug, PartialEq, Eq)]
pub struct WebFile {
    /// Its path on the listener.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its content.
    pub text: &'static str,
    hash: u64,
}

impl WebFile {
    const fn new(path: &'static str, content_type: &'static str, text: &'static str) -> Self {
        Self { path, content_type, text, hash: fnv1a(text.as_bytes()) }
    }

    /// The `ETag`: changes with the file's content.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("\"{:016x}\"", self.hash)
    }
}

/// The client as an ES module, and its TypeScript declarations.
static FILES: [WebFile; 2] = [
    WebFile::new("/llm-bridge.js", "text/javascript; charset=utf-8", include_str!("llm-bridge.js")),
    WebFile::new(
        "/llm-bridge.d.ts",
        "application/typescript; charset=utf-8",
        include_str!("llm-bridge.d.ts"),
    ),
];

/// The file at a path of the public listener.
#[must_use]
pub fn file_at(path: &str) -> Option<&'static WebFile> {
    FILES.iter().find(|file| file.path == path)
}

/// The FNV-1a hash: short, and computed while compiling.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asks_another_host() {
        let texts = FILES.iter().map(|file| file.text).chain([DEMO_PAGE]);
        for text in texts {
            for outside in ["http://", "https://", "src=\"//", "@import"] {
                assert!(!text.contains(outside), "a file mentions {outside}");
            }
        }
        assert!(!DEMO_PAGE.contains("url("), "the page loads something");
    }

    #[test]
    fn a_page_runs_nothing_but_what_is_written_in_it() {
        let page = "<style>a{}</style><script type=\"module\">let a = 1;</script>";
        let policy = policy(page);
        assert!(
            policy.contains("style-src 'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='"),
            "{policy}"
        );
        assert!(policy.contains("script-src 'self' 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(DEMO_PAGE_POLICY.matches("'sha256-").count(), 2, "{}", *DEMO_PAGE_POLICY);
        for attribute in [" style=\"", " onclick=", " onload=", "javascript:"] {
            assert!(!DEMO_PAGE.contains(attribute), "the policy forbids {attribute}");
        }
    }

    #[test]
    fn tags_differ_as_the_files_do() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(FILES[0].tag(), FILES[1].tag());
    }
}
