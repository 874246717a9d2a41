use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use tungstenite::protocol::frame::Frame;
use tungstenite::{Message, WebSocket};

use super::*;
use crate::deliver::request::{self, Parsed};
use crate::deliver::response::{SUBPROTOCOL, switch_to_websocket};

const FIN: u8 = 0x80;
const CONTINUE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The header of a client's frame that announces `len` bytes of payload.
fn header(first: u8, len: usize, mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match len {
        0..126 => bytes.push(0x80 | u8::try_from(len).unwrap()),
        126..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes
}

/// A client's frame.
fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = header(first, payload.len(), mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, [7, 0, 255, 31])
}

/// Decodes input in pieces, up to an error.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Incoming>, Result<(), CloseReason>) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(reason) => return (messages, Err(reason)),
            }
        }
        assert!(piece.is_empty(), "everything is taken before more is asked for");
    }
    (messages, Ok(()))
}

fn refused(bytes: &[u8]) -> CloseCode {
    let (_, whole) = decode([bytes]);
    let (_, by_byte) = decode(bytes.chunks(1));
    assert_eq!(whole, by_byte);
    whole.expect_err("refused").code
}

fn text(text: &str) -> Incoming {
    Incoming::Text(text.to_owned())
}

#[test]
fn messages_come_whole_with_control_frames_between_their_parts() {
    let bytes = [
        client(TEXT, "a\u{20ac}".as_bytes().split_at(2).0),
        client(FIN | PING, b"p"),
        client(CONTINUE, "a\u{20ac}".as_bytes().split_at(2).1),
        client(FIN | PONG, b""),
        client(CONTINUE, b""),
        client(FIN | CONTINUE, b"z"),
        client(FIN | TEXT, b""),
        client(FIN | CLOSE, b"\x03\xe8bye"),
        client(FIN | TEXT, b"after the end"),
    ]
    .concat();
    let expected = [
        Incoming::Ping(b"p".to_vec()),
        Incoming::Pong,
        text("a\u{20ac}z"),
        text(""),
        Incoming::Close(Some(1000)),
    ];
    assert_eq!(decode([&bytes[..]]), (expected.to_vec(), Ok(())));
    assert_eq!(decode(bytes.chunks(1)), (expected.to_vec(), Ok(())));
}

#[test]
fn broken_frames_close_with_1002() {
    let mut unmasked = client(FIN | TEXT, b"");
    unmasked[1] &= 0x7f;
    for bytes in [
        unmasked,
        client(FIN | 0x40 | TEXT, b"x"),
        client(FIN | 0x20 | TEXT, b"x"),
        client(FIN | 0x10 | PING, b"x"),
        client(FIN | 3, b""),
        client(FIN | 7, b""),
        client(FIN | 11, b""),
        client(FIN | 15, b""),
        client(PING, b""),
        client(CLOSE, b""),
        header(FIN | PING, 126, [0; 4]),
        header(FIN | CLOSE, 70_000, [0; 4]),
        client(FIN | CONTINUE, b"x"),
        [client(TEXT, b"x"), client(FIN | TEXT, b"y")].concat(),
        [client(TEXT, b"x"), client(FIN | BINARY, b"y")].concat(),
        [client(TEXT, b"x"), client(FIN | CONTINUE, b"y"), client(FIN | CONTINUE, b"z")].concat(),
        client(FIN | CLOSE, b"\x03"),
        client(FIN | CLOSE, &999_u16.to_be_bytes()),
        client(FIN | CLOSE, &1005_u16.to_be_bytes()),
        client(FIN | CLOSE, &1006_u16.to_be_bytes()),
        client(FIN | CLOSE, &2999_u16.to_be_bytes()),
    ] {
        assert_eq!(refused(&bytes), CloseCode::Protocol, "{bytes:?}");
    }
}

#[test]
fn text_must_be_utf8_and_binary_messages_are_distinguished() {
    assert_eq!(refused(&client(FIN | TEXT, b"\xff")), CloseCode::InvalidText);
    assert_eq!(refused(&client(FIN | TEXT, b"\xed\xa0\x80")), CloseCode::InvalidText);
    assert_eq!(refused(&client(FIN | CLOSE, b"\x03\xe8\xff")), CloseCode::InvalidText);
    let fragmented =
        [client(BINARY, b"\xff"), client(FIN | CONTINUE, b"x"), client(FIN | TEXT, b"a")].concat();
    assert_eq!(decode([&fragmented[..]]), (vec![Incoming::Binary, text("a")], Ok(())));
    assert_eq!(refused(&header(FIN | BINARY, 65_537, [0; 4])), CloseCode::TooBig);
    let (messages, end) = decode([&client(FIN | CLOSE, b"")[..]]);
    assert_eq!((messages, end), (vec![Incoming::Close(None)], Ok(())));
    for code in [1001_u16, 3000, 4999] {
        let (messages, _) = decode([&client(FIN | CLOSE, &code.to_be_bytes())[..]]);
        assert_eq!(messages, [Incoming::Close(Some(code))]);
    }
}

#[test]
fn a_message_too_long_is_refused_by_its_announced_length() {
    let full = vec![b'x'; MESSAGE_BYTES_MAX];
    let (messages, end) = decode([&client(FIN | TEXT, &full)[..]]);
    assert_eq!((messages.len(), end), (1, Ok(())));
    assert_eq!(refused(&header(FIN | TEXT, MESSAGE_BYTES_MAX + 1, [0; 4])), CloseCode::TooBig);
    assert_eq!(refused(&header(TEXT, usize::MAX, [0; 4])), CloseCode::TooBig);
    let second = [client(TEXT, &full[1..]), header(FIN | CONTINUE, 2, [0; 4])].concat();
    assert_eq!(refused(&second), CloseCode::TooBig);
    let second = [client(TEXT, &full[1..]), client(FIN | CONTINUE, b"y")].concat();
    assert_eq!(decode([&second[..]]).1, Ok(()));
}

#[test]
fn a_listener_costs_no_memory() {
    assert!(size_of::<Decoder>() <= 80, "{}", size_of::<Decoder>());
    let mut decoder = Decoder::new();
    let bytes =
        [client(FIN | TEXT, b"hello"), client(FIN | PONG, b"abc"), client(FIN | PING, b"abc")].concat();
    let mut input = &bytes[..];
    while decoder.next(&mut input).unwrap().is_some() {}
    assert_eq!((decoder.text.capacity(), decoder.control.capacity()), (0, 0));
    // An announced length is not reserved before its bytes arrive.
    decoder.next(&mut &header(FIN | TEXT, 60_000, [0; 4])[..]).unwrap();
    assert_eq!(decoder.text.capacity(), 0);
}

#[test]
fn an_error_is_the_end() {
    let mut decoder = Decoder::new();
    assert!(decoder.next(&mut &client(FIN | 3, b"")[..]).is_err());
    let valid = client(FIN | TEXT, b"x");
    let mut input = &valid[..];
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert!(input.is_empty());
}

#[test]
fn close_reasons_are_cut_between_characters() {
    let frame = close_frame(1000, &"\u{20ac}".repeat(42));
    assert_eq!(frame.len(), 2 + 2 + 123);
    let frame = close_frame(1000, &("x".to_owned() + &"\u{20ac}".repeat(42)));
    assert_eq!(frame.len(), 2 + 2 + 121);
    assert_eq!(ping_frame(&[0; 200]).len(), 2 + 125);
}

/// A client's generated messages: the fragments of a text, each with pings before it, or a pong.
#[derive(Clone, Debug)]
enum Sent {
    Text(Vec<(Vec<u8>, String)>),
    Pong(Vec<u8>),
}

fn messages() -> impl Strategy<Value = Sent> {
    let payload = || prop::collection::vec(any::<u8>(), 0..=125);
    let fragment = (payload(), prop_oneof![4 => "\\PC{0,40}", 1 => "[a-z\u{e9}]{100,300}"]);
    prop_oneof![
        4 => prop::collection::vec(fragment, 1..4).prop_map(Sent::Text),
        1 => payload().prop_map(Sent::Pong),
    ]
}

/// The messages as bytes, and as the decoder should return them.
fn encode(messages: &[Sent], mask: [u8; 4]) -> (Vec<u8>, Vec<Incoming>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            Sent::Pong(payload) => {
                bytes.extend(masked(FIN | PONG, payload, mask));
                expected.push(Incoming::Pong);
            }
            Sent::Text(fragments) => {
                let mut whole = String::new();
                for (number, (ping, part)) in fragments.iter().enumerate() {
                    bytes.extend(masked(FIN | PING, ping, mask));
                    expected.push(Incoming::Ping(ping.clone()));
                    let opcode = if number == 0 { TEXT } else { CONTINUE };
                    let is_final = if number + 1 == fragments.len() { FIN } else { 0 };
                    bytes.extend(masked(is_final | opcode, part.as_bytes(), mask));
                    whole.push_str(part);
                }
                expected.push(Incoming::Text(whole));
            }
        }
    }
    (bytes, expected)
}

/// Cuts bytes into pieces of the given lengths, repeatedly.
fn cut<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for &length in lengths.iter().cycle() {
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
        if bytes.is_empty() {
            return pieces;
        }
    }
    vec![bytes]
}

proptest! {
    #[test]
    fn messages_are_the_same_however_they_are_cut(
        messages in prop::collection::vec(messages(), 0..6),
        mask: [u8; 4],
        lengths in prop::collection::vec(1..50_usize, 1..20),
    ) {
        let (bytes, expected) = encode(&messages, mask);
        prop_assert_eq!(decode(cut(&bytes, &lengths)), (expected, Ok(())));
    }

    #[test]
    fn any_bytes_give_messages_or_a_reason(bytes: Vec<u8>, lengths in prop::collection::vec(1..9_usize, 1..9)) {
        prop_assert_eq!(decode([&bytes[..]]), decode(cut(&bytes, &lengths)));
    }

    #[test]
    fn damaged_frames_give_messages_or_a_reason(
        messages in prop::collection::vec(messages(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        lengths in prop::collection::vec(1..50_usize, 1..9),
    ) {
        let (mut bytes, _) = encode(&messages, [1, 2, 3, 4]);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(decode([&bytes[..]]), decode(cut(&bytes, &lengths)));
    }
}

/// A server made of these parts for a client of the real library: it accepts the handshake, answers pings, echoes
/// each text, and closes on request.
struct Server {
    socket: UnixStream,
    decoder: Decoder,
}

impl Server {
    fn accept(mut socket: UnixStream) -> Self {
        let mut buffer = Vec::new();
        let mut seen = 0;
        loop {
            let mut byte = [0; 1];
            socket.read_exact(&mut byte).unwrap();
            buffer.push(byte[0]);
            match request::parse_grown(&buffer, seen) {
                Parsed::Partial => seen = buffer.len(),
                Parsed::Complete { request, .. } => {
                    let mut answer = Vec::new();
                    switch_to_websocket(&mut answer, &request.websocket.unwrap());
                    socket.write_all(&answer).unwrap();
                    return Self { socket, decoder: Decoder::new() };
                }
                Parsed::Invalid(error) => panic!("{error}"),
            }
        }
    }

    fn serve(mut self) {
        let mut buffer = [0; 1021];
        loop {
            let len = self.socket.read(&mut buffer).unwrap();
            assert!(len > 0, "the client closes in order");
            let mut input = &buffer[..len];
            while let Some(incoming) = self.decoder.next(&mut input).unwrap() {
                let answer = match incoming {
                    Incoming::Text(text) => text_frame(&text),
                    Incoming::Ping(payload) => pong_frame(&payload),
                    Incoming::Binary => text_frame("binary seen"),
                    Incoming::Pong => text_frame("pong seen"),
                    Incoming::Close(code) => {
                        let answer = close_frame(code.unwrap_or(CloseCode::Normal.number()), "as you wish");
                        return self.socket.write_all(&answer).unwrap();
                    }
                };
                self.socket.write_all(&answer).unwrap();
            }
        }
    }
}

fn connect(socket: UnixStream) -> WebSocket<UnixStream> {
    let request = tungstenite::ClientRequestBuilder::new("ws://localhost/v1/ws".parse().unwrap())
        .with_sub_protocol(SUBPROTOCOL);
    tungstenite::client(request, socket).unwrap().0
}

#[test]
fn a_real_client_is_understood_and_understands() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| Server::accept(ours).serve());
        let mut client = connect(theirs);
        for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let text = "\u{e9}".repeat(len / 2) + if len % 2 == 0 { "" } else { "x" };
            client.send(Message::text(text.clone())).unwrap();
            assert_eq!(client.read().unwrap(), Message::text(text), "{len}");
        }
        client.send(Message::Ping(vec![9; 125].into())).unwrap();
        assert_eq!(client.read().unwrap(), Message::Pong(vec![9; 125].into()));
        client.send(Message::Pong(Bytes::new())).unwrap();
        assert_eq!(client.read().unwrap(), Message::text("pong seen"));

        for (part, data, is_final) in
            [("one ", Data::Text, false), ("two ", Data::Continue, false), ("three", Data::Continue, true)]
        {
            let frame = Frame::message(part.to_owned(), OpCode::Data(data), is_final);
            client.send(Message::Frame(frame)).unwrap();
        }
        assert_eq!(client.read().unwrap(), Message::text("one two three"));

        client.close(None).unwrap();
        let Message::Close(Some(frame)) = client.read().unwrap() else { panic!("no close frame") };
        assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1000, "as you wish"));
        assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    });
}

#[test]
fn a_real_client_answers_our_ping() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut client = WebSocket::from_raw_socket(theirs, tungstenite::protocol::Role::Client, None);
    ours.write_all(&ping_frame(b"still there?")).unwrap();
    ours.write_all(&close_frame(CloseCode::Slow.number(), "too slow")).unwrap();
    assert_eq!(client.read().unwrap(), Message::Ping(Bytes::from_static(b"still there?")));
    let Message::Close(Some(frame)) = client.read().unwrap() else { panic!("no close frame") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4408, "too slow"));
    client.flush().ok();
    drop(client);
    let mut bytes = Vec::new();
    ours.read_to_end(&mut bytes).unwrap();
    let (messages, end) = decode([&bytes[..]]);
    assert_eq!((messages, end), (vec![Incoming::Pong, Incoming::Close(Some(4408))], Ok(())));
}
