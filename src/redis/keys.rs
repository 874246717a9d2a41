//! The names of all keys in Redis, in one place.

use crate::config;
use crate::model::{KeyPattern, StreamName};

/// Key names of one instance. All except the streams' keys, which have a pattern of their own, begin with the prefix,
/// so one ACL pattern covers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
    streams: KeyPattern,
    service: String,
    instance: String,
    group: String,
}

impl Keys {
    /// Names with `prefix` (`llm`) for the instance `instance` of the service `service`; the streams' keys have the
    /// prefix too.
    #[must_use]
    pub fn new(prefix: impl Into<String>, service: impl Into<String>, instance: impl Into<String>) -> Self {
        let (prefix, service, instance) = (prefix.into(), service.into(), instance.into());
        let (group, streams) =
            (format!("{prefix}:consumer:{service}:{instance}"), KeyPattern::of_prefix(&prefix));
        Self { prefix, streams, service, instance, group }
    }

    /// The names of an instance on the configured Redis.
    #[must_use]
    pub fn of(redis: &config::Redis, service: impl Into<String>, instance: impl Into<String>) -> Self {
        Self { streams: redis.stream_key.clone(), ..Self::new(&redis.prefix, service, instance) }
    }

    /// The prefix of every key except the streams', without the colon.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key of a stream.
    #[must_use]
    pub fn stream(&self, name: &StreamName) -> String {
        self.streams.key(name)
    }

    /// The pattern of the streams' keys.
    #[must_use]
    pub const fn streams(&self) -> &KeyPattern {
        &self.streams
    }

    /// The fixed beginning of every stream's key, such as `llm:stream:`.
    #[must_use]
    pub fn stream_prefix(&self) -> &str {
        self.streams.beginning()
    }

    /// The name of the stream with this key, if the key is a stream's.
    #[must_use]
    pub fn stream_name(&self, key: &[u8]) -> Option<StreamName> {
        self.streams.name(key)
    }

    /// The stream that announces new streams.
    #[must_use]
    pub fn announce(&self) -> String {
        format!("{}:announce", self.prefix)
    }

    /// The stream of requests to a producer.
    #[must_use]
    pub fn control(&self, name: &StreamName) -> String {
        format!("{}:control:{}:{}", self.prefix, name.session(), name.model())
    }

    /// The stream of requests for relays.
    #[must_use]
    pub fn requests(&self) -> String {
        format!("{}:requests", self.prefix)
    }

    /// The consumer group of the service's relays on the requests (a group's name, not a key).
    #[must_use]
    pub fn relay_group(&self) -> String {
        format!("{}:relay:{}", self.prefix, self.service)
    }

    /// The lease of the relay that is answering in a stream.
    #[must_use]
    pub fn running(&self, name: &StreamName) -> String {
        format!("{}:running:{}:{}", self.prefix, name.session(), name.model())
    }

    /// The dead letters of the service.
    #[must_use]
    pub fn dlq(&self) -> String {
        format!("{}:dlq:{}", self.prefix, self.service)
    }

    /// The receipts of the service.
    #[must_use]
    pub fn receipts(&self) -> String {
        format!("{}:receipts:{}", self.prefix, self.service)
    }

    /// The instance's consumer group (a group's name, not a key).
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The name of reader `index` as a consumer of the group (not a key).
    #[must_use]
    pub fn consumer(&self, index: usize) -> String {
        format!("reader-{index}")
    }

    /// The stream that interrupts the blocked reader `index`.
    #[must_use]
    pub fn wake(&self, index: usize) -> String {
        format!("{}:wake:{}:{}:{index}", self.prefix, self.service, self.instance)
    }

    /// The lease of the instance id.
    #[must_use]
    pub fn lease(&self) -> String {
        format!("{}:instance:{}:{}", self.prefix, self.service, self.instance)
    }

    /// The set of streams on which the instance has its group.
    #[must_use]
    pub fn groups(&self) -> String {
        format!("{}:groups:{}:{}", self.prefix, self.service, self.instance)
    }

    /// The set of all instances of the service that ever ran and whose groups may still exist.
    #[must_use]
    pub fn instances(&self) -> String {
        format!("{}:instances:{}", self.prefix, self.service)
    }

    /// This instance's id.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The names of another instance of the same service.
    #[must_use]
    pub fn of_instance(&self, instance: &str) -> Self {
        Self { streams: self.streams.clone(), ..Self::new(&self.prefix, &self.service, instance) }
    }

    /// A marker that makes `what` happen once in the whole service.
    #[must_use]
    pub fn once(&self, what: &str) -> String {
        format!("{}:once:{}:{what}", self.prefix, self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_contracts() {
        let keys = Keys::new("llm", "chat", "host-8080");
        let name: StreamName = "s1/llama3:8b".parse().unwrap();
        assert_eq!(keys.prefix(), "llm");
        assert_eq!(keys.stream(&name), "llm:stream:s1:llama3:8b");
        assert_eq!(keys.stream_prefix(), "llm:stream:");
        assert_eq!(keys.stream_name(b"llm:stream:s1:llama3:8b"), Some(name.clone()));
        assert_eq!(keys.stream_name(b"llm:announce"), None);
        assert_eq!(keys.announce(), "llm:announce");
        assert_eq!(keys.control(&name), "llm:control:s1:llama3:8b");
        assert_eq!(keys.requests(), "llm:requests");
        assert_eq!(keys.relay_group(), "llm:relay:chat");
        assert_eq!(keys.running(&name), "llm:running:s1:llama3:8b");
        assert_eq!(keys.dlq(), "llm:dlq:chat");
        assert_eq!(keys.receipts(), "llm:receipts:chat");
        assert_eq!(keys.group(), "llm:consumer:chat:host-8080");
        assert_eq!(keys.consumer(3), "reader-3");
        assert_eq!(keys.wake(3), "llm:wake:chat:host-8080:3");
        assert_eq!(keys.lease(), "llm:instance:chat:host-8080");
        assert_eq!(keys.groups(), "llm:groups:chat:host-8080");
        assert_eq!(keys.instances(), "llm:instances:chat");
        assert_eq!(keys.of_instance("b").group(), "llm:consumer:chat:b");
        assert_eq!(keys.once("untaken:s/m:1-0"), "llm:once:chat:untaken:s/m:1-0");
    }
}
