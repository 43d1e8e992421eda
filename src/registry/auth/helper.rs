//! Credential helpers: programs named `docker-credential-NAME` that keep passwords elsewhere.
//!
//! They speak JSON over standard input and output. Nothing that a helper prints is ever shown, for it may be the secret.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::file::of_pair;
use super::secret::Credential;

/// Why a helper gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// A name that is a path or worse.
    #[error("`{0}` cannot be a credential helper's name")]
    Name(String),
    /// No such program.
    #[error("the credential helper `docker-credential-{0}` is not on the PATH")]
    Missing(String),
    /// It did not end.
    #[error("the credential helper `docker-credential-{name}` gave no answer within {seconds} s")]
    Hung {
        /// The helper.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It failed.
    #[error("the credential helper `docker-credential-{name}` failed ({status})")]
    Failed {
        /// The helper.
        name: String,
        /// How it ended.
        status: String,
    },
    /// It printed something else.
    #[error("the credential helper `docker-credential-{0}` printed something that is not a credential")]
    Garbage(String),
}

/// How helpers are run.
#[derive(Debug, Clone)]
pub struct Helpers {
    /// Folders that are searched, as in `PATH`.
    pub path: Option<OsString>,
    /// How long one may take.
    pub patience: Duration,
}

impl Default for Helpers {
    fn default() -> Helpers {
        Helpers { path: None, patience: Duration::from_secs(30) }
    }
}

/// A helper's output; with its status where it failed.
type Ended = Result<Vec<u8>, (String, Vec<u8>)>;

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Helpers {
    /// Asks for the credential of a server; `None` where the helper knows none.
    pub fn get(&self, name: &str, server: &str) -> Result<Option<Credential>, HelperError> {
        match self.run(name, "get", server.as_bytes())? {
            Ok(output) => {
                let answer: Answer = serde_json::from_slice(&output).map_err(|_| HelperError::Garbage(name.into()))?;
                Ok((!answer.secret.is_empty()).then(|| of_pair(answer.user, answer.secret)))
            }
            // The one message of the protocol that is no failure.
            Err((_, output)) if String::from_utf8_lossy(&output).contains("credentials not found") => Ok(None),
            Err((status, _)) => Err(HelperError::Failed { name: name.into(), status }),
        }
    }

    /// Stores a credential.
    pub fn store(&self, name: &str, server: &str, user: &str, secret: &str) -> Result<(), HelperError> {
        let input = serde_json::json!({"ServerURL": server, "Username": user, "Secret": secret}).to_string();
        self.run(name, "store", input.as_bytes())?
            .map(drop)
            .map_err(|(status, _)| HelperError::Failed { name: name.into(), status })
    }

    /// Forgets a credential; what it does not know is no error.
    pub fn erase(&self, name: &str, server: &str) -> Result<(), HelperError> {
        match self.run(name, "erase", server.as_bytes())? {
            Err((_, output)) if String::from_utf8_lossy(&output).contains("credentials not found") => Ok(()),
            Err((status, _)) => Err(HelperError::Failed { name: name.into(), status }),
            Ok(_) => Ok(()),
        }
    }

    fn program(&self, name: &str) -> Result<PathBuf, HelperError> {
        let plain = !name.is_empty()
            && name.len() < 100
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain {
            return Err(HelperError::Name(name.chars().filter(|c| !c.is_control()).take(100).collect()));
        }
        let file = format!("docker-credential-{name}");
        std::env::split_paths(self.path.as_deref().unwrap_or_default())
            // A relative folder would run whatever lies where the user happens to stand.
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(&file))
            .find(|path| is_program(path))
            .ok_or_else(|| HelperError::Missing(name.into()))
    }

    /// Runs a helper; the inner error is its status and output.
    fn run(&self, name: &str, verb: &str, input: &[u8]) -> Result<Ended, HelperError> {
        let failed = |status: String| HelperError::Failed { name: name.into(), status };
        let mut command = Command::new(self.program(name)?);
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut tries = 0;
        let mut child = loop {
            match command.spawn() {
                // Somebody has the program open for writing, for the moment: it is being updated.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(4));
                }
                spawned => break spawned.map_err(|error| failed(error.kind().to_string()))?,
            }
        };
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let input = input.to_vec();
        // A helper that reads nothing, or leaves its output open in a grandchild, must not hold us: both ends are served
        // by threads that are left behind when the time is up.
        let writer = std::thread::Builder::new().spawn(move || {
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(&input);
            }
        });
        let (sender, receiver) = mpsc::channel();
        let reader = std::thread::Builder::new().spawn(move || {
            let mut output = Vec::new();
            if let Some(stdout) = stdout {
                let _ = stdout.take(1 << 20).read_to_end(&mut output);
            }
            let _ = sender.send(output);
        });
        if let Err(error) = writer.and(reader) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("no thread can be had: {error}")));
        }
        let output = receiver.recv_timeout(self.patience);
        let status = match &output {
            // The output is closed, so it is ending; one that lingers is ended.
            Ok(_) => wait_briefly(&mut child),
            Err(_) => None,
        };
        match (output, status) {
            (Ok(output), Some(status)) if status.success() => Ok(Ok(output)),
            (Ok(output), Some(status)) => Ok(Err((status.to_string(), output))),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(HelperError::Hung { name: name.into(), seconds: self.patience.as_secs() })
            }
        }
    }
}

fn wait_briefly(child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
    for _ in 0..500 {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(Duration::from_millis(4)),
            Err(_) => return None,
        }
    }
    None
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn helpers_answer_fail_hang_and_print_garbage() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, script) in [
            (
                "good",
                r#"read server; echo "{\"ServerURL\": \"$server\", \"Username\": \"u-$server\", \"Secret\": \"p\"}""#,
            ),
            ("token", r#"echo '{"Username": "<token>", "Secret": "it"}'"#),
            ("none", "echo 'credentials not found in native keychain'; exit 1"),
            ("fails", "echo canary-secret; echo canary-secret >&2; exit 3"),
            ("garbage", "echo canary-secret"),
            ("empty", "true"),
            ("hangs", "exec sleep 60"),
            ("forks", "sleep 60 & echo '{}'"),
            ("deaf", "exec < /dev/null; echo '{\"Username\": \"u\", \"Secret\": \"p\"}'"),
        ] {
            let path = folder.path().join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("allows");
        }
        std::fs::write(folder.path().join("docker-credential-notexec"), "").expect("writes");
        let path = std::env::join_paths([folder.path(), Path::new("/usr/bin"), Path::new("/bin")]).expect("joins");
        let helpers = Helpers { path: Some(path), patience: Duration::from_millis(1500) };
        let shown = |name: &str| match helpers.get(name, "ghcr.io") {
            Ok(Some(credential)) => credential.shown(),
            Ok(None) => "nothing".into(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown("good"), "user `u-ghcr.io` with a password");
        assert_eq!(shown("token"), "an identity token");
        assert_eq!(shown("none"), "nothing");
        assert_eq!(shown("deaf"), "user `u` with a password");
        assert_eq!(shown("fails"), "the credential helper `docker-credential-fails` failed (exit status: 3)");
        for name in ["garbage", "empty"] {
            assert!(shown(name).ends_with("printed something that is not a credential"), "{}", shown(name));
        }
        for name in ["hangs", "forks"] {
            assert!(shown(name).ends_with("gave no answer within 1 s"), "{}", shown(name));
        }
        for name in ["missing", "notexec"] {
            assert!(shown(name).ends_with("is not on the PATH"), "{}", shown(name));
        }
        assert_eq!(shown("../evil"), "`../evil` cannot be a credential helper's name");
    }
}
