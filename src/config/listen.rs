//! An address to listen on or to connect to, as operators write it.
//!
//! Nothing is looked up or bound here: a name that no resolver knows is found out by whoever binds.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path that fits a socket address on Linux, in bytes, beside its closing NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// An address to listen on or to connect to. Shown in the form in which it is best written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A host, which may be a name or an address (without brackets), and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Whether what is sent there stays on this machine, as far as can be told without looking a
    /// name up.
    #[must_use]
    pub fn is_this_machine(&self) -> bool {
        match self {
            Self::Tcp(host, _) => {
                host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No port, and no `unix:` either.
    #[error("`{0}` has no port; write HOST:PORT, [V6]:PORT or unix:PATH")]
    NoPort(String),
    /// What follows the last colon is no port.
    #[error("`{0}` has no port from 0 to 65535 after its last colon")]
    Port(String),
    /// All interfaces have to be asked for by name.
    #[error("`{0}` has no host; for all interfaces write 0.0.0.0:PORT or [::]:PORT")]
    NoHost(String),
    /// The host can be neither a name nor an address.
    #[error(
        "`{0}` has a host that is neither a name nor an address; an IPv6 address stands in brackets"
    )]
    Host(String),
    /// The socket's path is missing, too long, or relative after `unix://`.
    #[error(
        "`{0}` has no path of 1 to {MAX_SOCKET_PATH_BYTES} bytes; write unix:PATH or unix:///PATH"
    )]
    Path(String),
}

impl FromStr for Listen {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |reason: fn(String) -> InvalidAddress| reason(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path)
                .map(|path| Self::Unix(path.into()))
                .ok_or_else(|| invalid(InvalidAddress::Path));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| invalid(InvalidAddress::NoPort))?;
        let port = Some(port)
            .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| invalid(InvalidAddress::Port))?;
        if host.is_empty() {
            return Err(invalid(InvalidAddress::NoHost));
        }
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let host = match bracketed {
            Some(address) => address
                .parse::<Ipv6Addr>()
                .ok()
                .map(|address| address.to_string()),
            None => Some(host.to_owned()).filter(|host| host.bytes().all(is_name_byte)),
        };
        host.map(|host| Self::Tcp(host, port))
            .ok_or_else(|| invalid(InvalidAddress::Host))
    }
}

/// The path of a `unix:` address, without the empty authority of `unix:///PATH`.
fn socket_path(text: &str) -> Option<&str> {
    let path = match text.strip_prefix("//") {
        Some(absolute) => Some(absolute).filter(|path| path.starts_with('/')),
        None => Some(text),
    };
    path.filter(|path| (1..=MAX_SOCKET_PATH_BYTES).contains(&path.len()) && !path.contains('\0'))
}

// The underscore is no part of a host name, but Docker Compose makes names with it.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(written: &str, shown: &str) {
        let address: Listen = written.parse().unwrap();
        assert_eq!(address.to_string(), shown);
        assert_eq!(shown.parse(), Ok(address), "what is shown can be written");
    }

    #[test]
    fn an_address_is_host_and_port_or_a_unix_path() {
        check("127.0.0.1:50051", "127.0.0.1:50051");
        check("localhost:0", "localhost:0");
        check("[::1]:50051", "[::1]:50051");
        check("[0:0::1]:50051", "[::1]:50051");
        check("unix:pdp.sock", "unix:pdp.sock");
        check("unix:/run/pdp.sock", "unix:/run/pdp.sock");
        check("unix:///run/pdp.sock", "unix:/run/pdp.sock");
    }

    #[test]
    fn an_address_that_makes_no_sense_is_refused_with_what_to_write() {
        use InvalidAddress as No;
        let cases = [
            ("", No::NoPort as fn(String) -> No),
            ("localhost", No::NoPort),
            ("localhost:", No::Port),
            ("localhost:http", No::Port),
            ("localhost:+80", No::Port),
            ("localhost:65536", No::Port),
            (":50051", No::NoHost),
            ("::1:50051", No::Host),
            ("[localhost]:50051", No::Host),
            ("http://localhost:50051", No::Host),
            ("two words:50051", No::Host),
            ("unix:", No::Path),
            ("unix://run/pdp.sock", No::Path),
        ];
        for (text, reason) in cases {
            assert_eq!(text.parse::<Listen>(), Err(reason(text.to_owned())));
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert_eq!(long.parse::<Listen>(), Err(No::Path(long)));
    }
}
