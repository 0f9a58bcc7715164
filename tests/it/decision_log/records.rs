//! The content of log records, and the decision ids that clients receive.

use cedar_pdp::api::grpc::pb;
use serde_json::{Value as Json, json};
use tonic::Request;

use super::setup::{LoggedService, allowed, denied, paying};
use crate::support::{parse_uid, uid, value};

const HEADER: &str = "cedar-pdp-decision-id";

/// Makes one call; returns the decision id, which header and message must agree on.
async fn authorize(
    service: &LoggedService,
    request: impl tonic::IntoRequest<pb::AuthorizeRequest>,
) -> String {
    let mut client = service.server.authorization().await;
    let response = client.authorize(request).await.unwrap();
    let header = response.metadata().get(HEADER).cloned();
    let id = response.into_inner().decision_id;
    assert_eq!(
        header.as_ref().map(|id| id.to_str().unwrap()),
        (!id.is_empty()).then_some(id.as_str())
    );
    id
}

#[tokio::test]
async fn decision_id_finds_the_log_line() {
    let service = LoggedService::start(&["--decision-log-attributes", "context.sum"]);
    let mut request = Request::new(paying(500));
    request.metadata_mut().insert(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            .parse()
            .unwrap(),
    );
    let id = authorize(&service, request).await;
    let mut line = service.lines(1).remove(0);
    let remove_field =
        |line: &mut Json, key: &str| line.as_object_mut().unwrap().remove(key).unwrap();
    let time = remove_field(&mut line, "time");
    assert!(
        humantime::parse_rfc3339(time.as_str().unwrap()).is_ok(),
        "{time}"
    );
    assert!(remove_field(&mut line, "duration_us").as_f64().unwrap() > 0.0);
    let revision = remove_field(&mut line, "revision");
    assert_eq!(revision.as_str().unwrap().len(), 64);
    assert_eq!(
        line,
        json!({
            "v": 1,
            "id": id,
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "method": "Authorize",
            "principal": { "type": "User", "id": "alice" },
            "action": { "type": "Action", "id": "pay" },
            "resource": { "type": "Bill", "id": "1" },
            "context": { "sum": 500 },
            "decision": "DENY",
            "determining_policies": [],
            "cache": "miss",
            "replayable": true,
        })
    );
}

#[tokio::test]
async fn cached_answers_get_new_decision_ids() {
    let service = LoggedService::start(&[]);
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(authorize(&service, allowed()).await);
    }
    let lines = service.lines(20);
    for (line, id) in lines.iter().zip(&ids) {
        assert_eq!(line["id"], id.as_str());
        assert_eq!(line["decision"], "ALLOW");
        assert_eq!(line["determining_policies"], json!(["everyone-reads"]));
    }
    ids.dedup();
    assert_eq!(ids.len(), 20);
    assert!(ids.is_sorted(), "{ids:?}");
    let cache: Vec<_> = lines.iter().map(|line| &line["cache"]).collect();
    // A poll of the directory may happen in between; it empties the cache.
    assert_eq!(cache[0], "miss");
    assert!(
        cache.iter().filter(|it| **it == "hit").count() > 10,
        "{cache:?}"
    );
}

#[tokio::test]
async fn batch_and_stream_items_are_logged_each() {
    let service = LoggedService::start(&["--cache-bytes", "0"]);
    let mut client = service.server.authorization().await;
    let nothing = pb::AuthorizeRequest::default();
    let requests = vec![allowed(), nothing.clone(), denied()];
    let batch = client
        .batch_authorize(pb::BatchAuthorizeRequest { requests })
        .await
        .unwrap();
    assert_eq!(batch.metadata().get(HEADER), None);
    let mut returned = Vec::new();
    for result in batch.into_inner().results {
        use pb::batch_authorize_result::Result::{Error, Response};
        match result.result.unwrap() {
            Response(response) => returned.push(("BatchAuthorize", response.decision_id)),
            Error(_) => returned.push(("BatchAuthorize", String::new())),
        }
    }
    let items = [denied(), nothing, allowed()].map(|request| pb::StreamAuthorizeRequest {
        correlation_id: 7,
        request: Some(request),
    });
    let mut stream = client
        .stream_authorize(tokio_stream::iter(items))
        .await
        .unwrap()
        .into_inner();
    while let Some(item) = stream.message().await.unwrap() {
        use pb::stream_authorize_response::Result::{Error, Response};
        assert_eq!(item.correlation_id, 7);
        match item.result.unwrap() {
            Response(response) => returned.push(("StreamAuthorize", response.decision_id)),
            Error(_) => returned.push(("StreamAuthorize", String::new())),
        }
    }
    let lines = service.lines(6);
    for (line, (method, id)) in lines.iter().zip(&returned) {
        assert_eq!(line["method"], *method);
        if id.is_empty() {
            assert_eq!(line["refused"], "INVALID_REQUEST");
        } else {
            assert_eq!(line["id"], id.as_str());
            assert_eq!(line["cache"], "off");
        }
    }
    let decisions: Vec<_> = lines.iter().map(|line| line["decision"].as_str()).collect();
    let (allow, deny) = (Some("ALLOW"), Some("DENY"));
    assert_eq!(decisions, [allow, None, deny, deny, None, allow]);
}

#[tokio::test]
async fn messages_of_any_shape_are_logged_once() {
    let service = LoggedService::start(&[]);
    // Too many entries for borrowed decoding, and a request for an explanation.
    let context = (0..100)
        .map(|n| (n.to_string(), value(pb::value::Kind::Bool(true))))
        .collect();
    let large = pb::AuthorizeRequest {
        context,
        ..allowed()
    };
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..denied()
    };
    let ids = [
        authorize(&service, large).await,
        authorize(&service, explained).await,
    ];
    let lines = service.lines(2);
    assert_eq!([&lines[0]["id"], &lines[1]["id"]], [&ids[0], &ids[1]]);
    assert_eq!(lines[0]["context"].as_object().unwrap().len(), 100);
    assert_eq!(lines[1]["explain"], true);
    assert_eq!(lines[1]["determining_policies"], json!(["not-mallory"]));
}

#[tokio::test]
async fn policy_errors_are_logged_and_redacted() {
    for (attributes, is_visible) in [("", false), ("errors.message", true)] {
        let service = LoggedService::start(&["--decision-log-attributes", attributes]);
        let id = authorize(&service, paying(i64::MAX)).await;
        let without_sum = pb::AuthorizeRequest {
            context: Default::default(),
            ..paying(0)
        };
        authorize(&service, without_sum).await;
        let lines = service.lines(2);
        assert_eq!(lines[0]["id"], id.as_str());
        assert_eq!(lines[0].get("errors"), None);
        let error = &lines[1]["errors"][0];
        assert_eq!(error["policy"], "small-sums");
        match is_visible {
            true => assert!(
                error["message"].as_str().unwrap().contains("sum"),
                "{error}"
            ),
            false => assert_eq!(error["message"], json!({ "__masked": true })),
        }
    }
}

#[tokio::test]
async fn unlisted_attributes_are_redacted() {
    let service = LoggedService::start(&["--decision-log-attributes", "context.open,Doc.open"]);
    let text = |text: &str| value(pb::value::Kind::String(text.to_owned()));
    let attributes = || {
        [
            ("open".to_owned(), text("for all to see")),
            ("phone".to_owned(), text("sesame")),
        ]
    };
    let entity = pb::Entity {
        uid: Some(uid("Doc", "1")),
        attributes: attributes().into(),
        parents: vec![parse_uid(r#"Folder::"f""#)],
        tags: attributes().into(),
    };
    let request = pb::AuthorizeRequest {
        context: attributes().into(),
        entities: vec![entity],
        ..denied()
    };
    authorize(&service, request).await;
    let line = service.lines(1).remove(0);
    assert!(!line.to_string().contains("sesame"), "{line}");
    let fields = json!({ "open": "for all to see", "phone": { "__masked": true } });
    assert_eq!(line["context"], fields);
    assert_eq!(
        line["entities"],
        json!([{
            "uid": { "type": "Doc", "id": "1" },
            "attrs": fields,
            "parents": [{ "type": "Folder", "id": "f" }],
            "tags": fields,
        }])
    );
    assert_eq!(line["replayable"], false);
}

#[tokio::test]
async fn rejected_requests_are_logged_without_content() {
    let service = LoggedService::start(&["--decision-log-attributes", "*"]);
    let mut client = service.server.authorization().await;
    let token = pb::authorize_request::Identity::PrincipalToken("sesame".to_owned());
    let with_token = pb::AuthorizeRequest {
        identity: Some(token),
        ..allowed()
    };
    client.authorize(with_token).await.unwrap_err();
    let ip = value(pb::value::Kind::Ip("sesame".to_owned()));
    let no_address = pb::AuthorizeRequest {
        context: [("from".to_owned(), ip)].into(),
        ..allowed()
    };
    client.authorize(no_address).await.unwrap_err();
    let lines = service.lines(2);
    assert_eq!(lines[0]["refused"], "TOKENS_NOT_CONFIGURED");
    assert_eq!(lines[1]["refused"], "INVALID_REQUEST");
    for line in lines {
        let mut keys: Vec<_> = line.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["id", "method", "refused", "replayable", "time", "v"]);
    }
}

#[tokio::test]
async fn line_breaks_are_escaped_in_lines() {
    let service = LoggedService::start(&[]);
    let name = "a\n{\"v\":1}\r\u{0}\u{1b}[31m\u{7f}\u{85}\u{2028}\u{202e}\"\\ü";
    let request = pb::AuthorizeRequest {
        resource: Some(uid("Doc", name)),
        ..allowed()
    };
    authorize(&service, request).await;
    let line = service.lines(1).remove(0);
    assert_eq!(line["resource"]["id"], name);
    let text = std::fs::read_to_string(service.file()).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(
        line.chars()
            .all(|c| c == 'ü' || c.is_ascii() && !c.is_control()),
        "{line:?}"
    );
}

#[tokio::test]
async fn allows_are_sampled_and_denies_logged() {
    let none = LoggedService::start(&["--decision-log-allow-sample", "0"]);
    let some = LoggedService::start(&["--decision-log-allow-sample", "20%"]);
    let mut returned = 0;
    for _ in 0..300 {
        assert_eq!(authorize(&none, allowed()).await, "");
        returned += usize::from(!authorize(&some, allowed()).await.is_empty());
    }
    // A tolerance of ten standard deviations.
    assert!((1..=130).contains(&returned), "{returned} of 300");
    for _ in 0..20 {
        assert_ne!(authorize(&none, denied()).await, "");
        assert_ne!(authorize(&some, denied()).await, "");
    }
    assert!(none.lines(20).iter().all(|line| line["decision"] == "DENY"));
    some.lines(20 + returned);
}

#[tokio::test]
async fn responses_have_no_decision_id_without_log() {
    let service = LoggedService::start(&["--decision-log", "off"]);
    assert_eq!(authorize(&service, allowed()).await, "");
    assert_eq!(authorize(&service, denied()).await, "");
    assert!(!service.file().exists());
}
