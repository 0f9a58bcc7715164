//! Texts for errors of the file system.

use std::fs::FileType;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;

/// Names the type of a file that is not regular.
pub(super) fn file_type_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_symlink() {
        "a link"
    } else {
        "a device"
    }
}

/// Describes an error of the system, in terms of the policy directory.
pub(super) fn error_text(error: &io::Error) -> String {
    if error.kind() == ErrorKind::PermissionDenied {
        "permission denied".to_owned()
    } else if error.kind() == ErrorKind::NotADirectory {
        "it is not a directory".to_owned()
    } else {
        error.to_string()
    }
}
