//! The lease of the instance id in Redis: at most one daemon holds it, on whatever host.
//!
//! The key contains the holder and expires. Taking, renewing and releasing the lease compare before they write, under
//! WATCH, so that no daemon overwrites another's lease unseen. A daemon takes the lease at once if there is none, if
//! the lease is its own, or if the holder is known to be dead ([`Identity::is_dead`]); otherwise the lease has to
//! expire.

use std::time::{Duration, Instant};

use ::redis::{Cmd, SetExpiry, SetOptions};

use super::identity::Identity;
use crate::redis::{Keys, Link, RedisError};

/// How long a lease lasts after its holder is gone, as the contract states.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How often the lease is renewed: two renewals may fail before it expires.
const RENEWAL: Duration = Duration::from_millis(1500);
/// How often another daemon's lease is checked.
const LOOK: Duration = Duration::from_millis(200);
/// If another daemon's lease is still there after this time, it was renewed, so its holder is alive.
const PATIENCE: Duration = Duration::from_millis(6500);

/// The state of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Redis could not be asked yet, or the lease was not renewed for so long that another daemon may have taken it.
    Unknown,
    /// The lease is ours since `renewed_at` at the latest.
    Held { renewed_at: Instant },
    /// Another daemon holds the lease and may be dead.
    Foreign { since: Instant },
    /// A live daemon holds the lease. This state is final.
    Taken { holder: String },
}

/// The lease as this process sees it.
#[derive(Debug)]
pub(super) struct Lease {
    value: String,
    standing: Standing,
    next_at: Instant,
}

/// The holder that a round trip found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Ours,
    Foreign(String),
    /// The key changed during the check.
    Raced,
}

impl Lease {
    pub(super) fn new(identity: &Identity, now: Instant) -> Self {
        Self { value: identity.lease(), standing: Standing::Unknown, next_at: now }
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.standing, Standing::Held { .. })
    }

    /// When the lease is due to be checked again.
    pub(super) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// Postpones the next check to `at`.
    pub(super) const fn rest_until(&mut self, at: Instant) {
        self.next_at = at;
    }

    /// The key holds something that is not a lease, so nobody can take it. A lease that is ours remains ours. The
    /// next check is at `next_at`.
    pub(super) fn refused(&mut self, asked_at: Instant, next_at: Instant) {
        if let Standing::Held { renewed_at } = &mut self.standing {
            *renewed_at = asked_at;
        }
        self.next_at = next_at;
    }

    /// Accounts for time without Redis: a lease that was not renewed in time may belong to another daemon.
    pub(super) fn age(&mut self, now: Instant) {
        if let Standing::Held { renewed_at } = self.standing
            && now.duration_since(renewed_at) >= LEASE
        {
            self.standing = Standing::Unknown;
            self.next_at = now;
        }
    }

    /// Takes or renews the lease.
    ///
    /// # Errors
    /// If Redis could not be asked.
    pub(super) fn settle(
        &mut self,
        link: &mut Link,
        keys: &Keys,
        identity: &Identity,
    ) -> Result<(), RedisError> {
        let asked_at = Instant::now();
        let found = take(link, keys, &self.value, |holder| identity.is_dead(holder))?;
        self.learn(found, asked_at);
        Ok(())
    }

    fn learn(&mut self, found: Found, asked_at: Instant) {
        (self.standing, self.next_at) = match (found, &self.standing) {
            (Found::Ours, _) => (Standing::Held { renewed_at: asked_at }, asked_at + RENEWAL),
            (Found::Raced, standing) => (standing.clone(), asked_at + LOOK),
            (Found::Foreign(holder), Standing::Held { .. }) => (Standing::Taken { holder }, asked_at),
            (Found::Foreign(holder), Standing::Foreign { since })
                if asked_at.duration_since(*since) >= PATIENCE =>
            {
                (Standing::Taken { holder }, asked_at)
            }
            (Found::Foreign(_), standing @ Standing::Foreign { .. }) => (standing.clone(), asked_at + LOOK),
            (Found::Foreign(_), _) => (Standing::Foreign { since: asked_at }, asked_at + LOOK),
        };
    }

    /// Releases the lease if it is ours.
    ///
    /// # Errors
    /// If Redis could not be asked; the lease then expires.
    pub(super) fn release(&mut self, link: &mut Link, keys: &Keys) -> Result<(), RedisError> {
        if self.is_held() {
            self.standing = Standing::Unknown;
            let give_back = Cmd::del(keys.lease());
            exchange(link, keys, &give_back, |holder| holder == Some(self.value.as_bytes()))?;
        }
        Ok(())
    }
}

fn take(
    link: &mut Link,
    keys: &Keys,
    value: &str,
    is_dead: impl Fn(&str) -> bool,
) -> Result<Found, RedisError> {
    let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let options = SetOptions::default().with_expiration(SetExpiry::PX(lease_ms));
    let set = Cmd::set_options(keys.lease(), value, options);
    let may_take = |holder: Option<&[u8]>| match holder {
        None => true,
        Some(holder) => holder == value.as_bytes() || std::str::from_utf8(holder).is_ok_and(&is_dead),
    };
    exchange(link, keys, &set, may_take)
}

/// Runs `command` if `allowed` accepts the present holder and nobody changes the lease meanwhile.
fn exchange(
    link: &mut Link,
    keys: &Keys,
    command: &Cmd,
    allowed: impl Fn(Option<&[u8]>) -> bool,
) -> Result<Found, RedisError> {
    let holder = link.watch(&keys.lease())?;
    if !allowed(holder.as_deref()) {
        link.unwatch()?;
        let holder = holder.unwrap_or_default();
        return Ok(Found::Foreign(String::from_utf8_lossy(&holder).into_owned()));
    }
    Ok(if link.execute(command)? { Found::Ours } else { Found::Raced })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::testing::RedisServer;

    const DEAD: fn(&str) -> bool = |_| true;
    const UNKNOWN: fn(&str) -> bool = |_| false;

    #[test]
    fn a_lease_is_taken_kept_and_given_back() {
        let server = RedisServer::start(&[]);
        let (mut link, keys) = (server.link(), Keys::new("llm", "s", "i"));
        assert_eq!(take(&mut link, &keys, "mine", UNKNOWN).unwrap(), Found::Ours);
        assert_eq!(take(&mut link, &keys, "mine", UNKNOWN).unwrap(), Found::Ours);
        assert_eq!(take(&mut link, &keys, "yours", UNKNOWN).unwrap(), Found::Foreign("mine".into()));
        assert_eq!(take(&mut link, &keys, "yours", DEAD).unwrap(), Found::Ours);
        let now = Instant::now();
        let held = Standing::Held { renewed_at: now };
        let mut lease = Lease { value: "mine".into(), standing: held.clone(), next_at: now };
        lease.release(&mut link, &keys).unwrap();
        let get = Cmd::get(keys.lease());
        let left: Option<String> = link.query(&get).unwrap();
        assert_eq!(left.as_deref(), Some("yours"), "somebody else's is not given back");
        lease = Lease { value: "yours".into(), standing: held, next_at: now };
        lease.release(&mut link, &keys).unwrap();
        assert_eq!(link.query::<Option<String>>(&get).unwrap(), None);
    }

    #[test]
    fn an_overtaken_instance_writes_nothing() {
        let server = RedisServer::start(&[]);
        let (mut link, mut other, keys) = (server.link(), server.link(), Keys::new("llm", "s", "i"));
        let lease = keys.lease();
        let set = Cmd::set(&lease, "mine");
        let other = std::cell::RefCell::new(&mut other);
        let overtaken = exchange(&mut link, &keys, &set, |_| {
            other.borrow_mut().call(&Cmd::set(&lease, "yours")).unwrap();
            true
        });
        assert_eq!(overtaken.unwrap(), Found::Raced);
        assert_eq!(link.query::<String>(&Cmd::get(&lease)).unwrap(), "yours");
    }

    #[test]
    fn a_foreign_lease_has_to_run_out() {
        let start = Instant::now();
        let mut lease = Lease { value: "mine".into(), standing: Standing::Unknown, next_at: start };
        let foreign = || Found::Foreign("yours".into());
        lease.learn(foreign(), start);
        assert_eq!(lease.standing, Standing::Foreign { since: start });
        lease.learn(foreign(), start + LEASE);
        assert_eq!(lease.standing, Standing::Foreign { since: start });
        lease.learn(Found::Raced, start + LEASE);
        lease.learn(foreign(), start + PATIENCE);
        assert_eq!(lease.standing, Standing::Taken { holder: "yours".into() });
        // A lease that expires can be taken.
        lease.standing = Standing::Foreign { since: start };
        lease.learn(Found::Ours, start + LEASE);
        assert!(lease.is_held());
        assert_eq!(lease.next_at(), start + LEASE + RENEWAL);
    }

    #[test]
    fn a_key_that_is_no_lease_takes_nothing_from_its_holder() {
        let start = Instant::now();
        let mut lease =
            Lease { value: "mine".into(), standing: Standing::Held { renewed_at: start }, next_at: start };
        let asked_at = start + LEASE - Duration::from_millis(1);
        lease.refused(asked_at, asked_at + LOOK);
        lease.age(asked_at + RENEWAL);
        assert!(lease.is_held());
        lease.age(asked_at + LEASE);
        assert!(!lease.is_held(), "it has to be asked for in time all the same");
        lease.refused(asked_at, asked_at);
        assert!(!lease.is_held(), "and what was not held is not held by that");
    }

    #[test]
    fn a_lease_that_is_not_renewed_is_lost() {
        let start = Instant::now();
        let standing = Standing::Held { renewed_at: start };
        let mut lease = Lease { value: "mine".into(), standing, next_at: start };
        lease.age(start + LEASE - Duration::from_millis(1));
        assert!(lease.is_held());
        lease.learn(Found::Foreign("yours".into()), start + RENEWAL);
        assert!(matches!(lease.standing, Standing::Taken { .. }), "it was taken from a living holder");
        lease.standing = Standing::Held { renewed_at: start };
        lease.age(start + LEASE);
        assert_eq!(lease.standing, Standing::Unknown);
        // Then another daemon may have taken it legitimately, and has to be waited for.
        lease.learn(Found::Foreign("yours".into()), start + LEASE);
        assert!(matches!(lease.standing, Standing::Foreign { .. }));
    }
}
