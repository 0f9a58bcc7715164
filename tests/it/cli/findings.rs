//! The kinds of mistakes that authors make, and what `validate` and `test` say of each.

use std::fs;

use super::*;

/// Files of a directory, and texts that the findings must contain.
struct Case {
    files: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
}

const PERMIT: (&str, &str) = ("all.cedar", "permit (principal, action, resource);");

const ENTITIES: &str = r#"[{"uid": {"type": "A", "id": "a"}, "attrs": {}, "parents": []}]"#;

/// Validates each directory: the exit code is `code`, and the output says what is expected.
#[track_caller]
fn check(code: i32, cases: &[Case]) {
    for Case { files, says } in cases {
        let directory = policy_directory(files);
        let result = run(&["validate", text(directory.path())]);
        assert_eq!(result.code, code, "{files:?}: {result:?}");
        for text in *says {
            assert!(
                result.out.contains(text),
                "{files:?}: no {text:?} in\n{}",
                result.out
            );
        }
        let denied = run(&["validate", "--deny-warnings", text(directory.path())]);
        assert_eq!(denied.code, 1, "{denied:?}");
    }
}

#[test]
fn misplaced_content_is_named() {
    check(
        1,
        &[
            Case {
                files: &[("a.cedar", "entity User;")],
                says: &[
                    "holds a schema, not policies",
                    "--> a.cedar",
                    "`*.cedarschema`",
                ],
            },
            Case {
                files: &[("a.cedar", "@doc(\"x\")\nnamespace N { entity User; }")],
                says: &["holds a schema, not policies"],
            },
            Case {
                files: &[("a.cedar", "@entity(\"x\")\npermit (principal, action);")],
                says: &["missing the `resource` variable", "a.cedar:2:"],
            },
            Case {
                files: &[("a.cedar", "\n { \"staticPolicies\": {} }")],
                says: &[
                    "holds JSON, not Cedar syntax",
                    "a.cedar:2:2",
                    "`*.cedar.json`",
                ],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "a.cedarschema",
                        "// p\npermit (principal, action, resource);",
                    ),
                ],
                says: &["holds policies, not a schema", "--> a.cedarschema"],
            },
            Case {
                files: &[PERMIT, ("cedarschema", "{\"\": {}}")],
                says: &["holds JSON, not Cedar syntax", "`*.cedarschema.json`"],
            },
        ],
    );
}

#[test]
fn content_without_effect_is_a_warning() {
    check(
        0,
        &[
            Case {
                files: &[PERMIT, ("a.cedar", "// later\n")],
                says: &["the file holds no policy", "--> a.cedar"],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "t.cedar",
                        "@id(\"t\") permit (principal == ?principal, action, resource);",
                    ),
                ],
                says: &[
                    "template `t` has no link and permits nothing",
                    "t.cedar:1:1",
                ],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "t.cedar.json",
                        r#"{"effect": "forbid", "principal": {"op": "==", "slot": "?principal"},
                        "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []}"#,
                    ),
                ],
                says: &["template `t.cedar.json#0` has no link and forbids nothing"],
            },
            Case {
                files: &[PERMIT, ("notes.md", ""), ("data/users.csv", "")],
                says: &["2 files are ignored", "`data/users.csv`, `notes.md`"],
            },
        ],
    );
}

#[test]
fn missing_signs_are_told_where_the_code_ends() {
    check(
        1,
        &[
            Case {
                files: &[(
                    "a.cedar",
                    "permit (principal, action, resource)\n\n// end\n",
                )],
                says: &["expected `;`", "a.cedar:1:37"],
            },
            Case {
                files: &[(
                    "a.cedar",
                    "permit (principal, action, resource) // all\n@id(\"b\")\nforbid (principal, action, resource);",
                )],
                says: &["unexpected token `@`: expected `;`", "a.cedar:1:37"],
            },
            Case {
                files: &[PERMIT, ("a.cedarschema", "entity User\n\nentity Doc;")],
                says: &["expected", "a.cedarschema:1:12"],
            },
        ],
    );
}

#[test]
fn json_errors_have_their_place_in_the_file() {
    check(
        1,
        &[
            Case {
                files: &[
                    PERMIT,
                    (
                        "a.cedarschema.json",
                        "{\n  \"\": {\n    \"entityTypes\": {},,\n  }\n}",
                    ),
                ],
                says: &["key must be a string", "a.cedarschema.json:3:23"],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "a.links.json",
                        "[\n  {\"template_id\": \"t\",\n   \"links\": 1}\n]",
                    ),
                ],
                says: &["template link: unknown field `links`", "a.links.json:3:10"],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "a.cedar.json",
                        "{\"staticPolicies\": {\n \"p\": {\"effect\": \"allow\"}}}",
                    ),
                ],
                says: &["policy `p`: unknown variant `allow`", "a.cedar.json:2:24"],
            },
            Case {
                files: &[
                    PERMIT,
                    (
                        "entities.json",
                        "[{\"uid\": {\"type\": \"A\", \"id\": \"a\"},\n\"attrs\": {\"f\": 1.5}, \"parents\": []}]",
                    ),
                ],
                says: &[
                    "`attrs.f` is 1.5, which has a fraction",
                    "entities.json:2:16",
                ],
            },
        ],
    );
}

#[test]
fn conflicts_between_files_name_both_places() {
    check(
        1,
        &[
            Case {
                files: &[
                    PERMIT,
                    ("a.cedarschema", "entity A, B;\naction x;\ntype T = Long;"),
                    ("b.cedarschema", "entity B;\naction \"x\";"),
                    (
                        "c.cedarschema.json",
                        "{\"\": {\"entityTypes\": {}, \"actions\": {},\n\"commonTypes\": {\"T\": {\"type\": \"Long\"}}}}",
                    ),
                ],
                says: &[
                    "entity type `B` is declared twice, here and at a.cedarschema:1:11",
                    "--> b.cedarschema:1:8",
                    "action `x` is declared twice, here and at a.cedarschema:2:8",
                    "common type `T` is declared twice, here and at a.cedarschema:3:6",
                    "--> c.cedarschema.json:2:",
                ],
            },
            Case {
                files: &[
                    ("cedarentities.json", ENTITIES),
                    ("entities.json", ENTITIES),
                ],
                says: &[
                    "`A::\"a\"` is defined twice, here and at cedarentities.json:1:2",
                    "entities.json:1:2",
                ],
            },
            Case {
                files: &[
                    (
                        "a.cedar",
                        "@id(\"t\") permit (principal == ?principal, action, resource);",
                    ),
                    (
                        "linked",
                        "[{\"template_id\": \"t\", \"link_id\": \"l\", \"args\": {}}]",
                    ),
                ],
                says: &["(template `t` at a.cedar:1:1)", "--> linked:1:2"],
            },
        ],
    );
}

#[test]
fn byte_order_marks_are_named() {
    for name in [
        "a.cedar",
        "cedarschema",
        "a.cedar.json",
        "entities.json",
        "a.test.json",
    ] {
        let directory = policy_directory(&[PERMIT]);
        fs::write(directory.path().join(name), b"\xef\xbb\xbf[]").unwrap();
        let result = run(&["validate", text(directory.path())]);
        assert_eq!(result.code, 1, "{name}: {result:?}");
        assert!(
            result.out.contains("byte order mark"),
            "{name}: {}",
            result.out
        );
    }
}

#[test]
fn verbose_lists_all_ignored_files() {
    let names: Vec<String> = (0..30).map(|number| format!("{number:02}.md")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let directory = policy_directory(&files);
    fs::write(directory.path().join(PERMIT.0), PERMIT.1).unwrap();
    let brief = run(&["validate", text(directory.path())]);
    assert!(
        !brief.out.contains("29.md") && brief.out.contains("and 10 more"),
        "{brief:?}"
    );
    let verbose = run(&["validate", "--verbose", text(directory.path())]);
    assert!(
        names.iter().all(|name| verbose.out.contains(name)),
        "{verbose:?}"
    );
    let report = run(&["validate", "--format", "json", text(directory.path())]).json();
    assert_eq!(report["ignored"].as_array().unwrap().len(), 30);
}

#[test]
fn leaving_out_everything_needs_allow_empty() {
    let directory = policy_directory(&[PERMIT, ("a.cedarschema", SCHEMA)]);
    let patterns = directory.path().join(".cedarignore");
    for (pattern, says) in [
        ("*.cedar\n", "leaves out all policies"),
        ("*.cedarschema\n", "leaves out all schema files"),
    ] {
        fs::write(&patterns, pattern).unwrap();
        let result = run(&["validate", text(directory.path())]);
        assert_eq!(result.code, 1, "{result:?}");
        assert!(result.out.contains(says), "{result:?}");
        assert!(
            result.out.contains("files left out by .cedarignore:"),
            "{result:?}"
        );
        assert!(!serve_loads(directory.path(), &[]), "{pattern}");
        let allowed = run(&["validate", "--allow-empty", text(directory.path())]);
        assert_eq!(allowed.code, 0, "{allowed:?}");
        assert!(
            serve_loads(directory.path(), &["--allow-empty"]),
            "{pattern}"
        );
    }
}

#[test]
fn unknown_fields_and_arrays_fail_tests() {
    let request =
        r#"{"principal": "User::\"a\"", "action": "Action::\"read\"", "resource": "Doc::\"d\""}"#;
    for (case, says) in [
        (format!(r#"{{"request": {request}, "decision": "allow", "reasons": []}}"#), "unknown field `reasons`"),
        (r#"{"request": {"principle": 1}, "decision": "allow"}"#.to_owned(), "unknown field `principle`"),
        (r#"["a", {}, "allow"]"#.to_owned(), "expected an object"),
        (
            r#"{"request": ["User::\"a\"", "Action::\"read\"", "Doc::\"d\""], "decision": "allow"}"#.to_owned(),
            "expected an object",
        ),
    ] {
        let directory = policy_directory(&[PERMIT, ("a.test.json", &format!("[\n{case}]"))]);
        let result = run(&["test", text(directory.path())]);
        assert_eq!(result.code, 1, "{case}: {result:?}");
        assert!(result.out.contains(says), "{case}: {}", result.out);
        assert!(result.out.contains("a.test.json:2:"), "{case}: {}", result.out);
    }
}

#[test]
fn test_files_of_cedar_run_unchanged() {
    let policies = "permit (principal, action, resource);\n@id(\"named\") forbid (principal, action, resource) \
                    when { context.locked };\npermit (principal, action, resource);";
    let case = |reason: &str| {
        format!(
            r#"[{{"request": {{"principal": "User::\"a\"", "action": "Action::\"read\"", "resource": "Doc::\"d\"",
            "context": {{"locked": false}}}}, "entities": [], "decision": "allow", "reason": {reason}, "num_errors": 0}}]"#
        )
    };
    let test = |files: &[(&str, &str)], options: &[&str]| {
        let directory = policy_directory(files);
        let result = run(&[&["test", text(directory.path())], options].concat());
        (result.code, result.out)
    };
    let both = case(r#"["policy0", "policy2"]"#);
    let (code, out) = test(&[("a.cedar", policies), ("a.test.json", &both)], &[]);
    assert_eq!(code, 0, "{out}");
    // A part of the reasons: the failure says how to accept it.
    let part = case(r#"["policy2"]"#);
    let (code, out) = test(&[("a.cedar", policies), ("a.test.json", &part)], &[]);
    assert!(code == 1 && out.contains("--reasons contains"), "{out}");
    let (code, out) = test(
        &[("a.cedar", policies), ("a.test.json", &part)],
        &["--reasons", "contains"],
    );
    assert_eq!(code, 0, "{out}");
    // Two files, so that the number says too little.
    let files = [
        ("a.cedar", policies),
        ("b.cedar", PERMIT.1),
        ("a.test.json", &*both),
    ];
    let (code, out) = test(&files, &[]);
    assert!(
        code == 1 && out.contains("`a.cedar#0` or `b.cedar#0`"),
        "{out}"
    );
}

#[test]
fn init_writes_a_valid_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/policies");
    let result = run(&["init", text(&path)]);
    assert_eq!((result.code, &*result.err), (0, ""));
    // What it prints can be run, and its tests pass without a warning.
    for command in ["validate", "test", "serve --policies"] {
        assert!(
            result
                .out
                .contains(&format!("cedar-pdp {command} {}", path.display()))
        );
    }
    let validated = run(&["validate", "--deny-warnings", text(&path)]);
    assert_eq!(validated.code, 0, "{validated:?}");
    assert!(validated.out.contains("2 policies") && validated.out.contains("2 entities"));
    let tested = run(&["test", text(&path)]);
    assert!(
        tested.code == 0 && tested.out.contains("4 passed"),
        "{tested:?}"
    );
    // The directory may also come from the environment.
    let environment = [("CEDAR_PDP_POLICIES", text(&path))];
    assert_eq!(run_in(&environment, &["test"]).code, 0);
    // Nothing is overwritten.
    fs::write(path.join("photos.cedar"), "changed").unwrap();
    let again = run(&["init", text(&path)]);
    assert!(
        again.code == 2 && again.err.contains("is not empty"),
        "{again:?}"
    );
    assert_eq!(
        fs::read_to_string(path.join("photos.cedar")).unwrap(),
        "changed"
    );
}

#[test]
fn authorize_reads_request_files() {
    let directory = policy_directory(&[(
        "a.cedar",
        "permit (principal == User::\"a\", action, resource) when { context.n == 1 };",
    )]);
    let file = directory.path().join("request.json");
    let authorize = |json: &str, more: &[&str]| {
        fs::write(&file, json).unwrap();
        let arguments = ["authorize", "--policies", text(directory.path())];
        run(&[&arguments[..], &["--request-json", text(&file)], more].concat())
    };
    let request = |principal: &str, context: &str| {
        format!(
            r#"{{"principal": "{principal}::\"a\"", "action": "Action::\"read\"",
                "resource": "Doc::\"d\"", "context": {context}}}"#
        )
    };
    assert_eq!(authorize(&request("User", r#"{"n": 1}"#), &[]).code, 0);
    assert_eq!(authorize(&request("User", r#"{"n": 2}"#), &[]).code, 1);
    for (json, says) in [
        (request("User", "[]"), "context"),
        (request("User:", "{}"), "principal"),
        (r#"["a", "b", "c"]"#.to_owned(), "expected an object"),
        (
            "{\"principal\": \"User::\\\"a\\\"\",\n\"actoin\": 1}".to_owned(),
            "request.json:2:",
        ),
    ] {
        let result = authorize(&json, &[]);
        assert!(
            result.code == 2 && result.err.contains(says),
            "{json}: {result:?}"
        );
    }
    let both = authorize(&request("User", "{}"), &["--action", r#"Action::"b""#]);
    assert!(
        both.code == 2 && both.err.contains("cannot be used with"),
        "{both:?}"
    );
}

#[test]
fn schema_joins_all_schema_files() {
    let json = r#"{"N": {"entityTypes": {"Doc": {}}, "actions": {"read": {
        "appliesTo": {"principalTypes": ["User"], "resourceTypes": ["Doc"]}}}}}"#;
    let directory = policy_directory(&[
        (
            "a.cedarschema",
            "// users\nnamespace N { entity User; }\nentity Other;",
        ),
        ("b.cedarschema.json", json),
    ]);
    let joined = run(&["schema", text(directory.path())]);
    assert_eq!(joined.code, 0, "{joined:?}");
    // It means the same: policies are valid against it, and one file suffices.
    let again = policy_directory(&[
        ("all.cedarschema", &*joined.out),
        (
            "a.cedar",
            "permit (principal is N::User, action == N::Action::\"read\", resource is N::Doc);",
        ),
    ]);
    let validated = run(&["validate", "--deny-warnings", text(again.path())]);
    assert_eq!(validated.code, 0, "{validated:?}\n{}", joined.out);
    let json = run(&["schema", "--format", "json", text(directory.path())]).json();
    assert!(
        json["N"]["entityTypes"]["User"].is_object()
            && json[""]["entityTypes"]["Other"].is_object()
    );
    assert_eq!(
        run(&["schema", text(policy_directory(&[PERMIT]).path())]).code,
        2
    );
    let bad = policy_directory(&[("a.cedarschema", "entity A"), PERMIT]);
    assert_eq!(run(&["schema", text(bad.path())]).code, 1);
    // A file that cannot be read is not left out.
    fs::write(
        directory.path().join("c.cedarschema"),
        b"\xef\xbb\xbfentity C;",
    )
    .unwrap();
    assert_eq!(run(&["schema", text(directory.path())]).code, 1);
}

#[test]
fn undeclared_types_of_require_known_are_named() {
    let directory = policy_directory(&[
        ("a.cedar", "permit (principal, action, resource);"),
        (
            "a.cedarschema",
            "namespace Docs { entity User, Doc; action read appliesTo { principal: User, resource: Doc }; }",
        ),
    ]);
    let path = text(directory.path());
    let warned = |types: &str| run(&["validate", "--require-known", types, path]).out;
    let out = warned("User,Docs::Doc,Nope");
    for line in [
        "`require_known` names the entity type `Nope`, which the schema does not declare",
        "`require_known` names the entity type `User`, which the schema does not declare",
        "did you mean `Docs::User`?",
        "2 warnings",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    for types in ["Docs::User,Docs::Doc", "*"] {
        assert!(warned(types).contains(" 0 warnings"), "{types}");
    }
}

#[test]
fn impossible_policies_are_shown_at_their_scope() {
    for policy in [
        "@id(\"x\")\n@description(\"y\")\npermit (principal is Doc, action, resource);",
        "@id(\"x\")\n\nforbid (principal, action, resource is User);",
        "@permit(\"x\") @b(\"y\")\n//\npermit (principal, action, resource) when { false };",
    ] {
        let directory = policy_directory(&[("a.cedar", policy), ("a.cedarschema", SCHEMA)]);
        let result = run(&["validate", text(directory.path())]);
        assert!(result.out.contains("policy is impossible"), "{result:?}");
        assert!(result.out.contains("--> a.cedar:3:1"), "{}", result.out);
    }
}

#[test]
fn types_that_cannot_match_are_warnings() {
    for (condition, says) in [
        (
            "context.country in [\"AA\", \"BB\"]",
            "`in` needs entities on the right, not a String",
        ),
        (
            "context.n in 7",
            "`in` needs entities on the right, not a Long",
        ),
        (
            "\"a\" in principal",
            "`in` needs an entity on the left, not a String",
        ),
        ("1 == \"1\"", "`==` compares a Long with a String"),
        (
            "context.n < \"9\"",
            "`<` needs numbers, datetimes or durations, not a String",
        ),
        ("context.n + true == 3", "`+` needs numbers, not a Bool"),
        ("7 like \"7*\"", "`like` needs a String, not a Long"),
        ("context.a && \"b\"", "`&&` needs a Bool, not a String"),
        (
            "\"abc\".contains(\"b\")",
            "`contains` needs a Set, not a String",
        ),
    ] {
        for effect in ["permit", "forbid"] {
            let policy = format!(
                "@id(\"p\") {effect} (principal, action, resource)\nwhen {{ {condition} }};"
            );
            let directory = policy_directory(&[("a.cedar", &*policy)]);
            let result = run(&["validate", text(directory.path())]);
            assert_eq!(result.code, 0, "{condition}: {result:?}");
            assert!(
                result.out.contains(&format!("policy `p`: {says}")),
                "{condition}: {}",
                result.out
            );
            assert!(
                result.out.contains("a.cedar:2:"),
                "{condition}: {}",
                result.out
            );
        }
    }
    for condition in [
        "context.country in [Group::\"a\", context.group]",
        "context.n == 1 && context.s like \"a*\"",
        "decimal(\"1.0\") == context.d || datetime(\"2024-01-01\") < context.now",
        "[1, 2].contains(context.n) && (1 + 2 == context.n)",
    ] {
        let policy = format!("permit (principal, action, resource) when {{ {condition} }};");
        let directory = policy_directory(&[("a.cedar", &*policy)]);
        let result = run(&["validate", text(directory.path())]);
        assert!(
            !result.out.contains("needs") && !result.out.contains("compares"),
            "{}",
            result.out
        );
    }
}

#[test]
fn fmt_formats_files_in_place() {
    let directory = policy_directory(&[
        ("a.cedar", "permit(principal,action,resource);// all\n"),
        ("sub/b.cedar", "permit (principal, action, resource);\n"),
    ]);
    symlink("../a.cedar", directory.path().join("sub/link.cedar")).unwrap();
    let check = || run(&["fmt", "--check", text(directory.path())]);
    let first = check();
    assert_eq!(first.code, 1, "{first:?}");
    assert!(first.out.contains("not formatted: a.cedar") && !first.out.contains("sub/b.cedar"));
    let formatted = run(&["fmt", text(directory.path())]);
    assert_eq!(formatted.code, 0, "{formatted:?}");
    let content = fs::read_to_string(directory.path().join("a.cedar")).unwrap();
    assert!(
        content.starts_with("permit (principal, action, resource);"),
        "{content}"
    );
    assert!(content.contains("// all"), "{content}");
    assert!(
        fs::symlink_metadata(directory.path().join("sub/link.cedar"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(check().code, 0);
    // A file that is not valid is left as it is.
    fs::write(directory.path().join("a.cedar"), "permit(").unwrap();
    let broken = run(&["fmt", text(directory.path())]);
    assert!(
        broken.code == 1 && broken.err.contains("a.cedar: "),
        "{broken:?}"
    );
    assert_eq!(
        fs::read_to_string(directory.path().join("a.cedar")).unwrap(),
        "permit("
    );
}
