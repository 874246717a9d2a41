//! Keeps one of the daemon's own streams below a number of bytes, in addition to the limit on entries that every XADD
//! sets.
//!
//! Redis reports how much memory the key takes. This instance asks each time it has written a share of the limit, so
//! all instances together exceed the limit by no more than that share each.

use ::redis::{Cmd, cmd};

use crate::redis::{Link, RedisError};
use crate::warn_limited;

/// Redis is asked after 1/`SHARE` of the limit was written.
const SHARE: usize = 16;
/// How often the stream is trimmed at most per check.
const TRIMS_MAX: usize = 8;

/// The limit of one stream.
#[derive(Debug)]
pub(super) struct Cap {
    key: String,
    bytes_max: usize,
    /// Bytes written since the last check; `None`: before the first check.
    written: Option<usize>,
}

impl Cap {
    pub(super) const fn new(key: String, bytes_max: usize) -> Self {
        Self { key, bytes_max, written: None }
    }

    /// Records that entries of `bytes` bytes were added. Removes the oldest entries if a check is due and the limit
    /// is exceeded.
    ///
    /// # Errors
    /// When Redis could not be asked.
    pub(super) fn wrote(&mut self, link: &mut Link, bytes: usize) -> Result<(), RedisError> {
        if bytes == 0 {
            return Ok(());
        }
        let share = self.bytes_max / SHARE;
        let written = self.written.map_or(usize::MAX, |written| written.saturating_add(bytes));
        if written < share {
            self.written = Some(written);
            return Ok(());
        }
        self.written = Some(0);
        for _ in 0..TRIMS_MAX {
            let look = cmd("MEMORY").arg(&["USAGE", &self.key, "SAMPLES", "0"]).take();
            let found = match link.query_all::<Option<u64>>([look, Cmd::xlen(&self.key)]) {
                Err(RedisError::Server(error)) => {
                    warn_limited!(key: self.key; key = self.key, %error, "the memory usage of the key cannot be read");
                    return Ok(());
                }
                found => found?,
            };
            // The key does not exist.
            let [Some(usage), Some(length)] = found[..] else { return Ok(()) };
            let most = self.bytes_max as u64;
            if usage <= most || length <= 1 {
                return Ok(());
            }
            // As many entries as would fit if all had the same size, and at least one less; the newest one stays.
            let fitting = u128::from(length) * u128::from(most) / u128::from(usage);
            let kept = u64::try_from(fitting).unwrap_or(u64::MAX).min(length - 1).max(1);
            link.query::<()>(cmd("XTRIM").arg(&self.key).arg("MAXLEN").arg(kept))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    #[test]
    fn the_oldest_go_where_there_are_too_many_bytes() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let mut cap = Cap::new("k".into(), 1 << 20);
        let usage =
            |link: &mut Link| link.query::<u64>(cmd("MEMORY").arg(&["USAGE", "k", "SAMPLES", "0"])).unwrap();
        // Large and small entries alternate.
        for n in 0..400_usize {
            let value = "x".repeat(if n % 50 < 10 { 100_000 } else { 100 });
            link.call(&Cmd::xadd("k", "*", &[("n", n.to_string()), ("v", value.clone())])).unwrap();
            cap.wrote(&mut link, value.len()).unwrap();
            assert!(usage(&mut link) <= (1 << 20) + (1 << 20) / 4, "{n}: {}", usage(&mut link));
        }
        let newest = Cmd::xrevrange_count("k", "+", "-", 1);
        let newest = link.call(&newest).unwrap().entries().unwrap();
        assert_eq!(newest[0].fields.get("n"), Some(&b"399"[..]));
        // An entry that exceeds the whole limit stays as long as it is the newest.
        let value = "x".repeat(3 << 20);
        link.call(&Cmd::xadd("k", "*", &[("v", &value)])).unwrap();
        cap.wrote(&mut link, value.len()).unwrap();
        assert_eq!(link.query::<i64>(&Cmd::xlen("k")).unwrap(), 1);
    }
}
