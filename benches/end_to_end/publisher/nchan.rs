//! Publishes tokens to nchan: pipelined HTTP POSTs over a few persistent connections. Each stream always uses the
//! same connection, which keeps its order.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Publisher, Result};

/// nginx handles the requests of a connection one after another, so one connection would be slow.
const CONNECTIONS: usize = 16;

struct Connection {
    socket: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    outstanding: usize,
}

/// Publishes tokens by HTTP.
pub(super) struct Nchan {
    connections: Vec<Connection>,
    chunk: Vec<u8>,
}

impl Nchan {
    /// Connects to the server.
    pub(super) fn connect(server: SocketAddr) -> io::Result<Self> {
        let connect = |_| {
            let socket = TcpStream::connect(server)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(30)))?;
            Ok(Connection { socket, out: Vec::new(), input: Vec::new(), outstanding: 0 })
        };
        let connections = (0..CONNECTIONS).map(connect).collect::<io::Result<_>>()?;
        Ok(Self { connections, chunk: vec![0; 64 * 1024] })
    }
}

impl Publisher for Nchan {
    fn put(&mut self, stream: usize, value: &[u8]) -> io::Result<()> {
        let connection = &mut self.connections[stream % CONNECTIONS];
        write!(
            connection.out,
            "POST /publish/bench-{stream}/m HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n",
            value.len()
        )?;
        connection.out.extend_from_slice(value);
        connection.outstanding += 1;
        Ok(())
    }

    fn unwritten(&self) -> usize {
        self.connections.iter().map(|connection| connection.out.len()).sum()
    }

    fn write(&mut self) -> io::Result<()> {
        for connection in &mut self.connections {
            connection.socket.write_all(&connection.out)?;
            connection.out.clear();
        }
        Ok(())
    }

    fn settle(&mut self, limit: usize) -> Result<()> {
        let mut outstanding: usize = self.connections.iter().map(|connection| connection.outstanding).sum();
        while outstanding > limit {
            let busiest = self.connections.iter_mut().max_by_key(|connection| connection.outstanding);
            outstanding -= busiest.ok_or("no connection")?.read(&mut self.chunk)?;
        }
        Ok(())
    }
}

impl Connection {
    /// Reads at least one byte. Returns how many responses were completed.
    fn read(&mut self, chunk: &mut [u8]) -> Result<usize> {
        let n = self.socket.read(chunk)?;
        if n == 0 {
            return Err("nchan closed the producer's connection".into());
        }
        self.input.extend_from_slice(&chunk[..n]);
        let (mut used, mut answers) = (0, 0);
        while let Some(len) = answer(&self.input[used..])? {
            used += len;
            answers += 1;
        }
        self.input.drain(..used);
        self.outstanding -= answers;
        Ok(answers)
    }
}

/// The length of the response at the start of `input`; `None` while it is incomplete.
fn answer(input: &[u8]) -> Result<Option<usize>> {
    let Some(head) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&input[..head])?;
    if !text.starts_with("HTTP/1.1 20") {
        return Err(format!("nchan refused a token: {}", text.lines().next().unwrap_or_default()).into());
    }
    let body = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let len = head + 4 + body.ok_or("an answer of nchan without a length")?.parse::<usize>()?;
    Ok((input.len() >= len).then_some(len))
}
