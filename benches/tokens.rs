//! Cost of a token in process: cached, compared with verified anew.
//!
//! By kind of signature, in rounds that alternate both. Together with the cost of a cached call in
//! `calls`, this is the price of sending a token instead of a principal.
//!
//! `cargo bench --bench tokens [-- --quick]`

mod support;

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use cedar_pdp::pip::{self, KeyMiss, NumericDate, TokenSettings, Tokens};
use cedar_pdp::watch::{Mode, WatchSettings};
use cedar_pdp_test_support::signer::{Signer, jwks};
use jsonwebtoken::Algorithm;
use serde_json::json;

use support::Sizes;
use support::statistics::{Spread, print_table};

const ROUNDS: usize = 31;
/// The number of lookups of a token in one round: cached, and verified.
const CACHED_LOOKUPS: u32 = 20_000;
const VERIFIED_LOOKUPS: u32 = 500;

const ISSUERS: &str = r#"
[[issuer]]
issuer = "https://id.example"
audiences = ["pdp"]
algorithms = ["ES256", "RS256", "EdDSA"]
keys_file = "jwks.json"
[issuer.principal]
type = "User"
[issuer.principal.attributes]
department = "string"
[[issuer.principal.parents]]
claim = "realm_access.roles"
type = "Role"
"#;

fn main() -> anyhow::Result<()> {
    let (sizes, _) = support::arguments();
    let signers = [
        Signer::new("es", Algorithm::ES256),
        Signer::new("rs", Algorithm::RS256),
        Signer::new("ed", Algorithm::EdDSA),
    ];
    let files = tempfile::tempdir()?;
    let keys: Vec<&Signer> = signers.iter().collect();
    fs::write(files.path().join("jwks.json"), jwks(&keys))?;
    fs::write(files.path().join("issuers.toml"), ISSUERS)?;
    let cached_tokens = open(files.path(), NonZeroU64::new(1 << 20))?;
    let uncached_tokens = open(files.path(), None)?;
    let rows = signers.iter().map(|signer| {
        let token = token(signer)?;
        // Fills the cache.
        microseconds(&cached_tokens, &token, 1)?;
        let rounds = (0..sizes.of(ROUNDS, 3))
            .map(|_| {
                let cached = microseconds(&cached_tokens, &token, CACHED_LOOKUPS)?;
                Ok((
                    cached,
                    microseconds(&uncached_tokens, &token, VERIFIED_LOOKUPS)?,
                ))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let of = |each: fn(&(f64, f64)) -> f64| Spread::of(rounds.iter().map(each));
        Ok([
            format!("{:?}, {} bytes", signer.algorithm, token.len()),
            of(|round| round.0).show(2),
            of(|round| round.1).show(2),
            of(|round| round.0 / round.1).show(3),
        ])
    });
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    print_table(
        "a token, in process",
        ["token", "us cached", "us verified", "x verified"],
        rows,
    );
    if sizes == Sizes::Quick {
        println!("quick: to see that it works, not for figures");
    }
    Ok(())
}

fn open(files: &Path, cache_bytes: Option<NonZeroU64>) -> anyhow::Result<std::sync::Arc<Tokens>> {
    let (tokens, _refresh) = pip::open(&TokenSettings {
        issuers: files.join("issuers.toml"),
        revocations: None,
        cache_bytes,
        following: WatchSettings {
            mode: Mode::Poll,
            poll: Duration::from_secs(3_600),
        },
    })?;
    Ok(tokens)
}

fn token(signer: &Signer) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(signer.token(&json!({
        "iss": "https://id.example", "aud": "pdp", "sub": "alice", "jti": "1",
        "iat": now, "nbf": now, "exp": now + 24 * 3_600, "department": "finance",
        "realm_access": {"roles": ["approver"]},
    })))
}

fn microseconds(tokens: &Tokens, token: &str, looks: u32) -> anyhow::Result<f64> {
    let now = NumericDate::from(SystemTime::now());
    let started = Instant::now();
    for _ in 0..looks {
        let verdict = tokens.verify(token, now, KeyMiss::Fail);
        ensure!(verdict.is_ok(), "{verdict:?}");
    }
    let took = started.elapsed().checked_div(looks).context("no looks")?;
    Ok(took.as_secs_f64() * 1e6)
}
