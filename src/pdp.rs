//! The ground: sources in, snapshot out; snapshot and query in, answer out.
//!
//! No I/O, no clock, no async, no logging. The same snapshot and query always give the same
//! answer: that is what makes answers cacheable, replayable and testable.
//!
//! In reading order: a policy directory is [`sources`], [`mod@compile`] makes them a [`snapshot`] (or
//! says in [`diagnostic`]s why not); a [`query`] is decided by [`authorize`] on a snapshot, and
//! the [`answer`] may carry an [`explanation`].
//!
//! Inside: `evaluate` decides, on the indexed `policies` and the store of `entities`; `schema` checks
//! requests and entities without Cedar where that is certain.

pub mod analysis;
pub mod answer;
pub mod compile;
pub mod diagnostic;
mod entities;
mod evaluate;
pub mod explanation;
pub mod id;
mod policies;
pub mod query;
pub mod request_json;
mod schema;
pub mod snapshot;
pub mod sources;
mod values;
mod workers;

pub use analysis::advice::advice;
pub use answer::NoAnswer;
pub use compile::{CompileError, StoredEntities, compile, compile_from};
pub use entities::store::{MAX_ANCESTORS, MAX_REQUEST_HIERARCHY_STEPS};
pub use evaluate::authorize::{
    Decided, authorize, authorize_among, authorize_and_tell, candidates,
};
pub use evaluate::slicing::{MAX_LOOKUP_STEPS, MAX_LOOKUPS};
pub use evaluate::token_entity::refuse_telling_anew;
pub use snapshot::{Settings, Snapshot};
pub use sources::scanner::{MAX_BRACKETS, MAX_CHAIN, MAX_JSON_BRACKETS};
pub use values::{MAX_VALUE_DEPTH, is_type_name};
pub use workers::Workers;
