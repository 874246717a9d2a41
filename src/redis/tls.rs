//! TLS towards Redis: trust anchors, and a session over a non-blocking socket.
//!
//! Left out: client certificates (`tls-auth-clients yes`), for which there is no setting.

use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::Socket;

use super::error::{RedisError, TargetError};
use super::poll::{self, Ready};

/// The client configuration for TLS: trusts the certificates in `ca_file`, or the public authorities.
pub(super) fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TargetError> {
    let roots = match ca_file {
        Some(path) => roots_from(path)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TargetError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots_from(path: &Path) -> Result<RootCertStore, TargetError> {
    let unusable = |reason: String| TargetError::CaFile { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it contains no certificate in PEM form".to_owned()));
    }
    Ok(roots)
}

/// A TLS session and its socket, which is non-blocking.
#[derive(Debug)]
pub(super) struct TlsStream {
    session: ClientConnection,
    pub(super) socket: Socket,
}

impl TlsStream {
    /// Does the handshake until the deadline.
    pub(super) fn connect(
        socket: Socket,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Instant,
    ) -> Result<Self, RedisError> {
        let session = ClientConnection::new(Arc::clone(config), name).map_err(RedisError::Tls)?;
        let mut stream = Self { session, socket };
        loop {
            let sent = stream.send_pending()?;
            if !stream.session.is_handshaking() && sent {
                return Ok(stream);
            }
            if stream.session.is_handshaking() && stream.receive()? {
                continue;
            }
            let wanted =
                Ready { readable: stream.session.wants_read(), writable: stream.session.wants_write() };
            if poll::wait(stream.socket.as_raw_fd(), wanted, Some(deadline))?.is_none() {
                return Err(RedisError::Timeout);
            }
        }
    }

    /// Appends decrypted bytes and returns their number; 0 at the end.
    pub(super) fn read_into(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            match self.session.reader().fill_buf() {
                Ok(plain) => {
                    let len = plain.len();
                    buffer.extend_from_slice(plain);
                    self.session.reader().consume(len);
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.receive() {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::WouldBlock.into()),
                // A server that dies does not close the session: for the reader it is the end like any other.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }

    /// Encrypts some of the bytes and returns their number.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_pending()?;
        match self.session.writer().write(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }

    /// Sends the encrypted bytes; `false` if the socket accepts no more now.
    pub(super) fn send_pending(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes the bytes that the socket has; `false` if there are none now.
    fn receive(&mut self) -> io::Result<bool> {
        match self.session.read_tls(&mut self.socket) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        let state = self.session.process_new_packets();
        // Messages of the protocol itself, or the alert that names the error.
        let sent = self.send_pending();
        state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        sent.map(|_| true)
    }
}
