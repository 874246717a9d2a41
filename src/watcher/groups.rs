//! Consumer groups of instances that are gone: an instance that restarts removes the groups of its former process,
//! and all instances check from time to time whether another one is gone for good.
//!
//! An instance is gone for good if its lease was missing at two checks. An instance that was only cut off from Redis
//! loses nothing: its readers find their groups missing and create them again at their known positions.

use std::collections::HashSet;

use ::redis::{Cmd, cmd};

use crate::info_limited;
use crate::model::StreamName;
use crate::redis::{Keys, Link, RedisError, Value};

/// About how many members of a set one round trip returns. Others can write to the sets, so the size of a set has no
/// bound.
const MEMBERS_PER_TRIP: u32 = 256;
/// How many instances without a lease are remembered until the next check; later checks find more.
const MISSING_MAX: usize = 4096;
/// The highest possible number of readers of an instance, each with a wake stream.
const READERS_MAX: usize = 64;

/// Enters the instance in the set of instances, so that others clean up after it when it is gone.
///
/// # Errors
/// When Redis could not be asked.
pub(super) fn enrol(link: &mut Link, keys: &Keys) -> Result<(), RedisError> {
    link.query::<()>(&Cmd::sadd(keys.instances(), keys.instance()))
}

/// Removes all groups and wake streams of an instance that does not run. Returns how many groups there were.
///
/// # Errors
/// When Redis could not be asked.
pub(super) fn clean(link: &mut Link, keys: &Keys) -> Result<usize, RedisError> {
    let mut found = 0;
    let mut scan = Scan::of(keys.groups());
    while let Some(members) = scan.next(link)? {
        let streams: Vec<StreamName> = members.iter().filter_map(|name| name.parse().ok()).collect();
        let destroy = |stream: &StreamName| Cmd::xgroup_destroy(keys.stream(stream), keys.group());
        // A stream that is gone has no group left, and Redis replies with an error.
        link.call_all(streams.iter().map(destroy))?;
        found += streams.len();
    }
    let wakes: Vec<String> = (0..READERS_MAX).map(|reader| keys.wake(reader)).collect();
    link.query::<()>(cmd("DEL").arg(keys.groups()).arg(wakes))?;
    Ok(found)
}

/// Checks other instances.
#[derive(Debug, Default)]
pub(super) struct Janitor {
    /// Those whose lease was missing at the last check.
    missing: HashSet<String>,
}

impl Janitor {
    /// Cleans up after instances whose lease was missing twice. Returns how many groups were removed.
    ///
    /// # Errors
    /// When Redis could not be asked.
    pub(super) fn look(&mut self, link: &mut Link, keys: &Keys) -> Result<usize, RedisError> {
        // Redis may have lost its data since the instance was enrolled.
        enrol(link, keys)?;
        let (mut missing, mut gone) = (HashSet::new(), Vec::new());
        let mut scan = Scan::of(keys.instances());
        while let Some(mut others) = scan.next(link)? {
            others.retain(|other| other != keys.instance());
            let exists = |other: &String| Cmd::exists(keys.of_instance(other).lease());
            let have_lease: Vec<bool> = link.query_all(others.iter().map(exists))?;
            for (other, has_lease) in others.into_iter().zip(have_lease) {
                if has_lease {
                    continue;
                }
                if self.missing.remove(&other) {
                    gone.push(other);
                } else if missing.len() < MISSING_MAX {
                    missing.insert(other);
                }
            }
        }
        let mut removed = 0;
        for other in gone {
            // A scan may return a member twice.
            missing.remove(&other);
            let groups = clean(link, &keys.of_instance(&other))?;
            link.query::<()>(&Cmd::srem(keys.instances(), &other))?;
            info_limited!(instance = other, groups, "cleaned up after an instance that is gone");
            removed += groups;
        }
        self.missing = missing;
        Ok(removed)
    }
}

/// The members of a set, in portions. Skips members that are not text or too long to be a name.
struct Scan {
    key: String,
    /// The position of the next portion; `None`: there is none.
    cursor: Option<Vec<u8>>,
}

impl Scan {
    fn of(key: String) -> Self {
        Self { key, cursor: Some(b"0".to_vec()) }
    }

    /// The next portion; it may repeat members of an earlier one.
    fn next(&mut self, link: &mut Link) -> Result<Option<Vec<String>>, RedisError> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let mut scan = cmd("SSCAN");
        scan.arg(&self.key).arg(cursor).arg("COUNT").arg(MEMBERS_PER_TRIP);
        let portion = link.call_short(&scan)?.value()?;
        let Some([next, members]) = portion.as_array() else { return Err(NO_PORTION) };
        let (Some(next), Some(members)) = (next.as_bytes(), members.as_array()) else {
            return Err(NO_PORTION);
        };
        self.cursor = (next != b"0").then(|| next.to_vec());
        Ok(Some(members.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect()))
    }
}

const NO_PORTION: RedisError = RedisError::Protocol(std::borrow::Cow::Borrowed("not a portion of a set"));

#[cfg(test)]
mod tests {
    use ::redis::streams::StreamInfoGroupsReply;

    use super::*;
    use crate::redis::testing::RedisServer;

    /// A stream with a group of each of the two instances.
    fn world() -> (RedisServer, Link, Keys, Keys) {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let (ours, theirs) = (Keys::new("llm", "s", "ours"), Keys::new("llm", "s", "theirs"));
        let stream: StreamName = "a/m".parse().unwrap();
        for keys in [&ours, &theirs] {
            link.call(&Cmd::xgroup_create_mkstream(keys.stream(&stream), keys.group(), "0")).unwrap();
            link.call(&Cmd::sadd(keys.groups(), &["a/m", "gone/m", "no name"])).unwrap();
            enrol(&mut link, keys).unwrap();
        }
        (server, link, ours, theirs)
    }

    fn groups(link: &mut Link) -> usize {
        let found: StreamInfoGroupsReply = link.query(&Cmd::xinfo_groups("llm:stream:a:m")).unwrap();
        found.groups.len()
    }

    #[test]
    fn an_instance_is_enrolled_again_after_redis_has_lost_its_data() {
        let (_server, mut link, ours, _) = world();
        link.call(&Cmd::flushall()).unwrap();
        assert_eq!(Janitor::default().look(&mut link, &ours).unwrap(), 0);
        let enrolled = Cmd::sismember(ours.instances(), ours.instance());
        assert!(link.query::<bool>(&enrolled).unwrap());
    }

    #[test]
    fn an_instance_removes_what_its_former_self_left() {
        let (_server, mut link, ours, _) = world();
        assert_eq!(clean(&mut link, &ours).unwrap(), 2);
        assert_eq!(groups(&mut link), 1);
        assert_eq!(clean(&mut link, &ours).unwrap(), 0);
    }

    #[test]
    fn only_instances_that_are_gone_for_good_are_cleaned_up() {
        let (_server, mut link, ours, theirs) = world();
        let mut janitor = Janitor::default();
        let lease = Cmd::set(theirs.lease(), "theirs");
        link.call(&lease).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0);
        link.call(&Cmd::del(theirs.lease())).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "missing for the first time");
        link.call(&lease).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "it is back");
        link.call(&Cmd::del(theirs.lease())).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "missing for the first time again");
        assert_eq!(groups(&mut link), 2);
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 2);
        assert_eq!(groups(&mut link), 1, "ours stays");
        assert_eq!(all(&mut link, &ours.instances()), ["ours"]);
    }

    fn all(link: &mut Link, key: &str) -> Vec<String> {
        let (mut scan, mut members) = (Scan::of(key.to_owned()), Vec::new());
        while let Some(portion) = scan.next(link).unwrap() {
            assert!(portion.len() < 10 * MEMBERS_PER_TRIP as usize);
            members.extend(portion);
        }
        members
    }

    /// The sets are read in portions, without members that are too long to be a name.
    #[test]
    fn own_members_are_found_whatever_others_put_into_the_sets() {
        let (_server, mut link, ours, theirs) = world();
        for (key, ours) in [(theirs.groups(), "x/m"), (ours.instances(), "x")] {
            for huge in ["a", "b", "c"] {
                link.call(&Cmd::sadd(&key, huge.repeat(12 << 20))).unwrap();
            }
            let many: Vec<String> = (0..20_000).map(|n| format!("{ours}{n}")).collect();
            link.call(&Cmd::sadd(&key, many)).unwrap();
        }
        let found: HashSet<String> = all(&mut link, &theirs.groups()).into_iter().collect();
        assert_eq!(found.len(), 20_003, "three of them from the beginning");
        assert!(clean(&mut link, &theirs).unwrap() >= 20_002);
        assert_eq!(groups(&mut link), 1, "ours stays");
        let mut janitor = Janitor::default();
        for _ in 0..7 {
            janitor.look(&mut link, &ours).unwrap();
            assert!(janitor.missing.len() <= MISSING_MAX);
        }
        let left = link.query::<i64>(&Cmd::scard(ours.instances())).unwrap();
        assert!(left < 20_000, "{left}");
    }
}
