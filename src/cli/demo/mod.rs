//! `llm-bridge demo`: everything on one machine, private, without traces afterwards.
//!
//! It runs a redis-server without persistence in a temporary directory, the daemon as a child of this process (the
//! real `serve`), and a producer that writes a recorded answer again and again and handles viewers' requests to stop.
//! The configuration applies except for `redis.url` and `listen.demo_page`; addresses without a setting are free
//! ports of the loopback interface.

mod child;
mod player;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use tempfile::TempDir;

use self::child::Child;
use self::player::Player;
use super::output::{note, print};
use super::stop::patient_stop_flag;
use super::{CliError, Shared, reachable};
use crate::config::Config;
use crate::model::{KeyPattern, StreamName};
use crate::produce::{CancelWatch, Producer, RedisWires, sleep_unless};

const SESSION: &str = "demo";
const MODEL: &str = "demo-model";
/// The prefix of keys if no pattern is configured.
const DEFAULT_PREFIX: &str = "llm";
/// How long Redis and the daemon may take until they serve.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one request for readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two checks of something that starts.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// How long the daemon may take to close its viewers' connections.
const GRACE: Duration = Duration::from_secs(3);
/// The pause between two generations.
const INTERMISSION: Duration = Duration::from_secs(6);
/// A port of the system's choice, on loopback.
const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Show it: a private Redis, the daemon, a recorded LLM stream, a page to open
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The port of the page and the streams; by default that of listen.public if it is configured, else a free one
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    shared: Shared,
}

/// Runs `demo` until it is interrupted.
pub(crate) fn run(args: &Demo) -> Result<(), CliError> {
    let config = args.shared.load()?;
    let stopping = patient_stop_flag()?;
    let mut stage = Stage::build(args, config)?;
    let shown = stage.wait_ready(&stopping).and_then(|ready| match ready {
        true => stage.introduction().and_then(|text| print(&text)).and_then(|()| stage.play(&stopping)),
        false => Ok(()),
    });
    note("\nllm-bridge demo: stopping\n");
    stage.clear();
    shown
}

/// Everything that runs. Fields are dropped in this order: the daemon before its Redis, both before their files.
struct Stage {
    daemon: Child,
    redis: Child,
    config: Config,
    program: PathBuf,
    _directory: TempDir,
}

impl Stage {
    fn build(args: &Demo, mut config: Config) -> Result<Self, CliError> {
        let failed = |what: &str, error: std::io::Error| CliError::Failed(format!("{what}: {error}"));
        let given = args.shared.given();
        if given.contains("redis.url") {
            note("llm-bridge demo: redis.url is ignored, because the demo starts a private Redis\n");
        }
        let directory =
            TempDir::with_prefix("llm-bridge-demo-").map_err(|e| failed("temporary directory", e))?;
        let program = std::env::current_exe().map_err(|e| failed("the path of this program", e))?;
        let socket = directory.path().join("redis.sock");
        config.redis.url = format!("unix://{}", socket.display());
        if !given.contains("listen.stats_socket") {
            config.listen.stats_socket = Some(directory.path().join("stats.sock"));
        }
        if !given.contains("service.instance") {
            "demo".clone_into(&mut config.service.instance);
        }
        if !given.contains("shutdown.grace") {
            config.shutdown.grace = GRACE;
        }
        let listen = &mut config.listen;
        let wish = |key: &str, configured: SocketAddr| if given.contains(key) { configured } else { FREE };
        let mut page = wish("listen.public", listen.public);
        page.set_port(args.port.unwrap_or_else(|| page.port()));
        listen.public = claim("--port or listen.public", page)?;
        listen.admin = claim("listen.admin", wish("listen.admin", listen.admin))?;
        let mut redis =
            Child::spawn("redis-server", &mut redis_server(directory.path(), &socket)).map_err(no_redis)?;
        wait_for_redis(&mut redis, &socket)?;
        let daemon = Child::spawn("the daemon", &mut serve(&program, &args.shared, &config))
            .map_err(|e| failed("the daemon could not be started", e))?;
        Ok(Self { daemon, redis, config, program, _directory: directory })
    }

    /// Waits until the daemon serves; false if it has to stop before.
    fn wait_ready(&mut self, stopping: &AtomicBool) -> Result<bool, CliError> {
        let until = Instant::now() + START_TIMEOUT;
        while !is_ready(self.config.listen.admin) {
            self.check_alive()?;
            if Instant::now() >= until {
                return Err(CliError::Failed(format!("the daemon was not ready within {START_TIMEOUT:?}")));
            }
            if !sleep_unless(PROBE_EVERY, || stopping.load(Ordering::Relaxed)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_alive(&mut self) -> Result<(), CliError> {
        for child in [&mut self.redis, &mut self.daemon] {
            if let Some(status) = child.ended() {
                return Err(CliError::Failed(format!("{} ended: {status}", child.name())));
            }
        }
        Ok(())
    }

    /// The stream for the recording.
    fn stream(&self) -> Result<StreamName, CliError> {
        let name = self.config.redis.stream_key.stream(SESSION, Some(MODEL));
        name.map_err(|error| CliError::Failed(error.to_string()))
    }

    /// Writes the recording again and again until `stopping`.
    fn play(&mut self, stopping: &Arc<AtomicBool>) -> Result<(), CliError> {
        let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
        let name = self.stream()?;
        let wires = RedisWires::new(&self.config.redis, &name).map_err(|error| failed(&error))?;
        let mut cancels = CancelWatch::new(&self.config.redis, &name).map_err(|error| failed(&error))?;
        cancels.begin();
        let producer = Producer::new(wires.keeping(player::KEPT_ENTRIES));
        let mut player = Player::new(producer, cancels)?;
        let stop = || stopping.load(Ordering::Relaxed);
        loop {
            while let Some(pause) = player.pause() {
                if !sleep_unless(pause, || stop() || player.is_asked_to_stop()) && stop() {
                    return Ok(());
                }
                self.check_alive()?;
                player.step(stop).map_err(|error| failed(&error))?;
            }
            if !sleep_unless(INTERMISSION, stop) {
                return Ok(());
            }
            player.rewind();
        }
    }

    fn introduction(&self) -> Result<String, CliError> {
        let (public, admin) = (reachable(self.config.listen.public), reachable(self.config.listen.admin));
        let name = self.stream()?;
        let stream = format!("http://{public}/v1/streams/{name}");
        let (program, redis) = (self.program.display(), &self.config.redis.url);
        // By default, the page shows the stream of the default pattern. If keys have no model, no model has to be
        // given.
        let keys = &self.config.redis.stream_key;
        let (page, own, model) = match keys.has_model() {
            true => (String::new(), "me/echo".to_owned(), " --model echo"),
            false => (format!("?stream={name}"), format!("me/{}", name.model()), ""),
        };
        let is_default = *keys == KeyPattern::of_prefix(DEFAULT_PREFIX);
        let pattern = if is_default { String::new() } else { format!(" --set 'redis.stream_key={keys}'") };
        Ok(format!(
            "A recorded answer is being streamed, again and again.\n\n\
             Open this in a browser:\n    http://{public}/{page}\n\n\
             Follow it in another terminal, resuming by itself:\n    {program} tail --follow '{stream}?after=last'\n\n\
             With curl, as Server-Sent Events, and the state so far as JSON:\n    \
             curl -N -H 'Accept: text/event-stream' '{stream}?after=last'\n    curl {stream}\n\n\
             Write a stream of your own, and open http://{public}/?stream={own}:\n    \
             {program} produce --set redis.url={redis}{pattern} --session me{model}\n\n\
             How the daemon is doing:\n    http://{admin}/\n\nCtrl-C stops everything; nothing stays behind.\n"
        ))
    }

    fn clear(mut self) {
        self.daemon.stop(self.config.shutdown.grace + Duration::from_secs(2));
        self.redis.stop(Duration::from_secs(5));
    }
}

/// Waits until Redis accepts connections, so that the daemon starts without errors.
fn wait_for_redis(redis: &mut Child, socket: &Path) -> Result<(), CliError> {
    let until = Instant::now() + START_TIMEOUT;
    while UnixStream::connect(socket).is_err() {
        if let Some(status) = redis.ended() {
            return Err(CliError::Failed(format!("redis-server ended: {status}")));
        }
        if Instant::now() >= until {
            return Err(CliError::Failed(format!("redis-server did not start within {START_TIMEOUT:?}")));
        }
        std::thread::sleep(PROBE_EVERY / 5);
    }
    Ok(())
}

fn no_redis(error: std::io::Error) -> CliError {
    CliError::Failed(match error.kind() {
        std::io::ErrorKind::NotFound => "redis-server is not installed; install it (Debian, Ubuntu: apt-get install \
                                         redis-server; Fedora: dnf install redis; Alpine: apk add redis) or put it \
                                         into the PATH"
            .to_owned(),
        _ => format!("redis-server could not be started: {error}"),
    })
}

fn redis_server(directory: &Path, socket: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.args(["--loglevel", "warning", "--unixsocketperm", "700", "--unixsocket"]).arg(socket);
    command.arg("--dir").arg(directory).arg("--logfile").arg(directory.join("redis.log"));
    command
}

fn serve(program: &Path, shared: &Shared, config: &Config) -> Command {
    let mut command = Command::new(program);
    command.args(["serve", "--set", "log.level=error"]);
    if let Some(file) = &shared.config {
        command.arg("--config").arg(file);
    }
    let listen = &config.listen;
    let socket = listen.stats_socket.as_deref().unwrap_or_else(|| Path::new(""));
    let ours = [
        format!("redis.url={}", config.redis.url),
        format!("listen.public={}", listen.public),
        format!("listen.admin={}", listen.admin),
        format!("listen.stats_socket={}", socket.display()),
        "listen.demo_page=true".to_owned(),
        format!("service.instance={}", config.service.instance),
        format!("shutdown.grace={}ms", config.shutdown.grace.as_millis()),
    ];
    for set in shared.sets.iter().chain(&ours) {
        command.args(["--set", set]);
    }
    // Variables for systemd must not reach the daemon.
    for variable in
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"]
    {
        command.env_remove(variable);
    }
    command
}

/// The address, with a port that is free now if it has none.
fn claim(key: &str, address: SocketAddr) -> Result<SocketAddr, CliError> {
    let claimed = TcpListener::bind(address).and_then(|listener| listener.local_addr());
    claimed.map_err(|error| {
        CliError::Failed(format!("cannot listen on {address}: {error}; choose another by {key}"))
    })
}

/// Whether `/readyz` answers 200.
fn is_ready(admin: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&admin, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok::<_, std::io::Error>(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_s_settings_come_last() {
        let config = Config::defaults();
        let shared =
            Shared { config: Some("a.toml".into()), sets: vec!["redis.url=redis://elsewhere".into()] };
        let command = serve(Path::new("llm-bridge"), &shared, &config);
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_str().unwrap()).collect();
        let at = |text: &str| arguments.iter().position(|&argument| argument == text).unwrap();
        assert!(at("redis.url=redis://elsewhere") < at(&format!("redis.url={}", config.redis.url)));
        assert_eq!(arguments[at("--config") + 1], "a.toml");
    }

    #[test]
    fn a_missing_redis_is_reported_with_its_fix() {
        let error = Child::spawn("redis-server", &mut Command::new("/nonexistent/redis-server")).unwrap_err();
        assert!(no_redis(error).to_string().contains("apt-get install redis-server"));
    }

    #[test]
    fn readiness_is_the_status_of_an_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        for (status, expected) in [("503 Service Unavailable", false), ("200 OK", true)] {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut peer, _) = listener.accept().unwrap();
                    let mut request = [0; 16];
                    peer.read_exact(&mut request).unwrap();
                    assert!(request.starts_with(b"GET /readyz "));
                    peer.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).unwrap();
                });
                assert_eq!(is_ready(address), expected);
            });
        }
        drop(listener);
        assert!(!is_ready(address));
    }
}
