//! [`Trie`]: blocks of tokens, each below the one it follows, and a root per salt.
//!
//! The children of a node are in the order of their tokens and found by comparing these. Nothing is hashed:
//! no text can be taken for another, and none can be made that is slow to find.

use crate::kernels::PAGE_TOKENS;
use std::ops::{Index, IndexMut};

/// A value of type `T` for each block. Numbers of nodes are used again.
#[derive(Debug, Default)]
pub(super) struct Trie<T> {
    nodes: Vec<Node<T>>,
    unused: Vec<usize>,
    /// In the order of their salts; none without children.
    roots: Vec<(Option<Box<str>>, usize)>,
}

#[derive(Debug)]
struct Node<T> {
    /// Of a root, none that anybody looks at.
    tokens: [u32; PAGE_TOKENS],
    parent: Option<usize>,
    /// In the order of their tokens.
    children: Vec<usize>,
    value: T,
}

impl<T: Default> Trie<T> {
    /// Blocks.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.unused.len() - self.roots.len()
    }

    /// The nodes of `tokens`' whole blocks, from the first, as far as there are any.
    pub(super) fn path(&self, salt: Option<&str>, tokens: &[u32]) -> Vec<usize> {
        let Ok(root) = self.root(salt) else { return Vec::new() };
        let mut node = self.roots[root].1;
        let mut path = Vec::new();
        for block in tokens.as_chunks().0 {
            let Ok(child) = self.child(node, block) else { break };
            node = self.nodes[node].children[child];
            path.push(node);
        }
        path
    }

    /// As [`Trie::path`], with those that were missing.
    pub(super) fn grow(&mut self, salt: Option<&str>, tokens: &[u32]) -> Vec<usize> {
        let blocks = tokens.as_chunks().0;
        let Some(first) = blocks.first() else { return Vec::new() };
        let root = self.root(salt).unwrap_or_else(|at| {
            let root = self.add(*first, None);
            self.roots.insert(at, (salt.map(Box::from), root));
            at
        });
        let mut node = self.roots[root].1;
        let mut path = Vec::with_capacity(blocks.len());
        for block in blocks {
            let child = self.child(node, block).unwrap_or_else(|at| {
                let child = self.add(*block, Some(node));
                self.nodes[node].children.insert(at, child);
                at
            });
            node = self.nodes[node].children[child];
            path.push(node);
        }
        path
    }

    /// The path that ends with `node`.
    pub(super) fn path_to(&self, node: usize) -> Vec<usize> {
        let above = |node: &usize| self.nodes[*node].parent;
        let mut path: Vec<usize> = std::iter::successors(Some(node), above).collect();
        path.pop(); // The root.
        path.reverse();
        path
    }

    /// Removes `node`, which nothing is below.
    pub(super) fn remove(&mut self, node: usize) {
        debug_assert!(self.nodes[node].children.is_empty());
        self.nodes[node].value = T::default();
        self.unused.push(node);
        match self.nodes[node].parent {
            None => self.roots.retain(|(_, root)| *root != node),
            Some(parent) => {
                self.nodes[parent].children.retain(|child| *child != node);
                if self.nodes[parent].parent.is_none() && self.nodes[parent].children.is_empty() {
                    self.remove(parent);
                }
            }
        }
    }

    fn add(&mut self, tokens: [u32; PAGE_TOKENS], parent: Option<usize>) -> usize {
        let node = Node { tokens, parent, children: Vec::new(), value: T::default() };
        match self.unused.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Where the root of `salt` is, or would be.
    fn root(&self, salt: Option<&str>) -> Result<usize, usize> {
        self.roots.binary_search_by(|(other, _)| other.as_deref().cmp(&salt))
    }

    /// Which child of `node` is `block`, or would be.
    fn child(&self, node: usize, block: &[u32; PAGE_TOKENS]) -> Result<usize, usize> {
        let children = &self.nodes[node].children;
        children.binary_search_by(|child| self.nodes[*child].tokens.cmp(block))
    }
}

impl<T> Index<usize> for Trie<T> {
    type Output = T;

    fn index(&self, node: usize) -> &T {
        &self.nodes[node].value
    }
}

impl<T> IndexMut<usize> for Trie<T> {
    fn index_mut(&mut self, node: usize) -> &mut T {
        &mut self.nodes[node].value
    }
}

#[cfg(test)]
impl<T: Default> Trie<T> {
    pub(super) fn is_unused(&self) -> bool {
        self.roots.is_empty() && self.unused.len() == self.nodes.len()
    }

    /// Salt and tokens of every path that ends with a value like this.
    pub(super) fn texts(&self, is_end: impl Fn(&T) -> bool) -> Vec<(Option<&str>, Vec<u32>)> {
        let mut texts = Vec::new();
        for (salt, root) in &self.roots {
            let mut open = vec![(*root, Vec::new())];
            while let Some((node, tokens)) = open.pop() {
                for child in &self.nodes[node].children {
                    let tokens = [&tokens[..], &self.nodes[*child].tokens].concat();
                    if is_end(&self[*child]) {
                        texts.push((salt.as_deref(), tokens.clone()));
                    }
                    open.push((*child, tokens));
                }
            }
        }
        texts
    }
}
