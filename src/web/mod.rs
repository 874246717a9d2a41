//! What browsers get from the binary, so that nothing has to be installed beside it: the client as one
//! module with its types, and the pages.
//!
//! Each is one self-contained file: no request leaves for another host. The client is always served, also
//! where the demo page is off: it tells nothing that is not public, and applications import it from here,
//! in the version that fits the daemon.

/// The demo page: a stream's text as it comes, with buttons that cut the connection and resume it.
/// HTML, UTF-8; served at `/` of the public listener where `listen.demo_page` is set.
pub const DEMO_PAGE: &str = include_str!("page.html");

/// A file that the public listener serves as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct WebFile {
    /// Its path there.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// What it holds.
    pub text: &'static str,
    hash: u64,
}

impl WebFile {
    const fn new(path: &'static str, content_type: &'static str, text: &'static str) -> Self {
        Self { path, content_type, text, hash: fnv1a(text.as_bytes()) }
    }

    /// The `ETag`: changes with what the file holds.
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
    fn tags_differ_as_the_files_do() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(FILES[0].tag(), FILES[1].tag());
    }
}
