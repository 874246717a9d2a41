//! stub
#![allow(missing_docs, reason = "stub")]
use crate::{config::Config, event::message::*, observe::Registry, queue, redis::*, stop::Stop};
use std::sync::{Arc, atomic::AtomicBool};
pub const ERRANDS: mio::Token = mio::Token(1);
#[derive(Clone)]
pub struct Identity;
#[derive(Debug, thiserror::Error)]
#[error("already running")]
pub struct AlreadyRunning;
impl Identity {
    pub fn claim(_: &Config) -> Result<Self, AlreadyRunning> {
        Ok(Self)
    }
}
#[derive(Clone)]
pub struct Fatal;
impl Fatal {
    pub fn new(_: Arc<mio::Waker>) -> Self {
        Self
    }
    pub fn take(&self) -> Option<String> {
        None
    }
}
pub struct WatcherParts {
    pub push: Connector,
    pub link: Connector,
    pub keys: Arc<Keys>,
    pub poll: mio::Poll,
    pub errands: queue::Receiver<Errand>,
    pub deliveries: Vec<queue::Sender<ToDelivery>>,
    pub clock: Arc<RedisClock>,
    pub leased: Arc<AtomicBool>,
    pub identity: Identity,
    pub dlq_max_entries: u64,
    pub fatal: Fatal,
    pub registry: Arc<Registry>,
    pub stop: Stop,
}
pub struct Watcher(WatcherParts);
impl Watcher {
    pub fn new(p: WatcherParts) -> Self {
        Self(p)
    }
    pub fn run(mut self) {
        self.0.leased.store(true, std::sync::atomic::Ordering::Release);
        self.0.registry.health().set_lease(crate::observe::Lease::Held);
        let mut waits = Vec::new();
        while !self.0.stop.requested() {
            std::thread::sleep(std::time::Duration::from_millis(5));
            while let Some(e) = self.0.errands.try_recv() {
                if let Errand::Wait { stream, delivery } = e {
                    waits.push((stream, delivery));
                }
            }
            let keys = self.0.keys.clone();
            let d = &self.0.deliveries;
            if let Some(l) = self.0.link.link(std::time::Instant::now()) {
                waits.retain(|(s, k)| {
                    let there = l
                        .call(&Command::new("EXISTS").arg(keys.stream(s)))
                        .ok()
                        .and_then(|r| r.integer().ok())
                        == Some(1);
                    if there {
                        let _ = d[*k].try_send(ToDelivery::Appeared(s.clone()));
                    }
                    !there
                });
            }
        }
    }
}
