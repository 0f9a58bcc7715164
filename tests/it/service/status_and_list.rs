//! The status of the policy store, its list of policies, and the cache.

use std::fs;

use cedar_pdp::api::grpc::pb;

use super::example::{example, table};
use super::{ALL_ARE_PERMITTED, field, next};
use crate::support::{Server, policy_directory, shipped_policies};

#[tokio::test]
async fn status_counts_loaded_items() {
    let server = Server::start(&shipped_policies(), &[]);
    let mut store = server.policy_store().await;
    let told = store
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let status = told.status.unwrap();
    assert_eq!(
        (status.policies, status.templates, status.links),
        (16, 1, 3)
    );
    assert!(status.entities > 20);
    assert!(status.refused.is_none() && status.loaded_at.is_some());
    assert_eq!(status.warnings, []);
    assert_eq!(told.reloads.unwrap().reloaded, 1);
    let mut watch = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        next(&mut watch).await.unwrap().unwrap().status.unwrap(),
        status
    );
}

#[tokio::test]
async fn page_tokens_belong_to_a_revision() {
    let text = |ids: &[&str]| -> String {
        ids.iter()
            .map(|id| format!("@id(\"{id}\")\n{ALL_ARE_PERMITTED}\n"))
            .collect()
    };
    let template = "@id(\"t\")\npermit (principal == ?principal, action, resource);";
    let links = r#"[{"template_id": "t", "link_id": "z", "args": {"?principal": "User::\"a\""}}]"#;
    let directory = policy_directory(&[
        ("a.cedar", &text(&["e", "b", "d"])),
        ("below/b.cedar", &text(&["a", "c"])),
        ("t.cedar", template),
        ("t.links.json", links),
    ]);
    let server = Server::start(directory.path(), &[]);
    let mut store = server.policy_store().await;
    let mut list = async |page_size, page_token: &str| {
        let page_token = page_token.to_owned();
        let asked = pb::ListPoliciesRequest {
            page_size,
            page_token,
        };
        store
            .list_policies(asked)
            .await
            .map(tonic::Response::into_inner)
    };
    let all = list(0, "").await.unwrap();
    assert_eq!(all.next_page_token, "");
    let mut paged = Vec::new();
    let mut token = String::new();
    let mut tokens = Vec::new();
    loop {
        let page = list(4, &token).await.unwrap();
        assert!(page.policies.len() <= 4 && page.revision == all.revision);
        paged.extend(page.policies);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        tokens.push(token.clone());
    }
    assert_eq!(paged, all.policies);
    let mut ids: Vec<_> = paged.iter().map(|policy| policy.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "z"]);
    let found = |id: &str| paged.iter().find(|policy| policy.id == id).unwrap();
    assert_eq!((&*found("c").file, found("c").line), ("below/b.cedar", 3));
    assert_eq!(
        (&*found("z").file, &*found("z").template_id),
        ("t.links.json", "t")
    );
    assert_eq!(found("a").template_id, "");

    fs::write(directory.path().join("c.cedar"), ALL_ARE_PERMITTED).unwrap();
    server
        .policy_store()
        .await
        .reload(pb::ReloadRequest {})
        .await
        .unwrap();
    for token in [
        tokens[0].as_str(),
        "nonsense",
        &format!("{}.x", all.revision),
    ] {
        assert_eq!(field(&list(4, token).await.unwrap_err()), "page_token");
    }
}

#[tokio::test]
async fn cache_changes_its_counters_but_no_answer() {
    let cached = Server::start(&shipped_policies(), &[]);
    let uncached = Server::start(&shipped_policies(), &["--cache-bytes", "0"]);
    let mut answers = Vec::new();
    for server in [&cached, &uncached] {
        let mut client = server.authorization().await;
        let mut said = Vec::new();
        for _ in 0..3 {
            for (principal, action, resource, context, ..) in table() {
                let request = pb::AuthorizeRequest {
                    context,
                    explain: true,
                    ..example(principal, action, resource)
                };
                said.push(client.authorize(request).await.unwrap().into_inner());
            }
        }
        answers.push(said);
    }
    assert_eq!(answers[0], answers[1]);
    let figures = async |server: &Server| {
        let mut store = server.policy_store().await;
        store
            .get_status(pb::GetStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .cache
            .unwrap()
    };
    let rows = table().len() as u64;
    let with = figures(&cached).await;
    assert_eq!((with.misses, with.hits), (rows, 2 * rows));
    assert!(with.capacity_bytes > 0 && with.bytes <= with.capacity_bytes);
    assert_eq!(figures(&uncached).await, pb::CacheFigures::default());
}
