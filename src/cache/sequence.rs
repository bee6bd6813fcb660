//! [`Sequence`]: the page tables of one token sequence, one per layer.

use crate::kernels::{NO_PAGE, PAGE_TOKENS};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

use super::KvCache;
use super::edits::Edits;
use super::need::first_visible_page;

/// The cached keys and values of one token sequence.
///
/// Grown by the model's `forward`; dropped, it gives its pages back.
#[derive(Debug)]
pub struct Sequence {
    /// No other sequence has or had it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "of use to a device alone"))]
    id: u64,
    cache: KvCache,
    /// Positions whose keys and values are cached.
    len: usize,
    layers: Vec<PageTable>,
    edits: Edits,
    /// See [`Sequence::hold`].
    held: Option<usize>,
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
        Sequence { id: new_id(), cache, len: 0, layers, edits: Edits::default(), held: None }
    }

    /// A sequence of `len` positions, which end a page, in one page table per layer. It holds their pages
    /// beside whoever does; [`NO_PAGE`] at the begin of a table is for those that a window has left.
    pub(super) fn resumed(cache: KvCache, len: usize, tables: Vec<Vec<u32>>) -> Sequence {
        let table = |entries: Vec<u32>| {
            let first = entries.iter().take_while(|page| **page == NO_PAGE).count();
            PageTable { entries, first }
        };
        let layers: Vec<PageTable> = tables.into_iter().map(table).collect();
        layers.iter().for_each(|table| cache.retain(table.held()));
        Sequence { id: new_id(), cache, len, layers, edits: Edits::default(), held: None }
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
        Sequence {
            id: new_id(),
            cache: self.cache.clone(),
            len: self.len,
            layers: self.layers.clone(),
            edits: Edits::default(),
            held: None,
        }
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
        self.edits.add(0);
        self.len = 0;
        self.held = None;
    }

    /// Keeps what a token at `position` sees through the commits to come, so that a step may go beyond a
    /// position that is to be resumed at; held at several, at the first of them.
    pub(crate) fn hold(&mut self, position: usize) {
        self.held = Some(self.held.map_or(position, |held| held.min(position)));
    }

    /// Ends [`Sequence::hold`]: what the windows have left meanwhile is given back.
    pub(crate) fn let_go(&mut self) {
        self.held = None;
        self.leave_windows();
    }

    /// Makes `count` more positions count as cached, whatever their pages hold: to measure speed at a
    /// depth without computing it.
    ///
    /// # Errors
    /// `CacheFull` when the pool has too few pages.
    #[doc(hidden)]
    pub fn extend_unwritten(&mut self, count: usize) -> Result<()> {
        // In steps, so that windowed layers give back what they have left behind.
        for start in (0..count).step_by(PAGE_TOKENS) {
            let step = PAGE_TOKENS.min(count - start);
            let mut pages = self.cache.allocate(self.pages_to_append(step))?;
            self.append(step, &mut pages)?;
            self.commit(step);
        }
        Ok(())
    }

    /// The page table of `layer`; [`NO_PAGE`] where the window has passed.
    pub(crate) fn page_table(&self, layer: usize) -> &[u32] {
        &self.layers[layer].entries
    }

    /// What no other sequence has or had.
    #[cfg(feature = "cuda")]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Entries of each layer's page table.
    #[cfg(feature = "cuda")]
    pub(crate) fn table_len(&self) -> usize {
        self.layers.first().map_or(0, |table| table.entries.len())
    }

    /// The page table of `layer` from page `from` on, or from the first that is held, and which that is.
    #[cfg(feature = "cuda")]
    pub(crate) fn pages_from(&self, layer: usize, from: usize) -> (usize, &[u32]) {
        let table = &self.layers[layer];
        let from = from.max(table.first).min(table.entries.len());
        (from, &table.entries[from..])
    }

    /// How often entries became others.
    #[cfg(feature = "cuda")]
    pub(crate) fn edits(&self) -> u64 {
        self.edits.count()
    }

    /// The first page whose entry is another than after so many edits; pages that were added or left by a
    /// window do not count.
    #[cfg(feature = "cuda")]
    pub(crate) fn first_page_edited_since(&self, edits: u64) -> Option<usize> {
        self.edits.first_page_since(edits)
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
                self.edits.add(self.len / PAGE_TOKENS);
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
        self.leave_windows();
    }

    /// Gives back what a token at the last page boundary does not see. It is whole there, so that it can be
    /// gone on from, for as long as no other boundary is reached.
    fn leave_windows(&mut self) {
        let boundary = self.len / PAGE_TOKENS * PAGE_TOKENS;
        let from = self.held.map_or(boundary, |held| held.min(boundary));
        for layer in 0..self.layers.len() {
            let first = self.first_visible_page(layer, from);
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
        let mut first_dropped = usize::MAX;
        for table in &mut self.layers {
            let keep = keep.max(table.first).min(table.entries.len());
            if keep < table.entries.len() {
                first_dropped = first_dropped.min(keep);
            }
            self.cache.release(table.entries[keep..].iter().copied());
            table.entries.truncate(keep);
        }
        if first_dropped < usize::MAX {
            self.edits.add(first_dropped);
        }
    }

    /// The page holding the earliest position that a token at position `len` sees in `layer`.
    fn first_visible_page(&self, layer: usize, len: usize) -> usize {
        first_visible_page(self.cache.window(layer), len)
    }

    /// The partly filled last page, when another sequence holds it too.
    fn shared_tail(&self, table: &PageTable) -> Option<u32> {
        let partial = !self.len.is_multiple_of(PAGE_TOKENS);
        let tail = table.entries.get(self.len / PAGE_TOKENS).copied().filter(|_| partial)?;
        (tail != NO_PAGE && self.cache.is_shared(tail)).then_some(tail)
    }
}

fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Drop for Sequence {
    fn drop(&mut self) {
        for table in &self.layers {
            self.cache.release(table.held());
        }
    }
}

#[cfg(test)]
mod tests;
