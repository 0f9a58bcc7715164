//! The core: compiles sources to a snapshot, and decides queries on a snapshot.
//!
//! No I/O, no clock, no async, no logging. The same snapshot and query always give the same
//! answer: that is what makes answers cacheable, replayable and testable.
//!
//! In reading order: [`sources`] are the files of a policy directory. [`mod@compile`] compiles them
//! to a [`snapshot`], or reports [`diagnostic`]s. [`authorize`] decides a [`query`] on a snapshot, and
//! the [`answer`] may include an [`explanation`].
//!
//! Internally, `evaluate` decides on the indexed `policies` and the store of `entities`. `schema`
//! checks requests and entities without Cedar where the result is certain. `CEDAR.md` lists the code
//! that must behave as Cedar does, for every Cedar upgrade.

pub mod analysis;
pub mod answer;
pub mod compile;
pub mod diagnostic;
mod entities;
mod evaluate;
pub mod explanation;
pub mod id;
pub mod json_object;
mod policies;
pub mod query;
pub mod query_ref;
pub mod request_json;
mod schema;
pub mod settings;
pub mod snapshot;
pub mod sources;
pub mod switches;
mod values;
mod workers;

pub use analysis::advice::advice;
pub use answer::NoAnswer;
pub use compile::entities::StoredEntities;
pub use compile::findings::CompileError;
pub use compile::{Compiled, JoinedSchema, compile, compile_from, joined_schema};
pub use entities::hierarchy::MAX_ANCESTORS;
pub use entities::overlay::MAX_REQUEST_HIERARCHY_STEPS;
pub use evaluate::authorize::{
    Decided, authorize, authorize_with_entities, authorize_with_stats, candidates,
};
pub use evaluate::token_entity::reject_redefined_principal;
pub use policies::context_reads::ContextReads;
pub use settings::{MAX_LOOKUP_STEPS, MAX_LOOKUPS, Settings};
pub use snapshot::Snapshot;
pub use sources::scanner::{MAX_BRACKETS, MAX_CHAIN, MAX_JSON_BRACKETS};
pub use values::{MAX_VALUE_DEPTH, is_type_name};
pub use workers::Workers;
