//! Consumer groups of those who died: an instance that comes back removes what its former self left, and all
//! instances look now and again whether another one is gone for good.
//!
//! An instance is gone for good when its lease was missing at two looks. One that was only cut off from Redis
//! meanwhile loses nothing: its readers find their groups missing and start them at their known positions.

use std::collections::HashSet;

use crate::event::StreamName;
use crate::info_limited;
use crate::redis::{Command, Keys, Link, RedisError, Reply};

/// Streams whose group is removed in one round trip.
const STREAMS_PER_TRIP: usize = 256;
/// Readers that an instance can have had, each with a wake stream.
const READERS_MAX: usize = 64;

/// Says that the instance exists, so that others clean up after it when it is gone.
///
/// # Errors
/// When Redis could not be asked.
pub(super) fn enrol(link: &mut Link, keys: &Keys) -> Result<(), RedisError> {
    link.call(&Command::new("SADD").arg(keys.instances()).arg(keys.instance())).map(drop)
}

/// Removes all groups and wake streams of an instance that does not run; how many groups there were.
///
/// # Errors
/// When Redis could not be asked.
pub(super) fn clean(link: &mut Link, keys: &Keys) -> Result<usize, RedisError> {
    let members = members(link, &keys.groups())?;
    let streams: Vec<StreamName> = members.iter().filter_map(|name| name.parse().ok()).collect();
    for some in streams.chunks(STREAMS_PER_TRIP) {
        let destroy = |stream: &StreamName| {
            Command::new("XGROUP").arg("DESTROY").arg(keys.stream(stream)).arg(keys.group())
        };
        // A stream that is gone has no group left, and says so by an error.
        link.call_all(&some.iter().map(destroy).collect::<Vec<_>>())?;
    }
    let wakes = (0..READERS_MAX).map(|reader| keys.wake(reader));
    link.call(&Command::new("DEL").arg(keys.groups()).args(wakes))?;
    Ok(streams.len())
}

/// Looks after other instances.
#[derive(Debug, Default)]
pub(super) struct Janitor {
    /// Those whose lease was missing at the last look.
    missing: HashSet<String>,
}

impl Janitor {
    /// Cleans up after instances whose lease was missing twice; how many groups were removed.
    ///
    /// # Errors
    /// When Redis could not be asked.
    pub(super) fn look(&mut self, link: &mut Link, keys: &Keys) -> Result<usize, RedisError> {
        let others: Vec<String> =
            members(link, &keys.instances())?.into_iter().filter(|other| other != keys.instance()).collect();
        let exists = |other: &String| Command::new("EXISTS").arg(keys.of_instance(other).lease());
        let leases = link.call_all(&others.iter().map(exists).collect::<Vec<_>>())?;
        let mut missing = HashSet::new();
        let mut removed = 0;
        for (other, lease) in others.into_iter().zip(leases) {
            if lease.integer()? != 0 {
                continue;
            }
            if !self.missing.remove(&other) {
                missing.insert(other);
                continue;
            }
            let groups = clean(link, &keys.of_instance(&other))?;
            link.call(&Command::new("SREM").arg(keys.instances()).arg(&other))?;
            info_limited!(instance = other, groups, "cleaned up after an instance that is gone");
            removed += groups;
        }
        self.missing = missing;
        Ok(removed)
    }
}

/// The members of a set; those that are no text are none of ours.
fn members(link: &mut Link, key: &str) -> Result<Vec<String>, RedisError> {
    let reply: Reply = link.call(&Command::new("SMEMBERS").arg(key))?;
    let value = reply.value()?;
    let members = value.as_array().unwrap_or_default();
    Ok(members.iter().filter_map(|member| member.as_str().map(ToOwned::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    /// A stream with a group of each of the two instances.
    fn world() -> (RedisServer, Link, Keys, Keys) {
        let server = RedisServer::start(&[]);
        let mut link = server.link();
        let (ours, theirs) = (Keys::new("llm", "s", "ours"), Keys::new("llm", "s", "theirs"));
        let stream: StreamName = "a/m".parse().unwrap();
        for keys in [&ours, &theirs] {
            let create = Command::new("XGROUP").args(["CREATE", &keys.stream(&stream), keys.group(), "0"]);
            link.call(&create.arg("MKSTREAM")).unwrap();
            link.call(&Command::new("SADD").args([&keys.groups(), "a/m", "gone/m", "no name"])).unwrap();
            enrol(&mut link, keys).unwrap();
        }
        (server, link, ours, theirs)
    }

    fn groups(link: &mut Link) -> usize {
        let reply = link.call(&Command::new("XINFO").args(["GROUPS", "llm:stream:a:m"])).unwrap();
        reply.value().unwrap().as_array().unwrap().len()
    }

    #[test]
    fn an_instance_removes_what_its_former_self_left() {
        let (_server, mut link, ours, _) = world();
        assert_eq!(clean(&mut link, &ours).unwrap(), 2);
        assert_eq!(groups(&mut link), 1);
        assert_eq!(clean(&mut link, &ours).unwrap(), 0);
    }

    #[test]
    fn only_who_is_gone_for_good_is_cleaned_up_after() {
        let (_server, mut link, ours, theirs) = world();
        let mut janitor = Janitor::default();
        let lease = Command::new("SET").args([&theirs.lease(), "theirs"]);
        link.call(&lease).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0);
        link.call(&Command::new("DEL").arg(theirs.lease())).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "missing for the first time");
        link.call(&lease).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "it is back");
        link.call(&Command::new("DEL").arg(theirs.lease())).unwrap();
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 0, "missing for the first time again");
        assert_eq!(groups(&mut link), 2);
        assert_eq!(janitor.look(&mut link, &ours).unwrap(), 2);
        assert_eq!(groups(&mut link), 1, "ours stays");
        assert_eq!(members(&mut link, &ours.instances()).unwrap(), ["ours"]);
    }
}
