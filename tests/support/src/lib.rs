//! Starts the real server process on a port of its own, and speaks to it with the real client.

pub mod frames;
pub mod http2;
pub mod pki;
pub mod protobuf;
pub mod replay;
pub mod signer;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cedar_pdp::api::pb;
use cedar_pdp::api::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::pb::policy_store_service_client::PolicyStoreServiceClient;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take before a test says that it does not happen. Tests assert no times;
/// this is only where waiting ends.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server binary: the one that cargo built for the tests, or the one that
/// `CEDAR_PDP_TEST_BINARY` names, so that the same tests can be run against a release build.
///
/// Cargo puts a test or benchmark into a folder beside the binary that it built for it.
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

/// A command for the binary, without the environment of whoever runs the tests.
pub fn command() -> Command {
    without_settings(Command::new(binary()))
}

/// `cedar-pdp serve` on `policies` and a free port, with these further arguments.
pub fn serving(policies: &Path, arguments: &[&str]) -> Command {
    serving_on(&["127.0.0.1:0"], policies, arguments)
}

fn serving_on(listen: &[&str], policies: &Path, arguments: &[&str]) -> Command {
    let mut command = command();
    command.arg("serve").arg("--policies").arg(policies);
    for address in listen {
        command.args(["--listen", address]);
    }
    command.args(arguments);
    command
}

/// `command`, without the settings in the environment of whoever runs the tests, and without a
/// door for operators: many services run at once, and its port is one and the same for all. A test
/// that wants one gives `--admin-listen`.
pub fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CEDAR_PDP_") {
            command.env_remove(name);
        }
    }
    command.env("CEDAR_PDP_ADMIN_LISTEN", "off");
    command
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("two folders above")
}

/// The policies that the repository ships.
pub fn shipped_policies() -> PathBuf {
    repository().join("policies")
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
    admin: mpsc::Receiver<String>,
    stderr: Arc<Mutex<String>>,
    stderr_reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts `cedar-pdp serve` on `policies` and a free port, with these further arguments, and
    /// waits until it listens.
    pub fn start(policies: &Path, arguments: &[&str]) -> Self {
        Self::spawn(serving(policies, arguments), 1)
    }

    /// Starts it on these addresses.
    pub fn start_listening(policies: &Path, listen: &[&str], arguments: &[&str]) -> Self {
        Self::spawn(serving_on(listen, policies, arguments), listen.len())
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
                kept.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        let (tell_admin, admin) = mpsc::channel();
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
        // Whatever else it prints must find a reader.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("admin on ") {
                    let _ = tell_admin.send(address.to_owned());
                }
            }
        });
        server
    }

    /// Where operators find it. To be asked once.
    pub fn admin(&self) -> String {
        self.admin
            .recv_timeout(PATIENCE)
            .expect("it has a door for operators")
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
            assert!(
                begun.elapsed() < PATIENCE,
                "`{text}` was never logged:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process still runs.
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
            assert!(
                begun.elapsed() < PATIENCE,
                "the server does not end:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory now, in KiB.
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

    /// How much of the processors it has had so far, in the system's ticks.
    pub fn processor_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // A name may hold anything, and ends with the last parenthesis.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let in_user_and_system = fields.split_whitespace().skip(11).take(2);
        in_user_and_system
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
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
    let uri = if address.starts_with("unix:") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    Endpoint::from_shared(uri)
        .unwrap()
        .connect()
        .await
        .expect("the server accepts")
}

/// The page at `path` of the operators' door at `admin`.
pub fn get(admin: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: pdp\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").expect("an answer");
    body.to_owned()
}

/// Puts `text` in place of what stands in `file`, in one step.
pub fn replace(file: &Path, text: &str) {
    // A name with a dot is passed over in a policy directory.
    let name = file.file_name().unwrap().to_str().unwrap();
    let new = file.with_file_name(format!(".{name}.new"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Tasks that go on until they are told to stop, and count what they did.
pub struct Busy {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Busy {
    pub fn new() -> Self {
        Self {
            stop: Arc::new(AtomicBool::new(false)),
            tasks: Vec::new(),
        }
    }

    /// Another task, which makes `call` again and again.
    pub fn with<F>(mut self, mut call: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let stop = Arc::clone(&self.stop);
        self.tasks.push(tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                call().await;
                calls += 1;
            }
            calls
        }));
        self
    }

    /// Ends them; fails when one has failed, or never did anything.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert!(task.await.expect("no call fails") > 0);
        }
    }
}

/// The uid `type_name::"id"`.
pub fn uid(type_name: &str, id: &str) -> pb::EntityUid {
    pb::EntityUid {
        r#type: type_name.to_owned(),
        id: Some(id.to_owned()),
    }
}

/// A uid as Cedar writes it.
pub fn parse_uid(text: &str) -> pb::EntityUid {
    let uid: cedar_pdp::pdp::query::Uid = text.parse().unwrap();
    self::uid(&uid.type_name, &uid.id)
}

/// A request by three uids as Cedar writes them.
pub fn request(principal: &str, action: &str, resource: &str) -> pb::AuthorizeRequest {
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(parse_uid(
            principal,
        ))),
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
                .expect("the watch goes on")
                .status
                .unwrap();
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

/// The revision of these served files, worked out as the contract says and not by our own code.
pub fn revision(files: &[(&str, &str)]) -> String {
    let files: BTreeMap<&[u8], &[u8]> = files
        .iter()
        .map(|(path, text)| (path.as_bytes(), text.as_bytes()))
        .collect();
    let mut digest = Sha256::new();
    for part in files.iter().flat_map(|(path, text)| [path, text]) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What an answer said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    pub is_allow: bool,
    pub determining: Vec<String>,
    pub revision: String,
}

impl From<pb::AuthorizeResponse> for Said {
    fn from(response: pb::AuthorizeResponse) -> Self {
        assert_ne!(response.decision(), pb::Decision::Unspecified);
        Self {
            is_allow: response.decision() == pb::Decision::Allow,
            determining: response.determining_policies,
            revision: response.revision,
        }
    }
}

/// Clients that ask the same all the time, each in its own way and on its own connection.
pub struct Askers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<Said, u64>>>,
}

impl Askers {
    /// Starts one client that asks one by one, one that asks in batches, and one on a stream;
    /// each has had an answer when this returns. `pause` leaves the processor to others.
    pub async fn start(server: &Server, request: &pb::AuthorizeRequest, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for way in [Way::OneByOne, Way::InBatches, Way::OnAStream] {
            let mut asker = Asker::connect(server, way, request.clone()).await;
            let mut said = BTreeMap::new();
            asker.ask(&mut said).await;
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    asker.ask(&mut said).await;
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                said
            }));
        }
        Self { stop, tasks }
    }

    /// Ends the clients. Gives everything that was answered, with how often; fails when a single
    /// call failed.
    pub async fn finish(self) -> BTreeMap<Said, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for task in self.tasks {
            for (said, count) in task.await.expect("no call fails") {
                *all.entry(said).or_default() += count;
            }
        }
        all
    }
}

enum Way {
    OneByOne,
    InBatches,
    OnAStream,
}

enum Asker {
    OneByOne(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    InBatches(AuthorizationServiceClient<Channel>, pb::AuthorizeRequest),
    OnAStream {
        items: tokio::sync::mpsc::Sender<pb::StreamAuthorizeRequest>,
        answers: tonic::Streaming<pb::StreamAuthorizeResponse>,
        next: u64,
        request: pb::AuthorizeRequest,
    },
}

impl Asker {
    async fn connect(server: &Server, way: Way, request: pb::AuthorizeRequest) -> Self {
        let mut client = server.authorization().await;
        match way {
            Way::OneByOne => Self::OneByOne(client, request),
            Way::InBatches => Self::InBatches(client, request),
            Way::OnAStream => {
                let (items, sent) = tokio::sync::mpsc::channel(1);
                let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
                let answers = client.stream_authorize(sent).await.unwrap().into_inner();
                Self::OnAStream {
                    items,
                    answers,
                    next: 0,
                    request,
                }
            }
        }
    }

    async fn ask(&mut self, said: &mut BTreeMap<Said, u64>) {
        let mut note = |response: pb::AuthorizeResponse| {
            *said.entry(response.into()).or_default() += 1;
        };
        match self {
            Self::OneByOne(client, request) => {
                note(
                    client
                        .authorize(request.clone())
                        .await
                        .unwrap()
                        .into_inner(),
                );
            }
            Self::InBatches(client, request) => {
                let requests = vec![request.clone(); 3];
                let batch = pb::BatchAuthorizeRequest { requests };
                let answered = client.batch_authorize(batch).await.unwrap().into_inner();
                assert_eq!(answered.results.len(), 3);
                for result in answered.results {
                    match result.result {
                        Some(pb::batch_authorize_result::Result::Response(response)) => {
                            assert_eq!(response.revision, answered.revision);
                            note(response);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            Self::OnAStream {
                items,
                answers,
                next,
                request,
            } => {
                *next += 1;
                let item = pb::StreamAuthorizeRequest {
                    correlation_id: *next,
                    request: Some(request.clone()),
                };
                items.send(item).await.unwrap();
                let answer = answers
                    .message()
                    .await
                    .unwrap()
                    .expect("the stream goes on");
                assert_eq!(answer.correlation_id, *next);
                match answer.result {
                    Some(pb::stream_authorize_response::Result::Response(response)) => {
                        note(response)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
