//! What a prefix cache is said to do, as a list of marks.

use super::super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A salt, and the blocks of a text, each as one number.
pub(super) type Prefix = (Option<String>, Vec<u64>);

pub(super) fn prefix(salt: Option<&str>, tokens: &[u32]) -> Prefix {
    let number = |block: &[u32; PAGE_TOKENS]| {
        let mut hasher = DefaultHasher::new();
        block.hash(&mut hasher);
        hasher.finish()
    };
    (salt.map(str::to_owned), tokens.as_chunks().0.iter().map(number).collect())
}

#[derive(Clone, Debug)]
pub(super) struct Marked {
    pub(super) at: Prefix,
    mark: Mark,
    used: u64,
}

impl Marked {
    fn is_on(&self, text: &Prefix) -> bool {
        self.at.0 == text.0 && text.1.starts_with(&self.at.1)
    }
}

pub(super) struct Naive {
    pool: KvCache,
    most: usize,
    pub(super) marks: Vec<Marked>,
    /// Of the last block of a prefix, in a layer.
    pages: BTreeMap<(Prefix, usize), u32>,
    uses: u64,
}

impl Naive {
    pub(super) fn new(pool: &KvCache, most: usize) -> Naive {
        Naive { pool: pool.clone(), most, marks: Vec::new(), pages: BTreeMap::new(), uses: 0 }
    }

    /// Blocks of the longest mark on `text`.
    fn last(&self, text: &Prefix) -> usize {
        let on = self.marks.iter().filter(|mark| mark.is_on(text));
        on.map(|mark| mark.at.1.len()).max().unwrap_or(0)
    }

    pub(super) fn cached(&self, salt: Option<&str>, tokens: &[u32]) -> usize {
        let but_last = &tokens[..tokens.len().saturating_sub(1)];
        self.last(&prefix(salt, but_last)) * PAGE_TOKENS
    }

    pub(super) fn marks(
        &self,
        salt: Option<&str>,
        tokens: &[u32],
        from: usize,
        wanted: &[(usize, Mark)],
    ) -> Vec<(usize, Mark)> {
        let text = prefix(salt, tokens);
        let mut marks = BTreeMap::new();
        let known = (0..=text.1.len()).rev().find(|blocks| {
            let known = (text.0.clone(), text.1[..*blocks].to_vec());
            self.marks.iter().any(|mark| mark.at.0 == known.0 && mark.at.1.starts_with(&known.1))
        });
        let known = known.unwrap_or(0);
        if known > self.last(&text) {
            marks.insert(known * PAGE_TOKENS, Mark::Turn);
        }
        for (at, mark) in wanted {
            let there = marks.entry(at - at % PAGE_TOKENS).or_insert(*mark);
            *there = (*there).max(*mark);
        }
        marks.retain(|at, _| *at > from && *at <= tokens.len() && self.fits(*at));
        marks.into_iter().collect()
    }

    fn fits(&self, position: usize) -> bool {
        let pages: usize = (0..self.pool.layers())
            .map(|layer| position / PAGE_TOKENS - self.first(layer, position))
            .sum();
        pages.max(position / PAGE_TOKENS) <= self.most
    }

    fn first(&self, layer: usize, position: usize) -> usize {
        let window = self.pool.window(layer).unwrap_or(usize::MAX);
        (position + 1).saturating_sub(window) / PAGE_TOKENS
    }

    pub(super) fn page_table(&self, salt: Option<&str>, tokens: &[u32], layer: usize) -> Vec<u32> {
        let text = prefix(salt, tokens);
        let first = self.first(layer, tokens.len());
        let page = |block: usize| match block < first {
            true => NO_PAGE,
            false => self.pages[&((text.0.clone(), text.1[..=block].to_vec()), layer)],
        };
        (0..text.1.len()).map(page).collect()
    }

    pub(super) fn refresh(&mut self, salt: Option<&str>, tokens: &[u32]) {
        let text = prefix(salt, tokens);
        let mut on: Vec<&mut Marked> =
            self.marks.iter_mut().filter(|mark| mark.is_on(&text)).collect();
        on.sort_by_key(|mark| std::cmp::Reverse(mark.at.1.len()));
        for mark in on {
            self.uses += 1;
            mark.used = self.uses;
        }
    }

    pub(super) fn insert(
        &mut self,
        salt: Option<&str>,
        tokens: &[u32],
        sequence: &Sequence,
        position: usize,
        mark: Mark,
        replaces: Option<usize>,
    ) {
        let text = prefix(salt, &tokens[..position]);
        match self.marks.iter_mut().find(|there| there.at == text) {
            Some(there) => there.mark = there.mark.max(mark),
            None => self.marks.push(Marked { at: text.clone(), mark, used: 0 }),
        }
        for layer in 0..self.pool.layers() {
            for block in self.first(layer, position)..text.1.len() {
                let key = ((text.0.clone(), text.1[..=block].to_vec()), layer);
                self.pages.entry(key).or_insert(sequence.page_table(layer)[block]);
            }
        }
        self.refresh(salt, &tokens[..position]);
        if let Some(replaced) = replaces.filter(|at| mark == Mark::Inner && *at < position) {
            let replaced = prefix(salt, &tokens[..replaced]);
            self.marks.retain(|m| m.at != replaced || m.mark == Mark::Turn || m.at == text);
        }
        self.drop_unwanted();
        while self.cached_pages().len().max(self.blocks()) > self.most {
            let first = self.first_to_go(Some(&text)).expect("the new mark alone fits");
            self.forget(&first);
        }
    }

    pub(super) fn remove(&mut self, salt: Option<&str>, tokens: &[u32], position: usize) {
        if position <= tokens.len() || position - position % PAGE_TOKENS <= tokens.len() {
            self.forget(&prefix(salt, &tokens[..position.min(tokens.len())]));
        }
    }

    pub(super) fn remove_branch(&mut self, salt: Option<&str>, tokens: &[u32]) {
        let text = prefix(salt, tokens);
        let last = |marks: &[Marked]| {
            let on = marks.iter().filter(|mark| mark.is_on(&text));
            on.max_by_key(|mark| mark.at.1.len()).map(|mark| mark.at.clone())
        };
        while let Some(last) = last(&self.marks) {
            if self.has_mark_below(&last) {
                break;
            }
            self.forget(&last);
        }
    }

    fn has_mark_below(&self, at: &Prefix) -> bool {
        let is_below = |mark: &Marked| {
            mark.at.0 == at.0 && mark.at.1.len() > at.1.len() && mark.at.1.starts_with(&at.1)
        };
        self.marks.iter().any(is_below)
    }

    pub(super) fn forget(&mut self, at: &Prefix) {
        self.marks.retain(|mark| mark.at != *at);
        self.drop_unwanted();
    }

    pub(super) fn clear(&mut self) {
        self.marks.clear();
        self.pages.clear();
    }

    fn drop_unwanted(&mut self) {
        let mut pages = std::mem::take(&mut self.pages);
        pages.retain(|(at, layer), _| {
            self.marks.iter().any(|mark| {
                let first = self.first(*layer, mark.at.1.len() * PAGE_TOKENS);
                at.1.len() > first && mark.at.0 == at.0 && mark.at.1.starts_with(&at.1)
            })
        });
        self.pages = pages;
    }

    /// The mark that goes next, but not `kept`.
    pub(super) fn first_to_go(&self, kept: Option<&Prefix>) -> Option<Prefix> {
        let candidates = || self.marks.iter().filter(|mark| Some(&mark.at) != kept);
        let inner = candidates().filter(|m| m.mark == Mark::Inner && self.has_mark_below(&m.at));
        let first = inner.min_by_key(|mark| mark.used);
        first.or_else(|| candidates().min_by_key(|mark| mark.used)).map(|mark| mark.at.clone())
    }

    pub(super) fn cached_pages(&self) -> BTreeSet<u32> {
        self.pages.values().copied().collect()
    }

    /// Different beginnings of marks.
    pub(super) fn blocks(&self) -> usize {
        let prefixes = self.marks.iter().flat_map(|mark| {
            (1..=mark.at.1.len()).map(|blocks| (mark.at.0.as_deref(), &mark.at.1[..blocks]))
        });
        prefixes.collect::<BTreeSet<_>>().len()
    }

    /// Pages of the pool that neither the cache nor whoever holds `held` has.
    pub(super) fn free_pages(&self, held: &[u32]) -> usize {
        let mut used = self.cached_pages();
        used.extend(held);
        self.pool.pages() - used.len()
    }

    pub(super) fn listed(&self) -> Vec<Prefix> {
        let mut marks: Vec<Prefix> = self.marks.iter().map(|mark| mark.at.clone()).collect();
        marks.sort();
        marks
    }
}
