//! Where configuration comes from: flags beat the environment, which beats the file, which beats
//! the defaults.
//!
//! The only place that reads the environment. What a value means is not known here: layers are
//! text, laid one over the other; [`RawConfig::check`] reads what comes out.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::{ArgAction, Args as _};
use serde::Deserialize as _;
use toml::de::DeTable;
use toml::{Table, Value};

use super::value::InvalidValue;
use super::{Config, RawConfig};

/// What every environment variable of ours begins with.
const PREFIX: &str = "CEDAR_PDP_";

/// The flags of a command that is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ConfigArgs {
    /// The configuration file, TOML [env: CEDAR_PDP_CONFIG]
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// The keys that were given as flags.
    #[command(flatten)]
    pub flags: RawConfig,
}

/// The configuration in force, as text, and where each key of it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The keys that were written anywhere.
    pub raw: RawConfig,
    origins: BTreeMap<String, Origin>,
}

/// Where a value was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the configuration file.
    File,
    /// In an environment variable.
    Environment,
    /// On the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{}`: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("`{}`, line {line}: {reason}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// The file has a key that does not exist.
    #[error("`{}`, line {line}: unknown key `{key}`; the nearest known one is `{nearest}`", file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
        /// What was probably meant.
        nearest: String,
    },
    /// The file has text for a number, or the like.
    #[error("`{}`, line {line}: `{key}`: {reason}", file.display())]
    Kind {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
        /// What was found, what expected.
        reason: String,
    },
    /// A variable with our prefix that does not exist.
    #[error("unknown environment variable `{variable}`; the nearest known one is `{nearest}`")]
    UnknownVariable {
        /// The variable.
        variable: String,
        /// What was probably meant.
        nearest: String,
    },
    /// A variable's text cannot be read as what the key holds.
    #[error("environment variable `{variable}`: `{text}` is not {expected}")]
    Variable {
        /// The variable.
        variable: String,
        /// What was found in it.
        text: String,
        /// What the key holds.
        expected: &'static str,
    },
    /// A value makes no sense.
    #[error("{source} (from: {origin})")]
    Value {
        /// Where it was written.
        origin: Origin,
        /// What is wrong with it.
        source: InvalidValue,
    },
}

/// What a key of the configuration is called everywhere, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigOption {
    /// In the file: `poll_interval`.
    pub key: String,
    /// In the environment: `CEDAR_PDP_POLL_INTERVAL`.
    pub variable: String,
    /// On the command line: `--poll-interval`.
    pub flag: String,
    /// The text that means the same as leaving it out, if there is one.
    pub default: Option<String>,
    /// What it does, in a line.
    pub meaning: String,
    holds: Holds,
}

/// What a key holds, which text in a variable has to be turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Text,
    Texts,
    Number,
    Switch,
}

/// Every key there is, in the order of the help.
#[must_use]
pub fn options() -> Vec<ConfigOption> {
    let defaults = table(&RawConfig::from(&Config::default()));
    RawConfig::augment_args(clap::Command::new(""))
        .get_arguments()
        .map(|arg| {
            let key = arg.get_id().to_string();
            let kind = arg.get_value_parser().type_id();
            ConfigOption {
                variable: format!("{PREFIX}{}", key.to_uppercase()),
                flag: format!("--{}", key.replace('_', "-")),
                default: defaults.get(&key).map(plain),
                meaning: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                holds: if matches!(arg.get_action(), ArgAction::Append) {
                    Holds::Texts
                } else if kind == TypeId::of::<i64>() {
                    Holds::Number
                } else if kind == TypeId::of::<bool>() {
                    Holds::Switch
                } else {
                    Holds::Text
                },
                key,
            }
        })
        .collect()
}

/// Lays the flags over the environment, and both over the file.
///
/// # Errors
///
/// [`ConfigError`] for a file that cannot be read, and for the first key or variable that does not
/// exist or holds the wrong kind of value. Whether values make sense is not asked.
pub fn gather(args: ConfigArgs) -> Result<Effective, ConfigError> {
    gather_with(args, env::vars_os())
}

fn gather_with(
    args: ConfigArgs,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Effective, ConfigError> {
    let options = options();
    let (environment, named_file) = from_environment(variables, &options)?;
    let file = match args.config.or(named_file) {
        Some(file) => from_file(&file, &options)?,
        None => Table::new(),
    };
    let mut origins = BTreeMap::new();
    let mut values = Table::new();
    for (origin, layer) in [
        (Origin::File, file),
        (Origin::Environment, environment),
        (Origin::Flag, table(&args.flags)),
    ] {
        origins.extend(layer.keys().map(|key| (key.clone(), origin)));
        values.extend(layer);
    }
    #[expect(
        clippy::expect_used,
        reason = "every layer has only known keys, and each holds what the key holds"
    )]
    let raw = RawConfig::deserialize(values).expect("layers hold what the keys hold");
    Ok(Effective { raw, origins })
}

impl Effective {
    /// What the text means.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for the first value that makes no sense.
    pub fn check(&self) -> Result<Config, ConfigError> {
        self.raw
            .clone()
            .check()
            .map_err(|source| ConfigError::Value {
                origin: self.origin(source.key),
                source,
            })
    }

    /// The configuration in force as a file, in which each line says where its value came from.
    /// Given as `--config`, it gives the same configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] when there is no configuration because a value makes no sense.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let values = table(&RawConfig::from(&self.check()?));
        let mut text = String::new();
        for ConfigOption { key, .. } in options() {
            let origin = self.origin(&key);
            // Writing to a string cannot fail.
            let _ = match values.get(&key) {
                Some(value) => writeln!(text, "{key} = {value} # {origin}"),
                None => writeln!(text, "# {key} is not set # {origin}"),
            };
        }
        Ok(text)
    }

    fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).copied().unwrap_or(Origin::Default)
    }
}

/// The keys that are set in the environment, and the configuration file that it names.
fn from_environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    options: &[ConfigOption],
) -> Result<(Table, Option<PathBuf>), ConfigError> {
    let mut values = Table::new();
    let mut file = None;
    for (variable, text) in variables {
        let variable = variable.to_string_lossy();
        let Some(name) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        if name == "CONFIG" {
            file = Some(PathBuf::from(text));
        } else if let Some(option) = options.iter().find(|option| option.variable == variable) {
            let value = text
                .to_str()
                .ok_or("UTF-8")
                .and_then(|text| parse(option.holds, text));
            let value = value.map_err(|expected| ConfigError::Variable {
                variable: option.variable.clone(),
                text: text.to_string_lossy().into_owned(),
                expected,
            })?;
            values.insert(option.key.clone(), value);
        } else if !is_from_kubernetes(name, &text) {
            let known = options.iter().map(|option| option.variable.as_str());
            return Err(ConfigError::UnknownVariable {
                nearest: nearest(&variable, known.chain(["CEDAR_PDP_CONFIG"])),
                variable: variable.into_owned(),
            });
        }
    }
    Ok((values, file))
}

/// The keys that are set in the configuration file.
fn from_file(file: &Path, options: &[ConfigOption]) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(file).map_err(|source| ConfigError::Unreadable {
        file: file.to_owned(),
        source,
    })?;
    let line = |offset: usize| {
        1 + text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    };
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let keys = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        line: line(start(&error)),
        reason: error.message().to_owned(),
    })?;
    for key in keys.get_ref().keys() {
        if !options.iter().any(|option| option.key == *key.get_ref()) {
            return Err(ConfigError::UnknownKey {
                file: file.to_owned(),
                line: line(key.span().start),
                nearest: nearest(
                    key.get_ref(),
                    options.iter().map(|option| option.key.as_str()),
                ),
                key: key.get_ref().to_string(),
            });
        }
    }
    let raw: RawConfig = toml::from_str(&text).map_err(|error| ConfigError::Kind {
        file: file.to_owned(),
        line: line(start(&error)),
        // The key is the last one that begins before the fault.
        key: keys
            .get_ref()
            .keys()
            .filter(|key| key.span().start <= start(&error))
            .max_by_key(|key| key.span().start)
            .map_or_else(String::new, |key| key.get_ref().to_string()),
        reason: error.message().to_owned(),
    })?;
    Ok(table(&raw))
}

/// The value that a variable's text is, or what it should be.
fn parse(holds: Holds, text: &str) -> Result<Value, &'static str> {
    match holds {
        Holds::Text => Ok(Value::String(text.to_owned())),
        Holds::Texts => Ok(Value::from(
            text.split(',').map(str::trim).collect::<Vec<_>>(),
        )),
        Holds::Number => text
            .parse()
            .map(Value::Integer)
            .map_err(|_| "a whole number"),
        Holds::Switch => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| "`true` or `false`"),
    }
}

/// Whether Kubernetes sets this variable (without our prefix) in every pod beside a service that is
/// called `cedar-pdp`, or `cedar-pdp-` and more.
fn is_from_kubernetes(name: &str, text: &OsStr) -> bool {
    let is_url = || text.to_string_lossy().contains("://");
    let of_a_port = |rest: &str| match rest.split('_').collect::<Vec<_>>().as_slice() {
        // `…_PORT=tcp://10.0.0.1:50051`; a plain number there is someone who wants to set a port.
        [""] => is_url(),
        // `…_PORT_50051_TCP_ADDR=10.0.0.1`
        ["", port, "TCP" | "UDP" | "SCTP", ..] => port.parse::<u16>().is_ok(),
        _ => false,
    };
    // Of the name only the end is known.
    let name = format!("_{name}");
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name
            .match_indices("_PORT")
            .any(|(at, port)| name.get(at + port.len()..).is_some_and(of_a_port))
}

fn table(raw: &RawConfig) -> Table {
    #[expect(
        clippy::expect_used,
        reason = "it holds text, lists of text, switches and i64 numbers, all of which TOML has"
    )]
    Table::try_from(raw).expect("the raw configuration is TOML")
}

/// A value as it would be written after its flag.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_) => value.to_string(),
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .min_by_key(|known| distance(name, known))
        .unwrap_or_default()
        .to_owned()
}

/// How many letters must be changed, added or left out to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut above: Vec<usize> = (0..=b.chars().count()).collect();
    for (done, x) in a.chars().enumerate() {
        let mut left = done + 1;
        let mut row = vec![left];
        for (y, [diagonal, up]) in b.chars().zip(above.array_windows()) {
            left = (diagonal + usize::from(x != y)).min(up + 1).min(left + 1);
            row.push(left);
        }
        above = row;
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
