//! The pages that the binary carries, so that nothing has to be installed beside it.
//!
//! Each is one self-contained file: no request leaves for another host.

/// The demo page: a stream's text as it comes, with buttons that cut the connection and resume it.
/// HTML, UTF-8; served at `/` of the public listener where `listen.demo_page` is set.
pub const DEMO_PAGE: &str = include_str!("page.html");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_no_other_host() {
        for outside in ["http://", "https://", "src=\"//", "@import", "url("] {
            assert!(!DEMO_PAGE.contains(outside), "the page mentions {outside}");
        }
    }
}
