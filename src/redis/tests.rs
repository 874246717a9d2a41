//! Links against real servers.
//!
//! - connecting: protocols, credentials, databases, Unix sockets, TLS, silence, absence
//! - replies: pipelines, big ones, typed views in both protocols
//! - pushes: arriving while idle and between replies
//! - ends: kill -9, timeouts

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};

use super::poll::{self, Ready};
use super::testing::{RedisServer, config_for};
use super::{Link, RedisError, Reply, ServerErrorKind, Target};
use crate::model::EntryId;

const PATIENCE: Duration = Duration::from_secs(20);

fn target(url: &str) -> Target {
    Target::new(&config_for(url)).unwrap()
}

fn connect(url: &str) -> Result<Link, RedisError> {
    Link::connect(&target(url), "llm-bridge test")
}

fn command(text: &str) -> Cmd {
    let mut words = text.split(' ');
    cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).take()
}

fn call(link: &mut Link, text: &str) -> Reply {
    link.call(&command(text)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn wait_readable(fd: RawFd) {
    let ready = poll::wait(fd, Ready::READABLE, Some(Instant::now() + PATIENCE)).unwrap();
    assert!(ready.is_some(), "nothing came");
}

/// A link in each protocol.
fn both(server: &RedisServer) -> [Link; 2] {
    let resp2 = connect(&format!("{}?protocol=resp2", server.url())).unwrap();
    let resp3 = server.link();
    assert!(!resp2.is_resp3() && resp3.is_resp3());
    [resp2, resp3]
}

/// A server for one connection that reads one command and then sends `words`, and the result of the link's attempt.
fn connect_to_imitation(words: &'static [&'static str]) -> Result<Link, RedisError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for word in words {
                if read_command(&mut socket) {
                    socket.write_all(word.as_bytes()).unwrap();
                }
            }
        });
        connect(&format!("redis://:pw@127.0.0.1:{port}"))
    })
}

/// Reads one command, which arrives whole; `false` at the end.
fn read_command(socket: &mut TcpStream) -> bool {
    socket.read(&mut [0; 4096]).unwrap() > 0
}

#[test]
fn a_connection_has_its_name_and_database() {
    let server = RedisServer::start(&[]);
    for protocol in ["resp2", "resp3"] {
        let mut link = connect(&format!("{}/3?protocol={protocol}", server.url())).unwrap();
        let info = call(&mut link, "CLIENT INFO");
        let info = info.text().unwrap();
        assert!(info.contains(" name=llm-bridge-test ") && info.contains(" db=3 "), "{info}");
        assert!(info.contains(&format!(" resp={}", &protocol[4..])), "{info}");
    }
    let error = connect(&format!("{}/99", server.url())).unwrap_err();
    assert!(matches!(error, RedisError::Server(_)), "{error}");
}

#[test]
fn credentials_are_sent() {
    let server = RedisServer::start(&[]);
    let port = server.port();
    let mut admin = server.link();
    call(&mut admin, "ACL SETUSER someone on >other ~* +@all");
    admin.call(cmd("CONFIG").arg(&["SET", "requirepass", "s p/ce"])).unwrap();
    for protocol in ["resp2", "resp3"] {
        for (user, expected) in [(":s%20p%2Fce", "default"), ("someone:other", "someone")] {
            let mut link = connect(&format!("redis://{user}@127.0.0.1:{port}?protocol={protocol}")).unwrap();
            assert_eq!(call(&mut link, "ACL WHOAMI").text().unwrap(), expected);
        }
        for wrong in ["", ":wrong@", "nobody:other@"] {
            let error = connect(&format!("redis://{wrong}127.0.0.1:{port}?protocol={protocol}")).unwrap_err();
            assert_eq!(error.server_kind(), Some(ServerErrorKind::NoAuth), "{protocol} {wrong}: {error}");
            assert!(!error.is_outage());
        }
    }
    let path = server.socket();
    let mut link = connect(&format!("unix://{}?user=someone&pass=other&db=2", path.display())).unwrap();
    let info = call(&mut link, "CLIENT INFO");
    assert!(info.text().unwrap().contains(" db=2 ") && info.text().unwrap().contains("user=someone"));
}

#[test]
fn servers_without_resp3_are_spoken_to_in_resp2() {
    for refusal in
        ["-ERR unknown command `HELLO`, with args\r\n", "-NOPROTO unsupported protocol version\r\n"]
    {
        let words: &'static [&'static str] = Box::leak(Box::new([refusal, "+OK\r\n", "-NOPERM no\r\n"]));
        assert!(!connect_to_imitation(words).unwrap().is_resp3());
    }
    let error = connect_to_imitation(&["-ERR max number of clients reached\r\n"]).unwrap_err();
    assert_eq!(error.server_kind(), Some(ServerErrorKind::MaxClients));
    assert!(error.is_outage());
    assert!(matches!(connect_to_imitation(&["HTTP/1.1 400 Bad Request\r\n"]), Err(RedisError::Protocol(_))));
    assert!(matches!(connect_to_imitation(&[]), Err(RedisError::Closed | RedisError::Io(_))));
}

#[test]
fn absence_and_silence_are_errors() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut config = config_for(&format!("redis://127.0.0.1:{port}"));
    config.connect_timeout = Duration::from_millis(200);
    let target = Target::new(&config).unwrap();
    assert!(matches!(Link::connect(&target, "x"), Err(RedisError::Timeout)));
    drop(listener);
    assert!(matches!(Link::connect(&target, "x"), Err(RedisError::Io(_))));
    assert!(matches!(connect("unix:///nonexistent/redis.sock"), Err(RedisError::Io(_))));
}

/// A reply that takes longer than the response timeout, but never pauses for so long, is waited for.
#[test]
fn a_reply_may_take_long_as_long_as_it_comes_on() {
    const PAUSE: Duration = Duration::from_millis(200);
    const PIECES: usize = 12;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut config = config_for(&format!("redis://{}", listener.local_addr().unwrap()));
    config.response_timeout = PAUSE * 8;
    let target = Target::new(&config).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            assert!(read_command(&mut socket));
            socket.write_all(b"%0\r\n").unwrap();
            assert!(read_command(&mut socket));
            socket.write_all(format!("${PIECES}\r\n").as_bytes()).unwrap();
            for _ in 0..PIECES {
                std::thread::sleep(PAUSE);
                socket.write_all(b"x").unwrap();
            }
            socket.write_all(b"\r\n").unwrap();
            // Then silence, until the other side gives up.
            while read_command(&mut socket) {}
        });
        let mut link = Link::connect(&target, "x").unwrap();
        let long = link.call(&Cmd::get("a")).unwrap();
        assert_eq!(long.bytes().unwrap().len(), PIECES);
        assert!(matches!(link.call(&Cmd::get("b")), Err(RedisError::Timeout)));
    });
}

#[test]
fn pipelines_keep_their_order() {
    let server = RedisServer::start(&[]);
    for mut link in both(&server) {
        let replies =
            link.call_all(["SET a 1", "INCR a", "LPUSH a x", "GET a", "GET b"].map(command)).unwrap();
        assert_eq!(replies[0].text().unwrap(), "OK");
        assert_eq!(replies[1].integer().unwrap(), 2);
        assert_eq!(replies[2].error().unwrap().kind(), ServerErrorKind::WrongType);
        assert_eq!(replies[3].text().unwrap(), "2");
        assert!(replies[4].is_null());
        let error = link.call(&command("LPUSH a x")).unwrap_err();
        assert_eq!(error.server_kind(), Some(ServerErrorKind::WrongType));
        for n in 0..3 {
            link.push(cmd("ECHO").arg(n));
        }
        assert_eq!(link.outstanding(), 3);
        link.flush().unwrap();
        for n in 0..3 {
            assert_eq!(link.receive(PATIENCE).unwrap().text().unwrap(), n.to_string());
        }
        assert_eq!(link.outstanding(), 0);
        assert_eq!(link.try_receive().unwrap(), None);
    }
}

/// More than the sockets hold is sent both ways at once.
#[test]
fn large_pipelines_do_not_lock_up() {
    let server = RedisServer::start(&[]);
    let mut link = server.link();
    let text = "x".repeat(1 << 20);
    let replies = link.call_all([0; 24].map(|_| cmd("ECHO").arg(&text).take())).unwrap();
    assert!(replies.iter().all(|reply| reply.text().unwrap() == text));
    assert_eq!(replies.len(), 24);
}

#[test]
fn a_call_takes_no_earlier_reply() {
    let server = RedisServer::start(&[]);
    let mut link = server.link();
    link.push(&command("ECHO first"));
    assert!(matches!(link.call(&command("ECHO second")), Err(RedisError::Protocol(_))));
    assert!(matches!(link.call(&command("ECHO third")), Err(RedisError::Closed)));
}

#[test]
fn streams_are_read_in_both_protocols() {
    let server = RedisServer::start(&[]);
    let mut writer = server.link();
    for text in [
        "XADD s 5-1 data {} other x",
        "XADD s 5-2 data b",
        "XADD s 6-0 data c",
        "XADD t 1-1 data t",
        "XGROUP CREATE s g0 0",
        "XGROUP CREATE s g1 0",
        "XGROUP CREATE t g0 0",
        "XGROUP CREATE t g1 0",
    ] {
        call(&mut writer, text);
    }
    for (n, mut link) in both(&server).into_iter().enumerate() {
        let streams = call(&mut link, &format!("XREADGROUP GROUP g{n} c STREAMS s t > >")).streams().unwrap();
        assert_eq!(streams.iter().map(|stream| &stream.key[..]).collect::<Vec<_>>(), [b"s", b"t"]);
        let ids: Vec<EntryId> = streams[0].entries.iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [EntryId::new(5, 1), EntryId::new(5, 2), EntryId::new(6, 0)]);
        assert_eq!(streams[0].entries[0].fields.get("data"), Some(&b"{}"[..]));
        assert_eq!(streams[0].entries[0].fields.get("other"), Some(&b"x"[..]));
        assert!(
            call(&mut link, &format!("XREADGROUP GROUP g{n} c STREAMS s t > >"))
                .streams()
                .unwrap()
                .is_empty()
        );
        assert!(call(&mut link, "XREAD BLOCK 1 STREAMS s $").streams().unwrap().is_empty());

        let entries = call(&mut link, "XRANGE s (5-1 + COUNT 1").entries().unwrap();
        assert_eq!(entries, streams[0].entries[1..2]);
        let newest = call(&mut link, "XREVRANGE s + - COUNT 1").entries().unwrap();
        assert_eq!(newest, streams[0].entries[2..]);
        assert!(call(&mut link, "XRANGE missing - +").entries().unwrap().is_empty());

        let info = call(&mut link, "XINFO STREAM s").stream_info().unwrap();
        assert_eq!((info.length, info.last_generated_id), (3, EntryId::new(6, 0)));
        assert_eq!(info.first, Some(EntryId::new(5, 1)));
        assert_eq!(info.last, newest.into_iter().next());
        assert_eq!((info.entries_added, info.max_deleted_id), (Some(3), Some(EntryId::ZERO)));
        let missing = link.call(&command("XINFO STREAM missing")).unwrap_err();
        assert_eq!(missing.server_kind(), Some(ServerErrorKind::NoSuchKey));
        let missing = link.call(&command("XREADGROUP GROUP nobody c STREAMS s >")).unwrap_err();
        assert_eq!(missing.server_kind(), Some(ServerErrorKind::NoGroup));
        let exists = link.call(&command("XGROUP CREATE s g0 0")).unwrap_err();
        assert_eq!(exists.server_kind(), Some(ServerErrorKind::BusyGroup));
        assert!(call(&mut link, "XADD new * data x").id().unwrap() > EntryId::new(6, 0));
    }
    // Pending lists still contain an entry that was deleted.
    call(&mut writer, "XDEL s 5-2");
    for (n, mut link) in both(&server).into_iter().enumerate() {
        let streams = call(&mut link, &format!("XREADGROUP GROUP g{n} c STREAMS s 0")).streams().unwrap();
        assert_eq!(streams[0].entries.len(), 2);
        assert_eq!(streams[0].deleted, [EntryId::new(5, 2)]);
        let info = call(&mut link, "XINFO STREAM s").stream_info().unwrap();
        assert_eq!(info.max_deleted_id, Some(EntryId::new(5, 2)));
    }
}

/// Large replies arrive in many pieces, many small ones in one piece, and the buffer shrinks again.
#[test]
fn replies_of_every_size_arrive() {
    let server = RedisServer::start(&[]);
    let mut link = server.link();
    let text = "0123456789".repeat(50_000);
    let add = |n| Cmd::xadd("s", EntryId::new(n, 0), &[("data", &text)]);
    link.call_all((1..=8).map(add)).unwrap();
    link.push(&command("XRANGE s - +"));
    for n in 0..1000 {
        link.push(cmd("ECHO").arg(n));
    }
    link.flush().unwrap();
    let entries = link.receive(PATIENCE).unwrap().entries().unwrap();
    assert_eq!(entries.len(), 8);
    assert!(entries.iter().all(|entry| entry.fields.get("data") == Some(text.as_bytes())));
    for n in 0..1000 {
        assert_eq!(link.receive(PATIENCE).unwrap().text().unwrap(), n.to_string());
    }
    // The small replies may have a small buffer of their own.
    assert!(link.input_capacity() < text.len(), "the memory of a large reply is given back");
}

#[test]
fn invalidations_arrive_while_idle() {
    let server = RedisServer::start(&[]);
    let mut watcher = server.link();
    let mut writer = server.link();
    call(&mut watcher, "CLIENT TRACKING ON BCAST PREFIX llm:stream:");
    assert_eq!(watcher.try_receive().unwrap(), None);
    for key in ["llm:stream:s:m", "other", "llm:stream:s:n"] {
        call(&mut writer, &format!("XADD {key} * data x"));
    }
    let mut keys = Vec::new();
    while keys.len() < 2 {
        wait_readable(watcher.raw_fd());
        assert_eq!(watcher.try_receive().unwrap(), None);
        while let Some(push) = watcher.take_push() {
            let push = push.value().unwrap();
            let [kind, names] = push.as_array().unwrap() else { panic!("{push:?}") };
            assert_eq!(kind.as_str(), Some("invalidate"));
            keys.extend(names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(keys, ["llm:stream:s:m", "llm:stream:s:n"]);
    assert_eq!(watcher.pushes_lost(), 0);
}

#[test]
fn pushes_between_replies_are_set_aside() {
    let server = RedisServer::start(&[]);
    let mut link = server.link();
    call(&mut link, "CLIENT TRACKING ON BCAST PREFIX a");
    let commands: Vec<Cmd> = (0..50).map(|n| Cmd::set("a", n)).collect();
    for _ in 0..10 {
        let replies = link.call_all(&commands).unwrap();
        assert!(replies.iter().all(|reply| reply.text().unwrap() == "OK"));
        // While no reply is outstanding, no push remains in the buffer, so that waiting on the socket is safe.
        while link.take_push().is_none() {
            wait_readable(link.raw_fd());
            assert_eq!(link.try_receive().unwrap(), None);
        }
        while link.take_push().is_some() {}
    }
}

#[test]
fn a_socket_is_not_called_empty_while_pushes_wait_behind_a_filled_buffer() {
    const KEYS: usize = 20_000;
    let server = RedisServer::start(&[]);
    let (mut link, mut writer) = (server.link(), server.link());
    call(&mut link, "CLIENT TRACKING ON BCAST PREFIX a");
    link.push(&command("PING"));
    link.flush().unwrap();
    wait_readable(link.raw_fd());
    let commands: Vec<Cmd> = (0..KEYS).map(|n| Cmd::set(format!("a{n}"), n)).collect();
    assert_eq!(writer.call_all(&commands).unwrap().len(), KEYS);
    // The reply is in the first buffer; the names of the keys need many.
    assert_eq!(link.try_receive().unwrap().unwrap().text().unwrap(), "PONG");
    assert!(!link.has_emptied_socket());
    let mut named = 0;
    while named < KEYS {
        if link.has_emptied_socket() {
            wait_readable(link.raw_fd());
        }
        assert_eq!(link.try_receive().unwrap(), None);
        while let Some(push) = link.take_push() {
            let push = push.value().unwrap();
            named += push.as_array().unwrap()[1].as_array().unwrap().len();
        }
    }
    assert!(link.has_emptied_socket());
    assert_eq!((named, link.pushes_lost()), (KEYS, 0));
}

#[test]
fn a_killed_server_closes_the_link() {
    let mut server = RedisServer::start(&[]);
    let [mut blocked, mut idle] = both(&server);
    blocked.push(&command("XREAD BLOCK 0 STREAMS s $"));
    blocked.flush().unwrap();
    assert_eq!(blocked.try_receive().unwrap(), None);
    server.kill();
    let error = blocked.receive(PATIENCE).unwrap_err();
    assert!(matches!(error, RedisError::Closed | RedisError::Io(_)), "{error}");
    assert!(error.is_outage());
    wait_readable(idle.raw_fd());
    assert!(matches!(idle.try_receive(), Err(RedisError::Closed | RedisError::Io(_))));
    assert!(matches!(idle.try_receive(), Err(RedisError::Closed)));
    assert!(matches!(idle.call(&command("PING")), Err(RedisError::Closed)));
}

#[test]
fn a_late_reply_is_never_taken_for_another() {
    let server = RedisServer::start(&[]);
    let mut link = server.link();
    link.push(&command("XREAD BLOCK 0 STREAMS s $"));
    link.flush().unwrap();
    assert!(matches!(link.receive(Duration::from_millis(20)), Err(RedisError::Timeout)));
    call(&mut server.link(), "XADD s * data x");
    assert!(matches!(link.receive(PATIENCE), Err(RedisError::Closed)));
}

#[test]
fn tls_is_spoken_where_the_server_speaks_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let made = Process::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &path("key.pem"), "-out", &path("cert.pem")])
        .stderr(Stdio::null())
        .status();
    let help = Process::new("redis-server").arg("--tls-port").arg("0").arg("--version").output();
    if !made.is_ok_and(|status| status.success()) || help.is_err() {
        return;
    }
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (key, cert) = (path("key.pem"), path("cert.pem"));
    let server = RedisServer::start_installed(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ]);
    let mut config = config_for(&format!("rediss://127.0.0.1:{port}/1"));
    let stranger = Link::connect(&Target::new(&config).unwrap(), "test").unwrap_err();
    assert!(matches!(stranger, RedisError::Tls(_)), "{stranger}");
    config.ca_file = Some(cert.into());
    let mut link = Link::connect(&Target::new(&config).unwrap(), "test").unwrap();
    assert!(link.is_resp3());
    let text = "x".repeat(1 << 20);
    let replies = link.call_all([0; 8].map(|_| cmd("ECHO").arg(&text).take())).unwrap();
    assert!(replies.iter().all(|reply| reply.text().unwrap() == text));
    call(&mut link, "CLIENT TRACKING ON BCAST PREFIX llm:");
    call(&mut server.link(), "SET llm:a 1");
    wait_readable(link.raw_fd());
    while link.take_push().is_none() {
        assert_eq!(link.try_receive().unwrap(), None);
    }
    drop(server);
    let error = link.receive(PATIENCE).unwrap_err();
    assert!(matches!(error, RedisError::Closed | RedisError::Io(_)), "{error}");
    config.url = format!("rediss://127.0.0.1:{port}");
    assert!(matches!(Link::connect(&Target::new(&config).unwrap(), "test"), Err(RedisError::Io(_))));
}
