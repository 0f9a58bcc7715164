//! The reasons why a list of callers is rejected.

use std::path::PathBuf;

use super::{MAX_CALLERS, MIN_KEY_BYTES};
use crate::watch::files::{ReadError, ReadProblem};

/// The reason why a list of callers is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The list is not valid TOML, or has an unknown field or a wrong type.
    #[error("`{}`, line {line}: {reason}", file.display())]
    Syntax {
        /// The list.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// The list is empty, so that every caller would be rejected.
    #[error("`{}` lists no callers", file.display())]
    Empty {
        /// The list.
        file: PathBuf,
    },
    /// The list has too many callers to compare keys and to use names as labels.
    #[error("`{}` lists more than {MAX_CALLERS} callers", file.display())]
    TooMany {
        /// The list.
        file: PathBuf,
    },
    /// A name cannot be used as a label.
    #[error(
        "`{}`: invalid caller name `{name}`; allowed: 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and `_`", file.display()
    )]
    Name {
        /// The list.
        file: PathBuf,
        /// The name.
        name: String,
    },
    /// Two callers have the same name.
    #[error("`{}`: `{name}` is listed twice", file.display())]
    Twice {
        /// The list.
        file: PathBuf,
        /// The name.
        name: String,
    },
    /// A caller has no credentials.
    #[error("`{}`: `{name}` has none of `spiffe`, `dns`, `subject`, `uid` and `bearer`", file.display())]
    NoCredentials {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
    },
    /// A credential is empty or malformed, so that it would identify nobody.
    #[error("`{}`: `{name}` has an invalid `{kind}`", file.display())]
    Credential {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
        /// The kind of credential.
        kind: &'static str,
    },
    /// A key file cannot be read. The error gives its position in the list instead of its path: if
    /// somebody wrote a key there by mistake, the key must not appear in a log.
    #[error("`{}`: cannot read file {number} of the `bearer` of `{name}`: {problem}", file.display())]
    KeyFile {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
        /// The position of the key file in `bearer`, counted from 1.
        number: usize,
        /// The problem.
        problem: ReadProblem,
    },
    /// Two callers have the same credential.
    #[error("`{}`: `{one}` and `{other}` have the same {credential}", file.display())]
    Ambiguous {
        /// The list.
        file: PathBuf,
        /// One caller.
        one: String,
        /// The other caller.
        other: String,
        /// The credential; of a key only that it is one.
        credential: String,
    },
    /// A key is too short or has other characters than visible ASCII.
    #[error(
        "`{}`, line {line}: invalid key: it needs {MIN_KEY_BYTES} or more visible ASCII characters", file.display()
    )]
    Key {
        /// The key file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A key file has no keys.
    #[error("`{}` holds no key", file.display())]
    NoKey {
        /// The key file.
        file: PathBuf,
    },
}
