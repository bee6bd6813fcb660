//! [`Checkpoint`]: a tensor by its Hugging Face name, with dtype and shape checked before use.

use crate::{ModelConfig, Result};
use half::bf16;
use std::path::Path;

/// A checkpoint directory, opened and checked; tensors stay in the mapped files.
pub struct Checkpoint {}

/// A tensor as stored: a slice of a mapped shard (or owned bytes), cheap to clone.
#[derive(Clone)]
pub struct StoredTensor {}

/// The experts of one projection of one layer, as stored.
#[derive(Clone)]
pub enum ExpertTensors {
    /// `*_blocks` `[E, rows, cols/32, 16]` and `*_scales` `[E, rows, cols/32]`.
    Mxfp4 {
        /// Packed nibbles.
        blocks: StoredTensor,
        /// E8M0 exponents.
        scales: StoredTensor,
    },
    /// `[E, cols, rows]` bf16.
    Bf16(StoredTensor),
}

/// Calibrated scales of one layer's FP8 key-value cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvScales {
    /// Scale of the keys.
    pub k: f32,
    /// Scale of the values.
    pub v: f32,
}

#[allow(unused_variables, missing_docs)]
impl StoredTensor {
    pub fn shape(&self) -> &[usize] {
        unimplemented!()
    }
    pub fn bytes(&self) -> &[u8] {
        unimplemented!()
    }
    /// The elements of a BF16 tensor. Panics on another dtype (checked when it was fetched).
    pub fn bf16(&self) -> &[bf16] {
        unimplemented!()
    }
}

#[allow(unused_variables, missing_docs)]
impl Checkpoint {
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        unimplemented!()
    }
    pub fn config(&self) -> &ModelConfig {
        unimplemented!()
    }
    /// A BF16 tensor by HF name (also in the original/ layout, where q, k, v are row ranges of qkv).
    pub fn bf16(&self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        unimplemented!()
    }
    /// A small tensor (norm, bias, sinks) in BF16, F16 or F32, widened to f32; every value finite.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        unimplemented!()
    }
    /// `projection` is `gate_up_proj` or `down_proj`; the matrices are `[rows, cols]` = `[out, in]`.
    pub fn experts(
        &self,
        layer: usize,
        projection: &str,
        rows: usize,
        cols: usize,
    ) -> Result<ExpertTensors> {
        unimplemented!()
    }
    pub fn kv_scales(&self, layer: usize) -> Result<Option<KvScales>> {
        unimplemented!()
    }
    /// In-memory random weights.
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Checkpoint> {
        unimplemented!()
    }
}
