//! [`Moe`]: the router and its experts.

use super::Step;
use super::linear::Linear;
use super::weight::ExpertWeights;
use crate::Result;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Upload;
use crate::kernels::{ExpertShape, SwigluParams};
use crate::ops;
use crate::weights::Checkpoint;
use candle_core::Tensor;

/// Each token goes to the k experts of the largest router logits, weighted by the softmax over those
/// k alone. An expert is a clamped SwiGLU: gate and up come from interleaved rows of one projection,
/// the gate is clamped from above, up from both sides, and up counts from 1.
pub(super) struct Moe {
    router: Linear,              // [E, H]
    gate_up_proj: ExpertWeights, // E × [2I, H]
    down_proj: ExpertWeights,    // E × [H, I]
    experts_per_token: usize,
    swiglu: SwigluParams,
}

impl Moe {
    pub(super) fn new(checkpoint: &Checkpoint, layer: usize) -> Result<Moe> {
        let config = checkpoint.config();
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let experts = config.block_configs[layer].num_local_experts;
        let router = format!("model.layers.{layer}.mlp.router");
        Ok(Moe {
            router: Linear::new(checkpoint, &router, experts, hidden)?,
            gate_up_proj: ExpertWeights::new(
                checkpoint,
                layer,
                "gate_up_proj",
                ExpertShape { experts, rows: 2 * intermediate, cols: hidden },
            )?,
            down_proj: ExpertWeights::new(
                checkpoint,
                layer,
                "down_proj",
                ExpertShape { experts, rows: hidden, cols: intermediate },
            )?,
            experts_per_token: config.num_experts_per_tok,
            swiglu: SwigluParams {
                alpha: config.swiglu_alpha as f32,
                limit: config.swiglu_limit as f32,
            },
        })
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        self.router.upload(to)?;
        self.gate_up_proj.upload(to)?;
        self.down_proj.upload(to)
    }

    /// `x: [T, H]` to `[T, H]`.
    pub(super) fn forward(&self, x: &Tensor, step: &Step<'_>) -> Result<Tensor> {
        let Step { engine, rows, .. } = step;
        let logits = self.router.forward(x, engine)?; // [T, E]
        let routing = ops::topk_softmax(engine, &logits, rows, self.experts_per_token)?; // [2, T, k]
        let experts = ops::Experts {
            gate_up: self.gate_up_proj.projection(),
            down: self.down_proj.projection(),
            swiglu: self.swiglu,
        };
        Ok(ops::moe(engine, x, &routing, experts)?) // [T, H]
    }
}
