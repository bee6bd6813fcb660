//! [`Sequence`]: the page tables of one token sequence, one per layer.

use crate::kernels::{NO_PAGE, PAGE_TOKENS};
use crate::{Error, Result};

use super::KvCache;

/// The cached keys and values of one token sequence.
///
/// Grown by the model's `forward`; dropped, it gives its pages back.
#[derive(Debug)]
pub struct Sequence {
    cache: KvCache,
    /// Positions whose keys and values are cached.
    len: usize,
    layers: Vec<PageTable>,
}

/// Page `entries[i]` holds positions `64·i .. 64·i + 64`; entries before `first` were given back.
#[derive(Clone, Debug, Default)]
struct PageTable {
    entries: Vec<u32>,
    first: usize,
}

impl PageTable {
    fn held(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries[self.first..].iter().copied()
    }
}

impl Sequence {
    pub(super) fn new(cache: KvCache) -> Sequence {
        let layers = vec![PageTable::default(); cache.layers()];
        Sequence { cache, len: 0, layers }
    }

    /// Number of cached positions; the next token goes to this position.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pool this sequence draws from.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Pages this sequence holds, shared ones included.
    pub fn pages(&self) -> usize {
        self.layers.iter().map(|t| t.entries.len() - t.first).sum()
    }

    /// A second sequence with the same past. No data moves: both hold the same pages, and a page is
    /// copied when one of them writes to it.
    pub fn fork(&self) -> Sequence {
        for table in &self.layers {
            self.cache.retain(table.held());
        }
        Sequence { cache: self.cache.clone(), len: self.len, layers: self.layers.clone() }
    }

    /// True when every layer still holds what a token at position `len` would see, so that
    /// [`Sequence::truncate`] to `len` is possible.
    pub fn can_truncate(&self, len: usize) -> bool {
        len <= self.len
            && (self.layers.iter().enumerate())
                .all(|(layer, table)| table.first <= self.first_visible_page(layer, len))
    }

    /// Forgets every position from `len` on.
    ///
    /// # Errors
    /// `InvalidRequest` when `len` is beyond the end, or so far back that a windowed layer has already
    /// given back what a token at `len` would see; fork before going on to be able to return.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::invalid_request(format!(
                "cannot truncate a sequence of {} positions to {len}",
                self.len
            )));
        }
        if !self.can_truncate(len) {
            return Err(Error::invalid_request(format!(
                "cannot truncate a sequence of {} positions to {len}: a windowed layer no longer holds the positions before it",
                self.len
            )));
        }
        self.len = len;
        self.drop_pages_beyond_len();
        Ok(())
    }

    /// Gives every page back and starts over.
    pub fn clear(&mut self) {
        for table in &mut self.layers {
            self.cache.release(table.held());
            *table = PageTable::default();
        }
        self.len = 0;
    }

    /// The page table of `layer`; [`NO_PAGE`] where the window has passed.
    pub(crate) fn page_table(&self, layer: usize) -> &[u32] {
        &self.layers[layer].entries
    }

    /// Where position `position` of `layer` is stored: page times [`PAGE_TOKENS`] plus row.
    pub(crate) fn slot(&self, layer: usize, position: usize) -> u64 {
        let page = self.layers[layer].entries[position / PAGE_TOKENS];
        u64::from(page) * PAGE_TOKENS as u64 + (position % PAGE_TOKENS) as u64
    }

    /// Pages that appending `count` tokens takes from the pool, copies of shared pages included.
    pub(crate) fn pages_to_append(&self, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let end = (self.len + count).div_ceil(PAGE_TOKENS);
        let layer = |table: &PageTable| {
            end - table.entries.len() + usize::from(self.shared_tail(table).is_some())
        };
        self.layers.iter().map(layer).sum()
    }

    /// Makes room for `count` more tokens out of `pages`, which holds at least
    /// [`Sequence::pages_to_append`] of them.
    ///
    /// # Errors
    /// `Device` when a shared page cannot be copied; [`Sequence::drop_pages_beyond_len`] undoes the rest.
    pub(crate) fn append(&mut self, count: usize, pages: &mut Vec<u32>) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let end = (self.len + count).div_ceil(PAGE_TOKENS);
        for layer in 0..self.layers.len() {
            let shared = self.shared_tail(&self.layers[layer]);
            let table = &mut self.layers[layer];
            if let (Some(shared), Some(tail)) = (shared, table.entries.last_mut()) {
                let own = *pages.last().expect("counted by pages_to_append");
                // Copied before it is let go: its other holder may write to it from then on.
                self.cache.copy_page(shared, own)?;
                pages.pop();
                *tail = own;
                self.cache.release(std::iter::once(shared));
            }
            while table.entries.len() < end {
                table.entries.push(pages.pop().expect("counted by pages_to_append"));
            }
        }
        Ok(())
    }

    /// The tokens made room for are cached now: advance, and give back what left the windows.
    pub(crate) fn commit(&mut self, count: usize) {
        self.len += count;
        for layer in 0..self.layers.len() {
            let first = self.first_visible_page(layer, self.len);
            let table = &mut self.layers[layer];
            let first = first.min(table.entries.len());
            if first > table.first {
                self.cache.release(table.entries[table.first..first].iter().copied());
                table.entries[table.first..first].fill(NO_PAGE);
                table.first = first;
            }
        }
    }

    /// Undoes [`Sequence::append`] when the step fails.
    pub(crate) fn drop_pages_beyond_len(&mut self) {
        let keep = self.len.div_ceil(PAGE_TOKENS);
        for table in &mut self.layers {
            let keep = keep.max(table.first).min(table.entries.len());
            self.cache.release(table.entries[keep..].iter().copied());
            table.entries.truncate(keep);
        }
    }

    /// The page holding the earliest position that a token at position `len` sees in `layer`.
    fn first_visible_page(&self, layer: usize, len: usize) -> usize {
        let window = self.cache.window(layer);
        window.map_or(0, |w| (len + 1).saturating_sub(w) / PAGE_TOKENS)
    }

    /// The partly filled last page, when another sequence holds it too.
    fn shared_tail(&self, table: &PageTable) -> Option<u32> {
        let partial = !self.len.is_multiple_of(PAGE_TOKENS);
        let tail = table.entries.get(self.len / PAGE_TOKENS).copied().filter(|_| partial)?;
        (tail != NO_PAGE && self.cache.is_shared(tail)).then_some(tail)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        for table in &self.layers {
            self.cache.release(table.held());
        }
    }
}
