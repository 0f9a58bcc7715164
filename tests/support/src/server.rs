//! The server process: its command, log, memory and clients.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::grpc::pb::policy_store_service_client::PolicyStoreServiceClient;
use tonic::transport::Channel;

use crate::TIME_LIMIT;
use crate::client::channel;
use crate::waiting::{poll_until, poll_until_blocking};

/// Returns the path of the server binary: the one that cargo built for the tests, or the one in
/// `CEDAR_PDP_TEST_BINARY`, such as a release build.
///
/// Cargo puts tests and benchmarks into a folder beside the binary.
pub fn binary() -> PathBuf {
    std::env::var_os("CEDAR_PDP_TEST_BINARY").map_or_else(
        || {
            let own = std::env::current_exe().expect("the path of this program");
            let target = own.ancestors().nth(2).expect("the folder of the profile");
            target.join("cedar-pdp")
        },
        PathBuf::from,
    )
}

/// Returns a command for the binary, without settings from the environment.
pub fn command() -> Command {
    without_settings(Command::new(binary()))
}

/// Returns the command `cedar-pdp serve` for `policies` and a free port, with further arguments.
pub fn serve_command(policies: &Path, arguments: &[&str]) -> Command {
    serve_command_of(&binary(), policies, arguments)
}

/// Returns the same command of another binary.
pub fn serve_command_of(binary: &Path, policies: &Path, arguments: &[&str]) -> Command {
    serve_command_on(&["127.0.0.1:0"], binary, policies, arguments)
}

fn serve_command_on(
    listen: &[&str],
    binary: &Path,
    policies: &Path,
    arguments: &[&str],
) -> Command {
    let mut command = without_settings(Command::new(binary));
    command.arg("serve").arg("--policies").arg(policies);
    for address in listen {
        command.args(["--listen", address]);
    }
    command.args(arguments);
    command
}

/// Removes settings in the environment from `command`, and disables the admin server: its default
/// port is the same for all servers that run at once. A test that needs it passes `--admin-listen`.
pub fn without_settings(mut command: Command) -> Command {
    remove_variables(&mut command, "CEDAR_PDP_");
    command.env("CEDAR_PDP_ADMIN_LISTEN", "off");
    command
}

/// Removes the environment variables whose names begin with `prefix`.
pub fn remove_variables(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}

/// A running server process, killed when dropped.
pub struct Server {
    child: Child,
    /// The addresses that it printed, unchanged.
    pub addresses: Vec<String>,
    admin: mpsc::Receiver<String>,
    stderr: Arc<Mutex<String>>,
    stderr_reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts `cedar-pdp serve` for `policies` on a free port with further arguments, and waits
    /// until it listens.
    pub fn start(policies: &Path, arguments: &[&str]) -> Self {
        Self::spawn(serve_command(policies, arguments), 1)
    }

    /// Starts the server on these addresses.
    pub fn start_listening(policies: &Path, listen: &[&str], arguments: &[&str]) -> Self {
        Self::spawn(
            serve_command_on(listen, &binary(), policies, arguments),
            listen.len(),
        )
    }

    /// Runs `command` and waits until it has printed `addresses` addresses.
    pub fn spawn(mut command: Command, addresses: usize) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server binary runs");
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let shared_log = Arc::clone(&stderr);
        let stderr_reader = std::thread::spawn(move || {
            let mut line = Vec::new();
            while log.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                shared_log
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        let (admin_sender, admin) = mpsc::channel();
        let mut server = Self {
            child,
            addresses: Vec::new(),
            admin,
            stderr,
            stderr_reader: Some(stderr_reader),
        };
        let mut stdout = BufReader::new(server.child.stdout.take().unwrap());
        while server.addresses.len() < addresses {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let status = server.child.wait().unwrap();
                panic!(
                    "the server ended ({status}) before it listened:\n{}",
                    server.log()
                );
            }
            if let Some(address) = line.trim_end().strip_prefix("listening on ") {
                server.addresses.push(address.to_owned());
            }
        }
        // Reads the rest of stdout, so that the server never blocks on it.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("admin on ") {
                    let _ = admin_sender.send(address.to_owned());
                }
            }
        });
        server
    }

    /// Returns the address of the admin server. Can be called once.
    pub fn admin(&self) -> String {
        self.admin
            .recv_timeout(TIME_LIMIT)
            .expect("the server has an admin server")
    }

    /// Returns the first address.
    pub fn address(&self) -> &str {
        &self.addresses[0]
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str) {
        let is_logged = poll_until_blocking(|| self.log().contains(text));
        assert!(is_logged, "`{text}` was never logged:\n{}", self.log());
    }

    /// Waits until `condition` returns true. Panics with `what` and the log if it never does.
    pub async fn eventually(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        assert!(
            poll_until(condition).await,
            "timed out: {what}\n{}",
            self.log()
        );
    }

    /// Returns whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits until the process exits by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let has_ended = poll_until_blocking(|| !self.is_alive());
        assert!(has_ended, "the server does not end:\n{}", self.log());
        if let Some(reader) = self.stderr_reader.take() {
            reader.join().unwrap();
        }
        self.child.wait().unwrap()
    }

    /// Returns the resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let mut text = String::new();
        std::fs::File::open(format!("/proc/{}/status", self.pid()))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Returns the CPU time used so far, in the system's ticks.
    pub fn processor_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The process name may contain parentheses; the last one ends it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let in_user_and_system = fields.split_whitespace().skip(11).take(2);
        in_user_and_system
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
    }

    /// Connects to the first address.
    pub async fn channel(&self) -> Channel {
        channel(self.address()).await
    }

    /// Connects a client of the authorization service.
    pub async fn authorization(&self) -> AuthorizationServiceClient<Channel> {
        AuthorizationServiceClient::new(self.channel().await)
    }

    /// Connects a client of the policy store service.
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

/// Waits until the store's status satisfies `condition`, and returns it.
pub async fn wait_for_status(
    server: &Server,
    what: &str,
    mut condition: impl FnMut(&pb::StoreStatus) -> bool,
) -> pb::StoreStatus {
    let mut store = server.policy_store().await;
    let mut watch = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let waiting = async {
        loop {
            let status = watch
                .message()
                .await
                .unwrap()
                .expect("the watch stays open")
                .status
                .unwrap();
            if condition(&status) {
                return status;
            }
        }
    };
    match tokio::time::timeout(TIME_LIMIT, waiting).await {
        Ok(status) => status,
        Err(_) => panic!("the status never showed {what}:\n{}", server.log()),
    }
}
