//! Groups, or folders: eight levels, each four times the one above it.

use super::entities::EntityKind;
use super::rng;
use super::rng::Rng;

const LEVELS: usize = 8;
const GROWTH: usize = 4;
/// Of one in a hundred entities.
pub const MANY_PARENTS: usize = 50;
/// The many parents of a user or document lie so near each other, counted in containers: someone
/// who is in 50 groups is so in one part of a house. Scattered ones would have more ancestors than
/// an entity may have.
const NEIGHBOURHOOD: usize = 400;

/// Containers by number, those of the highest level first.
#[derive(Debug)]
pub struct Hierarchy {
    kind: EntityKind,
    /// Where each level begins, and after the last where it ends.
    begins: [usize; LEVELS + 1],
}

impl Hierarchy {
    pub fn new(kind: EntityKind, containers: usize) -> Self {
        let mut begins = [0; LEVELS + 1];
        let mut left = containers;
        for (above, begin) in begins.iter_mut().enumerate().rev() {
            *begin = left;
            // What remains for the levels above, of which each needs one at the least.
            left = (left / GROWTH).max(above.saturating_sub(1));
        }
        if let Some(first) = begins.first_mut() {
            *first = 0;
        }
        Self { kind, begins }
    }

    pub fn len(&self) -> usize {
        self.begins.last().copied().unwrap_or(0)
    }

    /// Where the level of container `n`, and the one above, begin and end: `(above, level, end)`.
    fn level(&self, n: usize) -> (usize, usize, usize) {
        let mut above = 0;
        let mut begin = 0;
        for &end in &self.begins {
            if n < end {
                return (above, begin, end);
            }
            (above, begin) = (begin, end);
        }
        (above, begin, begin)
    }

    /// The containers that container `n` is in; none for those on the highest level.
    pub fn parents_of_container(&self, n: usize) -> Vec<usize> {
        let (above, level, end) = self.level(n);
        if level == 0 {
            return Vec::new();
        }
        let mut rng = rng(16 + self.kind as u64, n);
        let tree_parent = above + (n - level) * (level - above) / (end - level);
        let mut parents = vec![tree_parent];
        let (nearby, more) = match rng.below(100) {
            0 => (MANY_PARENTS, MANY_PARENTS - 1),
            1..=70 => (GROWTH, 0),
            71..=90 => (GROWTH, 1),
            _ => (GROWTH, 2),
        };
        // The neighbours of the tree's parent, as far as there are any.
        let first =
            (tree_parent - (tree_parent - above) % nearby).min(level.saturating_sub(nearby));
        for neighbour in first.max(above)..level {
            if parents.len() > more {
                break;
            }
            if neighbour != tree_parent {
                parents.push(neighbour);
            }
        }
        parents
    }

    /// The containers that a user or document is in whose rng this is.
    pub fn parents_of_leaf(&self, rng: &mut Rng) -> Vec<usize> {
        let (count, nearby) = match rng.below(100) {
            0 => (MANY_PARENTS, NEIGHBOURHOOD),
            _ => (rng.between(1, 3), self.len()),
        };
        let nearby = nearby.min(self.len());
        let first = rng.below(self.len() - nearby + 1);
        let mut parents = Vec::with_capacity(count);
        while parents.len() < count.min(nearby) {
            let parent = first + rng.below(nearby);
            if !parents.contains(&parent) {
                parents.push(parent);
            }
        }
        parents
    }

    /// `parents` and all that they are in, sorted.
    pub fn with_ancestors(&self, parents: Vec<usize>) -> Vec<usize> {
        let mut found = parents.clone();
        let mut ahead = parents;
        while let Some(container) = ahead.pop() {
            for parent in self.parents_of_container(container) {
                if !found.contains(&parent) {
                    found.push(parent);
                    ahead.push(parent);
                }
            }
        }
        found.sort_unstable();
        found
    }
}
