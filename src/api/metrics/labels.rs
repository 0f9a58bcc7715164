//! The values of metric labels, as closed sets.

/// Declares an enum with a text for each value.
macro_rules! label {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub(crate) const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(crate) use label;

label! {
    /// The classes of rejected requests.
    RejectionLabel {
        Invalid = "invalid",
        TooManyItems = "too_many",
        TooManyPolicies = "too_many_policies",
        TooManyEntities = "too_many_entities",
        Token = "token",
        /// The caller is unknown, or may not send the request.
        Caller = "caller",
        NothingLoaded = "nothing_loaded",
        DeadlineExceeded = "deadline_passed",
        Overloaded = "overloaded",
        TooManyCalls = "too_many_calls",
        BuffersFull = "too_much_pending",
        ShuttingDown = "shutting_down",
    }
}

label! {
    /// The reason why the service closed a connection.
    Closing {
        /// The connection limit was reached.
        TooMany = "too_many",
        /// The TLS handshake or the HTTP/2 preface failed, or the caller disconnected before it.
        Handshake = "handshake",
        HandshakeTimeout = "handshake_timeout",
        /// The connection had no calls for too long.
        Idle = "idle",
        /// The connection reached its maximum age.
        Age = "age",
        /// The caller did not read a large response.
        UnreadAnswer = "unread",
    }
}

label! {
    /// The transport of a connection.
    Transport {
        Tcp = "tcp",
        Unix = "unix",
    }
}
