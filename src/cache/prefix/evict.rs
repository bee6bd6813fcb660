//! Which marks go first when pages are needed.
//!
//! Marks inside a turn that have a mark below come first, then all others; among these, the one whose last
//! use is longest ago. A use counts for the whole path and for the shorter prefix as the later one, so that
//! of marks on a path the deepest goes first. A mark goes whole: nothing can go on from half of one.

use super::{Block, Mark, PrefixCache};
use std::collections::BTreeSet;

/// Marks in the order in which they go.
#[derive(Debug, Default)]
pub(super) struct Order {
    marks: BTreeSet<Standing>,
    uses: u64,
}

/// False for those that go first; last use; node.
type Standing = (bool, u64, usize);

impl PrefixCache {
    /// Pages that are free once everything is evicted.
    pub(crate) fn evictable(&self) -> usize {
        self.cache.evictable_pages()
    }

    /// Evicts until `pages` pages of the pool are free. False, and nothing is evicted, when that cannot be.
    pub(crate) fn make_free(&mut self, pages: usize) -> bool {
        if self.cache.free_pages() + self.evictable() < pages {
            return false;
        }
        while self.cache.free_pages() < pages && self.evict(None) {}
        self.cache.free_pages() >= pages
    }

    /// Evicts the first mark in order, but not the one at `kept`; false when there is none.
    pub(super) fn evict(&mut self, kept: Option<usize>) -> bool {
        let mut nodes = self.order.marks.iter().map(|(.., node)| *node);
        let first = nodes.find(|node| Some(*node) != kept);
        first.inspect(|node| self.remove_mark(*node)).is_some()
    }

    /// Counts a use of the marks on `path`.
    pub(super) fn refresh(&mut self, path: &[usize]) {
        for node in path.iter().rev() {
            self.unlist(*node);
            self.order.uses += 1;
            self.trie[*node].used = self.order.uses;
            self.list(*node);
        }
    }

    /// Before what a node's standing depends on is changed: its marks and its use.
    pub(super) fn unlist(&mut self, node: usize) {
        if let Some(standing) = standing(&self.trie[node], node) {
            self.order.marks.remove(&standing);
        }
    }

    /// After it was changed.
    pub(super) fn list(&mut self, node: usize) {
        if let Some(standing) = standing(&self.trie[node], node) {
            self.order.marks.insert(standing);
        }
    }
}

fn standing(block: &Block, node: usize) -> Option<Standing> {
    let goes_first = |mark| mark == Mark::Inner && block.marks > 1;
    block.mark.map(|mark| (!goes_first(mark), block.used, node))
}
