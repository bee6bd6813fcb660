//! [`Attention`]: grouped-query attention with learned sinks and the layer's own window.

use super::Step;
use super::linear::Linear;
use crate::kernels::AttentionRows;
use crate::kernels::cpu::Cpu;
use crate::ops::{self, AttentionCall};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::Tensor;

/// Query head h reads key/value head `h / (Q / K)`; the softmax has one more, learned, score per head
/// (the sink) whose share is dropped. No normalisation of queries or keys.
pub(super) struct Attention {
    q_proj: Linear,  // [Q·D, H]
    k_proj: Linear,  // [K·D, H]
    v_proj: Linear,  // [K·D, H]
    o_proj: Linear,  // [H, Q·D]
    sinks: Vec<f32>, // [Q]
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
            sinks: checkpoint.f32(&name("sinks"), &[config.num_attention_heads])?,
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

    /// `x: [T, H]` to `[T, H]`; keys and values of every row go to the cache first, so that rows of
    /// one chunk see each other there.
    pub(super) fn forward(&self, x: &Tensor, layer: usize, step: &Step<'_>) -> Result<Tensor> {
        let Step { cpu, cache, positions, sequence_ids, .. } = *step;
        let (heads, format) = (cache.heads(), cache.format(layer));
        let q = self.q_proj.forward(x, cpu)?; // [T, Q·D]
        let k = self.k_proj.forward(x, cpu)?; // [T, K·D]
        let v = self.v_proj.forward(x, cpu)?; // [T, K·D]
        let q = ops::rope(cpu, &q, &step.cos, &step.sin, self.head_dim)?;
        let k = ops::rope(cpu, &k, &step.cos, &step.sin, self.head_dim)?;

        let slots: Vec<u64> = (positions.iter().zip(sequence_ids))
            .map(|(&p, &id)| step.sequences[id as usize].slot(layer, p as usize))
            .collect();
        ops::kv_write(cpu, cache.words(), &k, &v, &slots, heads, format)?;

        let page_tables: Vec<&[u32]> = step.sequences.iter().map(|s| s.page_table(layer)).collect();
        let rows = AttentionRows {
            positions,
            sequences: sequence_ids,
            page_tables: &page_tables,
            window: self.window,
        };
        let scale = (self.head_dim as f32).sqrt().recip();
        let call = AttentionCall { rows, sinks: &self.sinks, heads, format, scale };
        let out = ops::attention(cpu, &q, cache.words(), &call).map_err(Error::from)?; // [T, Q·D]
        self.o_proj.forward(&out, cpu)
    }
}
