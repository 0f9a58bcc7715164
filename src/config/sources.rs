//! Sources of settings: flags override the environment, which overrides the file, which overrides
//! the defaults.
//!
//! This is the only place that reads the environment. The sources are merged as text; values are
//! checked by [`RawConfig::check`].

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::{ArgAction, Args as _};
use toml::de::DeTable;
use toml::{Table, Value};

use super::Config;
pub use super::raw::HEADING;
use super::raw::RawConfig;
use super::value::InvalidValue;

/// The prefix of the service's environment variables.
const PREFIX: &str = "CEDAR_PDP_";

/// The command line arguments for settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file, TOML [env: CEDAR_PDP_CONFIG]
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub config: Option<PathBuf>,
    /// The settings that were given as flags.
    #[command(flatten)]
    pub flags: RawConfig,
}

/// The merged settings of all sources, as text, and the origin of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedConfig {
    /// The keys that are set in any source.
    pub raw: RawConfig,
    origins: BTreeMap<String, Origin>,
}

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No source: the default.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// A command line flag.
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

/// The reason why the sources give no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file `{file}`: {1}", file = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// A line of the file, counted from 1, is invalid.
    #[error("`{file}`, line {1}: {2}", file = .0.display())]
    Line(PathBuf, usize, InvalidLine),
    /// A variable has the service's prefix and an unknown name; the second name is a similar one.
    #[error("unknown environment variable `{0}`; the nearest known one is `{1}`")]
    UnknownVariable(String, String),
    /// A variable's text cannot be parsed as the key's type.
    #[error("environment variable `{0}`: `{1}` is not {2}")]
    Variable(String, String, &'static str),
    /// A value is invalid.
    #[error("{1} (from: {0})")]
    Value(Origin, #[source] InvalidValue),
}

/// The problem with a line of the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// The text is not TOML; the parser's message.
    #[error("{0}")]
    Syntax(String),
    /// The key is unknown; the second one is a known key with a similar name.
    #[error("unknown key `{0}`; the nearest known one is `{1}`")]
    UnknownKey(String, String),
    /// The key has a value of the wrong type, such as text for a number; the parser's message.
    #[error("`{0}`: {1}")]
    WrongType(String, String),
}

/// The names, default and description of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigOption {
    /// Name in the file: `poll_interval`.
    pub key: String,
    /// Name in the environment: `CEDAR_PDP_POLL_INTERVAL`.
    pub variable: String,
    /// Name on the command line: `--poll-interval`.
    pub flag: String,
    /// Text of the default; `None` if the key has no default.
    pub default: Option<String>,
    /// The help text, one line.
    pub meaning: String,
    value_type: ValueType,
}

/// The type that the text of a variable is parsed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    Text,
    Texts,
    Number,
    Switch,
}

/// Returns every setting, in the order of the help.
#[must_use]
pub fn options() -> Vec<ConfigOption> {
    let defaults = RawConfig::defaults().to_table();
    RawConfig::augment_args(clap::Command::new(""))
        .get_arguments()
        .map(|arg| {
            let key = arg.get_id().to_string();
            let kind = arg.get_value_parser().type_id();
            ConfigOption {
                variable: format!("{PREFIX}{}", key.to_uppercase()),
                flag: format!("--{}", key.replace('_', "-")),
                default: defaults.get(&key).map(as_argument),
                meaning: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                value_type: if matches!(arg.get_action(), ArgAction::Append) {
                    ValueType::Texts
                } else if kind == TypeId::of::<i64>() {
                    ValueType::Number
                } else if kind == TypeId::of::<bool>() {
                    ValueType::Switch
                } else {
                    ValueType::Text
                },
                key,
            }
        })
        .collect()
}

/// Merges the flags, the environment and the file.
///
/// # Errors
///
/// [`ConfigError`] for a file that cannot be read, and for the first key or variable that is unknown
/// or has a value of the wrong type. Values are not checked further.
pub fn merge(args: ConfigArgs) -> Result<MergedConfig, ConfigError> {
    merge_with(args, env::vars_os())
}

fn merge_with(
    args: ConfigArgs,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<MergedConfig, ConfigError> {
    let options = options();
    let (environment, named_file) = from_environment(variables, &options)?;
    let file = match args.config.or(named_file) {
        Some(file) => from_file(&file, &options)?,
        None => Table::new(),
    };
    let mut origins = BTreeMap::new();
    let mut values = Table::new();
    for (origin, source) in [
        (Origin::File, file),
        (Origin::Environment, environment),
        (Origin::Flag, args.flags.to_table()),
    ] {
        origins.extend(source.keys().map(|key| (key.clone(), origin)));
        values.extend(source);
    }
    let raw = RawConfig::from_table(values);
    Ok(MergedConfig { raw, origins })
}

impl MergedConfig {
    /// Returns the checked configuration.
    pub fn check(&self) -> Result<Config, ConfigError> {
        let invalid = |error: InvalidValue| ConfigError::Value(self.origin(error.key), error);
        self.raw.check().map_err(invalid)
    }

    /// Returns every setting in force as a configuration file, with the origin of each as a comment.
    /// This file, given as `--config`, results in the same configuration.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let values = self.check()?.in_force.to_table();
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

/// Returns the keys that are set in the environment, and the configuration file that it names.
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
            let utf8 = text.to_str().ok_or("UTF-8");
            let value = utf8.and_then(|text| parse(option.value_type, text));
            let value = value.map_err(|expected| {
                let text = text.to_string_lossy().into_owned();
                ConfigError::Variable(option.variable.clone(), text, expected)
            });
            values.insert(option.key.clone(), value?);
        } else if !is_from_kubernetes(name, &text) {
            let known = options.iter().map(|option| option.variable.as_str());
            let nearest = nearest(&variable, known.chain(["CEDAR_PDP_CONFIG"]));
            return Err(ConfigError::UnknownVariable(variable.into_owned(), nearest));
        }
    }
    Ok((values, file))
}

/// Returns the keys that are set in the configuration file.
fn from_file(file: &Path, options: &[ConfigOption]) -> Result<Table, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable(file.to_owned(), error);
    let text = fs::read_to_string(file).map_err(unreadable)?;
    let invalid = |start: usize, problem| {
        let line_ends = text.bytes().take(start).filter(|byte| *byte == b'\n');
        ConfigError::Line(file.to_owned(), 1 + line_ends.count(), problem)
    };
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let keys = DeTable::parse(&text).map_err(|error| {
        let message = error.message().to_owned();
        invalid(start(&error), InvalidLine::Syntax(message))
    })?;
    let known = || options.iter().map(|option| option.key.as_str());
    for key in keys.get_ref().keys() {
        let name = key.get_ref();
        if !known().any(|known| known == name) {
            let problem = InvalidLine::UnknownKey(name.to_string(), nearest(name, known()));
            return Err(invalid(key.span().start, problem));
        }
    }
    let raw: RawConfig = toml::from_str(&text).map_err(|error| {
        let start = start(&error);
        let before = keys
            .get_ref()
            .keys()
            .filter(|key| key.span().start <= start);
        // The key is the last one that begins before the error.
        let key = before.max_by_key(|key| key.span().start);
        let key = key.map_or_else(String::new, |key| key.get_ref().to_string());
        invalid(
            start,
            InvalidLine::WrongType(key, error.message().to_owned()),
        )
    })?;
    Ok(raw.to_table())
}

/// Parses the text of a variable; the error is the expected type.
fn parse(value_type: ValueType, text: &str) -> Result<Value, &'static str> {
    match value_type {
        ValueType::Text => Ok(Value::from(text)),
        ValueType::Texts => Ok(Value::from(
            text.split(',').map(str::trim).collect::<Vec<_>>(),
        )),
        ValueType::Number => text
            .parse()
            .map(Value::Integer)
            .map_err(|_| "a whole number"),
        ValueType::Switch => text
            .parse()
            .map(Value::Boolean)
            .map_err(|_| "`true` or `false`"),
    }
}

/// Returns whether Kubernetes sets the variable `CEDAR_PDP_{name}` in the pods of a namespace.
///
/// It does so for each service whose name is `cedar-pdp` or begins with `cedar-pdp-`.
fn is_from_kubernetes(name: &str, text: &OsStr) -> bool {
    let is_url = || text.to_string_lossy().contains("://");
    let is_port = |rest: &str| match rest.split('_').collect::<Vec<_>>().as_slice() {
        // `…_PORT=tcp://10.0.0.1:50051`; a plain number is a mistaken attempt to set a port.
        [""] => is_url(),
        // `…_PORT_50051_TCP_ADDR=10.0.0.1`
        ["", port, "TCP" | "UDP" | "SCTP", ..] => port.parse::<u16>().is_ok(),
        _ => false,
    };
    // The name of the service may continue before these suffixes.
    let name = format!("_{name}");
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name
            .match_indices("_PORT")
            .any(|(at, port)| name.get(at + port.len()..).is_some_and(is_port))
}

/// Returns a value as it is written after its flag.
fn as_argument(value: &Value) -> String {
    match (value.as_str(), value.as_array()) {
        (Some(text), _) => text.to_owned(),
        (_, Some(values)) => values.iter().map(as_argument).collect::<Vec<_>>().join(","),
        (None, None) => value.to_string(),
    }
}

/// Returns the name of `known` that is most similar to `name`.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .min_by_key(|known| distance(name, known))
        .unwrap_or_default()
        .to_owned()
}

/// Returns the edit distance of two names: letters to change, insert or delete.
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
