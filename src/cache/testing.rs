//! Caches with small pages and any windows, for unit tests.

use super::{KvCache, KvCacheConfig, KvDtype, Sequence};
use crate::config::{BlockConfig, ModelConfig};
use candle_core::Device;

/// A layer for each of `windows`.
pub(crate) fn cache(windows: &[Option<usize>], pages: usize) -> KvCache {
    let mut config = ModelConfig::puzzle_88b();
    (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (1, 1, 2);
    let block = config.block_configs[0];
    config.block_configs =
        windows.iter().map(|window| BlockConfig { sliding_window: *window, ..block }).collect();
    let config = (&config, &KvCacheConfig { dtype: KvDtype::Bf16, pages, scales: None });
    KvCache::new(config.0, config.1, &Device::Cpu).unwrap()
}

/// As `forward` does, but that nothing is computed.
pub(crate) fn grow(sequence: &mut Sequence, count: usize) {
    let mut pages = sequence.cache().allocate(sequence.pages_to_append(count)).unwrap();
    sequence.append(count, &mut pages).unwrap();
    assert!(pages.is_empty(), "pages_to_append counted {} too many", pages.len());
    sequence.commit(count);
}

/// Numbers that are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}
