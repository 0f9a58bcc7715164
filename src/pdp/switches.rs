//! Switches of the fast paths, for `cargo bench --bench worth`.
//!
//! Without the cargo feature `switches` every fast path is on and its switch is a constant. No
//! switch changes an answer: the general path behind each fast path gives the same.

#[cfg(feature = "switches")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Declares one switch per fast path.
macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident $flag:ident;)*) => {
        $(
            #[cfg(feature = "switches")]
            static $flag: AtomicBool = AtomicBool::new(true);

            $(#[$doc])*
            #[cfg(feature = "switches")]
            #[inline]
            #[must_use]
            pub fn $name() -> bool {
                $flag.load(Ordering::Relaxed)
            }

            $(#[$doc])*
            #[cfg(not(feature = "switches"))]
            #[inline]
            #[must_use]
            pub const fn $name() -> bool {
                true
            }
        )*

        /// Names of all switches.
        #[cfg(feature = "switches")]
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// Turns the fast path `name` on or off. Returns `false` for an unknown name.
        #[cfg(feature = "switches")]
        pub fn set(name: &str, on: bool) -> bool {
            match name {
                $(stringify!($name) => $flag.store(on, Ordering::Relaxed),)*
                _ => return false,
            }
            true
        }
    };
}

switches! {
    /// Parsing of plain messages in place; off, prost decodes every message.
    borrowed_parsing BORROWED_PARSING;
    /// The sharded table of the decision cache; off, moka alone keeps answers.
    sharded_table SHARDED_TABLE;
    /// The bytecode interpreter; off, Cedar evaluates every condition.
    interpreter INTERPRETER;
    /// Conformance checks by kinds of values; off, Cedar checks all requests and entities.
    conformance CONFORMANCE;
}
