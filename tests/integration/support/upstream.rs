//! A model's server that follows a script, over real sockets: slow, hanging, refusing, breaking off, with every
//! framing of a body.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::patience::PATIENCE;

/// How often a thread checks whether the server was dropped.
const LOOK: Duration = Duration::from_millis(10);

/// One action of the server.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Waits until the test opens the gate.
    Gate,
    /// Sends comments until the gate opens, as servers do to keep a connection alive.
    CommentedGate,
    /// Sends nothing until the client disconnects.
    Hang,
}

/// The server's steps for one request, from the head on; then it closes the connection.
pub(crate) type Script = Vec<Step>;

/// The head of an answer that ends with the connection.
pub(crate) fn head() -> Step {
    Step::Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n".to_vec())
}

/// The head of an answer in chunks.
pub(crate) fn chunked_head() -> Step {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    Step::Send(head.as_bytes().to_vec())
}

/// A chunk of a chunked answer.
pub(crate) fn chunk(bytes: &[u8]) -> Step {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    Step::Send(chunk)
}

/// A whole answer that is not an event stream.
pub(crate) fn refusal(status: &str, headers: &str, body: &str) -> Script {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
    vec![Step::Send(format!("{head}{headers}\r\n{body}").into_bytes())]
}

/// An event.
pub(crate) fn event(payload: &str) -> Step {
    Step::Send(format!("data: {payload}\n\n").into_bytes())
}

/// The payload of a chat chunk with this text.
pub(crate) fn token(text: &str) -> String {
    json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]})
        .to_string()
}

/// The payload of a chat chunk that finishes.
pub(crate) fn finish() -> String {
    let choice = json!({"index": 0, "delta": {}, "finish_reason": "stop"});
    json!({"object": "chat.completion.chunk", "choices": [choice]}).to_string()
}

/// A whole chat answer of these tokens.
pub(crate) fn chat(tokens: &[&str]) -> Script {
    let mut script = vec![head()];
    script.extend(tokens.iter().map(|text| event(&token(text))));
    script.extend([event(&finish()), event("[DONE]")]);
    script
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    seen: Mutex<Vec<Seen>>,
    gate: (Mutex<usize>, Condvar),
    /// How many clients disconnected during a `Hang`.
    left: AtomicUsize,
    over: AtomicBool,
    tls: Option<Arc<ServerConfig>>,
}

/// A connection, plain or with TLS.
enum Socket {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Socket {
    fn new(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::Plain(socket),
            Some(config) => {
                let session = ServerConnection::new(Arc::clone(config)).unwrap();
                Self::Tls(Box::new(StreamOwned::new(session, socket)))
            }
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn finish(&mut self) -> std::io::Result<()> {
        if let Self::Tls(stream) = self {
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        self.tcp().shutdown(Shutdown::Write)
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// The server. Dropping it cuts everything.
pub(crate) struct FakeUpstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeUpstream {
    /// A server that follows these scripts, one per request; it repeats the last one.
    pub(crate) fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self::start_with(scripts, None)
    }

    /// A server over TLS.
    pub(crate) fn start_tls(scripts: impl IntoIterator<Item = Script>, tls: Arc<ServerConfig>) -> Self {
        Self::start_with(scripts, Some(tls))
    }

    fn start_with(scripts: impl IntoIterator<Item = Script>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { tls, ..Shared::default() });
        shared.scripts.lock().unwrap().extend(scripts);
        let ours = Arc::clone(&shared);
        let acceptor =
            thread::Builder::new().name("fake-upstream".into()).spawn(move || accept(&listener, &ours));
        Self { address, shared, acceptor: Some(acceptor.unwrap()) }
    }

    /// The URL of its chat completions.
    pub(crate) fn chat_url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/v1/chat/completions", self.address)
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Lets one `Gate` continue.
    pub(crate) fn open_gate(&self) {
        *self.shared.gate.0.lock().unwrap() += 1;
        self.shared.gate.1.notify_one();
    }

    /// How many clients disconnected during a `Hang`.
    pub(crate) fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.gate.1.notify_all();
        let _ = TcpStream::connect(self.address);
        self.acceptor.take().unwrap().join().unwrap();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    for socket in listener.incoming() {
        if shared.over.load(Ordering::SeqCst) {
            break;
        }
        let (socket, shared) = (socket.unwrap(), Arc::clone(shared));
        let serve = move || {
            // A client that disconnects is not an error here.
            let _ = serve(socket, &shared);
        };
        connections.push(thread::Builder::new().name("fake-answer".into()).spawn(serve).unwrap());
    }
    connections.into_iter().for_each(|connection| connection.join().unwrap());
}

fn serve(socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut socket = Socket::new(socket, shared.tls.as_ref());
    let seen = request(&mut socket)?;
    let script = {
        shared.seen.lock().unwrap().push(seen);
        let mut scripts = shared.scripts.lock().unwrap();
        if scripts.len() > 1 { scripts.pop_front() } else { scripts.front().cloned() }
    };
    for step in script.unwrap_or_default() {
        match step {
            Step::Send(bytes) => {
                socket.write_all(&bytes)?;
                socket.flush()?;
            }
            Step::Pause(time) => thread::sleep(time),
            Step::Gate => pass_gate(shared, || Ok(()))?,
            Step::CommentedGate => pass_gate(shared, || socket.write_all(b": PROCESSING\n\n"))?,
            Step::Hang => hang(&mut socket, shared)?,
        }
    }
    socket.finish()
}

fn request(socket: &mut Socket) -> std::io::Result<Seen> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        receive(socket, &mut bytes)?;
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < head_end + length {
        receive(socket, &mut bytes)?;
    }
    Ok(Seen { head, body: serde_json::from_slice(&bytes[head_end..]).unwrap_or_default() })
}

fn receive(socket: &mut Socket, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    match socket.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        len => {
            bytes.extend_from_slice(&buffer[..len]);
            Ok(())
        }
    }
}

fn pass_gate(shared: &Shared, mut meanwhile: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let mut open = shared.gate.0.lock().unwrap();
    while *open == 0 && !shared.over.load(Ordering::SeqCst) {
        meanwhile()?;
        open = shared.gate.1.wait_timeout(open, LOOK).unwrap().0;
    }
    *open = open.saturating_sub(1);
    Ok(())
}

fn hang(socket: &mut Socket, shared: &Shared) -> std::io::Result<()> {
    socket.tcp().set_read_timeout(Some(LOOK))?;
    let mut buffer = [0; 64];
    while !shared.over.load(Ordering::SeqCst) {
        match socket.read(&mut buffer) {
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Ok(len) if len > 0 => {}
            _ => {
                shared.left.fetch_add(1, Ordering::SeqCst);
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
    Ok(())
}
