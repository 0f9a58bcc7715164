//! Decides whether a request without a key may change something, by its origin and headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use http::uri::Authority;

/// The origin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The Unix socket.
    UnixSocket,
    /// The loopback address of this machine or pod.
    Loopback,
    /// Any other address.
    Remote,
}

impl Origin {
    /// Returns the origin of a TCP connection from `ip`.
    ///
    /// Other loopback addresses than these two are remote: service meshes use them for connections
    /// that they forward.
    pub(super) fn of_ip(ip: IpAddr) -> Self {
        let is_loopback = match ip.to_canonical() {
            IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST,
            IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
        };
        match is_loopback {
            true => Self::Loopback,
            false => Self::Remote,
        }
    }
}

/// Returns an error text if a request of this origin may not change anything.
pub(super) fn check_change(origin: Origin, headers: &HeaderMap) -> Result<(), &'static str> {
    match origin {
        Origin::UnixSocket => {}
        Origin::Loopback if has_local_host(headers) => {}
        // A web page gets around its browser's rules by a host name that resolves to this machine.
        Origin::Loopback => {
            return Err("changes require `localhost` or an address as `Host`\n");
        }
        Origin::Remote => {
            return Err(
                "changes require a connection from this machine, or a key with the right `administer`\n",
            );
        }
    }
    // A web page in a browser on this machine can send requests here, but not without `Origin`.
    if headers.contains_key(ORIGIN) {
        return Err("web pages may not change anything\n");
    }
    // A proxy on this machine may forward requests from anywhere.
    if FORWARDING.iter().any(|name| headers.contains_key(*name)) {
        return Err("forwarded requests may not change anything\n");
    }
    Ok(())
}

/// The headers that proxies add to forwarded requests.
const FORWARDING: [&str; 7] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-envoy-external-address",
];

/// Returns whether the only `Host` is `localhost` or an address, which nobody can redirect.
fn has_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else {
        return false;
    };
    let host = authority.host();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_main_loopback_address_is_local() {
        for (ip, origin) in [
            ("127.0.0.1", Origin::Loopback),
            ("::1", Origin::Loopback),
            ("::ffff:127.0.0.1", Origin::Loopback),
            // Istio forwards from this address.
            ("127.0.0.6", Origin::Remote),
            ("10.0.0.1", Origin::Remote),
            ("::ffff:10.0.0.1", Origin::Remote),
            ("::", Origin::Remote),
        ] {
            assert_eq!(Origin::of_ip(ip.parse().unwrap()), origin, "{ip}");
        }
    }

    #[track_caller]
    fn may_change(origin: Origin, fields: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        check_change(origin, &headers).is_ok()
    }

    #[test]
    fn change_requires_a_local_host() {
        for host in [
            "localhost",
            "LocalHost:9464",
            "127.0.0.1:9464",
            "[::1]:9464",
            "10.0.0.1",
        ] {
            assert!(may_change(Origin::Loopback, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:9464",
            "pdp",
            "a@[",
            "",
        ] {
            assert!(!may_change(Origin::Loopback, &[("host", host)]), "{host}");
        }
        assert!(!may_change(Origin::Loopback, &[]));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(!may_change(Origin::Loopback, &twice));
        assert!(!may_change(Origin::Remote, &[("host", "127.0.0.1")]));
        assert!(may_change(Origin::UnixSocket, &[("host", "pdp")]));
    }

    #[test]
    fn forwarded_requests_may_not_change_anything() {
        for name in FORWARDING.into_iter().chain(["origin"]) {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost"));
            headers.insert(name, HeaderValue::from_static("x"));
            for origin in [Origin::UnixSocket, Origin::Loopback] {
                check_change(origin, &headers).unwrap_err();
            }
        }
    }
}
