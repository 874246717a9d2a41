//! From the settings as given to the final configuration: every key is read by its rule, then rules that concern
//! several keys are checked. All errors are collected.
//!
//! Pure except for the secret files, which the caller's `Surroundings` read.

use std::io;
use std::path::{Path, PathBuf};

use super::defaults as keys;
use super::error::{ConfigError, Problem};
use super::raw::Raw;
use super::rule::{Key, Refusal, Rule};
use super::setting::Origin;
use super::{
    Auth, Client, Config, Delivery, Fields, Limits, Listen, Log, Redis, Service, Shutdown, Stream, Threads,
    redis_url,
};
use crate::model::KeyPattern;

/// The inputs of a configuration besides its own text.
pub(super) struct Surroundings<'a> {
    /// This machine's name.
    pub(super) hostname: &'a str,
    /// Reads a secret file.
    pub(super) read_secret: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// The configuration that `raw` describes. Errors are added to `errors`; with an error the result is not usable.
pub(super) fn check(raw: &Raw, around: &Surroundings<'_>, errors: &mut Vec<ConfigError>) -> Config {
    let mut checker = Checker { raw, around, errors };
    let listen = checker.listen();
    Config {
        service: checker.service(&listen),
        redis: checker.redis(),
        fields: checker.fields(),
        threads: checker.threads(),
        auth: checker.auth(&listen),
        limits: checker.limits(),
        client: checker.client(),
        stream: checker.stream(),
        delivery: checker.delivery(),
        shutdown: Shutdown { grace: checker.take(&keys::SHUTDOWN_GRACE) },
        log: Log { level: checker.take(&keys::LOG_LEVEL), json: checker.take(&keys::LOG_FORMAT) },
        listen,
    }
}

struct Checker<'a> {
    raw: &'a Raw,
    around: &'a Surroundings<'a>,
    errors: &'a mut Vec<ConfigError>,
}

impl Checker<'_> {
    /// The value of a key. If the given one is wrong, records the error and returns the default.
    fn take<R: Rule>(&mut self, key: &Key<R>) -> R::Out {
        let Some(setting) = self.raw.get(key.name) else { return key.rule.default() };
        match key.rule.read(setting) {
            Ok(value) => value,
            Err(refusal) => {
                let allowed = key.rule.allowed();
                let problem = match refusal {
                    Refusal::Wrong => Problem::Value { found: setting.value.to_string(), allowed },
                    Refusal::Items(items) => Problem::Items { items, allowed },
                    Refusal::TooMany(count) => {
                        Problem::Value { found: format!("a list of {count} items"), allowed }
                    }
                    Refusal::NotYet => Problem::NotAvailable { default: allowed },
                };
                self.refuse(key.name, problem);
                key.rule.default()
            }
        }
    }

    fn refuse(&mut self, name: &str, problem: Problem) {
        let origin = self.raw.get(name).map_or(Origin::Default, |setting| setting.origin.clone());
        self.errors.push(ConfigError::new(origin, name, problem));
    }

    fn service(&mut self, listen: &Listen) -> Service {
        let name = self.take(&keys::SERVICE_NAME);
        let mut instance = self.take(&keys::SERVICE_INSTANCE);
        if instance.is_empty() {
            instance = format!("{}-{}", self.around.hostname, listen.public.port());
            if !keys::is_identifier(&instance) {
                let problem =
                    format!("this host's name gives {instance:?}, which is not a valid instance id: set one");
                self.refuse(keys::SERVICE_INSTANCE.name, Problem::Conflict(problem));
            }
        }
        Service { name, instance }
    }

    fn redis(&mut self) -> Redis {
        let prefix = self.take(&keys::REDIS_PREFIX);
        Redis {
            url: self.redis_url(),
            stream_key: self.stream_key(&prefix),
            prefix,
            connect_timeout: self.take(&keys::REDIS_CONNECT_TIMEOUT),
            response_timeout: self.take(&keys::REDIS_RESPONSE_TIMEOUT),
            backoff_max: self.take(&keys::REDIS_BACKOFF_MAX),
            ca_file: self.take(&keys::REDIS_CA_FILE),
            dlq_max_entries: self.take(&keys::REDIS_DLQ_MAX_ENTRIES),
            receipts_max_entries: self.take(&keys::REDIS_RECEIPTS_MAX_ENTRIES),
            dlq_max_bytes: self.take(&keys::REDIS_DLQ_MAX_BYTES),
            receipts_max_bytes: self.take(&keys::REDIS_RECEIPTS_MAX_BYTES),
        }
    }

    fn fields(&mut self) -> Fields {
        Fields { text: self.take(&keys::FIELDS_TEXT), kind: self.take(&keys::FIELDS_TYPE) }
    }

    fn stream_key(&mut self, prefix: &str) -> KeyPattern {
        let text = self.take(&keys::REDIS_STREAM_KEY);
        let ours = KeyPattern::of_prefix(prefix);
        if text.is_empty() {
            return ours;
        }
        KeyPattern::parse(&text, prefix).unwrap_or_else(|error| {
            let example = "such as \"chat:{session}\" or \"chat:{session}:{model}\"";
            let problem =
                Problem::Value { found: format!("{text:?}"), allowed: format!("{error}; {example}") };
            self.refuse(keys::REDIS_STREAM_KEY.name, problem);
            ours
        })
    }

    /// The URL with the password in it; a secret file overrides the configuration.
    fn redis_url(&mut self) -> String {
        let mut url = self.take(&keys::REDIS_URL);
        let mut source = keys::REDIS_URL.name;
        if let Some(secret) = self.secret(&keys::REDIS_URL_FILE) {
            (url, source) = (secret, keys::REDIS_URL_FILE.name);
        }
        let password = self.secret(&keys::REDIS_PASSWORD_FILE);
        match redis_url::complete(&url, password.as_deref()) {
            Ok(complete) => complete,
            Err(problem) => {
                self.refuse(source, Problem::Conflict(problem.to_string()));
                url
            }
        }
    }

    fn secret(&mut self, key: &Key<super::rule::File>) -> Option<String> {
        let path: PathBuf = self.take(key)?;
        match (self.around.read_secret)(&path) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                self.refuse(key.name, Problem::Secret { path, reason: error.to_string() });
                None
            }
        }
    }

    fn listen(&mut self) -> Listen {
        let listen = Listen {
            public: self.take(&keys::LISTEN_PUBLIC),
            admin: self.take(&keys::LISTEN_ADMIN),
            stats_socket: self.take(&keys::LISTEN_STATS_SOCKET),
            origins: self.take(&keys::LISTEN_ORIGINS),
            hosts: self.take(&keys::LISTEN_HOSTS),
            demo_page: self.take(&keys::LISTEN_DEMO_PAGE),
        };
        if listen.public == listen.admin && listen.public.port() != 0 {
            let problem = format!("{} is also listen.public; give it another address", listen.admin);
            self.refuse(keys::LISTEN_ADMIN.name, Problem::Conflict(problem));
        }
        listen
    }

    fn threads(&mut self) -> Threads {
        Threads {
            readers: self.take(&keys::THREADS_READERS),
            transforms: self.take(&keys::THREADS_TRANSFORMS),
            deliveries: self.take(&keys::THREADS_DELIVERIES),
            replays: self.take(&keys::THREADS_REPLAYS),
        }
    }

    fn auth(&mut self, listen: &Listen) -> Auth {
        self.take(&keys::AUTH_MODE);
        self.take(&keys::AUTH_SECRET_FILE);
        self.take(&keys::AUTH_KEYS_FILE);
        self.take(&keys::AUTH_QUERY_TOKEN);
        let allow_anonymous = self.take(&keys::AUTH_ALLOW_ANONYMOUS);
        if !allow_anonymous && !listen.public.ip().to_canonical().is_loopback() {
            let problem = format!(
                "{} is reachable from elsewhere and auth.mode is \"none\": listen on a loopback address, \
                 or set auth.allow_anonymous = true if everybody may read every stream",
                listen.public
            );
            self.refuse(keys::LISTEN_PUBLIC.name, Problem::Conflict(problem));
        }
        Auth { allow_anonymous }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            per_client: self.take(&keys::LIMITS_PER_CLIENT),
            connects_per_second: self.take(&keys::LIMITS_CONNECTS_PER_SECOND),
            subscribes_per_second: self.take(&keys::LIMITS_SUBSCRIBES_PER_SECOND),
            cancels_per_second: self.take(&keys::LIMITS_CANCELS_PER_SECOND),
        }
    }

    fn client(&mut self) -> Client {
        Client {
            send_budget: self.take(&keys::CLIENT_SEND_BUDGET),
            slow_timeout: self.take(&keys::CLIENT_SLOW_TIMEOUT),
            handshake_timeout: self.take(&keys::CLIENT_HANDSHAKE_TIMEOUT),
            max_connections: self.take(&keys::CLIENT_MAX_CONNECTIONS),
            max_wait: self.take(&keys::CLIENT_MAX_WAIT),
            keepalive: self.take(&keys::CLIENT_KEEPALIVE),
            max_subscriptions: self.take(&keys::CLIENT_MAX_SUBSCRIPTIONS),
            max_state: self.take(&keys::CLIENT_MAX_STATE),
        }
    }

    fn stream(&mut self) -> Stream {
        let stream = Stream {
            stall_after: self.take(&keys::STREAM_STALL_AFTER),
            abandon_after: self.take(&keys::STREAM_ABANDON_AFTER),
            finish_grace: self.take(&keys::STREAM_FINISH_GRACE),
            linger: self.take(&keys::STREAM_LINGER),
            receipts: self.take(&keys::STREAM_RECEIPTS),
            receipts_after: self.take(&keys::STREAM_RECEIPTS_AFTER),
        };
        if !stream.abandon_after.is_zero() && stream.abandon_after < stream.stall_after {
            let problem = "a stream would be given up before it is called stalled: \
                           make it at least stream.stall_after, or 0 for never";
            self.refuse(keys::STREAM_ABANDON_AFTER.name, Problem::Conflict(problem.to_owned()));
        }
        stream
    }

    fn delivery(&mut self) -> Delivery {
        Delivery {
            ack: self.take(&keys::DELIVERY_ACK),
            max_batch: self.take(&keys::DELIVERY_MAX_BATCH),
            duty_percent: self.take(&keys::DELIVERY_DUTY_PERCENT),
            max_linger: self.take(&keys::DELIVERY_MAX_LINGER),
            read_count: self.take(&keys::DELIVERY_READ_COUNT),
            replay_count: self.take(&keys::DELIVERY_REPLAY_COUNT),
            queue_batches: self.take(&keys::DELIVERY_QUEUE_BATCHES),
        }
    }
}
