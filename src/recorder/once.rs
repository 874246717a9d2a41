//! Writes a thing once, however many instances try to.
//!
//! An instance *claims* a marker for a few seconds before it writes the thing, and *keeps* the marker for a long time
//! afterwards. If the instance dies before it writes, its claim expires and another instance writes, so nothing is
//! lost; if it dies between writing and keeping, the thing is written twice. An instance that finds another's claim
//! checks later what became of it. Each step touches one key per thing, and needs no transaction.

use std::time::Duration;

use ::redis::{Cmd, ExistenceCheck, SetExpiry, SetOptions};

use crate::redis::{Link, RedisError, Reply, ServerError, ServerErrorKind};

use super::millis;

/// How long a claim lasts.
pub(super) const CLAIMED: Duration = Duration::from_secs(10);
/// The value of a marker whose thing is written.
const WRITTEN: &str = "written";

/// The result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// This instance has to write the thing.
    Ours,
    /// The thing is written.
    Written,
    /// Another instance is writing the thing, or died before it did.
    Others,
}

/// Claims things by the names of their markers; `me` names this process.
///
/// # Errors
/// If Redis does not reply or refuses: things that were claimed meanwhile stay claimed until the claim expires, and
/// this process can claim them again.
pub(super) fn claim(link: &mut Link, markers: &[String], me: &str) -> Result<Vec<Claim>, RedisError> {
    let mut commands = Vec::with_capacity(markers.len() * 2);
    for marker in markers {
        let if_free = expiring(CLAIMED).conditional_set(ExistenceCheck::NX);
        commands.push(Cmd::set_options(marker, me, if_free));
        commands.push(Cmd::get(marker));
    }
    let replies = link.call_all(&commands)?;
    // A key of another type shows nothing, and is overwritten when the thing is written.
    let is_foreign = |error: &ServerError| error.kind() == ServerErrorKind::WrongType;
    if let Some(error) = replies.iter().filter_map(Reply::error).find(|error| !is_foreign(error)) {
        return Err(RedisError::Server(error));
    }
    let found = |pair: &[Reply]| -> Result<Claim, RedisError> {
        let holder = &pair[1];
        if holder.error().is_some() {
            return Ok(Claim::Ours);
        }
        if holder.is_null() {
            // The claim expired between the two commands.
            return Ok(Claim::Others);
        }
        let holder = holder.bytes()?;
        Ok(match &holder[..] {
            holder if holder == me.as_bytes() => Claim::Ours,
            holder if holder == WRITTEN.as_bytes() => Claim::Written,
            _ => Claim::Others,
        })
    };
    replies.chunks_exact(2).map(found).collect()
}

/// Marks things as written, for as long as `kept`.
///
/// # Errors
/// If Redis does not reply or refuses.
pub(super) fn keep<'a>(
    link: &mut Link,
    markers: impl Iterator<Item = &'a String>,
    kept: Duration,
) -> Result<(), RedisError> {
    let set = |marker| Cmd::set_options(marker, WRITTEN, expiring(kept));
    link.query_all::<()>(markers.map(set)).map(drop)
}

/// The options of a SET that expires.
pub(super) fn expiring(after: Duration) -> SetOptions {
    SetOptions::default().with_expiration(SetExpiry::PX(millis(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    #[test]
    fn one_claims_others_wait_and_all_learn_that_it_is_written() {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let markers = ["a".to_owned(), "b".to_owned()];
        assert_eq!(claim(&mut link, &markers[..1], "i1").unwrap(), [Claim::Ours]);
        assert_eq!(claim(&mut link, &markers, "i2").unwrap(), [Claim::Others, Claim::Ours]);
        assert_eq!(claim(&mut link, &markers, "i1").unwrap(), [Claim::Ours, Claim::Others], "again");
        keep(&mut link, markers[..1].iter(), Duration::from_secs(60)).unwrap();
        assert_eq!(claim(&mut link, &markers, "i2").unwrap(), [Claim::Written, Claim::Ours]);
        // A foreign value under the marker does not prevent writing, and is overwritten.
        link.call(&Cmd::lpush("c", "x")).unwrap();
        let foreign = ["c".to_owned()];
        assert_eq!(claim(&mut link, &foreign, "i1").unwrap(), [Claim::Ours]);
        keep(&mut link, foreign.iter(), Duration::from_secs(60)).unwrap();
        assert_eq!(claim(&mut link, &foreign, "i2").unwrap(), [Claim::Written]);
        let ttl = |link: &mut Link, key: &str| link.query::<i64>(&Cmd::pttl(key)).unwrap();
        assert!(ttl(&mut link, "a") > 10_000 && (1..=10_000).contains(&ttl(&mut link, "b")));
    }
}
