//! The values of metric labels, as closed sets.

/// Declares an enum with a text for each value.
macro_rules! label {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the text of the label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(super) use label;

label! {
    /// The classes of rejected requests.
    RejectionLabel {
        /// The request is malformed or does not fit the schema.
        Invalid = "invalid",
        /// The request holds more items than allowed.
        TooManyItems = "too_many",
        /// More policies match than may be evaluated.
        TooManyPolicies = "too_many_policies",
        /// The policies look up more entities than allowed.
        TooManyEntities = "too_many_entities",
        /// The principal's token is invalid.
        Token = "token",
        /// The caller is unknown, or may not send the request.
        Caller = "caller",
        /// Nothing has been loaded yet.
        NothingLoaded = "nothing_loaded",
        /// The deadline passed.
        DeadlineExceeded = "deadline_passed",
        /// The call was shed, because calls wait too long.
        Overloaded = "overloaded",
        /// Too many calls were waiting.
        TooManyCalls = "too_many_calls",
        /// The memory budget of buffered requests and responses was spent.
        BuffersFull = "too_much_pending",
        /// The service is shutting down.
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
        /// The TLS handshake and the HTTP/2 preface took too long.
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
        /// TCP.
        Tcp = "tcp",
        /// A Unix socket.
        Unix = "unix",
    }
}
