//! `imgbuild login`, `imgbuild logout` and `imgbuild auth explain`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use clap::Subcommand;

use super::common::Invocation;
use super::{Stop, print};
use crate::error::Failure;
use crate::registry::auth::{Credential, Secret};
use crate::registry::{Reference, Repository, is_host};

/// Log in to a registry
///
/// The credential is tried, then kept where Docker keeps its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild login ghcr.io --username me                            asks for the password
  echo \"$TOKEN\" | imgbuild login ghcr.io -u me --password-stdin   in CI")]
pub(crate) struct LoginArgs {
    /// The registry
    #[arg(value_name = "HOST", default_value = "docker.io")]
    registry: String,
    /// The user
    #[arg(long, short = 'u', value_name = "USER")]
    username: Option<String>,
    /// Read the password from stdin
    #[arg(long)]
    password_stdin: bool,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
}

/// Forget the credential of a registry
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArgs {
    /// The registry
    #[arg(value_name = "HOST", default_value = "docker.io")]
    registry: String,
}

/// Look into credentials
#[derive(Debug, clap::Args)]
pub(crate) struct AuthArgs {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, Subcommand)]
enum AuthCommand {
    /// Show which sources were asked for the credential of a registry or image, and what each answered; secrets are not shown
    ///
    /// A source that is broken is reported, and the next ones are asked nevertheless; the status is then 1, because a push
    /// would end there.
    #[command(after_help = "Examples:
  imgbuild auth explain ghcr.io
  imgbuild auth explain ghcr.io/acme/rag:v1
  imgbuild auth explain --registry localhost:5000/team    as `push --registry` sees it")]
    Explain {
        /// A registry's host, a repository or an image [default: that of --registry]
        #[arg(value_name = "HOST|REFERENCE", required_unless_present = "registry")]
        subject: Option<String>,
        /// The registry that a user and password in the environment are for, as in `push` [default: IMGBUILD_REGISTRY or
        /// `registry` in imgbuild.toml]
        #[arg(long, value_name = "HOST/PREFIX")]
        registry: Option<String>,
    },
}

pub(crate) fn login(invocation: &Invocation, args: LoginArgs) -> Result<(), Stop> {
    let registry = host(&args.registry)?;
    let user = match args.username {
        Some(user) => user,
        None if args.password_stdin || !io::stdin().is_terminal() => {
            return Err(Failure::usage("who logs in is not known").hint("name the user with `--username`").into());
        }
        None => ask("user: ")?,
    };
    if user.is_empty() || user.contains(':') {
        return Err(Failure::usage("a user name is not empty and holds no colon").into());
    }
    let password = match args.password_stdin {
        true => {
            let mut text = String::new();
            io::stdin().lock().take(1 << 20).read_to_string(&mut text).map_err(unreadable)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        false if io::stdin().is_terminal() => hidden("password: ")?,
        false => {
            return Err(Failure::usage("the password cannot be asked for without a terminal")
                .hint("give it on stdin with `--password-stdin`")
                .into());
        }
    };
    if password.is_empty() {
        return Err(Failure::usage("the password is empty").into());
    }
    let config = invocation.config()?;
    let registries = invocation.registries(&config, &args.insecure, None)?;
    let credential = Credential::Password { user, password: Secret::new(password) };
    registries.try_login(&registry, &credential)?;
    let place = registries.client().keyring().keep(&registry, &credential)?;
    print(&format!("logged in to {registry}; kept in {place}\n"))
}

pub(crate) fn logout(invocation: &Invocation, args: LogoutArgs) -> Result<(), Stop> {
    let registry = host(&args.registry)?;
    let config = invocation.config()?;
    let registries = invocation.registries(&config, &[], None)?;
    let keyring = registries.client().keyring();
    let done = match keyring.forget(&registry)? {
        Some(place) => format!("logged out of {registry}; removed from {place}\n"),
        None => format!("not logged in to {registry} by `imgbuild login` or `docker login`\n"),
    };
    print(&done)?;
    // Another source may still have one, podman's file for instance.
    let left = registries.explain(&Repository { registry: registry.clone(), path: String::new() })?;
    match left.credential {
        Credential::Anonymous => Ok(()),
        _ => print(&format!("another credential is still used: see `imgbuild auth explain {registry}`\n")),
    }
}

pub(crate) fn auth(invocation: &Invocation, args: AuthArgs) -> Result<(), Stop> {
    let AuthCommand::Explain { subject, registry } = args.command;
    let repository = match (&subject, &registry) {
        (Some(subject), _) => repository_of(subject)?,
        (None, Some(registry)) => repository_of(registry)?,
        (None, None) => unreachable!("clap requires one of the two"),
    };
    let config = invocation.config()?;
    let registries = invocation.registries(&config, &[], registry.as_deref())?;
    let found = registries.explain(&repository)?;
    let mut text = match repository.path.is_empty() {
        true => format!("{}\n", repository.registry),
        false => format!("{repository}\n"),
    };
    for asked in &found.asked {
        text += &format!("  {}: {}\n", asked.source, crate::hide::hidden(&asked.answer));
    }
    for warning in &found.warnings {
        text += &format!("  warning: {warning}\n");
    }
    print(&text)?;
    match found.broken.first() {
        None => Ok(()),
        Some(first) => {
            let more = match found.broken.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            Err(Failure::work(format!("a source is broken, so a push or pull ends there: {first}{more}")).into())
        }
    }
}

/// What is asked about: a registry as a whole, whose path is empty, or a repository of one. Without a slash, what has a dot
/// or is `localhost` is a host; other names are images of Docker Hub.
fn repository_of(text: &str) -> Result<Repository, Failure> {
    let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let name = bare.split(':').next().unwrap_or_default();
    let is_port = bare.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if !bare.contains(['/', '@']) && (bare.starts_with('[') || (name.contains('.') || name == "localhost") && is_port) {
        return Ok(Repository { registry: host(bare)?, path: String::new() });
    }
    Ok(bare.parse::<Reference>()?.repository)
}

fn host(text: &str) -> Result<String, Failure> {
    let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/').to_ascii_lowercase();
    match bare.as_str() {
        "index.docker.io" | "index.docker.io/v1" | "registry-1.docker.io" => Ok("docker.io".into()),
        _ if is_host(&bare) => Ok(bare),
        _ => Err(Failure::usage(format!("`{text}` is not a registry's host, as in `ghcr.io` or `localhost:5000`"))),
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::work(format!("stdin cannot be read: {error}"))
}

fn ask(question: &str) -> Result<String, Failure> {
    let _ = write!(io::stderr(), "{question}");
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(unreadable)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Asks without showing what is typed; the terminal is set back whatever happens in between.
fn hidden(question: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|error| unreadable(error.into()))?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &quiet).map_err(|error| unreadable(error.into()))?;
    let answer = ask(question);
    let _ = tcsetattr(&stdin, OptionalActions::Now, &before);
    let _ = writeln!(io::stderr());
    answer
}
