use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const INFO: &str = "%5\r\n+length\r\n:9\r\n$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n+groups\r\n:1\r\n\
                    +first-entry\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n\
                    +last-entry\r\n*2\r\n$3\r\n9-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
const FULL: &str = "*8\r\n+length\r\n:9\r\n$17\r\nlast-generated-id\r\n$3\r\n9-0\r\n\
                    +entries\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n\
                    +groups\r\n*1\r\n*2\r\n+name\r\n$1\r\ng\r\n";

/// The reply to a transaction that found entries with these field values and the ids 1-0, 2-0, …
fn reply(values: &[Vec<u8>], info: &str) -> Vec<u8> {
    let mut reply = format!("*2\r\n*{}\r\n", values.len()).into_bytes();
    for (n, value) in values.iter().enumerate() {
        let id = format!("{}-0", n + 1);
        let mut head = String::new();
        write!(head, "*2\r\n${}\r\n{id}\r\n*2\r\n$4\r\ndata\r\n${}\r\n", id.len(), value.len()).unwrap();
        reply.extend_from_slice(head.as_bytes());
        reply.extend_from_slice(value);
        reply.extend_from_slice(b"\r\n");
    }
    reply.extend_from_slice(info.as_bytes());
    reply
}

/// Passes a reply through the sieve in pieces of `step` bytes.
fn sifted(bytes: &[u8], room: usize, step: usize) -> Result<RangeReply, RedisError> {
    let mut sieve = Sieve::new(room, bytes.ends_with(FULL.as_bytes()));
    let mut buffer = BytesMut::new();
    let mut is_complete = false;
    for piece in bytes.chunks(step) {
        assert!(!is_complete, "it is complete with its last byte");
        buffer.extend_from_slice(piece);
        is_complete = sieve.push(&mut buffer)?;
    }
    assert!(is_complete && buffer.is_empty());
    sieve.finish()
}

fn value(entry: &Entry) -> &[u8] {
    entry.fields.get("data").unwrap()
}

#[test]
fn everything_is_kept_where_there_is_room() {
    let values = [b"one".to_vec(), b"t\r\no".to_vec(), Vec::new()];
    for (info, step) in [(INFO, 1), (INFO, 7), (FULL, 3), (FULL, 9999)] {
        let found = sifted(&reply(&values, info), 1000, step).unwrap();
        assert_eq!(found.entries.iter().map(value).collect::<Vec<_>>(), values);
        assert_eq!((found.found, found.first), (3, None));
        let info = found.info.unwrap().unwrap();
        assert_eq!(
            (info.length, info.first, info.last_generated_id),
            (9, Some(EntryId::new(1, 0)), EntryId::new(9, 0))
        );
    }
    assert!(sifted(&reply(&[], INFO), 0, 5).unwrap().entries.is_empty());
    assert!(sifted(&reply(&values, ":3\r\n"), 1000, 5).unwrap().info.unwrap().is_none());
}

#[test]
fn entries_that_do_not_fit_are_skipped_and_measured() {
    let values = [vec![b'a'; 100], vec![b'b'; 100], vec![b'c'; 1]];
    let found = sifted(&reply(&values, INFO), 200, 11).unwrap();
    assert_eq!(found.entries.iter().map(value).collect::<Vec<_>>(), &values[..1], "nothing behind the cut");
    assert_eq!((found.found, found.bytes, found.first), (3, 201 + 3 * (4 + 3), None));
    assert_eq!(found.info.unwrap().unwrap().length, 9);

    let alone = sifted(&reply(&values, INFO), 99, 13).unwrap();
    let unfit = alone.first.unwrap();
    assert!(alone.entries.is_empty());
    assert_eq!(unfit, Unfit { id: EntryId::new(1, 0), bytes: 100, names: vec![b"data".to_vec()] });
    assert!(unfit.into_entry().fields.is_too_large());
}

#[test]
fn names_that_are_shown_are_bounded() {
    let long = "n".repeat(KEPT_NAME_BYTES_MAX + 1);
    let fields: String =
        (0..KEPT_NAMES_MAX + 1).map(|_| format!("${}\r\n{long}\r\n$1\r\nv\r\n", long.len())).collect();
    let reply = format!("*2\r\n*1\r\n*2\r\n$3\r\n5-1\r\n*{}\r\n{fields}{INFO}", 2 * (KEPT_NAMES_MAX + 1));
    let unfit = sifted(reply.as_bytes(), 100, 17).unwrap().first.unwrap();
    assert_eq!(unfit.names, vec![long.as_bytes()[..KEPT_NAME_BYTES_MAX].to_vec(); KEPT_NAMES_MAX]);
    assert_eq!(unfit.bytes, KEPT_NAMES_MAX as u64 + 1);
}

#[test]
fn the_content_of_the_first_and_last_entry_is_not_kept() {
    let large = "x".repeat(1 << 20);
    let many = "$1\r\nx\r\n".repeat(200_000);
    let info = format!(
        "*10\r\n+length\r\n:9\r\n+last-generated-id\r\n$3\r\n9-0\r\n+groups\r\n:0\r\n\
         +first-entry\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n${}\r\n{large}\r\n\
         +last-entry\r\n*2\r\n$3\r\n9-0\r\n*200000\r\n{many}",
        large.len()
    );
    let mut sieve = Sieve::new(1000, false);
    let mut buffer = BytesMut::from(&reply(&[b"{}".to_vec()], &info)[..]);
    assert!(sieve.push(&mut buffer).unwrap());
    assert!(sieve.info.len() < 1000, "{} bytes", sieve.info.len());
    let found = sieve.finish().unwrap();
    assert_eq!((found.entries.len(), found.info.unwrap().unwrap().first), (1, Some(EntryId::new(1, 0))));
}

#[test]
fn errors_are_distinguished() {
    let missing = sifted(b"*2\r\n*0\r\n-ERR no such key\r\n", 10, 3).unwrap();
    assert!(missing.info.is_err() && missing.entries.is_empty());
    let wrong = sifted(b"*2\r\n-WRONGTYPE x\r\n-WRONGTYPE x\r\n", 10, 3).unwrap();
    assert_eq!(wrong.info.unwrap_err().code, "WRONGTYPE");
    let aborted = sifted(b"-EXECABORT discarded\r\n", 10, 4);
    assert!(matches!(aborted, Err(RedisError::Server(error)) if error.code == "EXECABORT"));
    assert!(matches!(sifted(b"*-1\r\n", 10, 4), Err(RedisError::Protocol(_))));
    assert!(sifted(b"*2\r\n*1\r\n*2\r\n$3\r\n1-0xx*0\r\n", 100, 4).is_err());
}

proptest! {
    /// However the reply is cut, the first entries are kept unchanged, and as many as fit.
    #[test]
    fn the_kept_part_is_a_prefix(
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..12),
        room in 0_usize..600,
        step in 1_usize..50,
    ) {
        let bytes = reply(&values, INFO);
        let found = sifted(&bytes, room, step).unwrap();
        let kept: Vec<_> = found.entries.iter().map(|entry| value(entry).to_vec()).collect();
        prop_assert_eq!(&kept[..], &values[..kept.len()]);
        prop_assert_eq!(found.found, values.len());
        let cost = |value: &Vec<u8>| 3 * STRING_BYTES + 3 + 4 + value.len();
        let mut left = room;
        let fits = values.iter().enumerate().take_while(|(n, value)| {
            let cost = cost(value) + usize::from(*n >= 9);
            let fits = cost <= left;
            left = left.saturating_sub(cost);
            fits
        });
        prop_assert_eq!(kept.len(), fits.count());
    }

    #[test]
    fn random_bytes_never_panic(text in "([-+:$*%~>|=!_#,(][-0-9tf]{0,3}\r\n|[a-z\r\n]){0,40}", room in 0_usize..50) {
        let mut sieve = Sieve::new(room, false);
        let mut buffer = BytesMut::from(text.as_bytes());
        if sieve.push(&mut buffer) == Ok(true) {
            sieve.finish().ok();
        }
    }
}

/// Passes a reply through this sieve in pieces of `step` bytes; its last byte must complete it.
fn sifted_by(mut sieve: Sieve, bytes: &str, step: usize) -> Result<RangeReply, RedisError> {
    let mut buffer = BytesMut::new();
    let mut is_complete = false;
    for piece in bytes.as_bytes().chunks(step) {
        assert!(!is_complete, "it is complete with its last byte");
        buffer.extend_from_slice(piece);
        is_complete = sieve.push(&mut buffer)?;
    }
    assert!(is_complete && buffer.is_empty());
    sieve.finish()
}

#[test]
fn replies_of_one_stream_are_taken_with_nothing_around_them() {
    let (small, long) = ("x".repeat(10), "x".repeat(5000));
    let entry = |id: u64, value: &str| {
        format!("*2\r\n$3\r\n{id}-0\r\n*2\r\n$4\r\ndata\r\n${}\r\n{value}\r\n", value.len())
    };
    let range = format!("*2\r\n{}{}", entry(1, &small), entry(2, &long));
    let turned = format!("*2\r\n{}{}", entry(2, &long), entry(1, &small));
    for step in [1, 7, 9999] {
        let bare = |bytes: &str| sifted_by(Sieve::of_range(1000).unwrap(), bytes, step);
        let named = |bytes: &str| sifted_by(Sieve::of_one_stream(1000).unwrap(), bytes, step);
        for found in [
            bare(&range),
            named(&format!("*1\r\n*2\r\n$1\r\nk\r\n{range}")),
            named(&format!("%1\r\n$1\r\nk\r\n{range}")),
        ] {
            let found = found.unwrap();
            assert_eq!((found.found, found.entries.len(), &found.info), (2, 1, &Ok(None)));
            assert_eq!(value(&found.entries[0]), small.as_bytes());
            assert_eq!(found.fitting(2 * 5000), 3);
        }
        let first = named(&format!("%1\r\n$1\r\nk\r\n{turned}")).unwrap();
        assert_eq!((first.found, first.entries.len()), (2, 0));
        let entries = first.into_entries();
        assert!(entries[0].fields.is_too_large());
        assert_eq!((entries.len(), entries[0].id), (1, EntryId::new(2, 0)));
        for nothing in ["*-1\r\n", "_\r\n", "*0\r\n", "%0\r\n"] {
            assert_eq!(named(nothing).unwrap().into_entries(), []);
        }
        assert_eq!(bare("*0\r\n").unwrap().into_entries(), []);
        for found in [bare("-NOPERM no\r\n"), named("-NOPERM no\r\n")] {
            assert!(matches!(found, Err(RedisError::Server(_))), "{found:?}");
        }
        assert!(matches!(named("*1\r\n:1\r\n"), Err(RedisError::Protocol(_))));
    }
}
