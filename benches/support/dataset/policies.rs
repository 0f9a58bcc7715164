//! Schema, policies, templates and links as text.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use super::entities::{EntityKind, document_type, label};
use super::outline::{ActionScope, Condition, Link, Outline, Scope, VERBS};
use super::{Dataset, create, write_files};

impl Dataset {
    pub(super) fn write_policies(&self, directory: &Path) -> anyhow::Result<()> {
        create(&directory.join("schema.cedarschema"))?.write_all(self.schema().as_bytes())?;
        let policies = directory.join("policies");
        fs::create_dir(&policies)?;
        let is_link = |outline: &Outline| matches!(outline.scope, Scope::Link(_));
        write_files(
            self.numbered().filter(|(_, outline)| !is_link(outline)),
            |file| policies.join(policy_file(file)),
            ["", "\n", ""],
            |out, (n, outline)| out.write_all(self.policy(n, outline).as_bytes()),
        )?;
        create(&policies.join("templates.cedar"))?.write_all(templates().as_bytes())?;
        write_files(
            self.numbered().filter(|(_, outline)| is_link(outline)),
            |file| policies.join(format!("{file:04}.links.json")),
            ["[\n", ",\n", "\n]\n"],
            |out, (n, outline)| out.write_all(self.link(n, outline).as_bytes()),
        )
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &Outline)> {
        self.outlines.iter().enumerate()
    }

    fn schema(&self) -> String {
        let attributes =
            "{ title: String, level: Long, owner: User, labels?: Set<String>, remark?: String }";
        let mut text = format!(
            "entity Group in [Group] = {attributes};\n\
             entity User in [Group] = {attributes};\n\
             entity Folder in [Folder] = {attributes};\n\
             action viewing, changing;\n"
        );
        for n in 0..self.document_types {
            let document = document_type(n);
            let _ = writeln!(text, "entity {document} in [Folder] = {attributes};");
            for (verb, name) in VERBS.iter().enumerate() {
                let group = if verb == 0 { "viewing" } else { "changing" };
                let _ = writeln!(
                    text,
                    "action {name}{n:02} in [{group}] appliesTo {{\n  principal: User,\n  resource: {document},\n  \
                     context: {{ channel: String, mfa: Bool, amount: Long }},\n}};"
                );
            }
        }
        text
    }

    fn policy(&self, n: usize, outline: &Outline) -> String {
        let name = |kind, n| self.name(kind, n).to_string();
        let effect = if outline.is_permit {
            "permit"
        } else {
            "forbid"
        };
        let (mut principal, mut resource) = ("principal".to_owned(), "resource".to_owned());
        let mut lead = String::new();
        let mut in_group = |group: Option<usize>| {
            if let Some(group) = group {
                lead = format!("principal in {} && ", name(EntityKind::Group, group));
            }
        };
        let mut own = None;
        match outline.scope {
            Scope::Unscoped(n) => own = Some(self.unscoped(n)),
            Scope::Document(document) => {
                let _ = write!(resource, " == {}", name(EntityKind::Document, document));
            }
            Scope::InFolder(folder) => {
                let _ = write!(resource, " in {}", name(EntityKind::Folder, folder));
            }
            Scope::InGroup(group) => {
                let _ = write!(principal, " in {}", name(EntityKind::Group, group));
            }
            Scope::Type(of, group) => {
                let _ = write!(resource, " is {}", document_type(of));
                in_group(group);
            }
            Scope::Action(group) => in_group(group),
            // Written by `link`.
            Scope::Link(_) => {}
        }
        let action = action(outline.action);
        let condition = own.unwrap_or_else(|| condition(outline.condition, &lead));
        format!(
            "@id(\"{}\")\n{effect} ({principal}, {action}, {resource})\n{condition};\n",
            policy_id(n)
        )
    }

    /// Writes the `n`th policy without scope. Each permit requires an amount below
    /// [`AMOUNTS`](super::outline::AMOUNTS), and no forbid matches a request of a common channel
    /// with a second factor.
    fn unscoped(&self, n: usize) -> String {
        let name = |kind, n| self.name(kind, n).to_string();
        match n {
            0 => format!(
                "when {{ principal in {} && principal.level >= 95 && context.mfa && context.amount < 2000 }}",
                name(EntityKind::Group, 0)
            ),
            1 => "when { resource.owner == principal && context.amount < 9000 }".to_owned(),
            2 => format!(
                "when {{ principal in {} && resource in {} && context.amount < 5000 }}",
                name(EntityKind::Group, self.groups.len() / 50),
                name(EntityKind::Folder, self.folders.len() / 50)
            ),
            3 => "when { context.channel == \"support\" && principal.level >= 99 && context.amount < 1000 }"
                .to_owned(),
            4 => format!(
                "when {{ context.amount < 1000 && principal.level >= 98 && resource has labels && resource.labels.contains(\"{}\") }}",
                label(0)
            ),
            5 => "when { context.channel == \"outside\" }".to_owned(),
            6 => "when { context.amount > 50000 } unless { context.mfa }".to_owned(),
            _ => "when { context.channel == \"nightly\" && resource.level > 90 } unless { context.mfa }"
                .to_owned(),
        }
    }

    fn link(&self, n: usize, outline: &Outline) -> String {
        let Scope::Link(link) = outline.scope else {
            return String::new();
        };
        let json = |(kind, n)| {
            let name = self.name(kind, n);
            format!(r#"{}::\"{}\""#, name.type_name, name.id)
        };
        let [principal, resource] = link.slots().map(json);
        format!(
            r#"{{"template_id":"{}","link_id":"{}","args":{{"?principal":"{principal}","?resource":"{resource}"}}}}"#,
            link.template(),
            policy_id(n)
        )
    }
}

fn templates() -> String {
    [
        ("==", "in", Link::UserInFolder(0, 0)),
        ("in", "==", Link::GroupOnDocument(0, 0)),
        ("in", "in", Link::GroupInFolder(0, 0)),
        ("==", "==", Link::UserOnDocument(0, 0)),
    ]
    .map(|(principal, resource, link)| {
        format!(
            "@id(\"{}\")\npermit (principal {principal} ?principal, {}, resource {resource} ?resource)\n{};\n",
            link.template(),
            action(link.action()),
            condition(link.condition(), ""),
        )
    })
    .join("\n")
}

fn action(scope: ActionScope) -> String {
    match scope {
        ActionScope::Any => "action".to_owned(),
        ActionScope::Viewing => "action in Action::\"viewing\"".to_owned(),
        ActionScope::Changing => "action in Action::\"changing\"".to_owned(),
        ActionScope::Is(verb, of) => format!("action == Action::\"{}\"", action_id(verb, of)),
    }
}

fn condition(condition: Condition, lead: &str) -> String {
    match condition {
        Condition::LevelOfPrincipal { below } => {
            format!(
                "when {{ {lead}principal.level >= resource.level && context.amount < {below} }}"
            )
        }
        Condition::Label { label: n, below } => format!(
            "when {{ {lead}context.amount < {below} && resource has labels && resource.labels.contains(\"{}\") }}",
            label(n)
        ),
        Condition::Mfa { most_level, below } => format!(
            "when {{ {lead}context.mfa && context.amount < {below} }}\nunless {{ resource.level > {most_level} }}"
        ),
        Condition::LevelOfOwner { least, below } => {
            format!("when {{ {lead}resource.owner.level >= {least} && context.amount < {below} }}")
        }
        Condition::Outside => format!("when {{ {lead}context.channel == \"outside\" }}"),
        Condition::GreatWithoutMfa { above } => {
            format!("when {{ {lead}context.amount > {above} }}\nunless {{ context.mfa }}")
        }
        // Written by `unscoped`.
        Condition::Own => String::new(),
    }
}

pub fn action_id(verb: usize, document_type: usize) -> String {
    let verb = VERBS.get(verb).copied().unwrap_or_default();
    format!("{verb}{document_type:02}")
}

/// Returns the name of the `n`th file in `policies`.
pub fn policy_file(n: usize) -> String {
    format!("{n:04}.cedar")
}

fn policy_id(n: usize) -> String {
    format!("policy-{n:08}")
}
