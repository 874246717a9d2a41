//! Whether the daemon is well: what each thread that uses Redis last found, the lease of the instance
//! id, and whether the daemon is going down.
//!
//! It is written when something changes and read by health checks, so a mutex is enough.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

/// The lease of the instance id in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// Redis could not be asked yet.
    #[default]
    Unsettled,
    /// This daemon holds it.
    Held,
    /// It ran out, or somebody else has it.
    Lost,
}

/// What the threads say about themselves.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    redis: BTreeMap<String, Link>,
    lease: Lease,
    is_draining: bool,
    is_first_attempt_over: bool,
}

#[derive(Debug)]
struct Link {
    is_up: bool,
    detail: String,
    since: Instant,
}

/// What a role last found about Redis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkReport {
    /// Whether Redis answered.
    pub up: bool,
    /// The error, or what else there is to say.
    pub detail: String,
    /// For how many seconds it has been so.
    pub since_s: f64,
}

impl Health {
    /// Says what `role` (the thread's name, or what it uses Redis for) found: Redis answers or not,
    /// and why. The first such report ends the first attempt, well or not.
    pub fn set_redis(&self, role: &str, up: bool, detail: &str) {
        let mut state = self.state.lock();
        state.is_first_attempt_over = true;
        match state.redis.get_mut(role) {
            Some(link) if link.is_up == up && link.detail == detail => {}
            Some(link) => {
                if link.is_up != up {
                    link.since = Instant::now();
                }
                link.is_up = up;
                detail.clone_into(&mut link.detail);
            }
            None => {
                let link = Link { is_up: up, detail: detail.to_owned(), since: Instant::now() };
                state.redis.insert(role.to_owned(), link);
            }
        }
    }

    /// Whether `role` found Redis away when it last asked.
    #[must_use]
    pub fn is_down(&self, role: &str) -> bool {
        self.state.lock().redis.get(role).is_some_and(|link| !link.is_up)
    }

    /// Forgets a role, whose thread is over.
    pub fn remove_redis(&self, role: &str) {
        self.state.lock().redis.remove(role);
    }

    /// Says that the daemon is going down; there is no way back.
    pub fn set_draining(&self) {
        self.state.lock().is_draining = true;
    }

    /// Whether the daemon is going down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.lock().is_draining
    }

    /// Says how it stands with the lease.
    pub fn set_lease(&self, lease: Lease) {
        self.state.lock().lease = lease;
    }

    /// How it stands with the lease.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.state.lock().lease
    }

    /// Says that the first attempt at Redis is over, successful or not.
    pub fn set_first_attempt_over(&self) {
        self.state.lock().is_first_attempt_over = true;
    }

    /// Whether the first attempt at Redis is over.
    #[must_use]
    pub fn is_first_attempt_over(&self) -> bool {
        self.state.lock().is_first_attempt_over
    }

    /// Whether clients should be sent here.
    ///
    /// # Errors
    /// What is not well, one short sentence each.
    pub fn is_ready(&self) -> Result<(), Vec<String>> {
        let state = self.state.lock();
        let mut reasons = Vec::new();
        if state.is_draining {
            reasons.push("this instance is draining".to_owned());
        }
        if state.redis.is_empty() {
            reasons.push("Redis has not been asked yet".to_owned());
        }
        for (role, link) in state.redis.iter().filter(|(_, link)| !link.is_up) {
            reasons.push(format!("Redis does not answer {role}: {}", link.detail));
        }
        match state.lease {
            Lease::Held => {}
            Lease::Unsettled => reasons.push("the instance id is not leased yet".to_owned()),
            Lease::Lost => reasons.push("the lease of the instance id is lost".to_owned()),
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// What every role last found about Redis.
    #[must_use]
    pub fn redis(&self) -> BTreeMap<String, LinkReport> {
        let state = self.state.lock();
        let report = |link: &Link| LinkReport {
            up: link.is_up,
            detail: link.detail.clone(),
            since_s: super::seconds(link.since.elapsed()),
        };
        state.redis.iter().map(|(role, link)| (role.clone(), report(link))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_every_role_the_lease_and_no_draining() {
        let health = Health::default();
        assert!(!health.is_first_attempt_over());
        assert_eq!(health.is_ready().unwrap_err().len(), 2, "not asked, not leased");
        health.set_redis("reader-0", true, "");
        health.set_redis("watcher", false, "connection refused");
        health.set_lease(Lease::Held);
        assert!(health.is_first_attempt_over());
        assert!(health.is_down("watcher") && !health.is_down("reader-0") && !health.is_down("nobody"));
        assert_eq!(health.is_ready().unwrap_err(), ["Redis does not answer watcher: connection refused"]);
        health.set_redis("watcher", true, "");
        assert_eq!(health.is_ready(), Ok(()));
        health.set_lease(Lease::Lost);
        health.set_draining();
        assert_eq!(
            health.is_ready().unwrap_err(),
            ["this instance is draining", "the lease of the instance id is lost"]
        );
        assert!(health.is_draining());
    }

    #[test]
    fn the_time_of_a_state_begins_when_the_state_does() {
        let health = Health::default();
        health.set_redis("reader-0", false, "timed out");
        let since = health.state.lock().redis["reader-0"].since;
        health.set_redis("reader-0", false, "connection refused");
        assert_eq!(health.state.lock().redis["reader-0"].since, since);
        assert_eq!(health.redis()["reader-0"].detail, "connection refused");
        health.set_redis("reader-0", true, "");
        assert!(health.state.lock().redis["reader-0"].since > since);
        health.remove_redis("reader-0");
        assert!(health.redis().is_empty());
    }
}
