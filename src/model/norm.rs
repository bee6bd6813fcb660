//! [`RmsNorm`]: `x · rsqrt(mean(x²) + eps) · w` (Zhang and Sennrich 2019, arXiv 1910.07467).

use crate::kernels::cpu::Cpu;
use crate::weights::Checkpoint;
use crate::{Result, ops};
use candle_core::Tensor;

/// Root-mean-square normalisation over the hidden size.
pub(super) struct RmsNorm {
    weight: Vec<f32>, // [H]
    eps: f32,
}

impl RmsNorm {
    /// The weight called `name`.
    pub(super) fn new(checkpoint: &Checkpoint, name: &str) -> Result<RmsNorm> {
        let config = checkpoint.config();
        let weight = checkpoint.f32(name, &[config.hidden_size])?;
        Ok(RmsNorm { weight, eps: config.rms_norm_eps as f32 })
    }

    /// `x: [T, H]` to `[T, H]`.
    pub(super) fn forward(&self, x: &Tensor, cpu: &Cpu) -> Result<Tensor> {
        Ok(ops::rms_norm(cpu, x, &self.weight, self.eps)?)
    }
}
