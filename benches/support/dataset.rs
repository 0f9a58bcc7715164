//! A platform's policies and entities in any number, from a seed: the same on every machine.
//!
//! Everything is a function of the seed and a number, so only the policies' outlines are in memory:
//! entity 700,000 is generated when it is written, and again when a request needs it.
//!
//! | what | how |
//! | --- | --- |
//! | entities | users in groups, documents of some types in folders; 35 in 400 are groups, as many folders |
//! | attributes | a text of 12 to 36 bytes, a long, a uid, a set of 3; one in eight lacks the set, one in eight has a second text: the mean is 4 |
//! | ids | 20 to 36 bytes |
//! | parents | users and documents 1 to 3, equally often; groups and folders 1 (70 %), 2 (20 %) or 3 (10 %); one in a hundred of all has 50, near each other |
//! | depth | 8 levels of groups and of folders above a user and a document, three quarters of them on the lowest |
//! | policies | 60 % `resource ==` or `in`, 25 % `principal in`, 10 % links of 4 templates, 5 % `resource is` or `action ==` only (nine in ten of these begin `when { principal in …`); 8 without any scope, 5 permits and 3 forbids; one in ten scoped policies forbids |
//! | requests | principals and documents by Zipf (1.0), each ranked in an order of its own; three context attributes; half are made so that a permit holds and half so that none does |

mod entities;
mod hierarchy;
mod outline;
mod policies;
mod requests;
mod rng;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::ensure;

pub use entities::EntityKind;
pub use policies::policy_file;
pub use requests::DrawnRequest;

use hierarchy::Hierarchy;
use outline::Outline;
pub use rng::Rng;

/// Policies, links or entities per file.
pub const PER_FILE: usize = 1_000;
/// Fewer entities cannot fill the eight levels.
pub const LEAST_ENTITIES: usize = 200;
/// Policies without scope, and the minimum of policies.
pub const UNSCOPED_POLICIES: usize = 8;

/// An arbitrary number, fixed to make the figures repeatable.
const SEED: u64 = 0x0ced_a12d;

/// The content of a policy directory.
pub struct Dataset {
    groups: Hierarchy,
    folders: Hierarchy,
    users: usize,
    documents: usize,
    document_types: usize,
    outlines: Vec<Outline>,
}

impl Dataset {
    /// Creates a data set with this many policies (including links, not templates) and entities.
    pub fn new(policies: usize, entities: usize) -> anyhow::Result<Self> {
        ensure!(
            policies >= UNSCOPED_POLICIES && entities >= LEAST_ENTITIES,
            "a data set has at least {UNSCOPED_POLICIES} policies and {LEAST_ENTITIES} entities"
        );
        let containers = entities * 35 / 400;
        let leaves = entities - 2 * containers;
        let mut dataset = Self {
            groups: Hierarchy::new(EntityKind::Group, containers),
            folders: Hierarchy::new(EntityKind::Folder, containers),
            users: leaves / 2,
            documents: leaves - leaves / 2,
            // With more types, validating a policy without a type would take longer: the validator
            // looks at each action with each of its types.
            document_types: (policies / 1_000).clamp(2, 20),
            outlines: Vec::new(),
        };
        dataset.outlines = (0..policies).map(|n| Outline::new(&dataset, n)).collect();
        Ok(dataset)
    }

    /// Writes everything to `directory`, which must be empty or missing.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        ensure!(
            fs::read_dir(directory)?.next().is_none(),
            "`{}` is not empty",
            directory.display()
        );
        self.write_policies(directory)?;
        self.write_entities(directory)
    }

    /// Counts the ancestors of some thousand users and documents.
    pub fn ancestors(&self) -> Vec<usize> {
        let of = |kind, hierarchy: &Hierarchy, count: usize| -> Vec<usize> {
            (0..count)
                .step_by((count / 2_000).max(1))
                .map(|n| hierarchy.with_ancestors(self.parents(kind, n)).len())
                .collect()
        };
        let mut all = of(EntityKind::User, &self.groups, self.users);
        all.extend(of(EntityKind::Document, &self.folders, self.documents));
        all
    }

    pub fn policies(&self) -> usize {
        self.outlines.len()
    }

    pub fn entities(&self) -> usize {
        self.groups.len() + self.folders.len() + self.users + self.documents
    }
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    Ok(BufWriter::with_capacity(1 << 18, File::create(path)?))
}

/// Returns the generator of the `n`th item of a kind.
fn rng(kind: u64, n: usize) -> Rng {
    Rng::new(SEED ^ (kind << 56) ^ n as u64)
}

/// Writes `items` to files of [`PER_FILE`], each between `open` and `close` and separated by
/// `between`.
fn write_files<T>(
    items: impl Iterator<Item = T>,
    name: impl Fn(usize) -> std::path::PathBuf,
    [open, between, close]: [&str; 3],
    mut write: impl FnMut(&mut BufWriter<File>, T) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut items = items.peekable();
    let mut file = 0;
    while items.peek().is_some() {
        let mut out = create(&name(file))?;
        file += 1;
        out.write_all(open.as_bytes())?;
        for (n, item) in items.by_ref().take(PER_FILE).enumerate() {
            if n > 0 {
                out.write_all(between.as_bytes())?;
            }
            write(&mut out, item)?;
        }
        out.write_all(close.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}
