//! [`Attention`]: grouped-query attention with learned sinks and the layer's own window.

use super::Step;
use super::linear::Linear;
use super::weight::Vector;
use crate::Result;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Upload;
use crate::ops::{self, AttentionCall, CacheWrite};
use crate::weights::Checkpoint;
use candle_core::Tensor;

/// Query head h reads key/value head `h / (Q / K)`; the softmax has one more, learned, score per head
/// (the sink) whose share is dropped. No normalisation of queries or keys.
pub(super) struct Attention {
    q_proj: Linear, // [Q·D, H]
    k_proj: Linear, // [K·D, H]
    v_proj: Linear, // [K·D, H]
    o_proj: Linear, // [H, Q·D]
    sinks: Vector,  // [Q]
    head_dim: usize,
    window: Option<usize>,
}

impl Attention {
    pub(super) fn new(checkpoint: &Checkpoint, layer: usize) -> Result<Attention> {
        let config = checkpoint.config();
        let hidden = config.hidden_size;
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        Ok(Attention {
            q_proj: Linear::new(checkpoint, &name("q_proj"), q, hidden)?,
            k_proj: Linear::new(checkpoint, &name("k_proj"), kv, hidden)?,
            v_proj: Linear::new(checkpoint, &name("v_proj"), kv, hidden)?,
            o_proj: Linear::new(checkpoint, &name("o_proj"), hidden, q)?,
            sinks: Vector::Host(checkpoint.f32(&name("sinks"), &[config.num_attention_heads])?),
            head_dim: config.head_dim,
            window: config.block_configs[layer].sliding_window,
        })
    }

    /// Holds the projections in 8 bits from here on.
    pub(super) fn quantize(&mut self, cpu: &Cpu) {
        for projection in [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj] {
            projection.quantize(cpu);
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        for projection in [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj] {
            projection.upload(to)?;
        }
        self.sinks.upload(to)
    }

    /// `x: [T, H]` to `[T, H]`; keys and values of every row go to the cache first, so that rows of
    /// one chunk see each other there.
    pub(super) fn forward(&self, x: &Tensor, layer: usize, step: &Step<'_>) -> Result<Tensor> {
        let Step { engine, cache, rows } = step;
        let (pages, heads, format) = (cache.words(), cache.heads(), cache.format(layer));
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj].map(Linear::projection);
        let qkv = ops::matmul_each(engine, x, projections)?; // [T·Q·D], then twice [T·K·D]
        let write = CacheWrite { pages, rows, layer, heads, format };
        let q = ops::rope_kv_write(engine, &qkv, &write)?; // [T, Q·D]

        let (window, sinks) = (self.window, self.sinks.slice());
        let scale = (self.head_dim as f32).sqrt().recip();
        let call = AttentionCall { rows, layer, window, sinks, heads, format, scale };
        let out = ops::attention(engine, &q, pages, &call)?; // [T, Q·D]
        self.o_proj.forward(&out, engine)
    }
}
