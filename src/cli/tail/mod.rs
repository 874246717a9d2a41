//! `llm-bridge tail`: follows a stream in the terminal and resumes by itself after a lost connection.
//!
//! Supports plain WebSocket only; TLS ends at a proxy.

mod address;
mod follow;
mod render;
mod statistics;

use std::io::{IsTerminal as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread::sleep;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{HandshakeError, Message, WebSocket};

use self::address::Address;
use self::follow::{Ending, Follower, Next};
use self::render::{Frame, Look, Renderer};
use super::output::{note, write_to};
use super::{CliError, Shared};
use crate::redis::Backoff;
use crate::visible;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the client sends a ping; after the same time without an answer, the connection counts as lost.
const SILENCE: Duration = Duration::from_secs(20);
/// The first pause before another attempt.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause before another attempt.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Follow a stream in the terminal, resuming by itself
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// The stream, such as <http://127.0.0.1:8080/v1/streams/SESSION/MODEL>
    url: String,
    /// Print every frame as one line of JSON
    #[arg(long)]
    json: bool,
    /// Whether reasoning is dimmed, and control characters in the text are shown instead of executed
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    color: Color,
    /// Stay for the generations to come
    #[arg(long)]
    follow: bool,
    /// Begin after this entry id; `last`: with the newest generation; `$`: with the next entry
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    #[command(flatten)]
    shared: Shared,
}

/// When the output is made for a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal; without dimming if NO_COLOR is set
    Auto,
    /// Also in a pipe
    Always,
    /// Without dimming
    Never,
}

impl Color {
    fn look(self, is_terminal: bool) -> Look {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match self {
            Self::Auto => Look { terminal: is_terminal, dims: is_terminal && !no_color },
            Self::Always => Look { terminal: true, dims: true },
            Self::Never => Look { terminal: is_terminal, dims: false },
        }
    }
}

/// Runs `tail`.
pub(crate) fn run(args: &Tail) -> Result<(), CliError> {
    args.shared.load()?;
    let mut address = Address::parse(&args.url).map_err(|error| CliError::Usage(error.to_string()))?;
    if args.follow {
        address.follow();
    }
    let after = args.after.clone().or_else(|| address.after.clone());
    let mut out = std::io::stdout().lock();
    let renderer = Renderer::new(args.color.look(out.is_terminal() && !args.json));
    let mut session =
        Session { address, follower: Follower::new(after, renderer), json: args.json, out: &mut out };
    match session.run()? {
        Ending::Complete => Ok(()),
        Ending::Failed(code) => {
            Err(CliError::Failed(format!("the generation failed: {}", visible::line(&code))))
        }
    }
}

/// One stream that is followed over as many connections as needed.
struct Session<'a> {
    address: Address,
    follower: Follower,
    json: bool,
    /// Stdout, or a substitute.
    out: &'a mut dyn Write,
}

impl Session<'_> {
    fn run(&mut self) -> Result<Ending, CliError> {
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX, std::process::id().into());
        loop {
            let next = match self.connect() {
                Ok(socket) => self.read(socket, &mut backoff)?,
                Err(next) => next,
            };
            match next {
                Next::Over(ending) => return Ok(ending),
                Next::GiveUp(reason) => return Err(CliError::Failed(reason)),
                Next::Again { reason, wait } => {
                    let pause = backoff.next().max(wait.unwrap_or(Duration::ZERO));
                    let news = format!("{reason}; resuming in {} ms", pause.as_millis());
                    note(&self.follower.renderer().news(&news));
                    sleep(pause);
                }
            }
        }
    }

    fn connect(&self) -> Result<WebSocket<TcpStream>, Next> {
        let again = |error: &dyn std::fmt::Display| Next::Again {
            reason: format!("{}: {error}", self.address.authority),
            wait: None,
        };
        let stream = dial(&self.address.authority).map_err(|error| again(&error))?;
        let request = self.address.request(self.follower.after());
        match tungstenite::client::client(request, stream) {
            Ok((socket, _)) => Ok(socket),
            Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
                let body = answer.body().as_deref().unwrap_or(&[]);
                Err(Follower::refused(answer.status().as_u16(), body, retry_after))
            }
            Err(HandshakeError::Failure(error)) => Err(again(&error)),
            Err(HandshakeError::Interrupted(_)) => Err(again(&"no answer to the request")),
        }
    }

    /// Shows frames until the connection ends.
    fn read(&mut self, mut socket: WebSocket<TcpStream>, backoff: &mut Backoff) -> Result<Next, CliError> {
        let mut asked = false;
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => {
                    asked = false;
                    backoff.reset();
                    self.show(text.as_str())?;
                }
                Ok(Message::Close(frame)) => {
                    // The answer to the close is in tungstenite's buffer; a peer that is gone does not need it.
                    socket.flush().ok();
                    let (code, reason) = frame.map_or((CloseCode::Status, String::new()), |frame| {
                        (frame.code, frame.reason.to_string())
                    });
                    return Ok(self.follower.closed(code.into(), &reason));
                }
                Ok(_) => asked = false,
                Err(tungstenite::Error::Io(error)) if is_timeout(&error) && !asked => {
                    asked = true;
                    if let Err(error) = socket.send(Message::Ping(tungstenite::Bytes::new())) {
                        return Ok(Next::Again { reason: error.to_string(), wait: None });
                    }
                }
                Err(tungstenite::Error::Io(error)) if is_timeout(&error) => {
                    return Ok(Next::Again { reason: "the server is silent".to_owned(), wait: None });
                }
                Err(error) => return Ok(Next::Again { reason: error.to_string(), wait: None }),
            }
        }
    }

    fn show(&mut self, json: &str) -> Result<(), CliError> {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(json) else {
            note(&self.follower.renderer().news("an invalid frame was skipped"));
            return Ok(());
        };
        let Some(output) = self.follower.frame(&frame) else { return Ok(()) };
        if self.json {
            // The value is unchanged for a program, but contains nothing that a terminal would interpret.
            return write_to(self.out, &format!("{}\n", visible::json(json)));
        }
        if !output.text.is_empty() {
            write_to(self.out, &output.text)?;
        }
        note(&output.note);
        Ok(())
    }
}

fn dial(authority: &str) -> std::io::Result<TcpStream> {
    let mut refusal = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                return Ok(stream);
            }
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tungstenite::handshake::server::{ErrorResponse, Request, Response};
    use tungstenite::protocol::CloseFrame;

    use super::*;

    /// A scripted server's behaviour on one connection.
    enum Act {
        /// Refuses the upgrade with this status.
        Refuse(u16),
        /// Sends these frames and drops the connection.
        Drop(&'static [&'static str]),
        /// Sends these frames and closes with this code.
        Close(&'static [&'static str], u16),
    }

    #[allow(clippy::result_large_err, reason = "tungstenite's callback is declared so")]
    fn serve(stream: TcpStream, act: &Act) -> String {
        let mut asked = String::new();
        let socket = tungstenite::accept_hdr(stream, |request: &Request, response: Response| {
            asked = request.uri().to_string();
            let Act::Refuse(status) = act else { return Ok(response) };
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = (*status).try_into().unwrap();
            Err(refusal)
        });
        let (frames, close) = match act {
            Act::Refuse(_) => return asked,
            Act::Drop(frames) => (frames, None),
            Act::Close(frames, code) => (frames, Some(*code)),
        };
        let mut socket = socket.unwrap();
        for frame in *frames {
            socket.send(Message::text(*frame)).unwrap();
        }
        if let Some(code) = close {
            socket.close(Some(CloseFrame { code: code.into(), reason: "".into() })).unwrap();
            while socket.read().is_ok() {}
        }
        asked
    }

    /// Follows a stream of a server with this script, connection by connection. Returns what was shown, what was
    /// requested, and how it ended.
    fn follow(acts: &[Act], json: bool) -> (String, Vec<String>, Result<Ending, CliError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/streams/s/m", listener.local_addr().unwrap());
        let mut out = Vec::new();
        let (asked, ending) = std::thread::scope(|scope| {
            let server =
                scope.spawn(|| acts.iter().map(|act| serve(listener.accept().unwrap().0, act)).collect());
            let follower = Follower::new(None, Renderer::new(Look::default()));
            let mut session =
                Session { address: Address::parse(&url).unwrap(), follower, json, out: &mut out };
            let ending = session.run();
            (server.join().unwrap(), ending)
        });
        (String::from_utf8(out).unwrap(), asked, ending)
    }

    const OPEN: &str = r#"{"type":"open","stream":"s/m","after":"0-0","state":"live"}"#;
    const HEL: &str = r#"{"type":"delta","id":"1-0","text":"Hel"}"#;
    const LO: &str = r#"{"type":"delta","id":"2-0","text":"lo"}"#;
    const END: &str = r#"{"type":"end","id":"3-0","finish_reason":"stop"}"#;
    const ERROR: &str = r#"{"type":"error","id":"3-0","code":"c","message":"m"}"#;

    #[test]
    fn it_resumes_after_every_kind_of_loss() {
        let acts = [
            Act::Refuse(503),
            Act::Drop(&[OPEN, HEL]),
            Act::Drop(&[]),
            Act::Close(&[OPEN, LO], 1001),
            Act::Close(&[OPEN, END], 1000),
        ];
        let (shown, asked, ending) = follow(&acts, false);
        assert_eq!((shown.as_str(), ending.unwrap()), ("Hello", Ending::Complete));
        let path = "/v1/streams/s/m";
        let after = |id: &str| format!("{path}?after={id}");
        assert_eq!(asked, [path.to_owned(), path.to_owned(), after("1-0"), after("1-0"), after("2-0")]);
    }

    #[test]
    fn endings_are_distinguished() {
        let (_, _, ending) = follow(&[Act::Close(&[OPEN, ERROR], 1000)], false);
        assert_eq!(ending.unwrap(), Ending::Failed("c".to_owned()));
        let (_, _, ending) = follow(&[Act::Close(&[], 4404)], false);
        assert_eq!(ending.unwrap_err().to_string(), "there is no such stream");
        let (_, _, ending) = follow(&[Act::Refuse(403)], false);
        assert_eq!(ending.unwrap_err().to_string(), "HTTP 403");
    }

    #[test]
    fn json_is_passed_on_line_by_line() {
        let (shown, _, _) = follow(&[Act::Close(&[OPEN, HEL, END], 1000)], true);
        assert_eq!(shown, format!("{OPEN}\n{HEL}\n{END}\n"));
        const UNRULY: &str = "{\"type\":\"custom\",\"id\":\"2-0\",\"data\":{\"a\":\n\"\u{9b}2J\u{7f}\"}}";
        let (shown, _, _) = follow(&[Act::Close(&[UNRULY, END], 1000)], true);
        let data = r#"{"a": "\u009b2J\u007f"}"#;
        assert_eq!(shown, format!("{{\"type\":\"custom\",\"id\":\"2-0\",\"data\":{data}}}\n{END}\n"));
    }
}
