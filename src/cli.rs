//! The command line: which commands there are, what they take, and how they end.
//!
//! What a command does stands in the module of its name; what the service is configured with
//! stands in [`config`](crate::config).

mod authorize;
mod config;
mod directory;
mod healthcheck;
mod report;
mod serve;
mod target;
mod test;
mod validate;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::config::Config;
use crate::config::layers::{self, ConfigArgs, ConfigOption};
use crate::config::listen::Listen;
use crate::pdp::query::Uid;
use target::{OwnCertificate, TargetArgs};

/// Decides, by Cedar policies, whether a principal may do an action on a resource.
#[derive(Debug, Parser)]
#[command(name = "cedar-pdp", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer callers from a policy directory, until SIGTERM or SIGINT
    Serve(ConfigArgs),
    /// Say whether serve would load a directory, and all that is wrong with it
    Validate(ValidateArgs),
    /// Ask for one decision, of a directory or of a running service
    Authorize(Box<AuthorizeArgs>),
    /// Run the policy tests of a directory
    Test(TestArgs),
    /// Print the configuration in force, and where each value was written
    Config(ConfigArgs),
    /// Ask a running service whether it is serving
    Healthcheck(HealthcheckArgs),
}

/// How a command ended that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well; the answer is yes.
    Good,
    /// The answer is no: DENY, failing tests, invalid policies, not serving.
    No,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::SUCCESS,
            Outcome::No => Self::from(1),
        }
    }
}

/// What `validate` takes.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The directory to read
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub dir: PathBuf,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Options that change what serve would load.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What `authorize` takes. Without `--connect` the policy directory decides.
#[derive(Debug, Args)]
pub struct AuthorizeArgs {
    /// The running service to ask, instead of a directory: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", conflicts_with = "policies")]
    pub connect: Option<Listen>,
    /// How to come in there.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who wants to act, as User::"alice"
    #[arg(long, value_name = "UID", required_unless_present = "token")]
    pub principal: Option<Uid>,
    /// A file with the token of who wants to act, in place of a principal
    #[arg(
        long,
        value_name = "FILE",
        requires = "connect",
        conflicts_with_all = ["principal", "policies"]
    )]
    pub token: Option<PathBuf>,
    /// What is to be done, as Action::"read"
    #[arg(long, value_name = "UID")]
    pub action: Uid,
    /// What it is to be done to, as Document::"1"
    #[arg(long, value_name = "UID")]
    pub resource: Uid,
    /// The circumstances: a JSON object, or a file that holds one
    #[arg(long, value_name = "FILE|JSON")]
    pub context: Option<JsonSource>,
    /// A file of entities known to this request only, in Cedar's JSON format
    #[arg(long, value_name = "FILE")]
    pub entities: Option<PathBuf>,
    /// Say why
    #[arg(long)]
    pub explain: bool,
    /// How to answer
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Options that change how a directory decides.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What `test` takes.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The directory to test
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub dir: PathBuf,
    /// Run only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Also write the results to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// How to report
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// How a test's reasons are compared with the determining policies
    #[arg(long, value_enum, default_value_t)]
    pub reasons: Reasons,
    /// Options that change how the directory decides.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What `healthcheck` takes.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// The service to ask; by default, where serve would first listen
    #[arg(long, value_name = "ADDR")]
    pub connect: Option<Listen>,
    /// How to come in there.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The certificate chain to show, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "Connection"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "Connection"
    )]
    pub tls_key: Option<PathBuf>,
    /// The name to ask for; by default, the whole server
    #[arg(long, value_name = "NAME", default_value = "")]
    pub service: String,
    /// The configuration file, TOML [env: CEDAR_PDP_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How a command writes what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// How a test's reasons are compared with the determining policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Reasons {
    /// They are the same policies.
    #[default]
    Exact,
    /// They are among them.
    Contains,
}

/// JSON given in place, or the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonSource {
    /// The text of an object.
    Inline(String),
    /// Where to read it.
    File(PathBuf),
}

impl FromStr for JsonSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.trim_start().starts_with('{') {
            true => Self::Inline(text.to_owned()),
            false => Self::File(text.into()),
        })
    }
}

impl Cli {
    /// Reads the arguments of this process; ends it with usage or help where there is no command.
    #[must_use]
    pub fn from_process() -> Self {
        let mut matches = command().get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
    }

    /// Does what was asked.
    ///
    /// # Errors
    ///
    /// When the command could not run, which says nothing about what it would have found.
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.command {
            Command::Config(config) => config::run(&layers::gather(config)?),
            Command::Serve(config) => serve::run(layers::gather(config)?.check()?),
            Command::Validate(args) => {
                let config = of_directory(args.config, args.dir)?;
                validate::run(&config, args.format)
            }
            Command::Authorize(args) => {
                let config = layers::gather(args.config.clone())?.check()?;
                authorize::run(&args, &config)
            }
            Command::Test(args) => {
                let config = of_directory(args.config.clone(), args.dir.clone())?;
                test::run(&args, &config)
            }
            Command::Healthcheck(args) => {
                let config = args.config;
                let config = layers::gather(ConfigArgs {
                    config,
                    ..Default::default()
                })?
                .check()?;
                // INVARIANT: a checked configuration has an address.
                let address = args.connect.or_else(|| config.listen.into_iter().next());
                let address = address.context("there is no address to ask")?;
                let own = OwnCertificate {
                    certificate: args.tls_cert.as_deref(),
                    key: args.tls_key.as_deref(),
                };
                let target = target::target(address, &args.target, own)?;
                healthcheck::run(&target, &args.service)
            }
        }
    }
}

/// The configuration for a command that names its policy directory by itself.
fn of_directory(args: ConfigArgs, directory: PathBuf) -> anyhow::Result<Config> {
    let config = layers::gather(args)?.check()?;
    Ok(Config {
        policies: directory,
        ..config
    })
}

/// The arguments, with the environment variable and default of each configuration key in its help.
fn command() -> clap::Command {
    let options = layers::options();
    let documented = |arg: clap::Arg| match options
        .iter()
        .find(|option| arg.get_id() == option.key.as_str())
    {
        Some(option) => arg.help(help(option)),
        None => arg,
    };
    Cli::command().mut_subcommands(|command| command.mut_args(documented))
}

fn help(option: &ConfigOption) -> String {
    let ConfigOption {
        meaning,
        variable,
        default,
        ..
    } = option;
    match default {
        Some(default) => format!("{meaning} [env: {variable}] [default: {default}]"),
        None => format!("{meaning} [env: {variable}]"),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from([&["cedar-pdp"], line].concat())?;
        Cli::from_arg_matches(&matches)
    }

    #[track_caller]
    fn refused(line: &[&str], kind: ErrorKind) {
        assert_eq!(parse(line).unwrap_err().kind(), kind, "{line:?}");
    }

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_help_of_an_option_names_its_variable_and_default() {
        let help = parse(&["serve", "--help"]).unwrap_err().to_string();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("[env: CEDAR_PDP_DRAIN_TIMEOUT] [default: 25s]"));
    }

    #[test]
    fn a_decision_is_asked_of_a_directory_or_of_a_service() {
        let uids = [
            r#"--principal=User::"a""#,
            r#"--action=Action::"b""#,
            r#"--resource=Doc::"c""#,
        ];
        let ask = |more: &[&str]| parse(&[&["authorize"], &uids[..], more].concat());
        let asked = |more: &[&str]| {
            let Command::Authorize(args) = ask(more).unwrap().command else {
                panic!("not authorize");
            };
            args
        };
        let args = asked(&["--policies", "dir", "--context", r#" {"a": 1}"#]);
        assert_eq!(args.principal, Some(Uid::new("User", "a")));
        assert_eq!(args.config.flags.policies.as_deref(), Some("dir"));
        assert_eq!(
            args.context,
            Some(JsonSource::Inline(r#" {"a": 1}"#.to_owned()))
        );
        let args = asked(&[
            "--connect",
            "unix:/run/pdp.sock",
            "--context",
            "context.json",
        ]);
        assert_eq!(args.connect, Some(Listen::Unix("/run/pdp.sock".into())));
        assert_eq!(args.context, Some(JsonSource::File("context.json".into())));
        let both = ask(&["--policies", "dir", "--connect", "a:1"]).unwrap_err();
        assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn arguments_that_make_no_sense_are_usage_errors() {
        refused(&["authorize"], ErrorKind::MissingRequiredArgument);
        refused(&["serve", "--polices", "x"], ErrorKind::UnknownArgument);
        refused(
            &["validate", "a", "--policies", "b"],
            ErrorKind::ArgumentConflict,
        );
        refused(&["test", "a", "--reasons", "some"], ErrorKind::InvalidValue);
        refused(
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
