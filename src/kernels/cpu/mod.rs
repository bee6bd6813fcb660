//! CPU kernels: one table of function pointers per instruction set, a persistent thread pool, and the
//! safe entry points that check lengths once.

use super::{AttentionRows, ExpertShape, Experts, HeadShape, KvFormat, SwigluParams};
use half::bf16;

/// Instruction-set tiers, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No intrinsics.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
}

/// The kernels of one tier on one thread pool.
pub struct Cpu {}

#[allow(unused_variables, missing_docs, clippy::too_many_arguments)]
impl Cpu {
    /// The best tier of this machine (capped by `MAX_CPU_ISA`) on `threads` threads; 0 means one per core available to the process.
    pub fn new(threads: usize) -> Cpu {
        unimplemented!()
    }
    /// `None` when this CPU lacks `isa`.
    pub fn with_isa(isa: Isa, threads: usize) -> Option<Cpu> {
        unimplemented!()
    }
    pub fn isa(&self) -> Isa {
        unimplemented!()
    }
    pub fn threads(&self) -> usize {
        unimplemented!()
    }
    pub fn embedding(&self, out: &mut [f32], table: &[bf16], tokens: &[u32], hidden: usize) {
        unimplemented!()
    }
    pub fn rms_norm(&self, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        unimplemented!()
    }
    pub fn matmul(
        &self,
        out: &mut [f32],
        w: &[bf16],
        x: &[f32],
        bias: Option<&[f32]>,
        rows: usize,
        cols: usize,
    ) {
        unimplemented!()
    }
    /// `cos`, `sin`: `[T, D/2]` for the rows of `x: [T, heads, D]`.
    pub fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) {
        unimplemented!()
    }
    pub fn topk_softmax(
        &self,
        indices: &mut [u32],
        weights: &mut [f32],
        logits: &[f32],
        experts: usize,
        k: usize,
    ) {
        unimplemented!()
    }
    /// `indices: [T, k]`, every entry below `shape.experts`; `bias: [E, 2I]`; `shape.rows` is 2I.
    pub fn moe_gate_up(
        &self,
        out: &mut [f32],
        w: Experts,
        bias: &[bf16],
        shape: ExpertShape,
        x: &[f32],
        indices: &[u32],
        k: usize,
        swiglu: SwigluParams,
    ) {
        unimplemented!()
    }
    pub fn moe_down(
        &self,
        out: &mut [f32],
        w: Experts,
        bias: &[bf16],
        shape: ExpertShape,
        a: &[f32],
        indices: &[u32],
        weights: &[f32],
        k: usize,
    ) {
        unimplemented!()
    }
    /// `slots[t]` is `page · 64 + row`; `pages` is the whole pool as 32-bit words.
    pub fn kv_write(
        &self,
        pages: &mut [u32],
        k: &[f32],
        v: &[f32],
        slots: &[u64],
        heads: HeadShape,
        format: KvFormat,
    ) {
        unimplemented!()
    }
    pub fn attention(
        &self,
        out: &mut [f32],
        q: &[f32],
        pages: &[u32],
        sinks: &[f32],
        rows: AttentionRows,
        heads: HeadShape,
        format: KvFormat,
        scale: f32,
    ) {
        unimplemented!()
    }
}
