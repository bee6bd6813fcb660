//! [`KvCache`]: the pages themselves, which are free, and how many hold each.

use crate::config::{BlockConfig, ModelConfig};
use crate::kernels::{HeadShape, KvFormat};
use crate::weights::KvScales;
use crate::{Error, ErrorKind, Result, ops};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Sequence;
use super::allocator::Allocator;
use super::need::Windows;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvDtype {
    /// 4 bytes, exact; for tests.
    F32,
    /// 2 bytes, rounded to nearest even.
    #[default]
    Bf16,
    /// 1 byte: E4M3 of the value over the layer's calibrated scale, saturating at 448.
    Fp8,
}

impl std::str::FromStr for KvDtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<KvDtype> {
        match s {
            "f32" => Ok(KvDtype::F32),
            "bf16" => Ok(KvDtype::Bf16),
            "fp8" => Ok(KvDtype::Fp8),
            _ => Err(Error::invalid_request(format!(
                "key-value dtype is {s:?}, expected \"bf16\", \"fp8\" or \"f32\""
            ))),
        }
    }
}

/// Size and storage type of a [`KvCache`].
#[derive(Clone, Debug, PartialEq)]
pub struct KvCacheConfig {
    /// Storage type of every page.
    pub dtype: KvDtype,
    /// Number of pages, see [`KvCache::pages_for`].
    pub pages: usize,
    /// FP8 scales, one per layer; required for [`KvDtype::Fp8`], ignored otherwise.
    pub scales: Option<Vec<KvScales>>,
}

/// A pool of key-value pages shared by all layers and by any number of sequences.
///
/// Cheap to clone; clones share the pages. On the CPU, pages that were never written take address
/// space, not memory.
#[derive(Clone, Debug)]
pub struct KvCache(Arc<Pool>);

/// See [`KvCache::identity`]. Keeps no pages.
#[cfg(feature = "cuda")]
#[derive(Clone)]
pub(crate) struct CacheIdentity(std::sync::Weak<Memory>);

#[cfg(feature = "cuda")]
impl PartialEq for CacheIdentity {
    fn eq(&self, other: &CacheIdentity) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

#[cfg(feature = "cuda")]
impl CacheIdentity {
    /// Whether the pages are still there.
    pub(crate) fn exists(&self) -> bool {
        self.0.strong_count() > 0
    }
}

#[derive(Debug)]
struct Pool {
    memory: Arc<Memory>,
    allocator: Mutex<Allocator>,
    /// Whose pages these are, if they were carved out.
    lender: Option<KvCache>,
}

/// What a pool has in common with those that are carved out of it.
#[derive(Debug)]
struct Memory {
    /// `[pages, words per page]` of 32-bit words: zeroed words come untouched from the operating
    /// system, and are aligned for every storage type.
    words: Tensor,
    formats: Vec<KvFormat>,
    blocks: Vec<BlockConfig>,
    windows: Windows,
    heads: HeadShape,
    page_bytes: usize,
}

impl KvCache {
    /// Reserves `config.pages` pages for a model of shape `model` on `device`.
    ///
    /// # Errors
    /// `InvalidRequest` for no pages, for more than 32-bit page numbers count or the system grants
    /// addresses for, and for FP8 without one finite positive scale pair per layer: the unit scales
    /// other engines fall back to silently cost accuracy. `Device` when a GPU has no room.
    pub fn new(model: &ModelConfig, config: &KvCacheConfig, device: &Device) -> Result<KvCache> {
        let heads = head_shape(model);
        let formats = formats(model, config)?;
        let page_bytes = KvCache::page_bytes(model, config.dtype);
        let count = u32::try_from(config.pages).ok().filter(|n| (1..u32::MAX).contains(n));
        let words = config.pages.checked_mul(page_bytes / 4);
        let refused = || {
            Error::invalid_request(format!(
                "a key-value cache of {} pages of {page_bytes} bytes cannot be addressed",
                config.pages
            ))
        };
        let no_room = |cause: &candle_core::Error| {
            let message = format!(
                "the device has no room for a key-value cache of {} pages of {page_bytes} bytes: {cause}",
                config.pages
            );
            Error::new(ErrorKind::Device, message)
        };
        let (Some(count), Some(words)) = (count, words) else { return Err(refused()) };
        if device.is_cpu() {
            // Asked for and given back first: inside the tensor a refusal would end the process. Seen by
            // black_box, because an allocation that nobody looks at is optimised away.
            let mut probe = Vec::<u32>::new();
            probe.try_reserve_exact(words).map_err(|e| refused().with_source(e))?;
            drop(std::hint::black_box(probe));
        }
        let pages = Tensor::zeros((config.pages, page_bytes / 4), DType::U32, device);
        let memory = Arc::new(Memory {
            words: pages.map_err(|e| match device.is_cpu() {
                true => refused().with_source(e),
                false => no_room(&e).with_source(e),
            })?,
            formats,
            blocks: model.block_configs.clone(),
            windows: Windows::of(&model.block_configs),
            heads,
            page_bytes,
        });
        let allocator = Mutex::new(Allocator::new((0..count).rev().collect(), config.pages));
        Ok(KvCache(Arc::new(Pool { memory, allocator, lender: None })))
    }

    /// A pool of `pages` of this one's free pages: the same memory, but accounts of its own, so that
    /// whoever draws from it alone knows what there is. They come back when the last clone of it and the
    /// last of its sequences are dropped.
    ///
    /// # Errors
    /// `CacheFull` when fewer are free.
    pub(crate) fn carve(&self, pages: usize) -> Result<KvCache> {
        let mut allocator = self.lock();
        let Some(lent) = allocator.lend(pages) else {
            return Err(full(&allocator, format_args!("an engine asks for {pages}")));
        };
        Ok(KvCache(Arc::new(Pool {
            memory: self.0.memory.clone(),
            allocator: Mutex::new(Allocator::new(lent, allocator.end())),
            lender: Some(self.clone()),
        })))
    }

    /// Pages that one sequence of `tokens` positions holds at most, when it is fed in chunks of up to
    /// `chunk` tokens: per layer the pages its window covers, the page being filled, and those of the
    /// chunk that the window has not yet left behind.
    pub fn pages_for(model: &ModelConfig, tokens: usize, chunk: usize) -> usize {
        Windows::of(&model.block_configs).most(tokens, chunk)
    }

    /// Bytes of one page.
    pub fn page_bytes(model: &ModelConfig, dtype: KvDtype) -> usize {
        let element = match dtype {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
            KvDtype::Fp8 => 1,
        };
        head_shape(model).page_elements() * element
    }

    /// An empty sequence whose pages come from this pool.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.clone())
    }

    /// Pages in the pool, those included that it lends to an engine.
    pub fn pages(&self) -> usize {
        self.lock().pages()
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> usize {
        self.lock().free()
    }

    /// Bytes of the pages that sequences or cached prefixes hold. What an engine holds of the pages it
    /// was lent is not known here.
    pub fn used_bytes(&self) -> usize {
        self.lock().used() * self.0.memory.page_bytes
    }

    /// Pages that prefix caches hold.
    pub(super) fn cached_pages(&self) -> usize {
        self.lock().cached()
    }

    /// Pages that nobody but prefix caches holds.
    pub(super) fn evictable_pages(&self) -> usize {
        self.lock().evictable()
    }

    pub(crate) fn words(&self) -> &Tensor {
        &self.0.memory.words
    }

    pub(crate) fn format(&self, layer: usize) -> KvFormat {
        self.0.memory.formats[layer]
    }

    pub(crate) fn heads(&self) -> HeadShape {
        self.0.memory.heads
    }

    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.0.memory.blocks[layer].sliding_window
    }

    pub(crate) fn layers(&self) -> usize {
        self.0.memory.blocks.len()
    }

    /// The windows of all layers, for which pages are counted.
    pub(crate) fn windows(&self) -> &Windows {
        &self.0.memory.windows
    }

    /// True when the pages and windows are those of `model`.
    pub(crate) fn fits(&self, model: &ModelConfig) -> bool {
        let windows = |blocks: &[BlockConfig]| -> Vec<_> {
            blocks.iter().map(|b| b.sliding_window).collect()
        };
        self.0.memory.heads == head_shape(model)
            && windows(&self.0.memory.blocks) == windows(&model.block_configs)
    }

    /// True when both account for the same pages: not for a pool and one that is carved out of it.
    pub(crate) fn same_pool(&self, other: &KvCache) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What tells this memory from every other, also from one that takes its place. Pools that are carved
    /// out have that of their lender: a step that was recorded for one can run on all.
    #[cfg(feature = "cuda")]
    pub(crate) fn identity(&self) -> CacheIdentity {
        CacheIdentity(Arc::downgrade(&self.0.memory))
    }

    /// `count` pages, each held once: all of them or none.
    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<u32>> {
        let mut allocator = self.lock();
        let pages = allocator.take(count);
        pages.ok_or_else(|| full(&allocator, format_args!("this step needs {count}")))
    }

    pub(super) fn retain(&self, pages: impl Iterator<Item = u32>) {
        let mut allocator = self.lock();
        pages.for_each(|page| allocator.retain(page));
    }

    pub(crate) fn release(&self, pages: impl Iterator<Item = u32>) {
        let mut allocator = self.lock();
        pages.for_each(|page| allocator.release(page));
    }

    /// As [`KvCache::retain`], for a prefix cache.
    pub(super) fn retain_cached(&self, pages: &[u32]) {
        let mut allocator = self.lock();
        pages.iter().for_each(|page| allocator.retain_cached(*page));
    }

    /// As [`KvCache::release`], for a prefix cache.
    pub(super) fn release_cached(&self, pages: &[u32]) {
        let mut allocator = self.lock();
        pages.iter().for_each(|page| allocator.release_cached(*page));
    }

    pub(super) fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        Ok(ops::copy_page(&self.0.memory.words, from, to)?)
    }

    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.lock().is_shared(page)
    }

    /// Page numbers are plain data: a panic elsewhere while they were held leaves them consistent.
    fn lock(&self) -> MutexGuard<'_, Allocator> {
        self.0.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(lender) = &self.lender {
            let allocator = self.allocator.get_mut().unwrap_or_else(PoisonError::into_inner);
            lender.lock().take_back(allocator.give_up());
        }
    }
}

fn full(allocator: &Allocator, asked: std::fmt::Arguments) -> Error {
    let lent = match allocator.lent() {
        0 => String::new(),
        lent => format!(" and {lent} lent to an engine"),
    };
    let (free, pages) = (allocator.free(), allocator.pages());
    Error::new(
        ErrorKind::CacheFull,
        format!("the key-value cache has {free} of {pages} pages free{lent}, {asked}"),
    )
}

fn head_shape(model: &ModelConfig) -> HeadShape {
    HeadShape {
        q_heads: model.num_attention_heads,
        kv_heads: model.num_key_value_heads,
        head_dim: model.head_dim,
    }
}

fn formats(model: &ModelConfig, config: &KvCacheConfig) -> Result<Vec<KvFormat>> {
    let layers = model.num_hidden_layers();
    match (config.dtype, &config.scales) {
        (KvDtype::F32, _) => Ok(vec![KvFormat::F32; layers]),
        (KvDtype::Bf16, _) => Ok(vec![KvFormat::Bf16; layers]),
        (KvDtype::Fp8, None) => Err(Error::invalid_request(
            "an FP8 key-value cache needs calibrated scales: the checkpoint has none, and none were passed",
        )),
        (KvDtype::Fp8, Some(scales)) if scales.len() != layers => Err(Error::invalid_request(
            format!("{} key-value scales were passed for {layers} layers", scales.len()),
        )),
        (KvDtype::Fp8, Some(scales)) => (scales.iter().enumerate())
            .map(|(layer, &KvScales { k, v })| {
                for (scale, name) in [(k, "k_scale"), (v, "v_scale")] {
                    if !(scale.is_finite() && scale > 0.0) {
                        return Err(Error::invalid_request(format!(
                            "{name} of layer {layer} is {scale}, expected a positive number"
                        )));
                    }
                }
                Ok(KvFormat::Fp8 { k_scale: k, v_scale: v })
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests;
