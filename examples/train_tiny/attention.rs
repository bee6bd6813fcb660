//! Attention of every sequence of a flat batch, with its gradient.

use crate::ops::{dot, exp, numbers, sum, vec};
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use std::ops::Range;

/// Causal attention of every sequence of a flat batch, with grouped heads, sinks and a window:
/// `qkv [N, (H + 2·KV)·D]` and `sinks [H]` to `[N, H·D]`.
///
/// The softmax runs over the visible positions and the sink, which takes its share and has no value. A
/// query sees itself and `window − 1` positions before it. Weights are not kept for the gradient but
/// made again, block of queries by block, so that memory grows with the length and not its square.
pub struct Attention {
    pub lengths: Vec<usize>,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub window: usize,
}

/// Queries handled together.
const QUERIES: usize = 256;

/// One block of queries and the positions they see, as rows of the batch.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
    q: Tensor,         // [KV, G·B, D]
    k: Tensor,         // [KV, S, D]
    v: Tensor,         // [KV, S, D]
    weights: Vec<f32>, // [KV, G·B, S]
}

impl Attention {
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries and keys of each block.
    fn spans(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut spans = Vec::new();
        let mut start = 0;
        for length in &self.lengths {
            let end = start + length;
            for first in (start..end).step_by(QUERIES) {
                let last = (first + QUERIES).min(end);
                spans.push((first..last, start.max((first + 1).saturating_sub(self.window))..last));
            }
            start = end;
        }
        spans
    }

    /// `[heads / per, per·rows, D]` of heads that start at element `first` of rows `width` wide.
    fn gather(
        &self,
        x: &[f32],
        width: usize,
        rows: &Range<usize>,
        first: usize,
        per: usize,
    ) -> Result<Tensor> {
        let mut y = Vec::with_capacity(self.kv_heads * per * rows.len() * self.dim);
        for head in 0..self.kv_heads * per {
            for row in rows.clone() {
                y.extend_from_slice(&x[row * width + first + head * self.dim..][..self.dim]);
            }
        }
        Tensor::from_vec(y, (self.kv_heads, per * rows.len(), self.dim), &Device::Cpu)
    }

    /// Adds what [`Attention::gather`] would take from there.
    fn scatter(
        &self,
        x: &Tensor,
        y: &mut [f32],
        width: usize,
        rows: &Range<usize>,
        first: usize,
    ) -> Result<()> {
        let x = vec(x)?;
        for (i, x) in x.chunks_exact(self.dim).enumerate() {
            let (head, row) = (i / rows.len(), rows.start + i % rows.len());
            let y = &mut y[row * width + first + head * self.dim..][..self.dim];
            y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
        }
        Ok(())
    }

    /// What query row `row` of a block sees among its keys, and its head.
    fn seen(&self, block: &Block, row: usize) -> (Range<usize>, usize) {
        let position = block.queries.start + row % block.queries.len();
        let first = (position + 1).saturating_sub(self.window).max(block.keys.start);
        (first - block.keys.start..position + 1 - block.keys.start, row / block.queries.len())
    }

    fn block(
        &self,
        qkv: &[f32],
        sinks: &[f32],
        (queries, keys): (Range<usize>, Range<usize>),
    ) -> Result<Block> {
        let (width, q_end) = (self.width(), self.heads * self.dim);
        let q = self.gather(qkv, width, &queries, 0, self.group())?;
        let k = self.gather(qkv, width, &keys, q_end, 1)?;
        let v = self.gather(qkv, width, &keys, q_end + self.kv_heads * self.dim, 1)?;
        let mut weights = vec(&q.matmul(&k.t()?)?)?;
        let scale = self.scale();
        let visible = keys.len();
        let mut block = Block { queries, keys, q, k, v, weights: Vec::new() };
        for (row, weights) in weights.chunks_exact_mut(visible).enumerate() {
            let (seen, head) = self.seen(&block, row);
            weights[..seen.start].fill(0.0);
            weights[seen.end..].fill(0.0);
            let weights = &mut weights[seen];
            let max = weights.iter().fold(sinks[head] / scale, |max, s| max.max(*s));
            weights.iter_mut().for_each(|w| *w = exp((*w - max) * scale));
            let sum = sum(weights) + exp(sinks[head] - max * scale);
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        block.weights = weights;
        Ok(block)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        sinks: &CpuStorage,
        sinks_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (qkv, sinks) = (numbers(qkv, layout)?, numbers(sinks, sinks_layout)?);
        let (rows, width) = (layout.dims()[0], self.heads * self.dim);
        let mut out = vec![0f32; rows * width];
        for span in self.spans() {
            let block = self.block(qkv, sinks, span)?;
            let shape = (self.kv_heads, self.group() * block.queries.len(), block.keys.len());
            let weights = Tensor::from_vec(block.weights, shape, &Device::Cpu)?;
            self.scatter(&weights.matmul(&block.v)?, &mut out, width, &block.queries, 0)?;
        }
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        sinks: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, device) = (qkv.shape().clone(), qkv.device());
        let (qkv, sinks, gradient) = (vec(qkv)?, vec(sinks)?, vec(gradient)?);
        let (width, q_end) = (self.width(), self.heads * self.dim);
        let (mut d_qkv, mut d_sinks) = (vec![0f32; qkv.len()], vec![0f32; sinks.len()]);
        for span in self.spans() {
            let mut block = self.block(&qkv, &sinks, span)?;
            let dy = self.gather(&gradient, q_end, &block.queries, 0, self.group())?;
            let mut d = vec(&dy.matmul(&block.v.t()?)?)?;
            let visible = block.keys.len();
            let rows = block.weights.chunks_exact(visible).zip(d.chunks_exact_mut(visible));
            for (row, (w, d)) in rows.enumerate() {
                let (seen, head) = self.seen(&block, row);
                d[..seen.start].fill(0.0);
                d[seen.end..].fill(0.0);
                let (w, d) = (&w[seen.clone()], &mut d[seen]);
                let dot = dot(w, d);
                d_sinks[head] -= (1.0 - sum(w)) * dot;
                w.iter().zip(d).for_each(|(w, d)| *d = w * (*d - dot) * self.scale());
            }
            let shape = (self.kv_heads, self.group() * block.queries.len(), visible);
            let weights = std::mem::take(&mut block.weights);
            let weights = Tensor::from_vec(weights, shape, &Device::Cpu)?;
            let d = Tensor::from_vec(d, shape, &Device::Cpu)?;
            let v_start = q_end + self.kv_heads * self.dim;
            self.scatter(&d.matmul(&block.k)?, &mut d_qkv, width, &block.queries, 0)?;
            self.scatter(&d.t()?.matmul(&block.q)?, &mut d_qkv, width, &block.keys, q_end)?;
            self.scatter(&weights.t()?.matmul(&dy)?, &mut d_qkv, width, &block.keys, v_start)?;
        }
        let heads = d_sinks.len();
        Ok((
            Some(Tensor::from_vec(d_qkv, shape, device)?),
            Some(Tensor::from_vec(d_sinks, heads, device)?),
        ))
    }
}
