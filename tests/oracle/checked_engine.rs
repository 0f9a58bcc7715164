//! The code under test: the loader, the snapshot and the engine, with and without the cache.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use cedar_pdp::decision_log::Origin;
use cedar_pdp::engine::Engine;
use cedar_pdp::engine::cache::CacheSettings;
use cedar_pdp::pdp::answer::{Answer, Decision};
use cedar_pdp::pdp::query::{
    Claimed, InvalidQuery, Problem, Query, Record, StoredPrincipal, Uid, Value,
};
use cedar_pdp::pdp::query_ref::QueryRef;
use cedar_pdp::pdp::{Compiled, NoAnswer, Settings, Snapshot, Workers, compile_from};
use cedar_pdp::policy_store::directory::{DirectoryScan, SourceLimits, scan};
use cedar_pdp::policy_store::{Publisher, snapshots};

use crate::plain::{Counts, Expected};
use crate::scenario::Files;

/// One policy directory with one engine, whose cache lasts over reloads.
pub(crate) struct EngineUnderTest {
    directory: tempfile::TempDir,
    settings: Settings,
    written: Files,
    reading: Option<DirectoryScan>,
    compiled: Option<Compiled>,
    publisher: Publisher,
    cached: Engine,
    uncached: Engine,
}

impl EngineUnderTest {
    pub(crate) fn new(settings: Settings, cache_bytes: u64) -> Self {
        let (publisher, reader) = snapshots();
        let engine = |capacity_bytes| Engine::new(reader.clone(), CacheSettings { capacity_bytes });
        Self {
            directory: tempfile::tempdir().unwrap(),
            settings,
            written: Files::new(),
            reading: None,
            compiled: None,
            cached: engine(NonZeroU64::new(cache_bytes)),
            uncached: engine(None),
            publisher,
        }
    }

    /// Loads `files`; returns the errors if they are invalid.
    pub(crate) fn load(&mut self, files: &Files) -> Result<Arc<Snapshot>, String> {
        self.write(files);
        let root = self.directory.path();
        let reading = scan(
            root,
            &SourceLimits::default(),
            self.reading.as_ref(),
            &Workers::default(),
        );
        // Reuses parts of the previous snapshot, as a reload does.
        let compiled = compile_from(
            self.compiled.as_ref(),
            &reading.sources,
            &self.settings,
            &Workers::default(),
        );
        self.reading = Some(reading);
        let compiled = compiled.map_err(|error| format!("{:#?}", error.errors))?;
        self.publisher.publish(Arc::clone(&compiled.snapshot));
        self.compiled = Some(compiled);
        Ok(self.cached.snapshot().unwrap())
    }

    fn write(&mut self, files: &Files) {
        let root = self.directory.path();
        for path in self
            .written
            .keys()
            .filter(|path| !files.contains_key(*path))
        {
            std::fs::remove_file(root.join(path)).unwrap();
        }
        for (path, text) in files {
            if self.written.get(path) != Some(text) {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).unwrap();
                std::fs::write(path, text).unwrap();
            }
        }
        self.written.clone_from(files);
    }

    pub(crate) fn clear_cache(&self) {
        self.cached.clear_cache();
    }

    /// Decides `query` by every way of the engine, and describes any answer other than `expected`.
    pub(crate) fn check(
        &self,
        snapshot: &Snapshot,
        query: &Query,
        expected: &Expected,
    ) -> Result<(), String> {
        for explain in [query.explain, !query.explain] {
            let query = Query {
                explain,
                ..query.clone()
            };
            for (mode, engine) in [
                ("a cold cache", &self.cached),
                ("a warm cache", &self.cached),
                ("no cache", &self.uncached),
            ] {
                let log_permit = engine.try_log_permit().unwrap();
                let got = engine.authorize(
                    snapshot,
                    &QueryRef::from(&query),
                    &Origin::default(),
                    &log_permit,
                );
                let got = got.map(|it| it.answer);
                compare(snapshot, &query, got.as_deref(), expected).map_err(|why| {
                    format!("with {mode}, explain {explain}: {why}\ngot {got:#?}")
                })?;
                // As an item of a batch, among nearly equal items.
                let other = Query {
                    explain: !query.explain,
                    ..query.clone()
                };
                let all = [&other, &query, &other, &query].map(QueryRef::from);
                let looked_up = engine.look_up(snapshot, all.into());
                for looked_up in looked_up.iter().skip(1).step_by(2) {
                    let answered =
                        engine.authorize_looked_up(looked_up, &Origin::default(), &log_permit);
                    let answered = answered.map(|it| it.answer);
                    if answered != got {
                        return Err(format!(
                            "with {mode}, looked up: {answered:#?}\ngot {got:#?}"
                        ));
                    }
                }
            }
        }
        // Context values that no policy reads may be any value of their kind. Rejected requests are
        // skipped, because such a value may be the reason.
        if let Expected::Rejected(_) = expected {
            return Ok(());
        }
        if let Some(with_claims) = with_token_claims(query) {
            for (mode, engine) in [("the cache", &self.cached), ("no cache", &self.uncached)] {
                let log_permit = engine.try_log_permit().unwrap();
                let got = engine.authorize(
                    snapshot,
                    &QueryRef::from(&with_claims),
                    &Origin::default(),
                    &log_permit,
                );
                let got = got.map(|it| it.answer);
                // Plain Cedar has no tokens. That a request entity may not redefine the principal's
                // ancestors is our rule, which unit tests cover.
                if let Err(NoAnswer::Invalid(InvalidQuery { problem, .. })) = &got
                    && matches!(problem, Problem::ClaimedEntity { .. })
                    && !with_claims.entities.is_empty()
                {
                    continue;
                }
                compare(snapshot, &with_claims, got.as_deref(), expected).map_err(|why| {
                    format!("with {mode}, with token claims: {why}\ngot {got:#?}")
                })?;
            }
        }
        let query = Query {
            context: change_unread_values(snapshot, query),
            explain: false,
            ..query.clone()
        };
        for (mode, engine) in [("the cache", &self.cached), ("no cache", &self.uncached)] {
            let log_permit = engine.try_log_permit().unwrap();
            let got = engine.authorize(
                snapshot,
                &QueryRef::from(&query),
                &Origin::default(),
                &log_permit,
            );
            let got = got.map(|it| it.answer);
            compare(snapshot, &query, got.as_deref(), expected).map_err(|why| {
                let context = &query.context;
                format!(
                    "with {mode}, with other unread values: {why}\ngot {got:#?}\nfor {context:#?}"
                )
            })?;
        }
        Ok(())
    }
}

/// Moves the principal's request entity into token claims. Returns `None` if there is no such
/// entity, or if claims cannot express it.
fn with_token_claims(query: &Query) -> Option<Query> {
    let mut with_claims = query.clone();
    let sent = |uid: &Uid| query.entities.iter().position(|entity| entity.uid == *uid);
    let principal = with_claims.entities.remove(sent(&query.principal)?);
    let is_expressible = principal.tags.is_empty()
        && principal
            .parents
            .iter()
            .all(|parent| sent(parent).is_none());
    with_claims.claimed = Some(Arc::new(Claimed {
        attributes: principal.attributes,
        parents: principal.parents,
        stored: StoredPrincipal::Replace,
    }));
    is_expressible.then_some(with_claims)
}

/// Changes the context values of `query` that no policy reads. Some stay as they are, because other
/// values might be invalid.
fn change_unread_values(snapshot: &Snapshot, query: &Query) -> Record {
    let Uid { type_name, id } = &query.action;
    let reads = snapshot.context_reads(type_name, id);
    let other = |value: &Value| match value {
        Value::Bool(value) => Value::Bool(!value),
        Value::Long(value) => Value::Long(value.wrapping_add(1)),
        Value::String(text) => Value::String(format!("{text}, or not")),
        Value::Entity(uid) if uid.type_name == "User" => {
            Value::Entity(Uid::new("User", format!("{}, or not", uid.id)))
        }
        Value::Set(members) => Value::Set(members.iter().skip(1).cloned().collect()),
        Value::Ip(text) if text == "10.0.0.1" => Value::Ip("::2".to_owned()),
        Value::Decimal(text) if text == "1.0" => Value::Decimal("2.5".to_owned()),
        Value::Entity(_)
        | Value::Record(_)
        | Value::Decimal(_)
        | Value::Ip(_)
        | Value::Datetime(_)
        | Value::Duration(_) => value.clone(),
    };
    let fields = query.context.iter().map(|(name, value)| {
        let value = match reads.reads(name) {
            true => value.clone(),
            false => other(value),
        };
        (name.to_owned(), value)
    });
    fields.collect::<BTreeMap<_, _>>().into()
}

pub(crate) fn counts(snapshot: &Snapshot) -> Counts {
    let counts = snapshot.counts();
    (
        counts.policies,
        counts.templates,
        counts.links,
        counts.entities,
    )
}

fn compare(
    snapshot: &Snapshot,
    query: &Query,
    got: Result<&Answer, &NoAnswer>,
    expected: &Expected,
) -> Result<(), String> {
    let (answer, (allow, determining, errors)) = match (got, expected) {
        (Err(_), Expected::Rejected(_)) => return Ok(()),
        (
            Ok(answer),
            Expected::Answered {
                allow,
                determining,
                errors,
            },
        ) => (answer, (allow, determining, errors)),
        (Ok(_), Expected::Rejected(_)) => return Err("Cedar rejects the request".to_owned()),
        (Err(_), Expected::Answered { .. }) => return Err("Cedar accepts the request".to_owned()),
    };
    if (answer.decision == Decision::Allow) != *allow {
        return Err("the decision differs".to_owned());
    }
    let ids: Vec<&str> = answer
        .diagnostics
        .determining
        .iter()
        .map(|id| id.as_str())
        .collect();
    if ids != *determining {
        return Err("determining policies differ".to_owned());
    }
    let failed: Vec<(&str, &str)> = answer
        .diagnostics
        .errors
        .iter()
        .map(|error| (error.policy.as_str(), error.message.as_str()))
        .collect();
    if !failed
        .into_iter()
        .eq(errors.iter().map(|(id, text)| (id.as_str(), text.as_str())))
    {
        return Err("errors differ".to_owned());
    }
    if answer.revision != *snapshot.revision() {
        return Err("the answer is of another revision".to_owned());
    }
    match &answer.explanation {
        None if query.explain => Err("the explanation is missing".to_owned()),
        Some(_) if !query.explain => Err("an explanation that was not requested".to_owned()),
        None => Ok(()),
        Some(explanation) => {
            let explained = explanation.determining.iter().map(|e| e.policy.as_str());
            if !explained.eq(ids.iter().copied()) {
                return Err("other policies are explained than determined".to_owned());
            }
            if !(ids.is_empty() || explanation.unsatisfied.is_empty()) {
                return Err("permits are listed though a policy determined".to_owned());
            }
            Ok(())
        }
    }
}
