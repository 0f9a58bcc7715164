//! Policies, schema and entities of a staff whose users present tokens.

/// Members of the role read, finance writes, suspended users may do nothing.
pub const POLICIES: &str = r#"
@id("role") permit(principal in Role::"reader", action == Action::"read", resource);
@id("department") permit(principal, action == Action::"write", resource)
when { principal.department == "finance" };
@id("stored") permit(principal in Team::"red", action == Action::"paint", resource);
@id("suspended") forbid(principal, action, resource)
when { principal has suspended && principal.suspended };
"#;

const SCHEMA: &str = r#"
entity Role in [Role];
entity Team;
entity User in [Role, Team] = { department: String, suspended?: Bool, level?: Long, scopes?: Set<String> };
entity Doc;
action read, write, paint appliesTo { principal: User, resource: Doc };
"#;

pub const ENTITIES: &str = r#"[
{"uid": {"type": "User", "id": "stored"}, "attrs": {"department": "sales"}, "parents": [{"type": "Team", "id": "red"}]},
{"uid": {"type": "User", "id": "suspended"}, "attrs": {"department": "sales", "suspended": true}, "parents": []},
{"uid": {"type": "Role", "id": "chief"}, "attrs": {}, "parents": [{"type": "Role", "id": "reader"}]}
]"#;

/// The files of the policy directory.
pub const FILES: &[(&str, &str)] = &[
    ("policies.cedar", POLICIES),
    ("schema.cedarschema", SCHEMA),
    ("entities.json", ENTITIES),
];
