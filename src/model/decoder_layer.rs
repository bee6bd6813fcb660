//! [`DecoderLayer`]: one pre-norm block, attention and then routed experts.

use super::Step;
use super::attention::Attention;
use super::moe::Moe;
use super::norm::RmsNorm;
use super::residual::Residual;
use crate::Result;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Upload;
use crate::weights::Checkpoint;

/// `x += attention(norm(x))`, then `x += experts(norm(x))`.
pub(super) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Moe,
}

impl DecoderLayer {
    pub(super) fn new(checkpoint: &Checkpoint, layer: usize) -> Result<DecoderLayer> {
        let norm =
            |name: &str| RmsNorm::new(checkpoint, &format!("model.layers.{layer}.{name}.weight"));
        Ok(DecoderLayer {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::new(checkpoint, layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Moe::new(checkpoint, layer)?,
        })
    }

    /// Holds the projections of attention in 8 bits from here on.
    pub(super) fn quantize(&mut self, cpu: &Cpu) {
        self.self_attn.quantize(cpu);
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        self.input_layernorm.upload(to)?;
        self.self_attn.upload(to)?;
        self.post_attention_layernorm.upload(to)?;
        self.mlp.upload(to)
    }

    /// `x: [T, H]` in place.
    pub(super) fn forward(&self, x: &mut Residual, layer: usize, step: &Step<'_>) -> Result<()> {
        let normed = self.input_layernorm.forward(x, step.engine)?;
        x.add(self.self_attn.forward(&normed, layer, step)?);
        let normed = self.post_attention_layernorm.forward(x, step.engine)?;
        x.add(self.mlp.forward(&normed, step)?);
        Ok(())
    }
}
