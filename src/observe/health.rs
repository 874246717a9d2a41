//! The health of the daemon: the state in which each thread last found Redis, the lease of the instance id, and
//! whether the daemon is shutting down.
//!
//! It is written on changes and read by health checks, so a mutex suffices.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

/// The lease of the instance id in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// Redis could not be reached yet.
    #[default]
    Unsettled,
    /// This daemon holds it.
    Held,
    /// It expired, or another daemon holds it.
    Lost,
}

/// The health of the process, as its threads report it.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    redis: BTreeMap<String, Link>,
    lease: Lease,
    /// Why the lease cannot be acquired; empty if no reason is known.
    lease_trouble: String,
    is_draining: bool,
    is_first_attempt_over: bool,
    /// The names of threads that hang.
    stuck: Vec<String>,
}

#[derive(Debug)]
struct Link {
    /// The problem as a message that clients may see; `None`: Redis works.
    wrong: Option<&'static str>,
    /// The error.
    detail: String,
    since: Instant,
}

/// The state in which a role last found Redis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkReport {
    /// Whether Redis works.
    pub up: bool,
    /// The error if there is one, or what Redis refuses of the role's work.
    pub detail: String,
    /// For how many seconds this state has lasted.
    pub since_s: f64,
}

impl State {
    /// The problems with Redis: each once, with the roles that have found it.
    fn redis_reasons(&self) -> Vec<String> {
        let mut found: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (role, link) in &self.redis {
            if let Some(what) = link.wrong {
                found.entry((what, &link.detail)).or_default().push(role);
            }
        }
        let reason = |((what, detail), roles): ((&str, &str), Vec<&str>)| {
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            format!("{what}{detail} ({})", roles.join(", "))
        };
        found.into_iter().map(reason).collect()
    }
}

impl Health {
    /// Records that `role` (the thread's name, or its use of Redis) has found Redis working. The first such report,
    /// or the first failure, ends the first attempt.
    pub fn redis_works(&self, role: &str) {
        self.set_redis(role, None, "");
    }

    /// Records that `role` has found Redis working except for the problem in `detail`, which concerns only some of
    /// its work and does not make the instance unready.
    pub fn redis_works_but(&self, role: &str, detail: &str) {
        self.set_redis(role, None, detail);
    }

    /// Records that `role` has failed: `what` is the problem in general, `detail` the error.
    pub fn redis_fails(&self, role: &str, what: &'static str, detail: &str) {
        self.set_redis(role, Some(what), detail);
    }

    fn set_redis(&self, role: &str, wrong: Option<&'static str>, detail: &str) {
        let mut state = self.state.lock();
        state.is_first_attempt_over = true;
        match state.redis.get_mut(role) {
            Some(link) => {
                if link.wrong.is_some() != wrong.is_some() {
                    link.since = Instant::now();
                }
                link.wrong = wrong;
                if link.detail != detail {
                    detail.clone_into(&mut link.detail);
                }
            }
            None => {
                let link = Link { wrong, detail: detail.to_owned(), since: Instant::now() };
                state.redis.insert(role.to_owned(), link);
            }
        }
    }

    /// A problem with Redis that a role has found, as a message that clients may see.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        self.state.lock().redis.values().find_map(|link| link.wrong)
    }

    /// Whether `role` found Redis down when it last tried.
    #[must_use]
    pub fn is_down(&self, role: &str) -> bool {
        self.state.lock().redis.get(role).is_some_and(|link| link.wrong.is_some())
    }

    /// Whether `role` found Redis down, or refusing some of its work, when it last tried.
    #[must_use]
    pub fn is_hindered(&self, role: &str) -> bool {
        let state = self.state.lock();
        state.redis.get(role).is_some_and(|link| link.wrong.is_some() || !link.detail.is_empty())
    }

    /// Removes a role whose thread has ended.
    pub fn remove_redis(&self, role: &str) {
        self.state.lock().redis.remove(role);
    }

    /// Records that the daemon is shutting down, which is final.
    pub fn set_draining(&self) {
        self.state.lock().is_draining = true;
    }

    /// Whether the daemon is shutting down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.lock().is_draining
    }

    /// Records which threads hang.
    pub fn set_stuck(&self, threads: Vec<String>) {
        self.state.lock().stuck = threads;
    }

    /// Records the state of the lease.
    pub fn set_lease(&self, lease: Lease) {
        self.state.lock().lease = lease;
    }

    /// Records why the lease cannot be acquired; empty if it can.
    pub fn set_lease_trouble(&self, why: &str) {
        let mut state = self.state.lock();
        if state.lease_trouble != why {
            why.clone_into(&mut state.lease_trouble);
        }
    }

    /// The state of the lease.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.state.lock().lease
    }

    /// Records that the first attempt at Redis is complete, successful or not.
    pub fn set_first_attempt_over(&self) {
        self.state.lock().is_first_attempt_over = true;
    }

    /// Whether the first attempt at Redis is complete.
    #[must_use]
    pub fn is_first_attempt_over(&self) -> bool {
        self.state.lock().is_first_attempt_over
    }

    /// Whether this instance should get clients.
    ///
    /// # Errors
    /// The reasons why not, one short sentence each.
    pub fn is_ready(&self) -> Result<(), Vec<String>> {
        let state = self.state.lock();
        let mut reasons = Vec::new();
        if state.is_draining {
            reasons.push("this instance is draining".to_owned());
        }
        if state.redis.is_empty() {
            reasons.push("Redis has not been asked yet".to_owned());
        }
        reasons.extend(state.redis_reasons());
        reasons.extend(state.stuck.iter().map(|thread| format!("thread {thread} hangs")));
        match state.lease {
            Lease::Held => {}
            Lease::Unsettled if state.lease_trouble.is_empty() => {
                reasons.push("the instance id is not leased yet".to_owned());
            }
            Lease::Unsettled => {
                reasons.push(format!("the instance id is not leased: {}", state.lease_trouble));
            }
            Lease::Lost => reasons.push("the lease of the instance id is lost".to_owned()),
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// The state in which each role last found Redis.
    #[must_use]
    pub fn redis(&self) -> BTreeMap<String, LinkReport> {
        let state = self.state.lock();
        let report = |link: &Link| LinkReport {
            up: link.wrong.is_none(),
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
        health.redis_works("reader-0");
        health.redis_fails("watcher", "Redis cannot be reached", "refused");
        health.redis_fails("replay-0", "Redis cannot be reached", "refused");
        health.set_lease(Lease::Held);
        assert!(health.is_first_attempt_over());
        assert!(health.is_down("watcher") && !health.is_down("reader-0") && !health.is_down("nobody"));
        assert_eq!(health.is_ready().unwrap_err(), ["Redis cannot be reached: refused (replay-0, watcher)"]);
        assert_eq!(health.trouble(), Some("Redis cannot be reached"));
        assert!(health.is_hindered("watcher") && !health.is_hindered("reader-0"));
        health.redis_works_but("watcher", "something is refused");
        assert!(health.is_hindered("watcher") && !health.is_down("watcher"));
        health.redis_works("watcher");
        health.redis_works("replay-0");
        assert_eq!(health.trouble(), None);
        assert_eq!(health.is_ready(), Ok(()));
        health.set_lease(Lease::Unsettled);
        health.set_lease_trouble("llm:instance:s:i: WRONGTYPE");
        assert_eq!(
            health.is_ready().unwrap_err(),
            ["the instance id is not leased: llm:instance:s:i: WRONGTYPE"]
        );
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
        health.redis_fails("reader-0", "Redis does not answer in time", "");
        let since = health.state.lock().redis["reader-0"].since;
        health.redis_fails("reader-0", "Redis cannot be reached", "connection refused");
        assert_eq!(health.state.lock().redis["reader-0"].since, since);
        assert_eq!(health.redis()["reader-0"].detail, "connection refused");
        health.redis_works("reader-0");
        assert!(health.state.lock().redis["reader-0"].since > since);
        health.remove_redis("reader-0");
        assert!(health.redis().is_empty());
    }
}
