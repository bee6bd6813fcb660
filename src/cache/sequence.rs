//! [`Sequence`]: the page tables of one token sequence, one per layer.

use crate::kernels::{NO_PAGE, PAGE_TOKENS};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

use super::KvCache;
use super::edits::Edits;

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
        Sequence { id: new_id(), cache, len: 0, layers, edits: Edits::default() }
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
mod tests {
    use super::*;
    use crate::cache::{KvCacheConfig, KvDtype};
    use crate::weights::KvScales;
    use crate::{ErrorKind, ModelConfig};
    use candle_core::Device;

    fn cache(model: &ModelConfig, pages: usize) -> KvCache {
        let scales = vec![KvScales { k: 1.0, v: 1.0 }; model.num_hidden_layers()];
        let config = KvCacheConfig { dtype: KvDtype::Fp8, pages, scales: Some(scales) };
        KvCache::new(model, &config, &Device::Cpu).unwrap()
    }

    fn grow(sequence: &mut Sequence, count: usize) {
        let mut pages = sequence.cache.allocate(sequence.pages_to_append(count)).unwrap();
        sequence.append(count, &mut pages).unwrap();
        assert!(pages.is_empty(), "pages_to_append counted {} too many", pages.len());
        sequence.commit(count);
    }

    /// The reduction published for Puzzle: 58.4 % of its parent's cache at 131,072 tokens.
    #[test]
    fn memory_is_what_the_windows_need_to_within_a_page_per_layer() {
        let tokens = 131_072;
        let held = |model: &ModelConfig| {
            let cache = cache(model, KvCache::pages_for(model, tokens, 512));
            let mut sequence = cache.sequence();
            while sequence.len() < tokens {
                grow(&mut sequence, 512);
            }
            let needed: usize = (model.block_configs.iter())
                .map(|b| b.sliding_window.unwrap_or(tokens).min(tokens))
                .sum();
            let layers = model.num_hidden_layers();
            let pages = sequence.pages();
            assert!(pages * PAGE_TOKENS >= needed - layers, "{pages} pages for {needed} positions");
            assert!(pages * PAGE_TOKENS <= needed + layers * PAGE_TOKENS, "{pages} for {needed}");
            assert_eq!(cache.used_bytes(), pages * KvCache::page_bytes(model, KvDtype::Fp8));
            pages as f64
        };
        let share = held(&ModelConfig::puzzle_88b()) / held(&ModelConfig::gpt_oss_120b());
        assert!((share - 0.584).abs() < 0.002, "{share}");
    }

    #[test]
    fn a_window_keeps_exactly_what_the_next_token_sees() {
        let model = ModelConfig::gpt_oss_20b();
        let cache = cache(&model, 4000);
        for chunk in [1, 7, 64, 100] {
            let mut sequence = cache.sequence();
            while sequence.len() < 700 {
                grow(&mut sequence, chunk);
                let first_seen = (sequence.len() + 1).saturating_sub(128);
                let table = sequence.page_table(0);
                for (page, entry) in table.iter().enumerate() {
                    let seen = (page + 1) * PAGE_TOKENS > first_seen;
                    assert_eq!(*entry != NO_PAGE, seen, "page {page} at {}", sequence.len());
                }
                assert!(sequence.page_table(1).iter().all(|e| *e != NO_PAGE));
            }
        }
        assert_eq!(cache.free_pages(), 4000, "dropped sequences give everything back");
    }

    #[test]
    fn forks_share_pages_and_copy_only_the_one_they_write() {
        let model = ModelConfig::gpt_oss_20b();
        let (cache, layers) = (cache(&model, 1000), model.num_hidden_layers());
        let mut first = cache.sequence();
        grow(&mut first, 100);
        let used = 1000 - cache.free_pages();
        let mut second = first.fork();
        assert_eq!(1000 - cache.free_pages(), used, "a fork takes no page");
        grow(&mut second, 1);
        assert_eq!(1000 - cache.free_pages(), used + layers, "one copied page per layer");
        for layer in 0..layers {
            assert_eq!(first.page_table(layer)[0], second.page_table(layer)[0]);
            assert_ne!(first.page_table(layer)[1], second.page_table(layer)[1]);
        }
        grow(&mut first, 1);
        assert_eq!(1000 - cache.free_pages(), used + layers, "the last holder writes in place");
        drop(second);
        assert_eq!(1000 - cache.free_pages(), used);
        drop(first);
        assert_eq!(cache.free_pages(), 1000);
    }

    #[test]
    fn truncation_is_refused_where_a_window_has_passed() {
        let model = ModelConfig::gpt_oss_20b();
        let cache = cache(&model, 1000);
        let mut sequence = cache.sequence();
        grow(&mut sequence, 130);
        assert!(sequence.can_truncate(64), "still within the window of 128");
        let early = sequence.fork();
        grow(&mut sequence, 400);
        assert!(sequence.can_truncate(520) && !sequence.can_truncate(300));
        let error = sequence.truncate(300).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("530 positions to 300"), "{error}");
        assert_eq!(sequence.len(), 530, "refused, unchanged");
        sequence.truncate(520).unwrap();
        assert_eq!(sequence.len(), 520);
        assert_eq!(early.len(), 130);
        assert!(sequence.truncate(521).is_err());
    }

    #[test]
    fn running_out_of_pages_names_both_numbers_and_takes_none() {
        let model = ModelConfig::gpt_oss_20b();
        let cache = cache(&model, 30);
        let mut sequence = cache.sequence();
        grow(&mut sequence, 64);
        let error = cache.allocate(sequence.pages_to_append(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CacheFull);
        assert_eq!(
            error.to_string(),
            "the key-value cache has 6 of 30 pages free, this step needs 24"
        );
        assert_eq!(cache.free_pages(), 6);
    }

    #[test]
    fn a_pool_the_system_refuses_is_an_error() {
        let model = ModelConfig::gpt_oss_20b();
        // 2^31 pages of 256 KiB are more than 47 bits of addresses.
        for pages in [0, 1 << 31, usize::MAX] {
            let config = KvCacheConfig { dtype: KvDtype::F32, pages, scales: None };
            let error = KvCache::new(&model, &config, &Device::Cpu).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert_eq!(
                error.to_string(),
                format!("a key-value cache of {pages} pages of 262144 bytes cannot be addressed")
            );
        }
        assert!(KvCache::pages_for(&model, usize::MAX, usize::MAX) > 1 << 32, "no wrap-around");
    }

    #[test]
    fn a_failed_step_gives_its_pages_back() {
        let model = ModelConfig::gpt_oss_20b();
        let cache = cache(&model, 1000);
        let mut sequence = cache.sequence();
        grow(&mut sequence, 100);
        let held = sequence.pages();
        let mut pages = cache.allocate(sequence.pages_to_append(300)).unwrap();
        sequence.append(300, &mut pages).unwrap();
        assert!(sequence.pages() > held);
        sequence.drop_pages_beyond_len();
        assert_eq!((sequence.pages(), sequence.len()), (held, 100));
        assert_eq!(cache.free_pages(), 1000 - held);
    }

    #[test]
    fn fp8_without_scales_is_refused() {
        let model = ModelConfig::gpt_oss_20b();
        let make = |scales| {
            let config = KvCacheConfig { dtype: KvDtype::Fp8, pages: 1, scales };
            KvCache::new(&model, &config, &Device::Cpu).unwrap_err().to_string()
        };
        assert!(make(None).contains("needs calibrated scales"));
        assert!(make(Some(vec![])).contains("0 key-value scales were passed for 24 layers"));
        let mut scales = vec![KvScales { k: 1.0, v: 1.0 }; 24];
        scales[7].v = f32::NAN;
        assert!(make(Some(scales)).contains("v_scale of layer 7 is NaN"));
    }
}
