//! The ground: sources in, snapshot out; snapshot and query in, answer out.
//!
//! No I/O, no clock, no async, no logging. The same snapshot and query always give the same
//! answer: that is what makes answers cacheable, replayable and testable.
//!
//! In reading order: a policy directory is [`sources`], [`mod@compile`] makes them a [`snapshot`] (or
//! says in [`diagnostic`]s why not); a [`query`] is decided by [`mod@authorize`] on a snapshot, and
//! the [`answer`] may carry an [`explanation`].
//!
//! Inside, on the way to an answer: `bind` makes the query Cedar's, `index` finds the policies that
//! can matter, `shortcut` decides the plain ones, written in `shorthand`, off the store (`entities`,
//! `uids`), and `lookups` brings together what the others `reads`.

pub mod advice;
pub mod answer;
pub mod authorize;
mod bind;
mod bytes;
pub mod compile;
mod declared;
pub mod diagnostic;
mod entities;
mod explain;
pub mod explanation;
mod fit;
pub mod id;
mod index;
pub mod json;
mod lookups;
mod nesting;
mod projection;
pub mod query;
pub mod query_ref;
mod reads;
mod shortcut;
mod shorthand;
pub mod snapshot;
pub mod sources;
mod uids;
mod values;

pub use advice::advice;
pub use answer::NoAnswer;
pub use authorize::{authorize, authorize_among, authorize_and_tell, candidates};
pub use bind::refuse_telling_anew;
pub use compile::{CompileError, StoredEntities, Workers, compile, compile_from};
pub use entities::{MAX_ANCESTORS, MAX_REQUEST_HIERARCHY_STEPS};
pub use lookups::{MAX_LOOKUP_STEPS, MAX_LOOKUPS};
pub use nesting::{MAX_BRACKETS, MAX_CHAIN, MAX_JSON_BRACKETS};
pub use snapshot::{Settings, Snapshot};
pub use values::{MAX_VALUE_DEPTH, is_type_name};
