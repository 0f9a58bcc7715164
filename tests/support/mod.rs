//! Starts the real server process on a port of its own, and speaks to it with the real client.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what must hold in the shortest way, and each test uses a part of this"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cedar_pdp::api::pb;
use cedar_pdp::api::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::pb::policy_store_service_client::PolicyStoreServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take before a test says that it does not happen. Tests assert no times;
/// this is only where waiting ends.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server binary: the one that cargo built for the tests, or the one that
/// `CEDAR_PDP_TEST_BINARY` names, so that the same tests can be run against a release build.
pub fn binary() -> PathBuf {
    std::env::var_os("CEDAR_PDP_TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cedar-pdp")), PathBuf::from)
}

/// A command for the binary, without the environment of whoever runs the tests.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CEDAR_PDP_") {
            command.env_remove(name);
        }
    }
    command
}

/// The policies that the repository ships.
pub fn shipped_policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// A temporary policy directory holding these files.
pub fn policy_directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// A running server process, killed when dropped.
pub struct Server {
    child: Child,
    /// The addresses it printed, as it printed them.
    pub addresses: Vec<String>,
    stderr: Arc<Mutex<String>>,
    stderr_reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts `cedar-pdp serve` on `policies` and a free port, with these further arguments, and
    /// waits until it listens.
    pub fn start(policies: &Path, arguments: &[&str]) -> Self {
        Self::start_listening(policies, &["127.0.0.1:0"], arguments)
    }

    /// Starts it on these addresses.
    pub fn start_listening(policies: &Path, listen: &[&str], arguments: &[&str]) -> Self {
        let mut command = command();
        command.arg("serve").arg("--policies").arg(policies);
        for address in listen {
            command.args(["--listen", address]);
        }
        command.args(arguments);
        Self::spawn(command, listen.len())
    }

    /// Runs `command` and waits for `addresses` lines that say where it listens.
    pub fn spawn(mut command: Command, addresses: usize) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server binary runs");
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let kept = Arc::clone(&stderr);
        let stderr_reader = std::thread::spawn(move || {
            let mut line = Vec::new();
            while log.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                kept.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        let mut server = Self { child, addresses: Vec::new(), stderr, stderr_reader: Some(stderr_reader) };
        let mut stdout = BufReader::new(server.child.stdout.take().unwrap());
        while server.addresses.len() < addresses {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let status = server.child.wait().unwrap();
                panic!("the server ended ({status}) before it listened:\n{}", server.log());
            }
            if let Some(address) = line.trim_end().strip_prefix("listening on ") {
                server.addresses.push(address.to_owned());
            }
        }
        // Whatever else it prints must find a reader.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        server
    }

    /// The first address.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "`{text}` was never logged:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                if let Some(reader) = self.stderr_reader.take() {
                    reader.join().unwrap();
                }
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory now, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let mut text = String::new();
        std::fs::File::open(format!("/proc/{}/status", self.pid())).unwrap().read_to_string(&mut text).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A connection to the first address.
    pub async fn channel(&self) -> Channel {
        channel(self.address()).await
    }

    /// A client of the decisions.
    pub async fn authorization(&self) -> AuthorizationServiceClient<Channel> {
        AuthorizationServiceClient::new(self.channel().await)
    }

    /// A client of the policy store.
    pub async fn policy_store(&self) -> PolicyStoreServiceClient<Channel> {
        PolicyStoreServiceClient::new(self.channel().await)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to `address`, as the server printed it.
pub async fn channel(address: &str) -> Channel {
    let uri = if address.starts_with("unix:") { address.to_owned() } else { format!("http://{address}") };
    Endpoint::from_shared(uri).unwrap().connect().await.expect("the server accepts")
}

/// The uid `type_name::"id"`.
pub fn uid(type_name: &str, id: &str) -> pb::EntityUid {
    pb::EntityUid { r#type: type_name.to_owned(), id: Some(id.to_owned()) }
}

/// A uid as Cedar writes it.
pub fn parse_uid(text: &str) -> pb::EntityUid {
    let uid: cedar_pdp::pdp::query::Uid = text.parse().unwrap();
    self::uid(&uid.type_name, &uid.id)
}

/// A request by three uids as Cedar writes them.
pub fn request(principal: &str, action: &str, resource: &str) -> pb::AuthorizeRequest {
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(parse_uid(principal))),
        action: Some(parse_uid(action)),
        resource: Some(parse_uid(resource)),
        ..pb::AuthorizeRequest::default()
    }
}

/// A value of this kind.
pub fn value(kind: pb::value::Kind) -> pb::Value {
    pb::Value { kind: Some(kind) }
}

/// Waits until the store's status satisfies `holds`, and gives it.
pub async fn wait_for_status(
    server: &Server,
    what: &str,
    mut holds: impl FnMut(&pb::StoreStatus) -> bool,
) -> pb::StoreStatus {
    let mut store = server.policy_store().await;
    let mut watch = store.watch_status(pb::WatchStatusRequest {}).await.unwrap().into_inner();
    let waiting = async {
        loop {
            let status = watch.message().await.unwrap().expect("the watch goes on").status.unwrap();
            if holds(&status) {
                return status;
            }
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(status) => status,
        Err(_) => panic!("the status never showed {what}:\n{}", server.log()),
    }
}
