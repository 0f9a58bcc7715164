//! Groups, or folders: eight levels, each four times the size of the level above.

use super::entities::EntityKind;
use super::rng;
use super::rng::Rng;

const LEVELS: usize = 8;
const GROWTH: usize = 4;
/// The number of parents of one in a hundred entities.
pub const MANY_PARENTS: usize = 50;
/// The many parents of an entity are within this distance: a user in 50 groups is so in one part of
/// an organisation. Scattered parents would have too many ancestors.
const NEIGHBOURHOOD: usize = 400;

/// Containers by number, the highest level first.
#[derive(Debug)]
pub struct Hierarchy {
    kind: EntityKind,
    /// The start of each level, and the end of the last.
    begins: [usize; LEVELS + 1],
}

impl Hierarchy {
    pub fn new(kind: EntityKind, containers: usize) -> Self {
        let mut begins = [0; LEVELS + 1];
        let mut left = containers;
        for (above, begin) in begins.iter_mut().enumerate().rev() {
            *begin = left;
            // The levels above share the rest, and need at least one each.
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

    /// Returns the level of container `n` and the one above as `(above, level, end)`.
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

    /// Returns the parents of container `n`; none on the highest level.
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
        // Neighbours of the parent in the tree, as far as there are any.
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

    /// Draws the containers of a user or document.
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

    /// Returns `parents` and all their ancestors, sorted.
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
