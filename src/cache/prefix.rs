//! [`PrefixCache`]: beginnings of texts whose keys and values are kept, for whoever begins alike.
//!
//! Texts are cut into blocks of [`PAGE_TOKENS`] tokens, which form a trie (`trie`) with a root per salt, so
//! that tenants never meet. A **mark** is the end of a block, a position `p`, at which a sequence can go on. It
//! needs, of a layer with window `W`, the pages that a token at `p` sees: all without a window, two with
//! `W` = 128. A block holds pages for the marks at and below it and no others; it lives as long as there
//! are any.
//!
//! A page has one reference of the cache, beside those of sequences. Nothing that is in use is pinned: a mark
//! can be evicted at any time (`evict`), and what a sequence resumed from it holds stays with the sequence.
//! Blocks are whole, and sequences go on at their ends, so that nobody writes to cached pages.

mod evict;
mod trie;

use super::need::first_visible_page;
use super::{KvCache, Sequence};
use crate::kernels::{NO_PAGE, PAGE_TOKENS};
use evict::Order;
use trie::Trie;

/// What a mark is for, which decides how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// Inside a turn: what a loop of tool calls goes on from. Once there is a mark beyond it, the next
    /// replaces it or pages that are needed do.
    Inner,
    /// What other texts may go on from as well: the end of a system prompt or of a turn.
    Turn,
}

/// The prefixes kept of sequences of one pool, which has no other prefix cache.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    cache: KvCache,
    most_pages: usize,
    /// Windows that layers have, each once, and which of them each layer has.
    windows: Vec<Option<usize>>,
    window_of: Vec<usize>,
    trie: Trie<Block>,
    order: Order,
}

#[derive(Debug, Default)]
struct Block {
    /// Of each layer; [`NO_PAGE`] for layers with a window that no mark wants.
    pages: Box<[u32]>,
    /// How many marks want pages of layers with this window.
    wants: Box<[u32]>,
    /// That ends here.
    mark: Option<Mark>,
    /// When `mark` was last used, see [`Order`].
    used: u64,
    /// Here and below.
    marks: usize,
}

impl PrefixCache {
    /// Keeps prefixes of sequences of `cache`, in at most `most_pages` pages and as many blocks.
    pub(crate) fn new(cache: &KvCache, most_pages: usize) -> PrefixCache {
        let (mut windows, mut window_of) = (Vec::new(), Vec::new());
        for window in (0..cache.layers()).map(|layer| cache.window(layer)) {
            let known = windows.iter().position(|other| *other == window);
            window_of.push(known.unwrap_or(windows.len()));
            if known.is_none() {
                windows.push(window);
            }
        }
        let (trie, order) = (Trie::default(), Order::default());
        PrefixCache { cache: cache.clone(), most_pages, windows, window_of, trie, order }
    }

    /// The last position of `tokens` that a sequence can go on from, with a token at least left to feed.
    pub(crate) fn cached(&self, salt: Option<&str>, tokens: &[u32]) -> usize {
        let path = self.trie.path(salt, all_but_last(tokens));
        self.last_mark(&path) * PAGE_TOKENS
    }

    /// A sequence that holds the first [`PrefixCache::cached`] of `tokens`, which counts as a use of them.
    pub(crate) fn resume(&mut self, salt: Option<&str>, tokens: &[u32]) -> Sequence {
        let mut path = self.trie.path(salt, all_but_last(tokens));
        let blocks = self.last_mark(&path);
        path.truncate(blocks);
        self.refresh(&path);
        let table = |layer: usize| {
            let first = first_visible_page(self.cache.window(layer), blocks * PAGE_TOKENS);
            let page = |(block, node): (usize, &usize)| match block < first {
                true => NO_PAGE,
                false => self.trie[*node].pages[layer],
            };
            path.iter().enumerate().map(page).collect()
        };
        let tables = (0..self.cache.layers()).map(table).collect();
        Sequence::resumed(self.cache.clone(), blocks * PAGE_TOKENS, tables)
    }

    /// The positions beyond `from`, ascending, at which marks are to be made when `tokens` is fed from there:
    /// the last block ends before those that are `wanted`, and the end of what is known of `tokens` without a
    /// mark to go on from, because it is met a second time.
    pub(crate) fn marks(
        &self,
        salt: Option<&str>,
        tokens: &[u32],
        from: usize,
        wanted: &[(usize, Mark)],
    ) -> Vec<(usize, Mark)> {
        let known = self.trie.path(salt, tokens);
        let again = (known.len() > self.last_mark(&known))
            .then_some((known.len() * PAGE_TOKENS, Mark::Turn));
        let wanted = wanted.iter().map(|(at, mark)| (at / PAGE_TOKENS * PAGE_TOKENS, *mark));
        let can_be = |(at, _): &(usize, Mark)| *at > from && *at <= tokens.len() && self.fits(*at);
        let mut marks: Vec<_> = wanted.chain(again).filter(can_be).collect();
        // Of two at a position, the one that is kept longer.
        marks.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        marks.dedup_by_key(|(at, _)| *at);
        marks
    }

    /// Makes a mark at the last block end before `position` of `sequence`, which holds what a token there
    /// sees and whose first tokens are `tokens`; else nothing is done, nor for a mark that would not fit.
    ///
    /// A mark inside a turn takes the place of the one at `replaces`, if that is inside a turn too and
    /// before it.
    pub(crate) fn insert(
        &mut self,
        salt: Option<&str>,
        tokens: &[u32],
        sequence: &Sequence,
        position: usize,
        mark: Mark,
        replaces: Option<usize>,
    ) {
        let position = position / PAGE_TOKENS * PAGE_TOKENS;
        let is_held = sequence.cache().same_pool(&self.cache) && sequence.can_truncate(position);
        if position == 0 || position > tokens.len() || !is_held || !self.fits(position) {
            return;
        }
        let path = self.trie.grow(salt, &tokens[..position]);
        self.add(&path, sequence, mark);
        self.refresh(&path);
        let replaced = replaces.filter(|_| mark == Mark::Inner).unwrap_or(0) / PAGE_TOKENS;
        if (1..path.len()).contains(&replaced)
            && self.trie[path[replaced - 1]].mark == Some(Mark::Inner)
        {
            self.remove_mark(path[replaced - 1]);
        }
        while self.cache.cached_pages() > self.most_pages || self.trie.len() > self.most_pages {
            if !self.evict(path.last().copied()) {
                break;
            }
        }
    }

    /// Removes the mark that ends at `position` of `tokens`, if there is one.
    pub(crate) fn remove(&mut self, salt: Option<&str>, tokens: &[u32], position: usize) {
        let blocks = position / PAGE_TOKENS;
        let path = self.trie.path(salt, &tokens[..tokens.len().min(position)]);
        if let Some(node) = path.last().filter(|_| path.len() == blocks)
            && self.trie[*node].mark.is_some()
        {
            self.remove_mark(*node);
        }
    }

    /// Removes the marks on `tokens` that no other text goes on from, as of a conversation that is over.
    pub(crate) fn remove_branch(&mut self, salt: Option<&str>, tokens: &[u32]) {
        for node in self.trie.path(salt, tokens).into_iter().rev() {
            match (self.trie[node].mark, self.trie[node].marks) {
                (Some(_), 1) => self.remove_mark(node),
                (Some(_), _) => break,
                (None, _) => {}
            }
        }
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        while self.evict(None) {}
    }

    /// Pages that it holds, shared with sequences or not.
    pub(crate) fn pages(&self) -> usize {
        self.cache.cached_pages()
    }

    /// Whether a mark at `position` has room when there is no other.
    fn fits(&self, position: usize) -> bool {
        position / PAGE_TOKENS <= self.most_pages
            && self.cache.windows().held(position) <= self.most_pages
    }

    /// How many blocks of `path` end with the last mark.
    fn last_mark(&self, path: &[usize]) -> usize {
        path.iter().rposition(|node| self.trie[*node].mark.is_some()).map_or(0, |block| block + 1)
    }

    /// Makes `path` end with a mark, and holds pages of `sequence` that no mark wanted before.
    fn add(&mut self, path: &[usize], sequence: &Sequence, mark: Mark) {
        let Some(last) = path.last() else { return };
        if let Some(there) = self.trie[*last].mark {
            self.unlist(*last);
            self.trie[*last].mark = Some(there.max(mark));
            self.list(*last);
            return;
        }
        let first = self.first_pages(path.len());
        let mut new = Vec::new();
        for (index, node) in path.iter().enumerate() {
            self.unlist(*node);
            let block = &mut self.trie[*node];
            if block.wants.is_empty() {
                block.wants = vec![0; self.windows.len()].into();
                block.pages = vec![NO_PAGE; self.window_of.len()].into();
            }
            for (layer, window) in self.window_of.iter().enumerate() {
                if index >= first[*window] && block.wants[*window] == 0 {
                    block.pages[layer] = sequence.page_table(layer)[index];
                    new.push(block.pages[layer]);
                }
            }
            for (wants, first) in block.wants.iter_mut().zip(&first) {
                *wants += u32::from(index >= *first);
            }
            block.marks += 1;
            if node == last {
                block.mark = Some(mark);
            }
            self.list(*node);
        }
        self.cache.retain_cached(&new);
    }

    /// Removes the mark that ends at `node`, and what nobody wants any more.
    fn remove_mark(&mut self, node: usize) {
        let path = self.trie.path_to(node);
        let first = self.first_pages(path.len());
        let mut unwanted = Vec::new();
        for (index, at) in path.iter().enumerate().rev() {
            self.unlist(*at);
            let block = &mut self.trie[*at];
            for (wants, first) in block.wants.iter_mut().zip(&first) {
                *wants -= u32::from(index >= *first);
            }
            for (page, window) in block.pages.iter_mut().zip(&self.window_of) {
                if *page != NO_PAGE && block.wants[*window] == 0 {
                    unwanted.push(std::mem::replace(page, NO_PAGE));
                }
            }
            block.marks -= 1;
            if *at == node {
                block.mark = None;
            }
            match block.marks {
                0 => self.trie.remove(*at),
                _ => self.list(*at),
            }
        }
        self.cache.release_cached(&unwanted);
    }

    /// The first page that a mark at the end of so many blocks wants, of layers with each window.
    fn first_pages(&self, blocks: usize) -> Vec<usize> {
        let first = |window: &Option<usize>| first_visible_page(*window, blocks * PAGE_TOKENS);
        self.windows.iter().map(first).collect()
    }
}

impl Drop for PrefixCache {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The last token is left to feed, for its logits.
fn all_but_last(tokens: &[u32]) -> &[u32] {
    &tokens[..tokens.len().saturating_sub(1)]
}

#[cfg(test)]
mod tests;
