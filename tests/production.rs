//! Half of the service's capacity with every feature on, while all watched files change: no call
//! fails, and memory stays constant.
//!
//! Long run: `CEDAR_PDP_SOAK_MINUTES=30 cargo test --test production -- --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where; a soak prints its figures"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cedar_pdp::api::grpc::pb;
use cedar_pdp_test_support::pki::{self, Authority, Pair, path_string};
use cedar_pdp_test_support::signer::{Signer, jwks};
use cedar_pdp_test_support::{self as support, Server, request};
use jsonwebtoken::Algorithm;
use pb::authorization_service_client::AuthorizationServiceClient;
use pb::authorize_request::Identity;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig};

/// The default duration.
const DEFAULT_DURATION: Duration = Duration::from_secs(20);

/// Connections of the load, and concurrent calls that measure the capacity.
const CONNECTIONS: usize = 4;
const CALLS_AT_ONCE: usize = 16;

type Client = AuthorizationServiceClient<Channel>;

/// All files that the service watches, and the code that changes them.
struct Fixture {
    root: TempDir,
    authority: Authority,
    client: Pair,
    keys: Vec<Signer>,
    turn: u64,
    /// The changes and their times, to explain a failed call.
    changes: Mutex<Vec<(SystemTime, String)>>,
}

impl Fixture {
    fn new() -> Self {
        let authority = Authority::generate();
        let client = authority.client(Vec::new(), &[(rcgen::DnType::CommonName, "soak")]);
        let mut fixture = Self {
            root: tempfile::tempdir().unwrap(),
            authority,
            client,
            keys: vec![Signer::new("key-0", Algorithm::ES256)],
            turn: 0,
            changes: Mutex::default(),
        };
        fs::create_dir(fixture.path("policies")).unwrap();
        fs::create_dir(fixture.path("log")).unwrap();
        fixture.put(
            "issuers.toml",
            r#"
            [[issuer]]
            issuer = "https://login.test"
            audiences = ["soak"]
            algorithms = ["ES256"]
            keys_file = "jwks.json"
            [issuer.principal]
            type = "User"
            [[issuer.principal.parents]]
            claim = "groups"
            type = "Group"
            "#,
        );
        fixture.put(
            "policies/soak.cedarschema",
            "entity Group; entity Document; entity User in [Group] { turn?: Long };\n\
             action read appliesTo { principal: User, resource: Document, context: { n?: Long } };\n",
        );
        fixture.write_keys();
        fixture.write_policies();
        fixture.revoke(0);
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        support::replace(&self.path(name), text);
        self.record_change(name);
    }

    fn record_change(&self, what: &str) {
        let mut changes = self.changes.lock().unwrap();
        changes.push((SystemTime::now(), what.to_owned()));
    }

    /// Returns the latest change.
    fn latest(&self) -> String {
        let changes = self.changes.lock().unwrap();
        let latest = &changes[changes.len().saturating_sub(40)..];
        latest
            .iter()
            .map(|(at, what)| format!("{} {what}\n", humantime::format_rfc3339_millis(*at)))
            .collect()
    }

    fn write_policies(&mut self) {
        self.turn += 1;
        let mut text = format!(
            "@id(\"turn-{}\")\npermit (principal in Group::\"staff\", action == Action::\"read\", resource);\n",
            self.turn
        );
        for number in 0..50 {
            text.push_str(&format!(
                "@id(\"stays-{number}\")\nforbid (principal == User::\"{number}\", action, resource) when {{ context has n && context.n == {number} }};\n"
            ));
        }
        self.put("policies/turns.cedar", &text);
        let members: Vec<_> = (0..100)
            .map(|n| {
                json!({
                    "uid": {"type": "User", "id": format!("member-{n}")},
                    "attrs": {"turn": self.turn},
                    "parents": [{"type": "Group", "id": "staff"}],
                })
            })
            .collect();
        self.put("policies/users.entities.json", &json!(members).to_string());
    }

    /// Publishes the newest key, which signs nothing yet, and the keys of tokens in use.
    fn write_keys(&self) {
        let newest = &self.keys[self.keys.len().saturating_sub(4)..];
        self.put("jwks.json", &jwks(&newest.iter().collect::<Vec<_>>()));
    }

    fn rotate_key(&mut self) {
        let kid = format!("key-{}", self.turn);
        self.keys.push(Signer::new(&kid, Algorithm::ES256));
        self.write_keys();
        self.record_change(&kid);
    }

    /// Revokes tokens that no client uses.
    fn revoke(&self, turn: u64) {
        let revoked =
            format!("[[revoked]]\nissuer = \"https://login.test\"\nsub = \"gone-{turn}\"\n");
        self.put("revoked.toml", &revoked);
    }

    /// Returns a key that was published some time ago.
    fn signer(&self) -> &Signer {
        &self.keys[self.keys.len().saturating_sub(2)]
    }

    /// Signs a token with it.
    fn token(&self, number: usize) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        self.signer().token(&json!({
            "iss": "https://login.test",
            "aud": "soak",
            "sub": format!("bearer-{number}"),
            "groups": ["staff"],
            "iat": now,
            "exp": now + 24 * 3600,
        }))
    }

    fn rotate_certificate(&self) {
        // Mounted files are swapped together; here one follows the other, as with `certbot`.
        self.authority.tls_options(&self.authority.server());
    }

    /// Rotates the log as logrotate does.
    fn rotate_log(&self, turn: u64) {
        let log = self.path("log/decisions.jsonl");
        if log.exists() {
            fs::rename(
                &log,
                self.path(&format!("log/decisions.jsonl.moved-{}", turn % 3)),
            )
            .unwrap();
        }
    }

    fn client_tls(&self) -> ClientTlsConfig {
        self.authority.client_tls(Some(&self.client))
    }
}

/// The requests, which change during the test.
#[derive(Default)]
struct Requests(RwLock<Vec<pb::AuthorizeRequest>>);

impl Requests {
    /// Writes a mixture of requests: principals by name and by token, some of them new.
    fn write(&self, fixture: &Fixture, turn: u64) {
        let mut all = Vec::new();
        for number in 0..100 {
            let mut named = request(
                &format!(r#"User::"member-{number}""#),
                r#"Action::"read""#,
                &format!(r#"Document::"{number}-{}""#, turn % 7),
            );
            all.push(named.clone());
            named.identity = Some(Identity::PrincipalToken(fixture.token(number)));
            all.push(named);
        }
        *self.0.write().unwrap() = all;
        fixture.record_change(&format!("tokens by {}", fixture.signer().kid));
    }

    fn nth(&self, n: u64) -> pb::AuthorizeRequest {
        let all = self.0.read().unwrap();
        all[usize::try_from(n).unwrap() % all.len()].clone()
    }
}

/// The counted outcomes of the calls.
#[derive(Default)]
struct CallCounts {
    answered: AtomicU64,
    /// Calls rejected with a retry hint, which a busy machine may cause.
    shed: AtomicU64,
    /// Calls not sent, because too many were in flight.
    held_back: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
    slowest: Mutex<Duration>,
}

impl CallCounts {
    async fn call(&self, mut client: Client, request: pb::AuthorizeRequest) {
        let started = Instant::now();
        let failure = match client.authorize(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let allowed = answer.decision() == pb::Decision::Allow;
                let by_one = answer.determining_policies.len() == 1;
                let is_right = allowed && by_one && answer.errors.is_empty();
                (!is_right).then(|| format!("{answer:?}"))
            }
            Err(status) if status.code() == Code::ResourceExhausted => {
                self.shed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(status) => Some(format!("{:?}: {}", status.code(), status.message())),
        };
        let took = started.elapsed();
        let failure = failure.map(|failure| format!("{failure}, after {} s", took.as_secs()));
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = (*slowest).max(took);
        drop(slowest);
        match failure {
            None => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Some(failure) => *self.failed.lock().unwrap().entry(failure).or_default() += 1,
        }
    }

    fn expect_no_failure(&self, server: &Server, fixture: &Fixture) {
        let failed = self.failed.lock().unwrap();
        assert!(
            failed.is_empty(),
            "{failed:#?}\n{}\n{}",
            fixture.latest(),
            server.log()
        );
    }
}

/// Measures calls per second with calls always waiting.
async fn capacity(clients: &[Client], requests: &Arc<Requests>, counts: &Arc<CallCounts>) -> u64 {
    let started = Instant::now();
    let span = Duration::from_secs(3);
    let before = counts.answered.load(Ordering::Relaxed);
    let mut calls = tokio::task::JoinSet::new();
    for (n, client) in clients
        .iter()
        .cycle()
        .take(CONNECTIONS * CALLS_AT_ONCE)
        .enumerate()
    {
        let (client, requests, counts) = (client.clone(), Arc::clone(requests), Arc::clone(counts));
        calls.spawn(async move {
            let mut next = n as u64;
            while started.elapsed() < span {
                counts.call(client.clone(), requests.nth(next)).await;
                next += 17;
            }
        });
    }
    calls.join_all().await;
    let answered = counts.answered.load(Ordering::Relaxed) - before;
    answered / span.as_secs()
}

/// The maximum of calls in flight. If this process itself is delayed, waiting calls become old,
/// which says nothing about the service.
const MOST_IN_FLIGHT: usize = 2_000;

/// Starts `rate` calls per second, independent of answers, until told to stop.
async fn load(
    rate: u64,
    clients: Vec<Client>,
    requests: Arc<Requests>,
    counts: Arc<CallCounts>,
    until: Instant,
) {
    const TICK: Duration = Duration::from_millis(5);
    let started = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut calls = tokio::task::JoinSet::new();
    let mut sent: u64 = 0;
    while Instant::now() < until {
        ticks.tick().await;
        let due = u64::try_from(started.elapsed().as_millis()).unwrap() * rate / 1000;
        for n in sent..due {
            if calls.len() >= MOST_IN_FLIGHT {
                counts.held_back.fetch_add(due - n, Ordering::Relaxed);
                break;
            }
            let client = clients[usize::try_from(n).unwrap() % clients.len()].clone();
            let (request, counts) = (requests.nth(n), Arc::clone(&counts));
            calls.spawn(async move { counts.call(client, request).await });
        }
        sent = due;
        while calls.try_join_next().is_some() {}
    }
    calls.join_all().await;
}

async fn connect(address: &str, tls: ClientTlsConfig) -> Client {
    let channel = pki::connect(address, tls)
        .await
        .expect("a valid pair is in force");
    Client::new(channel)
}

fn size_of_directory(directory: &Path) -> u64 {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().map_or(0, |found| found.len()))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn half_load_fails_no_call_and_keeps_memory() {
    let (span, is_quiet) = match std::env::var("CEDAR_PDP_SOAK_MINUTES") {
        Ok(text) => (
            Duration::from_secs(60 * text.parse::<u64>().expect("a number of minutes")),
            true,
        ),
        // Other tests and programs share the machine.
        Err(_) => (DEFAULT_DURATION, false),
    };
    let mut fixture = Fixture::new();
    let tls = fixture.authority.tls_options(&fixture.authority.server());
    let authorities = path_string(&fixture.authority.file());
    let issuers = path_string(&fixture.path("issuers.toml"));
    let revoked = path_string(&fixture.path("revoked.toml"));
    let log = format!("file:{}", path_string(&fixture.path("log/decisions.jsonl")));
    let mut arguments: Vec<&str> = tls.iter().map(String::as_str).collect();
    arguments.extend([
        "--tls-client-auth",
        "required",
        "--tls-client-ca",
        &authorities,
        "--tokens",
        &issuers,
        "--revocations",
        &revoked,
        "--decision-log",
        &log,
        "--decision-log-max-file-bytes",
        "4194304",
        "--decision-log-max-files",
        "3",
        "--admin-listen",
        "127.0.0.1:0",
        // Fills the caches before the first tenth ends: tokens are renewed all the time.
        "--token-cache-bytes",
        "2097152",
        "--log",
        "warn,cedar_pdp::pip=info",
    ]);
    let server = Server::start(&fixture.path("policies"), &arguments);
    let address = server.address().to_owned();
    let admin = server.admin();
    let requests = Arc::new(Requests::default());
    requests.write(&fixture, 0);
    let counts = Arc::new(CallCounts::default());
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(&address, fixture.client_tls()).await);
    }
    let capacity = capacity(&clients, &requests, &counts).await;
    counts.expect_no_failure(&server, &fixture);

    let started = Instant::now();
    // Calls shed while the capacity was measured do not count as failures.
    counts.shed.store(0, Ordering::Relaxed);
    let loading = tokio::spawn(load(
        capacity / 2,
        clients,
        Arc::clone(&requests),
        Arc::clone(&counts),
        started + span,
    ));
    let tenth = span / 10;
    let mut resident = Vec::new();
    let mut changes: BTreeMap<&str, u64> = BTreeMap::new();
    for turn in 1.. {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if started.elapsed() >= span {
            break;
        }
        let mut every = |turns: u64, what: &'static str| {
            let is_due = turn % turns == 0;
            *changes.entry(what).or_default() += u64::from(is_due);
            is_due
        };
        if every(2, "reloads") {
            fixture.write_policies();
        }
        if every(5, "keys rotated") {
            fixture.rotate_key();
        }
        if every(6, "questions and tokens renewed") {
            requests.write(&fixture, turn);
        }
        if every(7, "certificates replaced") {
            fixture.rotate_certificate();
        }
        if every(9, "revocations edited") {
            fixture.revoke(turn);
        }
        if every(11, "logs moved away") {
            fixture.rotate_log(turn);
        }
        if every(1, "new connections") {
            let client = connect(&address, fixture.client_tls()).await;
            counts.call(client, requests.nth(turn)).await;
        }
        if every(3, "scrapes") {
            let admin = admin.clone();
            let page = tokio::task::spawn_blocking(move || support::get(&admin, "/metrics"))
                .await
                .unwrap();
            assert!(page.contains("cedar_pdp_"), "{page}");
        }
        counts.expect_no_failure(&server, &fixture);
        if started.elapsed() >= tenth * (u32::try_from(resident.len()).unwrap() + 1) {
            resident.push(server.resident_kib());
            println!(
                "{:?}: {} answers, {} KiB resident, slowest {:?}, {} bytes of decision log",
                started.elapsed(),
                counts.answered.load(Ordering::Relaxed),
                resident[resident.len() - 1],
                counts.slowest.lock().unwrap(),
                size_of_directory(&fixture.path("log")),
            );
        }
    }
    loading.await.unwrap();
    counts.expect_no_failure(&server, &fixture);
    resident.push(server.resident_kib());
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    println!(
        "{span:?} at {} calls a second (half of {capacity}): {} answered, {} shed, {} held back, none failed; {changes:?}; \
         resident {first} KiB after the first tenth, {last} KiB after the last",
        capacity / 2,
        counts.answered.load(Ordering::Relaxed),
        counts.shed.load(Ordering::Relaxed),
        counts.held_back.load(Ordering::Relaxed),
    );
    assert!(changes.values().all(|&count| count > 0), "{changes:?}");
    if is_quiet {
        let shed = counts.shed.load(Ordering::Relaxed);
        assert_eq!(shed, 0, "half of what it can take is no overload");
        let (answered, held_back) = (&counts.answered, &counts.held_back);
        let [answered, held_back] = [answered, held_back].map(|it| it.load(Ordering::Relaxed));
        assert!(held_back < answered / 50, "{held_back} of {answered}");
        // Memory does not become stable within a few seconds.
        let most = first + first / 10 + 8 * 1024;
        assert!(last <= most, "{last} KiB is more than {most} KiB");
    }
}
