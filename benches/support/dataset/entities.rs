//! Entities by kind and number, and their JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use cedar_pdp::pdp::query::{Record, RequestEntity, Uid, Value};

use super::{Dataset, PER_FILE, rng, write_files};

/// The number of labels; an entity has three.
pub const LABELS: usize = 12;
/// Entity levels are below this number.
pub const LEVELS: usize = 100;

const USER: &str = "User";
const GROUP: &str = "Group";
const FOLDER: &str = "Folder";

/// The kind of an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntityKind {
    User,
    Group,
    Folder,
    Document,
}

impl EntityKind {
    /// Returns the kind of their parents.
    fn container(self) -> Self {
        match self {
            Self::User | Self::Group => Self::Group,
            Self::Document | Self::Folder => Self::Folder,
        }
    }
}

/// An entity's type and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub type_name: String,
    pub id: String,
}

/// Writes a uid in Cedar syntax; ids need no escapes.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::\"{}\"", self.type_name, self.id)
    }
}

/// The attributes of an entity.
pub struct Attributes {
    text: String,
    pub level: usize,
    /// The number of a user.
    pub owner: usize,
    pub labels: Option<[usize; 3]>,
    remark: Option<String>,
}

impl Dataset {
    pub fn name(&self, kind: EntityKind, n: usize) -> Name {
        let (type_name, prefix) = match kind {
            EntityKind::User => (USER.to_owned(), "usr"),
            EntityKind::Group => (GROUP.to_owned(), "grp"),
            EntityKind::Folder => (FOLDER.to_owned(), "fld"),
            EntityKind::Document => (document_type(self.document_type(n)), "doc"),
        };
        let mut rng = rng(1 + kind as u64, n);
        let id = filled(format!("{prefix}-{n:08}-"), rng.between(20, 36), rng.next());
        Name { type_name, id }
    }

    pub fn document_type(&self, document: usize) -> usize {
        document % self.document_types
    }

    pub fn attributes(&self, kind: EntityKind, n: usize) -> Attributes {
        let mut rng = rng(5 + kind as u64, n);
        let mut text = |opening: &str| {
            let (bytes, seed) = (rng.between(12, 36), rng.next());
            filled(opening.to_owned(), bytes, seed)
        };
        let title = text("Title ");
        let remark = (n % 8 == 4).then(|| text("Remark "));
        let first = rng.below(LABELS);
        Attributes {
            text: title,
            level: rng.below(LEVELS),
            owner: rng.below(self.users),
            labels: (!n.is_multiple_of(8)).then(|| [0, 1, 4].map(|step| (first + step) % LABELS)),
            remark,
        }
    }

    /// Returns the direct groups of a user, or the folders of a document.
    pub fn parents(&self, kind: EntityKind, n: usize) -> Vec<usize> {
        match kind {
            EntityKind::User => self.groups.parents_of_leaf(&mut rng(10, n)),
            EntityKind::Document => self.folders.parents_of_leaf(&mut rng(11, n)),
            EntityKind::Group => self.groups.parents_of_container(n),
            EntityKind::Folder => self.folders.parents_of_container(n),
        }
    }

    /// Builds the entity as a part of a request.
    pub fn request_entity(&self, kind: EntityKind, n: usize) -> RequestEntity {
        let uid = |name: Name| Uid::new(name.type_name, name.id);
        let attributes = self.attributes(kind, n);
        let mut fields = BTreeMap::from([
            ("title".to_owned(), Value::String(attributes.text)),
            ("level".to_owned(), Value::Long(attributes.level as i64)),
            (
                "owner".to_owned(),
                Value::Entity(uid(self.name(EntityKind::User, attributes.owner))),
            ),
        ]);
        if let Some(labels) = attributes.labels {
            let labels = labels.map(|n| Value::String(label(n))).to_vec();
            fields.insert("labels".to_owned(), Value::Set(labels));
        }
        if let Some(remark) = attributes.remark {
            fields.insert("remark".to_owned(), Value::String(remark));
        }
        RequestEntity {
            uid: uid(self.name(kind, n)),
            attributes: Record::from(fields),
            parents: self
                .parents(kind, n)
                .into_iter()
                .map(|parent| uid(self.name(kind.container(), parent)))
                .collect(),
            tags: Record::default(),
        }
    }

    /// Returns the path of an entity's file below `entities`.
    pub fn file_of(&self, kind: EntityKind, n: usize) -> String {
        let before = match kind {
            EntityKind::User => 0,
            EntityKind::Document => self.users,
            EntityKind::Group => self.users + self.documents,
            EntityKind::Folder => self.users + self.documents + self.groups.len(),
        };
        entity_file((before + n) / PER_FILE)
    }

    /// Returns a group of the highest level that contains the user indirectly.
    pub fn highest_group_of(&self, user: usize) -> Option<usize> {
        let parents = self.parents(EntityKind::User, user);
        // Containers of the highest level have the lowest numbers.
        self.groups.with_ancestors(parents).first().copied()
    }

    pub(super) fn write_entities(&self, directory: &Path) -> anyhow::Result<()> {
        let directory = directory.join("entities");
        fs::create_dir(&directory)?;
        let of = |kind, count| (0..count).map(move |n| (kind, n));
        let all = of(EntityKind::User, self.users)
            .chain(of(EntityKind::Document, self.documents))
            .chain(of(EntityKind::Group, self.groups.len()))
            .chain(of(EntityKind::Folder, self.folders.len()));
        write_files(
            all,
            |file| directory.join(entity_file(file)),
            ["[\n", ",\n", "\n]\n"],
            |out, (kind, n)| self.write_entity(out, kind, n),
        )
    }

    fn write_entity(&self, out: &mut impl Write, kind: EntityKind, n: usize) -> io::Result<()> {
        let json = |name: Name| format!(r#"{{"type":"{}","id":"{}"}}"#, name.type_name, name.id);
        let attributes = self.attributes(kind, n);
        write!(
            out,
            r#"{{"uid":{},"attrs":{{"title":"{}","level":{},"owner":{{"__entity":{}}}"#,
            json(self.name(kind, n)),
            attributes.text,
            attributes.level,
            json(self.name(EntityKind::User, attributes.owner)),
        )?;
        if let Some([a, b, c]) = attributes.labels.map(|labels| labels.map(label)) {
            write!(out, r#","labels":["{a}","{b}","{c}"]"#)?;
        }
        if let Some(remark) = attributes.remark {
            write!(out, r#","remark":"{remark}""#)?;
        }
        out.write_all(br#"},"parents":["#)?;
        for (at, parent) in self.parents(kind, n).into_iter().enumerate() {
            if at > 0 {
                out.write_all(b",")?;
            }
            out.write_all(json(self.name(kind.container(), parent)).as_bytes())?;
        }
        out.write_all(b"]}")
    }
}

/// Returns the name of the `n`th file in `entities`.
fn entity_file(n: usize) -> String {
    format!("{n:04}.entities.json")
}

pub fn label(n: usize) -> String {
    format!("label-{n:02}")
}

pub fn document_type(n: usize) -> String {
    format!("Document{n:02}")
}

/// Pads `text` with letters and digits to `bytes` bytes.
fn filled(mut text: String, bytes: usize, seed: u64) -> String {
    let mut rng = super::Rng::new(seed);
    while text.len() < bytes {
        let block = format!("{:016x}", rng.next());
        text.extend(block.chars().take(bytes - text.len()));
    }
    text
}
