//! Parses addresses to listen on or to connect to.
//!
//! Nothing is resolved or bound here: an unknown host name is an error of the later bind.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// Most bytes of a path in a Linux socket address, without the final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// An address to listen on or to connect to. Its `Display` is its canonical text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A host (a name, or an IP address without brackets) and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Returns whether this is a loopback address or a Unix socket; host names are not resolved.
    #[must_use]
    pub fn is_local(&self) -> bool {
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

/// The reason why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// There is neither a port nor `unix:`.
    #[error("`{0}` has no port; write HOST:PORT, [V6]:PORT or unix:PATH")]
    NoPort(String),
    /// The text after the last colon is not a port.
    #[error("`{0}` has no port from 0 to 65535 after the last colon")]
    Port(String),
    /// The host is empty; all interfaces must be named explicitly.
    #[error("`{0}` has no host; for all interfaces write 0.0.0.0:PORT or [::]:PORT")]
    NoHost(String),
    /// The host is neither a name nor an IP address.
    #[error(
        "`{0}` has a host that is neither a name nor an address; write IPv6 addresses in brackets"
    )]
    Host(String),
    /// The path is missing, too long, or relative after `unix://`.
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

/// Returns the path of a `unix:` address, without the empty authority of `unix:///PATH`.
fn socket_path(text: &str) -> Option<&str> {
    let path = match text.strip_prefix("//") {
        Some(absolute) => Some(absolute).filter(|path| path.starts_with('/')),
        None => Some(text),
    };
    path.filter(|path| (1..=MAX_SOCKET_PATH_BYTES).contains(&path.len()) && !path.contains('\0'))
}

// Host names have no underscore, but Docker Compose generates names that do.
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
        assert_eq!(shown.parse(), Ok(address), "its own text can be parsed");
    }

    #[test]
    fn address_is_host_and_port_or_unix_path() {
        check("127.0.0.1:50051", "127.0.0.1:50051");
        check("localhost:0", "localhost:0");
        check("[::1]:50051", "[::1]:50051");
        check("[0:0::1]:50051", "[::1]:50051");
        check("unix:pdp.sock", "unix:pdp.sock");
        check("unix:/run/pdp.sock", "unix:/run/pdp.sock");
        check("unix:///run/pdp.sock", "unix:/run/pdp.sock");
    }

    #[test]
    fn invalid_address_is_rejected_with_expected_form() {
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
