//! The codes with which WebSockets are closed, in one table, with the reaction that each asks of a client.
//!
//! The browser client acts on them (`src/web/llm-bridge.js`), and [`src/deliver/README.md`](README.md) lists them; a
//! test compares both with this table.

/// How a client should react to a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The stream was delivered to its end.
    Finish,
    /// Connect again and resume.
    Resume,
    /// Connect again and resume, but not at once.
    ResumeLater,
    /// Connect again with another token, if there is one.
    RenewToken,
    /// Give up with this error: further attempts would fail in the same way.
    Fail(&'static str),
}

/// Generates [`CloseCode`] from the table: a code's meaning, its name, its number, the client's reaction.
macro_rules! table {
    ($($(#[$meaning:meta])* $name:ident $number:literal => $reaction:expr;)*) => {
        /// The reason for closing a WebSocket, sent as a number in the close frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$meaning])* $name,)*
        }

        impl CloseCode {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number in the frame.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                }
            }

            /// The reaction of a client.
            #[must_use]
            pub const fn reaction(self) -> Reaction {
                match self {
                    $(Self::$name => $reaction,)*
                }
            }
        }
    };
}

table! {
    /// The stream is complete.
    Normal 1000 => Reaction::Finish;
    /// This instance is shutting down.
    GoingAway 1001 => Reaction::Resume;
    /// The client broke the protocol.
    Protocol 1002 => Reaction::Resume;
    /// Text that is not UTF-8.
    InvalidText 1007 => Reaction::Resume;
    /// A malformed request, or too many bad messages.
    Policy 1008 => Reaction::Fail("refused");
    /// A message that is too large.
    TooBig 1009 => Reaction::Resume;
    /// Overloaded, full, or Redis unreachable.
    TryAgain 1013 => Reaction::ResumeLater;
    /// The token is missing, invalid or expired.
    Unauthorized 4401 => Reaction::RenewToken;
    /// The token or the origin does not allow access.
    Forbidden 4403 => Reaction::Fail("forbidden");
    /// The stream does not exist.
    NotFound 4404 => Reaction::Fail("not_found");
    /// A slow handshake or consumer.
    Slow 4408 => Reaction::Resume;
    /// A rate or a limit is exceeded.
    TooMany 4429 => Reaction::ResumeLater;
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const CLIENT: &str = include_str!("../web/llm-bridge.js");
    const TYPES: &str = include_str!("../web/llm-bridge.d.ts");
    const DOCUMENT: &str = include_str!("README.md");
    const RECIPE: &str = include_str!("../web/README.md");

    /// The text between two strings in the client's source.
    fn between<'a>(begin: &str, end: &str) -> &'a str {
        let rest = CLIENT.split(begin).nth(1).unwrap_or_else(|| panic!("the client has no {begin}"));
        rest.split(end).next().unwrap()
    }

    #[test]
    fn the_browser_client_reacts_according_to_the_table() {
        let words = |text: &str| -> Vec<String> {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
        };
        let named = words(between("const FINAL_CLOSE = new Map(", ");"));
        let named: BTreeMap<&str, &str> = named.chunks(2).map(|pair| (&*pair[0], &*pair[1])).collect();
        let full: BTreeSet<String> =
            words(between("const FULL_CLOSE = new Set(", ");")).into_iter().collect();
        let (mut failing, mut later) = (BTreeMap::new(), BTreeSet::new());
        let numbers: Vec<String> = CloseCode::ALL.iter().map(|code| code.number().to_string()).collect();
        for (code, number) in CloseCode::ALL.iter().zip(&numbers) {
            match code.reaction() {
                Reaction::Fail(error) => {
                    assert!(
                        TYPES.contains(&format!("| \"{error}\"")),
                        "{error} is missing in the client's types"
                    );
                    failing.insert(number.as_str(), error);
                }
                Reaction::ResumeLater => drop(later.insert(number.clone())),
                Reaction::RenewToken | Reaction::Finish => {
                    assert!(CLIENT.contains(&format!("end.closeCode === {number}")), "{code:?}");
                }
                Reaction::Resume => {}
            }
        }
        assert_eq!((named, full), (failing, later));
    }

    #[test]
    fn the_recipe_without_the_client_stops_at_the_final_codes() {
        let list =
            RECIPE.split("if ([").nth(1).and_then(|rest| rest.split(']').next()).expect("the recipe's list");
        let listed: Vec<u16> = list.split(", ").map(|number| number.parse().unwrap()).collect();
        let is_final =
            |code: &CloseCode| !matches!(code.reaction(), Reaction::Resume | Reaction::ResumeLater);
        let all: Vec<u16> = CloseCode::ALL.iter().copied().filter(is_final).map(CloseCode::number).collect();
        assert_eq!(listed, all);
    }

    #[test]
    fn the_document_lists_every_code() {
        let table =
            DOCUMENT.split("| HTTP | WebSocket close |").nth(1).expect("the table of statuses and codes");
        let table = table.split("\n\n").next().unwrap();
        for code in CloseCode::ALL {
            let number = code.number().to_string();
            assert!(table.contains(&number), "{code:?} ({number}) is missing in {table}");
        }
    }
}
