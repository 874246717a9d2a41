//! Publishes tokens to NATS JetStream over one plain connection. The server stores each token and confirms it;
//! publishing does not wait for that.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{Publisher, Result};
use crate::nats::{self, Said};

/// The producer's subscription to confirmations.
const INBOX: &str = "_INBOX.producer";

/// Publishes tokens to JetStream.
pub(crate) struct Nats {
    socket: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    chunk: Vec<u8>,
    outstanding: usize,
}

impl Nats {
    /// Connects to the server's plain port.
    pub(crate) fn connect(server: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let out = format!("{}SUB {INBOX} 1\r\n", nats::CONNECT).into_bytes();
        Ok(Self { socket, out, input: Vec::new(), chunk: vec![0; 64 * 1024], outstanding: 0 })
    }

    /// Creates the stream of JetStream.
    pub(crate) fn create_stream(&mut self) -> Result<()> {
        self.publish(nats::CREATE_STREAM, nats::STREAM.as_bytes())?;
        self.write()?;
        self.settle(0)
    }

    fn publish(&mut self, subject: &str, payload: &[u8]) -> io::Result<()> {
        write!(self.out, "PUB {subject} {INBOX} {}\r\n", payload.len())?;
        self.out.extend_from_slice(payload);
        self.out.extend_from_slice(b"\r\n");
        self.outstanding += 1;
        Ok(())
    }
}

impl Publisher for Nats {
    fn put(&mut self, stream: usize, value: &[u8]) -> io::Result<()> {
        self.publish(&nats::subject(stream), value)
    }

    fn unwritten(&self) -> usize {
        self.out.len()
    }

    fn write(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn settle(&mut self, limit: usize) -> Result<()> {
        while self.outstanding > limit {
            let n = self.socket.read(&mut self.chunk)?;
            if n == 0 {
                return Err("NATS closed the producer's connection".into());
            }
            self.input.extend_from_slice(&self.chunk[..n]);
            let mut used = 0;
            while let Some((said, len)) = nats::said(&self.input[used..]) {
                match said {
                    Said::Notice => {}
                    Said::Ping => self.socket.write_all(b"PONG\r\n")?,
                    Said::Message(message) if nats::is_confirmation(&message) => self.outstanding -= 1,
                    Said::Message(message) => return Err(refusal(message.payload).into()),
                    Said::Trouble(line) => return Err(refusal(line).into()),
                }
                used += len;
            }
            self.input.drain(..used);
        }
        Ok(())
    }
}

fn refusal(why: &[u8]) -> String {
    format!("NATS refused a message of the producer: {}", String::from_utf8_lossy(why))
}
