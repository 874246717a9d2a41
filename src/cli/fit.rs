//! Fits a page of text into a terminal, so that a page that is updated every second does not scroll.

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// The number of lines.
    pub(crate) lines: usize,
    /// The number of characters per line.
    pub(crate) columns: usize,
}

impl Size {
    /// The size of the terminal on standard output; `None` if it is not a terminal, or has no size.
    pub(crate) fn of_stdout() -> Option<Self> {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request fills the structure that it is given, which outlives the call.
        let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
        let size = Self { lines: size.ws_row.into(), columns: size.ws_col.into() };
        (done == 0 && size.lines > 0 && size.columns > 0).then_some(size)
    }
}

/// Cuts the page to a size: removes blank lines first, then lines with only zeros, then the last lines, whose number
/// it then shows. Long lines are cut at their ends.
pub(crate) fn fit(page: &str, size: Size) -> String {
    let mut lines: Vec<&str> = page.lines().collect();
    // The cursor is on a line of its own below.
    let room = size.lines.saturating_sub(1).max(1);
    if lines.len() > room {
        lines.retain(|line| !line.trim().is_empty());
    }
    if lines.len() > room {
        lines.retain(|line| !is_all_zero(line));
    }
    let mut fitted: Vec<String> = Vec::with_capacity(room);
    if lines.len() > room {
        let left_out = lines.len() - (room - 1);
        lines.truncate(room - 1);
        fitted.extend(lines.iter().map(|line| cut(line, size.columns)));
        fitted.push(cut(&format!("… {left_out} more lines: enlarge the terminal"), size.columns));
    } else {
        fitted.extend(lines.iter().map(|line| cut(line, size.columns)));
    }
    fitted.join("\n") + "\n"
}

/// Whether a line is an indented name followed by numbers that are all zero, and optional words.
fn is_all_zero(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("  ") else { return false };
    let numbers: Vec<f64> =
        rest.split_whitespace().skip(1).map_while(|word| word.parse::<f64>().ok()).collect();
    !numbers.is_empty() && numbers.iter().all(|number| *number == 0.0)
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    line.chars().take(columns - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = "llm-bridge 1, up 3 s\n\nnow\n  connections_open    3  open connections\n  streams_live   0  none\n\nsince the start\n  entries_read   7  entries\n  gaps   0  gaps\n";

    #[test]
    fn a_page_that_fits_is_not_changed() {
        assert_eq!(fit(PAGE, Size { lines: 10, columns: 80 }), PAGE);
    }

    #[test]
    fn blank_lines_and_zeros_are_cut_first() {
        let fitted = fit(PAGE, Size { lines: 8, columns: 80 });
        assert!(!fitted.contains("\n\n") && fitted.contains("streams_live"), "{fitted}");
        let fitted = fit(PAGE, Size { lines: 6, columns: 80 });
        assert!(!fitted.contains("streams_live") && fitted.contains("entries_read"), "{fitted}");
        let fitted = fit(PAGE, Size { lines: 4, columns: 80 });
        assert!(fitted.ends_with("… 3 more lines: enlarge the terminal\n"), "{fitted}");
    }

    proptest! {
        #[test]
        fn nothing_is_larger_than_the_terminal(page in "([ a-z0-9é]{0,60}\n){0,60}", lines in 1_usize..80, columns in 1_usize..120) {
            let fitted = fit(&page, Size { lines, columns });
            prop_assert!(fitted.lines().count() <= lines.saturating_sub(1).max(1));
            prop_assert!(fitted.lines().all(|line| line.chars().count() <= columns));
        }
    }
}
