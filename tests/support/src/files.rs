//! Policy directories and their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Returns the root of the repository.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("two folders above")
}

/// Returns the directory of the example policies.
pub fn shipped_policies() -> PathBuf {
    repository().join("policies")
}

/// Creates a temporary policy directory with these files.
pub fn policy_directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// Replaces `file` by a file with this text, atomically.
pub fn replace(file: &Path, text: &str) {
    // The policy store ignores names that begin with a dot.
    let name = file.file_name().unwrap().to_str().unwrap();
    let new = file.with_file_name(format!(".{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Computes the revision of these files by the contract's rule, independently of our code.
pub fn revision(files: &[(&str, &str)]) -> String {
    let files: BTreeMap<&[u8], &[u8]> = files
        .iter()
        .map(|(path, text)| (path.as_bytes(), text.as_bytes()))
        .collect();
    let mut digest = Sha256::new();
    for part in files.iter().flat_map(|(path, text)| [path, text]) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
