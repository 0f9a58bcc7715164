//! The command line: the commands, their shared arguments, and their exit status.
//!
//! Each command and its arguments are in the module of its name; the settings of the service are in
//! [`config`](crate::config).

mod authorize;
mod directory;
mod fmt;
mod healthcheck;
mod help;
mod init;
mod schema;
mod serve;
mod target;
mod test;
mod validate;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::config::sources::{self, ConfigArgs};
use authorize::AuthorizeArgs;
use fmt::FmtArgs;
use healthcheck::HealthcheckArgs;
use init::InitArgs;
use schema::SchemaArgs;
use test::TestArgs;
use validate::ValidateArgs;

/// Decides, by Cedar policies, whether a principal may perform an action on a resource.
#[derive(Debug, Parser)]
#[command(name = "cedar-pdp", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve decisions from a policy directory until SIGTERM or SIGINT
    ///
    /// Exit status: 0 after a clean shutdown, 1 after a second signal, 2 if it cannot start
    Serve(ConfigArgs),
    /// Check whether serve would load a directory, and print all problems
    ///
    /// Exit status: 0 exactly when serve with the same settings would load it, else 1; 2 if it
    /// cannot be read
    Validate(ValidateArgs),
    /// Request one decision from a directory or from a running service
    ///
    /// Exit status: 0 for ALLOW, 1 for DENY, 2 if there is no answer
    Authorize(Box<AuthorizeArgs>),
    /// Run the policy tests of a directory
    ///
    /// Exit status: 0 if all pass, 1 if one fails or the directory is rejected, 2 if there is no
    /// test
    Test(TestArgs),
    /// Write a small policy directory to begin with: schema, policies, entities, tests
    ///
    /// Exit status: 0, or 2 if it cannot be written
    Init(InitArgs),
    /// Format the policy files of a directory
    ///
    /// Exit status: 0 if all are formatted, else 1
    Fmt(FmtArgs),
    /// Print the schema of a directory as one text, for editors
    ///
    /// Exit status: 0, 1 if the schema files are invalid, 2 if there is none
    Schema(SchemaArgs),
    /// Print the settings in force and the source of each value
    ///
    /// The output is a configuration file. Exit status: 0, or 2 if a setting is invalid
    Config(ConfigArgs),
    /// Check whether a running service is serving
    ///
    /// Exit status: 0 if it is serving, 1 if it is not, 2 if there is no connection
    Healthcheck(HealthcheckArgs),
}

/// The result of a command that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success, or a positive answer.
    Good,
    /// A negative answer: DENY, failed tests, invalid policies, not serving.
    No,
}

impl Outcome {
    fn of(is_good: bool) -> Self {
        match is_good {
            true => Self::Good,
            false => Self::No,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::SUCCESS,
            Outcome::No => Self::from(1),
        }
    }
}

/// The format of a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl Cli {
    /// Parses the arguments of this process. Prints help or a usage error and exits if there is no
    /// command to run.
    #[must_use]
    pub fn from_process() -> Self {
        let mut matches = command().get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
    }

    /// Runs the command.
    ///
    /// # Errors
    ///
    /// When the command cannot run. A negative answer is an [`Outcome`], not an error.
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.command {
            Command::Config(args) => print_config(args),
            Command::Serve(args) => serve::run(args),
            Command::Validate(args) => validate::run(args),
            Command::Authorize(args) => authorize::run(*args),
            Command::Test(args) => test::run(args),
            Command::Init(args) => init::run(&args),
            Command::Fmt(args) => fmt::run(args),
            Command::Schema(args) => schema::run(args),
            Command::Healthcheck(args) => healthcheck::run(args),
        }
    }
}

/// Prints every setting in force, with its source.
fn print_config(args: ConfigArgs) -> anyhow::Result<Outcome> {
    let text = sources::merge(args)?.to_toml()?;
    let written = io::stdout().write_all(text.as_bytes());
    written.context("cannot write to stdout")?;
    Ok(Outcome::Good)
}

/// Returns the settings for a command that may have the policy directory as an argument.
fn config_of_directory(args: ConfigArgs, directory: Option<PathBuf>) -> anyhow::Result<Config> {
    let mut config = sources::merge(args)?.check()?;
    if let Some(directory) = directory {
        config.store.directory = directory;
    }
    Ok(config)
}

/// Returns the command line: all commands, arguments and help texts.
#[must_use]
pub fn command() -> clap::Command {
    help::with_settings(Cli::command())
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::config::listen::Listen;
    use crate::pdp::query::Uid;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from([&["cedar-pdp"], line].concat())?;
        Cli::from_arg_matches(&matches)
    }

    #[track_caller]
    fn rejected(line: &[&str], kind: ErrorKind) {
        assert_eq!(parse(line).unwrap_err().kind(), kind, "{line:?}");
    }

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    /// Terminals wrap the rest.
    #[test]
    fn first_sentence_of_help_fits_line() {
        let mut long = Vec::new();
        for command in command().get_subcommands() {
            let own = command.get_about().map(ToString::to_string);
            let args = command.get_arguments().filter_map(|arg| arg.get_help());
            for text in args.map(ToString::to_string).chain(own) {
                let meaning = text.split(" [env: ").next().unwrap_or_default();
                let sentence = meaning.split(". ").next().unwrap_or_default();
                if sentence.chars().count() > 80 {
                    long.push(sentence.to_owned());
                }
            }
        }
        assert_eq!(long, [] as [&str; 0]);
    }

    #[test]
    fn authorize_takes_directory_or_service() {
        let uids = [
            r#"--principal=User::"a""#,
            r#"--action=Action::"b""#,
            r#"--resource=Doc::"c""#,
        ];
        let try_parse = |more: &[&str]| parse(&[&["authorize"], &uids[..], more].concat());
        let parsed = |more: &[&str]| {
            let Command::Authorize(args) = try_parse(more).unwrap().command else {
                panic!("not authorize");
            };
            args
        };
        let args = parsed(&["--policies", "dir", "--context", r#" {"a": 1}"#]);
        assert_eq!(args.principal, Some(Uid::new("User", "a")));
        assert_eq!(args.config.flags.policies.as_deref(), Some("dir"));
        assert_eq!(args.context.as_deref(), Some(r#" {"a": 1}"#));
        let args = parsed(&[
            "--connect",
            "unix:/run/pdp.sock",
            "--context",
            "context.json",
        ]);
        assert_eq!(args.connect, Some(Listen::Unix("/run/pdp.sock".into())));
        assert_eq!(args.context.as_deref(), Some("context.json"));
        let both = try_parse(&["--policies", "dir", "--connect", "a:1"]).unwrap_err();
        assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn invalid_arguments_are_usage_errors() {
        rejected(&["authorize"], ErrorKind::MissingRequiredArgument);
        rejected(&["serve", "--polices", "x"], ErrorKind::UnknownArgument);
        rejected(
            &["validate", "a", "--policies", "b"],
            ErrorKind::ArgumentConflict,
        );
        rejected(&["test", "a", "--reasons", "some"], ErrorKind::InvalidValue);
        rejected(
            &["healthcheck", "--connect", "nowhere"],
            ErrorKind::ValueValidation,
        );
        assert_eq!(
            parse(&["serve", "--polices", "x"]).unwrap_err().exit_code(),
            2
        );
        assert_eq!(parse(&["--version"]).unwrap_err().exit_code(), 0);
    }
}
