//! [`RmsNorm`]: `x · rsqrt(mean(x²) + eps) · w` (Zhang and Sennrich 2019, arXiv 1910.07467).

use super::residual::Residual;
use super::weight::Vector;
use crate::Result;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Upload;
use crate::ops::Engine;
use crate::weights::Checkpoint;
use candle_core::Tensor;

/// Root-mean-square normalisation over the hidden size.
pub(super) struct RmsNorm {
    weight: Vector, // [H]
    eps: f32,
}

impl RmsNorm {
    /// The weight called `name`.
    pub(super) fn new(checkpoint: &Checkpoint, name: &str) -> Result<RmsNorm> {
        let config = checkpoint.config();
        let weight = Vector::Host(checkpoint.f32(name, &[config.hidden_size])?);
        Ok(RmsNorm { weight, eps: config.rms_norm_eps as f32 })
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        self.weight.upload(to)
    }

    /// `x: [T, H]` to `[T, H]`.
    pub(super) fn forward(&self, x: &mut Residual, engine: &Engine) -> Result<Tensor> {
        x.norm(engine, self.weight.slice(), self.eps)
    }
}
