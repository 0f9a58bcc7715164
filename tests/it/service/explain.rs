//! Explanations of decisions: determining policies, and permits that nearly matched.

use std::fs;

use cedar_pdp::api::grpc::pb;

use super::example::example;
use super::{authorize, sample_request};
use crate::support::{Server, get, policy_directory, shipped_policies};

#[tokio::test]
async fn explanation_describes_the_determining_policy() {
    let server = Server::start(&shipped_policies(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..example("leo.marchetti", "readDocument", "DOC-611")
    };
    let answer = authorize(&server, explained).await.unwrap();
    let explanation = answer.explanation.unwrap();
    assert_eq!(
        (explanation.unsatisfied.len(), explanation.unsatisfied_total),
        (0, 0)
    );
    let [policy] = &*explanation.determining else {
        panic!("{explanation:?}");
    };
    assert_eq!(
        policy.policy_id,
        "share.spring-room.lanternfield-underwriters"
    );
    assert_eq!(policy.template_id, "sharing.reader");
    assert_eq!(policy.effect(), pb::Effect::Permit);
    assert_eq!(policy.position.as_ref().unwrap().file, "sharing.links.json");
    assert_eq!(
        policy.annotations["description"],
        "The people a document or deal room is shared with read it"
    );
    assert_eq!(policy.annotations["id"], "sharing.reader");
}

#[tokio::test]
async fn explanation_shows_the_false_clause() {
    let server = Server::start(&shipped_policies(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..example("ines.varga", "approveInvoice", "INV-2042")
    };
    let answer = authorize(&server, explained).await.unwrap();
    assert_eq!(answer.decision(), pb::Decision::Deny);
    let explanation = answer.explanation.unwrap();
    assert!(explanation.determining.is_empty());
    assert_eq!(explanation.unsatisfied_total, 1);
    let [unsatisfied] = &*explanation.unsatisfied else {
        panic!("{explanation:?}");
    };
    let policy = unsatisfied.policy.as_ref().unwrap();
    assert_eq!(policy.policy_id, "invoices.management-approves");
    assert_eq!(policy.effect(), pb::Effect::Permit);
    assert_eq!(unsatisfied.error, "");
    let clause = unsatisfied.clause.as_ref().unwrap();
    assert_eq!(clause.kind(), pb::condition_clause::Kind::When);
    assert!(clause.text.starts_with("when\n{"), "{}", clause.text);
    assert!(clause.text.ends_with('}'), "{}", clause.text);
    assert_eq!(
        clause.operand,
        "resource.amount.lessThanOrEqual(principal.approvalLimit)"
    );
    let values = clause.values.iter();
    let values = values.map(|value| (value.expression.as_str(), value.value.as_str()));
    assert_eq!(
        values.collect::<Vec<_>>(),
        [
            ("resource.amount", r#"decimal("180000.00")"#),
            ("principal.approvalLimit", r#"decimal("50000.00")"#),
        ]
    );
    let position = clause.position.as_ref().unwrap();
    assert_eq!(position.file, "invoices.cedar");
    let text = fs::read_to_string(shipped_policies().join("invoices.cedar")).unwrap();
    let line = text.lines().nth(position.line as usize - 1).unwrap();
    assert!(
        line[position.column as usize - 1..].starts_with(&clause.operand),
        "{line}"
    );
}

#[tokio::test]
async fn explanation_counts_unsatisfied_permits() {
    // The explanation has twenty permits with their errors, and the total.
    let mut policies = String::new();
    for number in 0..25 {
        policies.push_str(&format!(
            "@id(\"p{number:02}\")\npermit (principal, action, resource) unless {{ context.missing == {number} }};\n"
        ));
    }
    let directory = policy_directory(&[("a.cedar", &policies)]);
    let server = Server::start(directory.path(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..sample_request()
    };
    let answer = authorize(&server, explained).await.unwrap();
    assert_eq!(answer.errors.len(), 25);
    let explanation = answer.explanation.unwrap();
    assert_eq!(explanation.unsatisfied_total, 25);
    assert_eq!(explanation.unsatisfied.len(), 20);
    for (number, unsatisfied) in explanation.unsatisfied.iter().enumerate() {
        assert_eq!(
            unsatisfied.policy.as_ref().unwrap().policy_id,
            format!("p{number:02}")
        );
        let clause = unsatisfied.clause.as_ref().unwrap();
        assert_eq!(clause.kind(), pb::condition_clause::Kind::Unless);
        assert!(
            unsatisfied.error.contains("missing"),
            "{}",
            unsatisfied.error
        );
    }
}

#[tokio::test]
async fn explanation_names_the_nearest_permit() {
    let policies = "@id(\"p\") permit (principal is Robot, action, resource);";
    let directory = policy_directory(&[("a.cedar", policies)]);
    let server = Server::start(directory.path(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..sample_request()
    };
    let answer = authorize(&server, explained).await.unwrap();
    let explanation = answer.explanation.unwrap();
    assert_eq!(explanation.unsatisfied_total, 0);
    let nearest = explanation.nearest.unwrap();
    assert_eq!(nearest.policy.unwrap().policy_id, "p");
    let [mismatch] = &*nearest.mismatches else {
        panic!("{:?}", nearest.mismatches);
    };
    assert_eq!(mismatch.constraint, "principal is Robot");
    assert_eq!(mismatch.actual, r#"User::"alice""#);
}

#[tokio::test]
async fn failed_forbids_are_named() {
    // In the answer, in the metrics and in the log.
    let policies = "@id(\"p\") permit (principal, action, resource) when { context.missing };\n\
                    @id(\"f\") forbid (principal, action, resource) when { context.missing };";
    let directory = policy_directory(&[("a.cedar", policies)]);
    let server = Server::start(directory.path(), &["--admin-listen", "127.0.0.1:0"]);
    let answer = authorize(&server, sample_request()).await.unwrap();
    let errors = answer.errors.iter();
    let errors = errors.map(|error| (error.policy_id.as_str(), error.effect()));
    assert_eq!(
        errors.collect::<Vec<_>>(),
        [("f", pb::Effect::Forbid), ("p", pb::Effect::Permit)]
    );
    let metrics = get(&server.admin(), "/metrics");
    assert!(
        metrics.contains("cedar_pdp_forbid_errors_total{policy=\"f\"} 1\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("policy=\"p\""), "{metrics}");
    server.wait_for_log("forbid failed to evaluate policy=\"f\"");
}
