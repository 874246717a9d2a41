//! The client on whose behalf a request is made.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A client, as rates and limits count it and as requests to cancel and receipts name it.
///
/// ```
/// use llm_bridge::security::principal::Principal;
///
/// let client = Principal::Address("2001:db8::7".parse().unwrap());
/// assert_eq!(client.to_string(), "2001:db8::7");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A client that is known only by its address.
    Address(IpAddr),
}

impl Principal {
    /// The client as rates and limits count it. An IPv6 address counts as its /64, which is what one customer has,
    /// and an IPv4 address within an IPv6 address counts as itself.
    pub(super) fn counted(&self) -> Self {
        let Self::Address(address) = self;
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Address(address) = self;
        address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_ipv4_address_or_a_64() {
        let counted = |text: &str| Principal::Address(text.parse().unwrap()).counted();
        assert_eq!(counted("2001:db8:0:1::1"), counted("2001:db8:0:1:ffff::2"));
        assert_ne!(counted("2001:db8:0:1::1"), counted("2001:db8:0:2::1"));
        assert_eq!(counted("::ffff:10.0.0.1"), counted("10.0.0.1"));
        assert_ne!(counted("10.0.0.1"), counted("10.0.0.2"));
    }
}
