//! Reads policies from a directory, and publishes the current snapshot of them.
//!
//! `directory` reads the files, `reload` decides when they replace the current snapshot, and
//! `status` reports the result. `losses` are content that must not replace what is loaded. Nothing here evaluates a policy or answers a caller.

mod background;
pub mod directory;
pub(crate) mod losses;
pub(crate) mod metrics;
pub mod reload;
mod snapshots;
pub mod status;

pub use crate::config::StoreSettings;
pub use background::cores;
pub use directory::SourceLimits;
pub use reload::{OpenedStore, ReloadHandle, ReloadReport, Reloader, StoreOpenError, open};
pub use snapshots::{Publisher, Reader, snapshots};
pub use status::{
    LoadedSnapshot, RejectedReload, ReloadCounts, ReloadOutcome, StatusReader, StoreClosed,
    StoreStatus,
};
