//! Just enough of the protocol of NATS for the clients and the producer: what the server says, the names of subjects,
//! and the requests that create the stream of JetStream and a client's consumer. Pure.
//!
//! All tokens are in one stream of JetStream, with a subject for each stream of the bench. A client reads its subject
//! by an ordered consumer, as the libraries of NATS create it: pushed to an inbox of its own, without
//! acknowledgements, with flow control and heartbeats. Its sequence numbers show gaps; the bench judges the tokens
//! instead.

use crate::token;

/// Creates the stream when a server starts.
pub(crate) const CREATE_STREAM: &str = "$JS.API.STREAM.CREATE.LLM";
/// The configuration of the stream.
pub(crate) const STREAM: &str = include_str!("../peers/nats/stream.json");
/// The first message of every client and producer.
pub(crate) const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
                                  \"no_responders\":true,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1}\r\n";

/// The request for a client's consumer.
const CONSUMER: &str = include_str!("../peers/nats/consumer.json.template");

/// A message of the server.
#[derive(Debug)]
pub(crate) enum Said<'a> {
    /// Facts about the server and confirmations, which need no reaction.
    Notice,
    /// It wants a PONG.
    Ping,
    /// It reports an error, or says something unknown.
    Trouble(&'a [u8]),
    /// A message on a subject to which this side subscribed.
    Message(Message<'a>),
}

/// A message on a subject.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// Identifies the subscription.
    pub(crate) sid: &'a [u8],
    /// The subject for answers; empty if there is none.
    pub(crate) reply: &'a [u8],
    /// Its headers; empty if there are none.
    pub(crate) headers: &'a [u8],
    /// Its content.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The subject to which an answer has to be published before JetStream sends more, if this message is about flow
    /// control: a request, or a heartbeat that says that the consumer is stalled.
    pub(crate) fn flow_control(&self) -> Option<&[u8]> {
        const STALLED: &[u8] = b"Nats-Consumer-Stalled: ";
        let stalled = self.headers.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(STALLED));
        let subject = stalled.map_or(self.reply, <[u8]>::trim_ascii_end);
        (!subject.is_empty()).then_some(subject)
    }
}

/// Whether JetStream did what a message asked for, by its answer.
pub(crate) fn is_confirmation(answer: &Message) -> bool {
    const ERROR: &[u8] = b"\"error\":";
    answer.headers.is_empty() && !answer.payload.windows(ERROR.len()).any(|window| window == ERROR)
}

/// The server's message at the start of `bytes`, and its length; `None` while it is incomplete.
pub(crate) fn said(bytes: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let (line, body) = (&bytes[..end], &bytes[end + 2..]);
    let mut words = line.split(|&byte| byte == b' ');
    let simple = match words.next()? {
        b"MSG" | b"HMSG" => None,
        b"INFO" | b"+OK" | b"PONG" => Some(Said::Notice),
        b"PING" => Some(Said::Ping),
        _ => Some(Said::Trouble(line)),
    };
    if let Some(said) = simple {
        return Some((said, end + 2));
    }
    let words: Vec<_> = words.collect();
    let length = |words: &[&[u8]]| usize::try_from(token::number(words.last()?)?).ok();
    let (len, rest) = (length(&words)?, &words[..words.len() - 1]);
    let (head, rest) =
        if line.starts_with(b"H") { (length(rest)?, &rest[..rest.len() - 1]) } else { (0, rest) };
    let content = body.get(..len + 2)?;
    let message = Message {
        sid: rest.get(1)?,
        reply: rest.get(2).copied().unwrap_or_default(),
        headers: content.get(..head)?,
        payload: &content[head..len],
    };
    Some((Said::Message(message), end + 2 + len + 2))
}

/// The subject of a stream's tokens.
pub(crate) fn subject(stream: usize) -> String {
    format!("llm.bench-{stream}")
}

/// The first messages of a client, whose name differs from that of every other one: they subscribe to its inbox and
/// ask for a consumer that begins with the stream's first token.
pub(crate) fn opening(stream: usize, client: &str) -> String {
    let inbox = format!("_INBOX.bench-{client}");
    let consumer = CONSUMER.replace("@INBOX@", &inbox).replace("@SUBJECT@", &subject(stream));
    let len = consumer.len();
    format!(
        "{CONNECT}SUB {inbox} {SID_TOKENS}\r\nSUB {inbox}.created {SID_CREATED}\r\nUNSUB {SID_CREATED} 1\r\n\
         PUB $JS.API.CONSUMER.CREATE.LLM {inbox}.created {len}\r\n{consumer}\r\n"
    )
}

/// A client's subscription to its tokens.
pub(crate) const SID_TOKENS: &str = "1";
/// A client's subscription to the answer to its request for a consumer.
pub(crate) const SID_CREATED: &str = "2";
