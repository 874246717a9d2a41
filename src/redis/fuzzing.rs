//! Targets for fuzzing: replies of Redis, whole and through the sieve. See [`crate::fuzzing`].

use bytes::{Bytes, BytesMut};

use super::reply::Reply;
use super::resp::{Malformed, Scanned, Scanner};
use super::sieve::{RangeReply, Sieve};
use crate::fuzzing::cut;

/// A reply ends at the same place however its bytes are cut, and no view of it panics.
pub(crate) fn resp(data: &[u8]) {
    let Some((step, bytes)) = cut(data) else { return };
    let whole = scanned(bytes, bytes.len());
    assert_eq!(whole, scanned(bytes, step), "in steps of {step}");
    // As if the scanner had accepted it: views that do not recurse must not rely on the scanner.
    flat_views(&Reply::from_scanned(Bytes::copy_from_slice(bytes)));
    let Ok(Some(found)) = whole else { return };
    assert!(found.len <= bytes.len(), "the reply ends within the bytes");
    let early = Scanner::default().scan(&bytes[..found.len - 1]);
    assert_eq!(early, Ok(None), "it is complete with its last byte");
    let reply = Reply::parse(Bytes::copy_from_slice(&bytes[..found.len])).expect("it is one reply");
    flat_views(&reply);
    if let Ok(value) = reply.value() {
        let _ = (value.as_array(), value.as_bytes(), value.as_str(), value.get("length"));
    }
}

fn scanned(bytes: &[u8], step: usize) -> Result<Option<Scanned>, Malformed> {
    let (mut scanner, mut end) = (Scanner::default(), 0);
    loop {
        end = (end + step).min(bytes.len());
        match scanner.scan(&bytes[..end])? {
            None if end < bytes.len() => {}
            found => return Ok(found),
        }
    }
}

/// The views that do not recurse.
fn flat_views(reply: &Reply) {
    let _ = (reply.error(), reply.is_null(), reply.integer(), reply.id(), reply.bytes(), reply.text());
    let _ = (reply.streams(), reply.stream_info(), reply.changed());
    if let Ok(entries) = reply.entries() {
        let kept: usize = entries.iter().map(|entry| entry.fields.len_bytes()).sum();
        assert!(kept <= reply.len_bytes(), "entries are slices of the reply");
    }
    if let Ok(mut results) = reply.results() {
        let _ = (results.done(), results.count(), results.streams(), results.stream_info());
        let _ = results.lag_of("g");
    }
}

/// The sieve keeps the same of a reply however its bytes are cut, and never more than arrived or than it had room
/// for.
pub(crate) fn sieve(data: &[u8]) {
    let [high, low, form, bytes @ ..] = data else { return };
    let room = usize::from(u16::from_be_bytes([*high, *low]));
    let (is_full, step) = (form & 1 == 1, usize::from(form >> 1) + 1);
    let whole = sifted(bytes, (room, is_full), bytes.len());
    let pieces = sifted(bytes, (room, is_full), step);
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"), "in steps of {step}");
    if let Some(Ok(found)) = whole {
        let values: usize = found.entries.iter().map(|entry| entry.fields.values_bytes()).sum();
        assert!(values <= room && values <= bytes.len(), "{values} bytes were kept");
        assert!(found.first.is_none() || found.entries.is_empty());
    }
}

/// Passes bytes through the sieve in pieces of `step`; `None` if they are not a whole reply.
fn sifted(bytes: &[u8], (room, is_full): (usize, bool), step: usize) -> Option<Result<RangeReply, String>> {
    let (mut sieve, mut buffer) = (Sieve::new(room, is_full), BytesMut::new());
    for piece in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        match sieve.push(&mut buffer) {
            Ok(false) => {}
            Ok(true) => return Some(sieve.finish().map_err(|error| format!("{error:?}"))),
            Err(malformed) => return Some(Err(format!("{malformed:?}"))),
        }
    }
    None
}
