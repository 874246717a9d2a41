//! The effective configuration as a file: what `check` prints.

use std::fmt::Write as _;

use super::defaults as keys;
use super::rule::{Key, Rule};
use super::{Config, Redis, redis_url};

/// All keys with their effective values, as TOML; passwords are masked.
///
/// Except for a masked password, loading the text gives the same configuration.
#[must_use]
pub fn describe(config: &Config) -> String {
    let mut out = Lines::default();
    let Config {
        service,
        redis,
        fields,
        listen,
        threads,
        auth,
        limits,
        client,
        stream,
        delivery,
        shutdown,
        log,
    } = config;
    out.add(&keys::SERVICE_NAME, &service.name);
    out.add(&keys::SERVICE_INSTANCE, &service.instance);
    describe_redis(&mut out, redis);
    out.add(&keys::FIELDS_TEXT, &fields.text);
    out.add(&keys::FIELDS_TYPE, &fields.kind);
    out.add(&keys::LISTEN_PUBLIC, &listen.public);
    out.add(&keys::LISTEN_ADMIN, &listen.admin);
    out.add(&keys::LISTEN_STATS_SOCKET, &listen.stats_socket);
    out.add(&keys::LISTEN_ORIGINS, &listen.origins);
    out.add(&keys::LISTEN_HOSTS, &listen.hosts);
    out.add(&keys::LISTEN_DEMO_PAGE, &listen.demo_page);
    out.add(&keys::THREADS_READERS, &threads.readers);
    out.add(&keys::THREADS_TRANSFORMS, &threads.transforms);
    out.add(&keys::THREADS_DELIVERIES, &threads.deliveries);
    out.add(&keys::THREADS_REPLAYS, &threads.replays);
    out.add(&keys::AUTH_MODE, &());
    out.add(&keys::AUTH_ALLOW_ANONYMOUS, &auth.allow_anonymous);
    out.add(&keys::LIMITS_PER_CLIENT, &limits.per_client);
    out.add(&keys::LIMITS_CONNECTS_PER_SECOND, &limits.connects_per_second);
    out.add(&keys::LIMITS_SUBSCRIBES_PER_SECOND, &limits.subscribes_per_second);
    out.add(&keys::LIMITS_CANCELS_PER_SECOND, &limits.cancels_per_second);
    out.add(&keys::CLIENT_SEND_BUDGET, &client.send_budget);
    out.add(&keys::CLIENT_SLOW_TIMEOUT, &client.slow_timeout);
    out.add(&keys::CLIENT_HANDSHAKE_TIMEOUT, &client.handshake_timeout);
    out.add(&keys::CLIENT_MAX_CONNECTIONS, &client.max_connections);
    out.add(&keys::CLIENT_MAX_WAIT, &client.max_wait);
    out.add(&keys::CLIENT_KEEPALIVE, &client.keepalive);
    out.add(&keys::CLIENT_MAX_SUBSCRIPTIONS, &client.max_subscriptions);
    out.add(&keys::CLIENT_MAX_STATE, &client.max_state);
    out.add(&keys::STREAM_STALL_AFTER, &stream.stall_after);
    out.add(&keys::STREAM_ABANDON_AFTER, &stream.abandon_after);
    out.add(&keys::STREAM_FINISH_GRACE, &stream.finish_grace);
    out.add(&keys::STREAM_LINGER, &stream.linger);
    out.add(&keys::STREAM_RECEIPTS, &stream.receipts);
    out.add(&keys::STREAM_RECEIPTS_AFTER, &stream.receipts_after);
    out.add(&keys::DELIVERY_ACK, &delivery.ack);
    out.add(&keys::DELIVERY_MAX_BATCH, &delivery.max_batch);
    out.add(&keys::DELIVERY_DUTY_PERCENT, &delivery.duty_percent);
    out.add(&keys::DELIVERY_MAX_LINGER, &delivery.max_linger);
    out.add(&keys::DELIVERY_READ_COUNT, &delivery.read_count);
    out.add(&keys::DELIVERY_REPLAY_COUNT, &delivery.replay_count);
    out.add(&keys::DELIVERY_QUEUE_BATCHES, &delivery.queue_batches);
    out.add(&keys::SHUTDOWN_GRACE, &shutdown.grace);
    out.add(&keys::LOG_LEVEL, &log.level);
    out.add(&keys::LOG_FORMAT, &log.json);
    out.text
}

fn describe_redis(out: &mut Lines, redis: &Redis) {
    out.add(&keys::REDIS_URL, &redis_url::masked(&redis.url));
    out.add(&keys::REDIS_PREFIX, &redis.prefix);
    out.add(&keys::REDIS_STREAM_KEY, &redis.stream_key.to_string());
    out.add(&keys::REDIS_CONNECT_TIMEOUT, &redis.connect_timeout);
    out.add(&keys::REDIS_RESPONSE_TIMEOUT, &redis.response_timeout);
    out.add(&keys::REDIS_BACKOFF_MAX, &redis.backoff_max);
    out.add(&keys::REDIS_CA_FILE, &redis.ca_file);
    out.add(&keys::REDIS_DLQ_MAX_ENTRIES, &redis.dlq_max_entries);
    out.add(&keys::REDIS_RECEIPTS_MAX_ENTRIES, &redis.receipts_max_entries);
    out.add(&keys::REDIS_DLQ_MAX_BYTES, &redis.dlq_max_bytes);
    out.add(&keys::REDIS_RECEIPTS_MAX_BYTES, &redis.receipts_max_bytes);
}

#[derive(Default)]
struct Lines {
    text: String,
    section: &'static str,
}

impl Lines {
    fn add<R: Rule>(&mut self, key: &Key<R>, value: &R::Out) {
        let Some((section, name)) = key.name.split_once('.') else { return };
        if section != self.section {
            let gap = if self.section.is_empty() { "" } else { "\n" };
            // Writing to a String does not fail, here and below.
            let _ = writeln!(self.text, "{gap}[{section}]");
            self.section = section;
        }
        let _ = writeln!(self.text, "{name} = {}", key.rule.show(value));
    }
}
