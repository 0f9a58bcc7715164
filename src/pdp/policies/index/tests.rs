//! The scope index: the policies found for a request, and the limits.

use std::sync::Arc;

use cedar_policy_core::ast::EntityUID;

use super::*;
use crate::pdp::entities::interner::UidInterner;
use crate::pdp::policies::bytecode::Node;
use crate::pdp::policies::scope::RequestVariable;

/// Returns a request's variables; the principal has these ancestors.
fn variables(
    uids: &UidInterner,
    principal: &str,
    resource: &str,
    ancestors: &[&str],
) -> RequestVariables {
    let find = |text: &str| {
        let uid: EntityUID = text.parse().unwrap();
        (uids.find_uid(&uid), uids.find_type(uid.entity_type()))
    };
    let variable = |text: &str, ancestors: &[&str]| {
        let (uid, ty) = find(text);
        let mut ancestors: Vec<_> = ancestors.iter().filter_map(|text| find(text).0).collect();
        ancestors.sort_unstable();
        RequestVariable { uid, ty, ancestors }
    };
    RequestVariables {
        principal: variable(principal, ancestors),
        action: variable(r#"Action::"read""#, &[r#"Action::"any""#]),
        resource: variable(resource, &[]),
    }
}

fn index(policies: &[&str]) -> (Arc<UidInterner>, Index) {
    let mut uids = Arc::new(UidInterner::default());
    let scopes: Vec<Scope> = policies
        .iter()
        .map(|text| {
            let policy = cedar_policy_core::parser::parse_policy(None, text).unwrap();
            Scope::from_policy(&policy.into(), &mut uids).unwrap()
        })
        .collect();
    let conditions = vec![&[][..]; scopes.len()];
    (
        uids,
        Index::new(scopes, &conditions, Workers::default()).unwrap(),
    )
}

/// Returns the candidates for `User::"a"`, with these ancestors, on `Doc::"d"`.
fn found(policies: &[&str], ancestors: &[&str]) -> Vec<RuleIndex> {
    let (uids, index) = index(policies);
    let variables = variables(&uids, r#"User::"a""#, r#"Doc::"d""#, ancestors);
    let found = index.candidates(&variables, usize::MAX).unwrap();
    let found: std::collections::BTreeSet<_> = found.iter().map(|posting| posting.rule).collect();
    found.into_iter().collect()
}

#[test]
fn candidates_are_the_policies_whose_scope_matches() {
    for (scope, ancestors, expected) in [
        ("principal, action, resource", &[][..], true),
        (r#"principal == User::"a", action, resource"#, &[], true),
        (r#"principal == User::"b", action, resource"#, &[], false),
        (
            r#"principal == Group::"g", action, resource"#,
            &[r#"Group::"g""#],
            false,
        ),
        (r#"principal in User::"a", action, resource"#, &[], true),
        (
            r#"principal in Group::"g", action, resource"#,
            &[r#"Group::"g""#],
            true,
        ),
        (
            r#"principal in Group::"g", action, resource"#,
            &[r#"Group::"h""#],
            false,
        ),
        ("principal is User, action, resource", &[], true),
        ("principal is Group, action, resource", &[], false),
        (
            r#"principal is User in Group::"g", action, resource"#,
            &[r#"Group::"g""#],
            true,
        ),
        (
            r#"principal is User in Group::"g", action, resource"#,
            &[],
            false,
        ),
        (
            r#"principal is Robot in Group::"g", action, resource"#,
            &[r#"Group::"g""#],
            false,
        ),
        (
            r#"principal, action == Action::"read", resource"#,
            &[],
            true,
        ),
        (
            r#"principal, action == Action::"any", resource"#,
            &[],
            false,
        ),
        (r#"principal, action in Action::"any", resource"#, &[], true),
        (
            r#"principal, action in [Action::"x", Action::"read"], resource"#,
            &[],
            true,
        ),
        (
            r#"principal, action in [Action::"any", Action::"read"], resource"#,
            &[],
            true,
        ),
        (
            r#"principal, action in [Action::"x"], resource"#,
            &[],
            false,
        ),
        (r#"principal, action, resource == Doc::"d""#, &[], true),
        (r#"principal, action, resource in Doc::"e""#, &[], false),
        ("principal, action, resource is Doc", &[], true),
    ] {
        let policy = format!("permit({scope});");
        let expected: &[RuleIndex] = if expected { &[0] } else { &[] };
        assert_eq!(
            found(&[&policy], ancestors),
            expected,
            "{scope} {ancestors:?}"
        );
    }
}

#[test]
fn leading_operands_narrow_like_a_scope() {
    let any = "permit(principal, action, resource) when";
    for (condition, expected) in [
        (r#"{ principal in Group::"g" && principal.x }"#, true),
        (r#"{ principal in Group::"h" && principal.x }"#, false),
        (r#"{ principal in [Group::"h", Group::"g"] }"#, true),
        ("{ principal in [] }", false),
        (
            r#"{ resource is Doc } when { User::"b" == principal }"#,
            false,
        ),
        (
            r#"{ (principal is User && resource is Doc) && action == Action::"x" }"#,
            false,
        ),
        // An operand after one that can fail is not absorbed.
        (r#"{ principal.x && principal in Group::"h" }"#, true),
        (r#"{ principal in Group::"h" || true }"#, true),
        (r#"{ !(principal in Group::"g") }"#, true),
    ] {
        let expected: &[RuleIndex] = if expected { &[0] } else { &[] };
        let policy = format!("{any} {condition};");
        assert_eq!(
            found(&[&policy], &[r#"Group::"g""#]),
            expected,
            "{condition}"
        );
    }
    let unless = r#"permit(principal, action, resource) unless { principal in Group::"g" };"#;
    assert_eq!(found(&[unless], &[r#"Group::"g""#]), [0]);
}

#[test]
fn policies_are_posted_under_their_rarest_constraint() {
    let mut policies: Vec<String> = (0..50)
        .map(|n| format!(r#"permit(principal == User::"{n}", action, resource == Doc::"d");"#))
        .collect();
    policies.push("permit(principal, action, resource == Doc::\"d\");".to_owned());
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let (_, index) = index(&policies);
    assert_eq!(index.longest.len(), 1);
    assert_eq!(found(&policies, &[]), [50]);
}

#[test]
fn candidates_are_counted_once() {
    let policies = [
        "permit(principal, action, resource);",
        r#"permit(principal, action in [Action::"any", Action::"read"], resource);"#,
        r#"permit(principal == User::"a", action, resource);"#,
        "forbid(principal, action, resource);",
    ];
    assert_eq!(found(&policies, &[]), [0, 1, 2, 3]);
    let (uids, index) = index(&policies);
    assert_eq!(index.unconstrained, [0, 3]);
    let variables = variables(&uids, r#"User::"a""#, r#"Doc::"d""#, &[]);
    let result = index.candidates(&variables, 3).map(|found| found.len());
    assert_eq!(result, Err(TooManyCandidates));
    assert!(index.candidates(&variables, 4).is_ok());
}

#[test]
fn search_stops_at_the_first_excess_policy() {
    let unconstrained = vec!["permit(principal, action, resource);"; 100];
    let (_, index) = index(&unconstrained);
    let visited = |limit: usize| {
        let mut count = 0;
        let postings = index.postings.list(Key::Any).unwrap();
        let found = collect(postings.inspect(|_| count += 1), 0, limit);
        (count, found.map(|found| found.len()))
    };
    assert_eq!(visited(10), (11, Err(TooManyCandidates)));
    assert_eq!(visited(99), (100, Err(TooManyCandidates)));
    assert_eq!(visited(100), (100, Ok(100)));
}

#[test]
fn policies_under_several_keys_count_once() {
    let several = r#"
permit(principal, action, resource) when { resource in [Doc::"a", Doc::"b", Doc::"c"] };
"#;
    let (uids, index) = index(&[several; 4]);
    let uid = |text: &str| uids.find_uid(&text.parse().unwrap()).unwrap();
    let keys = [r#"Doc::"a""#, r#"Doc::"b""#, r#"Doc::"c""#].map(uid);
    let postings = || {
        let keys = keys.map(|uid| Key::Entity(Variable::Resource, uid));
        keys.into_iter()
            .filter_map(|key| index.postings.list(key))
            .flatten()
    };
    assert_eq!(postings().count(), 12);
    let distinct = |limit: usize| {
        collect(postings(), 0, limit).map(|found| {
            let rules: std::collections::BTreeSet<_> = found.iter().map(|f| f.rule).collect();
            rules.len()
        })
    };
    assert_eq!(distinct(3), Err(TooManyCandidates));
    for limit in [4, 5, 9, 12, usize::MAX] {
        assert_eq!(distinct(limit), Ok(4), "{limit}");
    }
}

#[test]
fn scope_matches_without_absorbed_operands() {
    let policies = [
        r#"permit(principal, action, resource) when { principal in Group::"h" };"#,
        r#"permit(principal == User::"b", action, resource);"#,
    ];
    let (uids, index) = index(&policies);
    let variables = variables(&uids, r#"User::"a""#, r#"Doc::"d""#, &[]);
    let none = index.candidates(&variables, 9).map(|found| found.len());
    assert_eq!(none, Ok(0));
    assert!(index.matching_scope(&variables).eq([0]));
}

#[test]
fn candidates_carry_their_own_condition() {
    let policies = [
        r#"permit(principal, action, resource == Doc::"d");"#,
        r#"permit(principal, action, resource) when { resource in [Doc::"d", Doc::"e"] };"#,
        r#"permit(principal, action, resource == Doc::"d");"#,
        "permit(principal, action, resource);",
    ];
    let mut uids = Arc::new(UidInterner::default());
    let scopes: Vec<Scope> = policies
        .iter()
        .map(|text| {
            let policy = cedar_policy_core::parser::parse_policy(None, text).unwrap();
            Scope::from_policy(&policy.into(), &mut uids).unwrap()
        })
        .collect();
    // Distinct numbers of negations, so that a mix-up is noticed.
    let conditions: [&[u8]; 4] = [&[2], &[14, 2], &[], &[14, 14, 2]];
    let index = Index::new(scopes, &conditions, Workers::default()).unwrap();
    let variables = variables(&uids, r#"User::"a""#, r#"Doc::"d""#, &[]);
    let mut found = index.candidates(&variables, 9).unwrap();
    found.sort_by_key(|posting| posting.rule);
    let depths: Vec<(RuleIndex, Option<usize>)> = found
        .iter()
        .map(|posting| {
            let negations = posting.condition().map(|condition| {
                let mut condition = condition;
                let mut count = 0;
                while let Node::Not(operand) = condition.node() {
                    condition = operand;
                    count += 1;
                }
                count
            });
            (posting.rule, negations)
        })
        .collect();
    assert_eq!(
        depths,
        [(0, Some(0)), (1, Some(1)), (2, None), (3, Some(2))]
    );
}
