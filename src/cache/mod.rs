//! The key-value cache: one pool of equal pages for all layers, and sequences that hold page tables.
//!
//! Every layer of this family stores the same bytes per token, so one pool of fixed pages
//! ([`PAGE_TOKENS`] positions of one layer's keys and values) serves full and windowed layers alike
//! (the idea is vLLM's PagedAttention, Kwon et al. 2023, arXiv 2309.06180, with the layer as part of
//! the page's address). Each layer of a [`Sequence`] has its own page table; a windowed layer gives
//! back the pages its window has left, so memory is what the windows need and no more. Pages are
//! reference-counted: [`Sequence::fork`] and [`Sequence::truncate`] move no data, and a page that two
//! sequences share is copied when one of them writes to it.
//!
//! Beginnings of texts stay in a prefix cache for others that begin alike. An engine carves a pool of its
//! own out of a model's, so that nobody else takes pages that it counts on.
//!
//! This module accounts for pages; it does not read them. The model writes them through
//! `ops` and reads them in attention.

mod allocator;
mod edits;
mod marks;
mod need;
mod pool;
mod prefix;
mod sequence;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
pub(crate) use crate::kernels::NO_PAGE;
pub use crate::kernels::PAGE_TOKENS;
pub(crate) use marks::Marks;
pub(crate) use need::Windows;
#[cfg(feature = "cuda")]
pub(crate) use pool::CacheIdentity;
pub use pool::{KvCache, KvCacheConfig, KvDtype};
pub(crate) use prefix::{Mark, PrefixCache};
pub use sequence::Sequence;
