//! Caller lists that several tests read.

use std::fs;

use tempfile::TempDir;

/// Returns a new directory with these files.
pub(super) fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A list with a caller of each kind of credential.
pub(super) const CALLERS: &str = r#"
[[caller]]
name = "orders"
spiffe = ["spiffe://shop/orders"]
dns = ["orders.shop"]
rights = ["authorize"]
identities = ["token"]
[[caller]]
name = "desk"
subject = ["CN=desk,O=Shop"]
uid = [1000]
rights = ["authorize", "explain"]
[[caller]]
name = "operator"
bearer = ["key"]
rights = ["store", "administer"]
"#;
/// The keys of the caller `operator`.
pub(super) const KEYS: &str = "the-first-of-two-keys\nthe-second-of-two-keys\n";
