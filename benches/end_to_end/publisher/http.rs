//! Pipelined HTTP POSTs over a few persistent connections. Servers handle the requests of a connection one after
//! another, so tokens that always use the same connection keep their order. The key is that of the configurations in
//! `benches/peers`; nchan ignores it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Result;

/// Servers close connections on which nothing happens for some seconds. After this long, a new one is used instead.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// A connection.
struct Connection {
    socket: TcpStream,
    used_at: Instant,
    out: Vec<u8>,
    input: Vec<u8>,
    /// How many tokens each outstanding request contains.
    requests: VecDeque<usize>,
}

/// Connections to one server.
pub(super) struct Connections {
    server: SocketAddr,
    connections: Vec<Connection>,
    chunk: Vec<u8>,
}

impl Connections {
    /// Opens this many.
    pub(super) fn open(server: SocketAddr, count: usize) -> io::Result<Self> {
        let connections = (0..count).map(|_| Connection::open(server)).collect::<io::Result<_>>()?;
        Ok(Self { server, connections, chunk: vec![0; 64 * 1024] })
    }

    /// Appends a request with this many tokens to the output of a connection.
    pub(super) fn post(
        &mut self,
        connection: usize,
        path: &str,
        body: &[u8],
        tokens: usize,
    ) -> io::Result<()> {
        let connection = &mut self.connections[connection];
        if connection.requests.is_empty() && connection.used_at.elapsed() > IDLE_MAX {
            *connection = Connection::open(self.server)?;
        }
        connection.used_at = Instant::now();
        let len = body.len();
        write!(
            connection.out,
            "POST {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: bench\r\nContent-Length: {len}\r\n\r\n"
        )?;
        connection.out.extend_from_slice(body);
        connection.requests.push_back(tokens);
        Ok(())
    }

    /// How many bytes have not been written yet.
    pub(super) fn unwritten(&self) -> usize {
        self.connections.iter().map(|connection| connection.out.len()).sum()
    }

    /// Writes those bytes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        for connection in &mut self.connections {
            connection.socket.write_all(&connection.out)?;
            connection.out.clear();
        }
        Ok(())
    }

    /// Reads responses until at most `limit` tokens are outstanding.
    pub(super) fn settle(&mut self, limit: usize) -> Result<()> {
        let mut outstanding: usize = self.connections.iter().map(Connection::outstanding).sum();
        while outstanding > limit {
            let busiest = self.connections.iter_mut().max_by_key(|connection| connection.outstanding());
            outstanding -= busiest.ok_or("no connection")?.read(&mut self.chunk)?;
        }
        Ok(())
    }
}

impl Connection {
    fn open(server: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (out, input, requests) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { socket, used_at: Instant::now(), out, input, requests })
    }

    fn outstanding(&self) -> usize {
        self.requests.iter().sum()
    }

    /// Reads at least one byte. Returns how many tokens were accepted.
    fn read(&mut self, chunk: &mut [u8]) -> Result<usize> {
        let n = self.socket.read(chunk)?;
        if n == 0 {
            return Err("the server closed the producer's connection".into());
        }
        self.input.extend_from_slice(&chunk[..n]);
        let (mut used, mut tokens) = (0, 0);
        while let Some(len) = answer(&self.input[used..])? {
            used += len;
            tokens += self.requests.pop_front().ok_or("a response without a request")?;
        }
        self.input.drain(..used);
        Ok(tokens)
    }
}

/// The length of the response at the start of `input`; `None` while it is incomplete.
fn answer(input: &[u8]) -> Result<Option<usize>> {
    let Some(head) = find(input, b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&input[..head])?;
    if !text.starts_with("HTTP/1.1 20") {
        return Err(format!("the server refused tokens: {}", text.lines().next().unwrap_or_default()).into());
    }
    let body = &input[head + 4..];
    let len = match text.lines().find_map(|line| line.strip_prefix("Content-Length: ")) {
        Some(len) => len.parse()?,
        // Chunks: the last one is empty, and JSON contains no line end in front of it.
        None => find(body, b"\r\n0\r\n\r\n").map_or(usize::MAX, |last| last + 7),
    };
    let Some(body) = body.get(..len) else { return Ok(None) };
    if find(body, b"\"error\":").is_some() {
        return Err(format!("the server refused a token: {}", String::from_utf8_lossy(body)).into());
    }
    Ok(Some(head + 4 + len))
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
