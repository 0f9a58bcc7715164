//! Changing keys and faulty key servers, while clients keep calling.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cedar_pdp::api::grpc::pb;
use serde_json::json;

use super::server::{KeyServer, ResponseMode};
use super::setup::{
    TokenOptions, TokenService, claims, es256, is_allowed, now, reason, request, with,
};
use crate::support::signer::{Signer, jwks};
use crate::support::{BackgroundCalls, eventually, replace};

const FRESH: &str = "max-age=3600";

/// Starts a key server with these keys, and a service that uses it.
async fn start_service(signers: &[&Signer], more: &str) -> (KeyServer, TokenService) {
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    let server = KeyServer::start(ResponseMode::Serve(jwks(signers), FRESH), &ca_file).await;
    let service = start_with_server(&server, &ca_file, more);
    (server, service.with_directory(dir))
}

/// Starts a service that has fetched one key set, and whose next fetch is due and never ends.
async fn start_with_hanging_fetches(key_wait: &str) -> (KeyServer, TokenService) {
    let key = es256("k");
    let more =
        format!("refetch_interval = \"1s\"\nfetch_timeout = \"60s\"\nkey_wait = \"{key_wait}\"");
    let (server, service) = start_service(&[&key], &more).await;
    let token = key.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    server.set(ResponseMode::Slow(
        Duration::from_secs(3_600),
        String::new(),
    ));
    (server, service)
}

/// Starts a service whose issuer has its keys from `server`, which `ca_file` verifies.
fn start_with_server(server: &KeyServer, ca_file: &Path, more: &str) -> TokenService {
    let issuer = format!(
        "keys_url = \"{}\"\nca_file = \"{}\"\n{more}",
        server.url(),
        ca_file.display()
    );
    let options = TokenOptions {
        issuer: &issuer,
        ..TokenOptions::default()
    };
    TokenService::start_with(&[], &options)
}

/// Starts clients that use the current token, each on its own connection.
async fn load(service: &TokenService, token: Arc<std::sync::Mutex<String>>) -> BackgroundCalls {
    let mut load = BackgroundCalls::new();
    for _ in 0..4 {
        let (client, token) = (service.client().await, Arc::clone(&token));
        load = load.with(move || {
            let (mut client, token) = (client.clone(), token.lock().unwrap().clone());
            async move {
                let allowed = is_allowed(&mut client, request(&token, "read")).await;
                assert!(allowed.expect("no call fails"));
            }
        });
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_under_load_and_no_call_fails() {
    let mut signers: Vec<Signer> = vec![es256("0")];
    let (server, service) = start_service(
        &[&signers[0]],
        "refetch_interval = \"1s\"\nkey_wait = \"20s\"",
    )
    .await;
    let first = signers[0].token(&claims());
    assert!(service.is_allowed(&first, "read").await.unwrap());
    let token = Arc::new(std::sync::Mutex::new(first));
    let load = load(&service, Arc::clone(&token)).await;
    for round in 1..4 {
        // Longer than the interval, so that the first token of a new key causes a fetch.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        signers.push(es256(&round.to_string()));
        let present: Vec<&Signer> = signers.iter().rev().take(2).collect();
        server.set(ResponseMode::Serve(jwks(&present), FRESH));
        *token.lock().unwrap() = signers[round].token(&claims());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    load.finish().await;
    // Tokens of a removed key are rejected, however valid they were.
    assert_eq!(
        service.rejection_reason(&signers[0].token(&claims())).await,
        "TOKEN_KEY_UNKNOWN"
    );
    assert!(
        server.request_count() <= 6,
        "fetched {} times",
        server.request_count()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_key_rejects_cached_tokens() {
    let (old, new) = (es256("old"), es256("new"));
    let (server, service) = start_service(&[&old, &new], "refetch_interval = \"1s\"").await;
    let token = old.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    server.set(ResponseMode::Serve(jwks(&[&new]), FRESH));
    // An unknown key causes a fetch.
    let (service, token) = (&service, &token);
    let unlisted = es256("stranger").token(&claims());
    let unlisted = &unlisted;
    eventually("the old key is removed", async || {
        let _ = service.is_allowed(unlisted, "read").await;
        service.is_allowed(token, "read").await.is_err()
    })
    .await;
    assert_eq!(service.rejection_reason(token).await, "TOKEN_KEY_UNKNOWN");
    assert!(
        service
            .is_allowed(&new.token(&claims()), "read")
            .await
            .unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn key_set_is_refreshed_before_expiry() {
    let (old, new) = (es256("old"), es256("new"));
    let (server, service) =
        start_service(&[&old], "refresh_min = \"1s\"\nrefresh_max = \"1s\"").await;
    let token = old.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    // The set is refreshed although no request needs the new key.
    server.set(ResponseMode::Serve(jwks(&[&new]), FRESH));
    let (service, token) = (&service, &token);
    eventually("the old key is removed", async || {
        service.is_allowed(token, "read").await.is_err()
    })
    .await;
    assert!(server.request_count() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_cause_few_fetches() {
    // Many tokens with unknown keys cause one fetch per interval.
    let key = es256("k");
    let (server, service) = start_service(&[&key], "refetch_interval = \"1h\"").await;
    assert!(
        service
            .is_allowed(&key.token(&claims()), "read")
            .await
            .unwrap()
    );
    assert_eq!(server.request_count(), 1);
    let mut client = service.client().await;
    for n in 0..200 {
        let token = es256(&format!("unknown-{n}")).token(&claims());
        let rejected = is_allowed(&mut client, request(&token, "read"))
            .await
            .unwrap_err();
        assert_eq!(reason(&rejected), "TOKEN_KEY_UNKNOWN");
    }
    assert_eq!(server.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_never_wait_for_fetches() {
    let (key, new) = (es256("k"), es256("new"));
    let more = "refetch_interval = \"1s\"\nfetch_timeout = \"20s\"\nkey_wait = \"5s\"";
    let (server, service) = start_service(&[&key], more).await;
    let token = key.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let slow = Duration::from_secs(3);
    server.set(ResponseMode::Slow(slow, jwks(&[&key, &new])));
    let mut client = service.client().await;
    let waiting = tokio::spawn(async move {
        let started = Instant::now();
        let allowed = is_allowed(&mut client, request(&new.token(&claims()), "read")).await;
        (allowed, started.elapsed())
    });
    eventually("the set is fetched", async || server.request_count() >= 2).await;
    // During the fetch, requests with known keys do not wait.
    let mut count = 0;
    while !waiting.is_finished() {
        let started = Instant::now();
        assert!(service.is_allowed(&token, "read").await.unwrap());
        assert!(started.elapsed() < slow / 2, "it waited for the fetch");
        count += 1;
    }
    assert!(count > 10);
    // The request with the new key succeeds.
    let (allowed, took) = waiting.await.unwrap();
    assert!(allowed.unwrap());
    assert!(took >= slow / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_for_unknown_key_is_bounded() {
    let (_server, service) = start_with_hanging_fetches("500ms").await;
    let unknown = es256("unknown").token(&claims());
    let started = Instant::now();
    // A set was loaded and the last finished fetch succeeded, but the current one may still bring
    // the key.
    assert_eq!(service.rejection_reason(&unknown).await, "KEYS_UNAVAILABLE");
    assert!(started.elapsed() < Duration::from_secs(20));
    // The call's own deadline comes first.
    let mut client = service.client().await;
    let mut request = tonic::Request::new(request(&unknown, "read"));
    request.set_timeout(Duration::from_millis(50));
    let rejected = client.authorize(request).await.unwrap_err();
    assert!(
        matches!(
            rejected.code(),
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
        ),
        "{rejected:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_responses_keep_the_last_key_set() {
    let (key, new) = (es256("k"), es256("new"));
    let more = "refresh_min = \"1s\"\nrefresh_max = \"1s\"\nrefetch_interval = \"1s\"\nfetch_timeout = \"1s\"";
    let (server, service) = start_service(&[&key], more).await;
    let token = key.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    let token = Arc::new(std::sync::Mutex::new(token));
    let load = load(&service, token).await;
    let faults = [
        ResponseMode::Serve("not JSON at all".to_owned(), FRESH),
        ResponseMode::Serve("<html><body>Please log in</body></html>".to_owned(), FRESH),
        ResponseMode::Serve("{}".to_owned(), FRESH),
        ResponseMode::Serve(String::new(), FRESH),
        ResponseMode::Fail(500, "{\"keys\": []}"),
        ResponseMode::Fail(404, "gone"),
        ResponseMode::Redirect,
        ResponseMode::Trickle,
        ResponseMode::Cut,
    ];
    for fault in faults {
        let before = server.request_count();
        let logged = service.server.log().matches("cannot fetch").count();
        server.set(fault.clone());
        let new = new.token(&claims());
        let (service, new, server) = (&service, &new, &server);
        eventually(&format!("{fault:?} is fetched and logged"), async || {
            // An unknown key causes a fetch before the pause after a failure ends.
            let _ = service.is_allowed(new, "read").await;
            server.request_count() > before
                && service.server.log().matches("cannot fetch").count() > logged
        })
        .await;
        assert_eq!(
            service.rejection_reason(new).await,
            "KEYS_UNAVAILABLE",
            "{fault:?}"
        );
    }
    server.set(ResponseMode::Serve(jwks(&[&key, &new]), FRESH));
    let new = new.token(&claims());
    let (service_ref, new) = (&service, &new);
    eventually("the server works again", async || {
        service_ref.is_allowed(new, "read").await.is_ok()
    })
    .await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_key_set_is_cut_off() {
    // The last valid set stays in force.
    let key = es256("k");
    // The size ends the fetch: its time limit is longer than the test's.
    let more = "refresh_min = \"1s\"\nrefresh_max = \"1s\"\nfetch_timeout = \"1m\"";
    let (server, service) = start_service(&[&key], more).await;
    let token = key.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    let before = service.server.resident_kib();
    server.set(ResponseMode::Endless);
    let (service, token) = (&service, &token);
    eventually("the set is given up", async || {
        // Checked all the while: an unbounded response would fill the memory.
        let grown = service.server.resident_kib().saturating_sub(before);
        assert!(grown < 32 << 10, "{grown} KiB for one set");
        assert!(service.is_allowed(token, "read").await.unwrap());
        let logged = service.server.log();
        logged.contains("the response is larger than 1048576 bytes")
    })
    .await;
    assert!(service.is_allowed(token, "read").await.unwrap());
    server.set(ResponseMode::Serve(jwks(&[&es256("new")]), FRESH));
    eventually("the next set is fetched", async || {
        service.is_allowed(token, "read").await.is_err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_key_set_withdraws_all_keys() {
    let key = es256("k");
    let encryption_only = {
        let mut jwk = key.jwk();
        jwk["use"] = json!("enc");
        json!({"keys": [jwk]}).to_string()
    };
    for none in [r#"{"keys": []}"#.to_owned(), encryption_only] {
        let (server, service) =
            start_service(&[&key], "refresh_min = \"1s\"\nrefresh_max = \"1s\"").await;
        let token = key.token(&claims());
        assert!(service.is_allowed(&token, "read").await.unwrap());
        server.set(ResponseMode::Serve(none, FRESH));
        let (service, token) = (&service, &token);
        eventually("the keys are removed", async || {
            service.is_allowed(token, "read").await.is_err()
        })
        .await;
        assert_eq!(service.rejection_reason(token).await, "TOKEN_KEY_UNKNOWN");
        server.set(ResponseMode::Serve(jwks(&[&key]), FRESH));
        eventually("the key is back", async || {
            service.is_allowed(token, "read").await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_waits_once_for_all_keys() {
    let key_wait = Duration::from_secs(4);
    let (_server, service) = start_with_hanging_fetches("4s").await;
    let unknown = |n: usize| es256(&format!("unknown-{n}")).token(&claims());
    let requests: Vec<_> = (0..6).map(|n| request(&unknown(n), "read")).collect();
    let waits = u32::try_from(requests.len()).unwrap();
    let started = Instant::now();
    let batch = pb::BatchAuthorizeRequest { requests };
    let mut client = service.client().await;
    let results = client
        .batch_authorize(batch)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert!(started.elapsed() < (waits - 1) * key_wait);
    for result in results {
        let Some(pb::batch_authorize_result::Result::Error(error)) = result.result else {
            panic!("{result:?}")
        };
        assert_eq!(error.code, i32::from(tonic::Code::Unauthenticated));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_rejects_calls_waiting_for_keys() {
    let (server, service) = start_with_hanging_fetches("30s").await;
    let mut client = service.client().await;
    let unknown = es256("unknown").token(&claims());
    let waiting =
        tokio::spawn(async move { is_allowed(&mut client, request(&unknown, "read")).await });
    eventually("the set is fetched", async || server.request_count() >= 2).await;
    service.server.signal("TERM");
    let rejected = waiting.await.unwrap().unwrap_err();
    assert_eq!(rejected.code(), tonic::Code::Unavailable, "{rejected:?}");
    assert!(rejected.message().contains("shutting down"), "{rejected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_server_outage_keeps_known_keys() {
    let (key, new) = (es256("k"), es256("new"));
    let more = "refresh_min = \"1s\"\nrefresh_max = \"1s\"\nrefetch_interval = \"1s\"";
    let (server, service) = start_service(&[&key], more).await;
    let token = key.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    let stopped = server.stop().await;
    service.server.wait_for_log("cannot fetch");
    assert!(service.is_allowed(&token, "read").await.unwrap());
    assert_eq!(
        service.rejection_reason(&new.token(&claims())).await,
        "KEYS_UNAVAILABLE"
    );
    let _server = stopped
        .start(ResponseMode::Serve(jwks(&[&new]), FRESH))
        .await;
    let new = new.token(&claims());
    let (service, new) = (&service, &new);
    eventually("the server is found again", async || {
        service.is_allowed(new, "read").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_starts_without_its_key_server() {
    // The service serves requests without tokens.
    let key = es256("k");
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    let server = KeyServer::start(ResponseMode::Cut, &ca_file).await;
    let service = start_with_server(
        &server,
        &ca_file,
        "refetch_interval = \"1s\"\nkey_wait = \"100ms\"",
    );
    let token = key.token(&claims());
    assert_eq!(service.rejection_reason(&token).await, "KEYS_UNAVAILABLE");
    let named = crate::support::request("User::\"stored\"", "Action::\"paint\"", "Doc::\"1\"");
    assert!(
        is_allowed(&mut service.client().await, named)
            .await
            .unwrap()
    );
    server.set(ResponseMode::Serve(jwks(&[&key]), FRESH));
    let (service, token) = (&service, &token);
    eventually("the keys are there", async || {
        service.is_allowed(token, "read").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_key_server_is_rejected() {
    let key = es256("k");
    let dir = tempfile::tempdir().unwrap();
    let server = KeyServer::start(
        ResponseMode::Serve(jwks(&[&key]), FRESH),
        &dir.path().join("its.pem"),
    )
    .await;
    // Another authority, which has not signed the server's certificate.
    let ca_file = dir.path().join("other.pem");
    let _other = KeyServer::start(ResponseMode::Cut, &ca_file).await;
    let service = start_with_server(&server, &ca_file, "key_wait = \"100ms\"");
    service.server.wait_for_log("cannot fetch");
    assert_eq!(
        service.rejection_reason(&key.token(&claims())).await,
        "KEYS_UNAVAILABLE"
    );
    assert_eq!(server.request_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_file_is_reloaded_if_valid() {
    let (old, new) = (es256("old"), es256("new"));
    let service = TokenService::start(&[&old]);
    let token = old.token(&claims());
    assert!(service.is_allowed(&token, "read").await.unwrap());
    let file = service.path("jwks.json");
    for bad in ["", "{", "{}", "<html>"] {
        let logged = service
            .server
            .log()
            .matches("changed file rejected")
            .count();
        replace(&file, bad);
        let (service, token) = (&service, &token);
        eventually("the invalid file is logged", async || {
            assert!(service.is_allowed(token, "read").await.unwrap());
            service
                .server
                .log()
                .matches("changed file rejected")
                .count()
                > logged
        })
        .await;
    }
    std::fs::remove_file(&file).unwrap();
    assert!(service.is_allowed(&token, "read").await.unwrap());
    replace(&file, &jwks(&[&new]));
    let new = new.token(&claims());
    let (service, new) = (&service, &new);
    eventually("the new key is there", async || {
        service.is_allowed(new, "read").await.is_ok()
    })
    .await;
    assert_eq!(service.rejection_reason(&token).await, "TOKEN_KEY_UNKNOWN");
    replace(&file, "{\"keys\": []}");
    eventually("all keys are removed", async || {
        service.is_allowed(new, "read").await.is_err()
    })
    .await;
    assert_eq!(service.rejection_reason(new).await, "TOKEN_KEY_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_skew_is_limited_to_the_leeway() {
    let key = es256("k");
    let options = TokenOptions {
        issuer: "keys_file = \"jwks.json\"\nleeway = \"2m\"",
        ..TokenOptions::default()
    };
    let service = TokenService::start_with(&[&key], &options);
    let token = |changes| key.token(&with(changes));
    // One issuer's clock is ahead, another's is behind.
    for skewed in [
        json!({"iat": now() + 90, "nbf": now() + 90}),
        json!({"iat": now() - 700, "nbf": now() - 700, "exp": now() - 90}),
    ] {
        assert!(service.is_allowed(&token(skewed), "read").await.unwrap());
    }
    let ahead = token(json!({"iat": now() + 180, "nbf": now() + 180}));
    assert_eq!(
        service.rejection_reason(&ahead).await,
        "TOKEN_NOT_YET_VALID"
    );
    let behind = token(json!({"exp": now() - 150}));
    assert_eq!(service.rejection_reason(&behind).await, "TOKEN_EXPIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_tokens_and_answers_expire_together() {
    // Cached answers are not used after the token's expiry.
    let key = es256("k");
    let options = TokenOptions {
        issuer: "keys_file = \"jwks.json\"\nleeway = \"0s\"",
        ..TokenOptions::default()
    };
    let service = TokenService::start_with(&[&key], &options);
    let token = key.token(&with(json!({"exp": now() + 3})));
    assert!(service.is_allowed(&token, "read").await.unwrap());
    let (service, token) = (&service, &token);
    eventually("the token has expired", async || {
        service.is_allowed(token, "read").await.is_err()
    })
    .await;
    assert_eq!(service.rejection_reason(token).await, "TOKEN_EXPIRED");
}
