//! The floors: the cost of reading Redis and writing sockets without any feature, measured in processes of their own.
//! Each is a loop of XREAD and write: no decoding, no order check, no merging, no resuming, no limits.
//!
//! *Blocking* keeps one connection in XREAD BLOCK per stream. *Tracking* keeps one connection, learns from `CLIENT
//! TRACKING ON BCAST PREFIX llm:stream:` which streams have new entries, and reads just those with one XREAD. Both
//! put a WebSocket header before each entry's value, and write the frames that are ready with one call.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::resp::{Item, Reader};
use crate::wire;

/// How a floor reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Mode {
    /// One blocked connection per stream.
    Blocking,
    /// One connection, with tracking: Redis reports which streams have new entries.
    Tracking,
}

const LISTENER: Token = Token(0);
/// Client tokens are even, Redis tokens odd.
const FIRST: usize = 2;

/// A connection to Redis.
struct Link {
    socket: TcpStream,
    /// The bytes read and not yet parsed are `used..filled`; the rest is free.
    input: Vec<u8>,
    filled: usize,
    used: usize,
    reader: Reader,
    /// An XREAD is under way.
    asked: bool,
    /// The stream to which the next entries belong.
    stream: usize,
}

impl Link {
    const NONE: usize = usize::MAX;
}

#[derive(Default)]
struct Stream {
    key: String,
    last_id: Vec<u8>,
    clients: Vec<usize>,
    frames: Vec<u8>,
    /// It has new entries.
    news: bool,
}

struct Client {
    socket: TcpStream,
    /// It has been upgraded to WebSocket and is subscribed to a stream.
    open: bool,
    /// Bytes that the socket has not accepted yet.
    pending: Vec<u8>,
}

struct Floor {
    mode: Mode,
    redis: SocketAddr,
    poll: Poll,
    links: Vec<Link>,
    streams: Vec<Stream>,
    by_key: HashMap<Vec<u8>, usize>,
    clients: Vec<Client>,
    news: Vec<usize>,
    request: Vec<u8>,
}

/// Serves until the process is killed.
pub(crate) fn run(mode: Mode, redis: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let mut floor = Floor {
        mode,
        redis,
        poll,
        links: Vec::new(),
        streams: Vec::new(),
        by_key: HashMap::new(),
        clients: Vec::new(),
        news: Vec::new(),
        request: Vec::new(),
    };
    if mode == Mode::Tracking {
        floor.link("HELLO 3\r\nCLIENT TRACKING ON BCAST PREFIX llm:stream:\r\n", Link::NONE)?;
    }
    let mut events = Events::with_capacity(1_024);
    loop {
        match floor.poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                LISTENER => floor.accept(&listener)?,
                Token(token) if token % 2 == 1 => floor.read_redis((token - FIRST) / 2)?,
                Token(token) => floor.client((token - FIRST) / 2)?,
            }
        }
        if mode == Mode::Tracking {
            floor.request_news()?;
        }
    }
}

impl Floor {
    /// Opens a connection to Redis and sends `hello`, whose reply must end with `+OK`.
    fn link(&mut self, hello: &str, stream: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut socket = std::net::TcpStream::connect(self.redis)?;
        socket.set_nodelay(true)?;
        if !hello.is_empty() {
            socket.write_all(hello.as_bytes())?;
            let (mut answer, mut chunk) = (Vec::new(), [0; 1_024]);
            while !answer.ends_with(b"+OK\r\n") {
                let n = socket.read(&mut chunk)?;
                answer.extend_from_slice(&chunk[..n]);
                if n == 0 || answer.starts_with(b"-") {
                    return Err(String::from_utf8_lossy(&answer).into());
                }
            }
        }
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        let token = Token(FIRST + 2 * self.links.len() + 1);
        self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
        self.links.push(Link {
            socket,
            input: vec![0; 4_096],
            filled: 0,
            used: 0,
            reader: Reader::default(),
            asked: false,
            stream,
        });
        Ok(())
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let token = Token(FIRST + 2 * self.clients.len());
            self.poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
            self.clients.push(Client { socket, open: false, pending: Vec::new() });
        }
    }

    /// Handles a client's socket that is readable or writable.
    fn client(&mut self, index: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let client = &mut self.clients[index];
        if !client.pending.is_empty() {
            let written = write_some(&mut client.socket, &client.pending);
            client.pending.drain(..written);
        }
        let mut input = [0; 2_048];
        // No data, or the client has disconnected: neither needs handling.
        let n = client.socket.read(&mut input).unwrap_or(0);
        if n == 0 || client.open {
            return Ok(());
        }
        let head = std::str::from_utf8(&input[..n])?;
        let name = head.strip_prefix("GET /v1/streams/").and_then(|rest| rest.split(['?', ' ']).next());
        let (session, model) =
            name.and_then(|name| name.split_once('/')).ok_or("a request names no stream")?;
        let key = format!("llm:stream:{session}:{model}");
        client.open = true;
        client.socket.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )?;
        let stream = self.stream(key)?;
        self.streams[stream].clients.push(index);
        Ok(())
    }

    /// The index of the stream with this key. A new stream is read from its beginning.
    fn stream(&mut self, key: String) -> Result<usize, Box<dyn Error + Send + Sync>> {
        if let Some(&stream) = self.by_key.get(key.as_bytes()) {
            return Ok(stream);
        }
        let stream = self.streams.len();
        self.by_key.insert(key.clone().into_bytes(), stream);
        self.streams.push(Stream { key, last_id: b"0".to_vec(), ..Stream::default() });
        match self.mode {
            Mode::Blocking => {
                self.link("", stream)?;
                self.ask_blocking(self.links.len() - 1)?;
            }
            Mode::Tracking => self.has_news(stream),
        }
        Ok(stream)
    }

    fn has_news(&mut self, stream: usize) {
        if !std::mem::replace(&mut self.streams[stream].news, true) {
            self.news.push(stream);
        }
    }

    fn ask_blocking(&mut self, link: usize) -> io::Result<()> {
        let stream = &self.streams[self.links[link].stream];
        self.request.clear();
        self.request.extend_from_slice(b"*6\r\n$5\r\nXREAD\r\n$5\r\nBLOCK\r\n$1\r\n0\r\n$7\r\nSTREAMS\r\n");
        wire::bulk(&mut self.request, stream.key.as_bytes())?;
        wire::bulk(&mut self.request, &stream.last_id)?;
        write_whole(&mut self.links[link].socket, &self.request)
    }

    /// Requests the streams with new entries, unless a read is in progress.
    fn request_news(&mut self) -> io::Result<()> {
        if self.news.is_empty() || self.links[0].asked {
            return Ok(());
        }
        self.request.clear();
        write!(self.request, "*{}\r\n$5\r\nXREAD\r\n$7\r\nSTREAMS\r\n", 2 + 2 * self.news.len())?;
        for &stream in &self.news {
            wire::bulk(&mut self.request, self.streams[stream].key.as_bytes())?;
        }
        for stream in self.news.drain(..) {
            let stream = &mut self.streams[stream];
            stream.news = false;
            wire::bulk(&mut self.request, &stream.last_id)?;
        }
        self.links[0].asked = true;
        write_whole(&mut self.links[0].socket, &self.request)
    }

    /// Handles a connection to Redis that is readable.
    fn read_redis(&mut self, index: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        loop {
            let link = &mut self.links[index];
            link.input.copy_within(link.used..link.filled, 0);
            link.filled -= std::mem::take(&mut link.used);
            if link.filled == link.input.len() {
                link.input.resize(link.filled * 2, 0);
            }
            let n = match link.socket.read(&mut link.input[link.filled..]) {
                Ok(0) => return Err("Redis closed a connection".into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                read => read?,
            };
            link.filled += n;
            let full = link.filled == link.input.len();
            self.take(index)?;
            if !full {
                return Ok(());
            }
        }
    }

    /// Passes on all complete items received on a connection to Redis.
    fn take(&mut self, index: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let link = &mut self.links[index];
        let (input, filled, mut used) = (std::mem::take(&mut link.input), link.filled, link.used);
        let mut current = link.stream;
        while let Some(item) = self.links[index].reader.next(&input[..filled], &mut used)? {
            match item {
                Item::Stream(key) => {
                    current = *self.by_key.get(key).ok_or("an answer about another stream")?
                }
                Item::Entry { id, value } => {
                    let stream = &mut self.streams[current];
                    stream.last_id.clear();
                    stream.last_id.extend_from_slice(id);
                    frame(&mut stream.frames, value)?;
                }
                Item::News(key) => {
                    if let Some(&stream) = self.by_key.get(key) {
                        self.has_news(stream);
                    }
                    continue;
                }
                Item::ReplyEnd | Item::Done => {}
            }
            let (stream_over, reply_over) = self.links[index].reader.ends();
            if stream_over && current != Link::NONE {
                self.write_frames(current);
            }
            if reply_over {
                self.links[index].asked = false;
                if self.mode == Mode::Blocking {
                    self.ask_blocking(index)?;
                }
            }
        }
        if current != Link::NONE {
            self.write_frames(current);
        }
        let link = &mut self.links[index];
        (link.input, link.used, link.stream) = (input, used, current);
        Ok(())
    }

    /// Writes the collected frames of a stream to all its clients, with one call each.
    fn write_frames(&mut self, stream: usize) {
        let stream = &mut self.streams[stream];
        if stream.frames.is_empty() {
            return;
        }
        for &client in &stream.clients {
            let client = &mut self.clients[client];
            let written = match client.pending.is_empty() {
                true => write_some(&mut client.socket, &stream.frames),
                false => 0,
            };
            client.pending.extend_from_slice(&stream.frames[written..]);
        }
        stream.frames.clear();
    }
}

/// A WebSocket text frame.
fn frame(out: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
    match u8::try_from(payload.len()) {
        Ok(len @ 0..=125) => out.extend_from_slice(&[0x81, len]),
        _ => {
            let len = u16::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
            out.extend_from_slice(&[0x81, 126, len[0], len[1]]);
        }
    }
    out.extend_from_slice(payload);
    Ok(())
}

/// Writes as many bytes as a socket accepts now. Bytes for a broken connection count as written.
fn write_some(socket: &mut TcpStream, bytes: &[u8]) -> usize {
    match socket.write(bytes) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(_) => bytes.len(),
    }
}

/// Writes a request to Redis; the socket always has room for one.
fn write_whole(socket: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
