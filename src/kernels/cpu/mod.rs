//! CPU kernels: one table of function pointers per instruction set, a persistent thread pool, and the
//! safe entry points that check every length and index once and split the work.
//!
//! A tier's kernels are serial and allocate nothing; what is here and in `attention`, `experts` is
//! shared by all tiers. Splitting never changes a result: the order of every sum is a property of the
//! tier, not of the split.

mod activations;
mod attention;
#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(portable)))]
mod avx512;
mod dense;
mod experts;
mod fp8;
mod isa;
mod mxfp4;
mod pages;
mod panels;
mod parallel;
mod prefetch;
mod q8;
mod scalar;
mod scratch;
mod shares;
mod table;
mod words;

pub use fp8::{fp8_decode, fp8_encode};
pub use isa::Isa;
pub use parallel::Pool;

use super::{
    Activations, AttentionRows, Dense, ExpertShape, Experts, HeadShape, KvFormat, MXFP4_BLOCK,
    Q8_BLOCK, SwigluParams, elements,
};
use half::bf16;
use shares::Shares;
use std::ops::Range;
use table::Kernels;

/// Below this many multiplications or copied values a call stays on the calling thread: handing it out
/// would cost more than it saves.
const SMALL: usize = 1 << 15;

/// The kernels of one tier on one thread pool.
///
/// Calls may come from several threads at once. Every method panics when a length or an index
/// contradicts the shapes it documents; the callers own those numbers, not the user's files.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    activations: Activations,
}

/// More than the cores of any machine.
const MAX_THREADS: usize = 1024;

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa()).field("threads", &self.threads()).finish()
    }
}

impl Cpu {
    /// The best tier of this machine, not above `MAX_CPU_ISA`, on `threads` threads; 0 means one per
    /// core available to the process.
    ///
    /// # Errors
    ///
    /// When `MAX_CPU_ISA` is set to something other than `scalar`, `avx2` or `avx512`, and for more than
    /// 1,024 threads: the system ends a process that starts more than it can hold.
    pub fn new(threads: usize) -> Result<Cpu, String> {
        if threads > MAX_THREADS {
            return Err(format!(
                "{threads} threads were asked for, expected at most {MAX_THREADS}"
            ));
        }
        let cap = std::env::var_os("MAX_CPU_ISA");
        let isa = Isa::detect(cap.as_deref().map(|cap| cap.to_string_lossy()).as_deref())?;
        let kernels = Kernels::of(isa).ok_or("no kernels for the detected tier")?;
        Ok(Cpu::of(kernels, threads))
    }

    /// The tier `isa`, whatever `MAX_CPU_ISA` says; `None` when this machine lacks it.
    pub fn with_isa(isa: Isa, threads: usize) -> Option<Cpu> {
        Some(Cpu::of(Kernels::of(isa)?, threads))
    }

    fn of(kernels: Kernels, threads: usize) -> Cpu {
        Cpu { kernels, pool: Pool::new(threads), activations: Activations::default() }
    }

    /// The same kernels, whose products take their activations as said.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Cpu {
        Cpu { activations, ..self }
    }

    /// The tier in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    /// What the products make of their activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Threads that share a call, the calling one included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `task(0) .. task(tasks - 1)`, each once, on the threads of the kernels; tasks call no kernels.
    pub fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, task);
    }

    /// Runs `task` on pieces of `0..n`, of which one unit costs `cost`: all at once when the call is
    /// small, otherwise several pieces per thread of a multiple of `multiple`, at most `largest`.
    fn split(
        &self,
        n: usize,
        cost: usize,
        multiple: usize,
        largest: usize,
        task: impl Fn(Range<usize>) + Sync,
    ) {
        if n * cost <= SMALL {
            return if n > 0 {
                task(0..n)
            };
        }
        let fair = n.div_ceil(4 * self.threads()).next_multiple_of(multiple);
        self.pool.run_chunks(n, fair.min(largest), task);
    }

    /// `out[t,:] = table[tokens[t],:]` with `table: [V, hidden]`, `out: [T, hidden]`.
    ///
    /// # Panics
    ///
    /// When a token is not below V, or a length is not what the shapes say.
    pub fn embedding(&self, out: &mut [f32], table: &[bf16], tokens: &[u32], hidden: usize) {
        assert!(hidden > 0 && table.len().is_multiple_of(hidden), "table");
        assert_eq!(out.len(), elements([tokens.len(), hidden]), "out");
        let vocab = table.len() / hidden;
        assert!(tokens.iter().all(|&t| (t as usize) < vocab), "token not below {vocab}");
        let out = Shares::new(out);
        self.split(tokens.len(), hidden, 1, 64, |rows| {
            for t in rows {
                // SAFETY: row t is this task's alone. The table exists only where its tier runs.
                unsafe {
                    let out = out.part(t * hidden..(t + 1) * hidden);
                    (self.kernels.widen)(out, &table[tokens[t] as usize * hidden..][..hidden]);
                }
            }
        });
    }

    /// `out = x · rsqrt(mean(x²) + eps) · weight` for each row of `weight.len()` values.
    ///
    /// # Panics
    ///
    /// When `weight` is empty or a length is not what the shapes say.
    pub fn rms_norm(&self, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        let hidden = weight.len();
        assert!(hidden > 0 && x.len().is_multiple_of(hidden), "x");
        assert_eq!(out.len(), x.len(), "out");
        let out = Shares::new(out);
        self.split(x.len() / hidden, hidden, 1, 64, |rows| {
            for t in rows {
                let row = t * hidden..(t + 1) * hidden;
                // SAFETY: row t is this task's alone. The table exists only where its tier runs.
                unsafe {
                    (self.kernels.rms_norm)(out.part(row.clone()), &x[row], weight, eps);
                }
            }
        });
    }

    /// The matrix `w` in 8 bits, see [`Dense::Q8`].
    ///
    /// # Panics
    ///
    /// When `w` is not whole blocks, or a length is not what the shapes say.
    pub fn q8_encode(&self, quants: &mut [i8], scales: &mut [bf16], w: &[bf16]) {
        assert_eq!((quants.len(), scales.len() * Q8_BLOCK), (w.len(), w.len()), "quants, scales");
        q8::encode(self, quants, scales, w);
    }

    /// `out[t,o] = bias[o] + Σ_i w[o,i]·x[t,i]` with `w: [rows, cols]`, `x: [T, cols]`, `bias: [rows]`,
    /// `out: [T, rows]`.
    ///
    /// # Panics
    ///
    /// When `cols` is 0 or (for Q8) no multiple of 32, or a length is not what the shapes say.
    pub fn matmul(
        &self,
        out: &mut [f32],
        w: Dense,
        x: &[f32],
        bias: Option<&[f32]>,
        rows: usize,
        cols: usize,
    ) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "x");
        let t = x.len() / cols;
        match w {
            Dense::Bf16(w) => assert_eq!(w.len(), elements([rows, cols]), "w"),
            Dense::Q8 { quants, scales } => {
                assert!(cols.is_multiple_of(Q8_BLOCK), "cols is {cols}, no multiple of 32");
                assert_eq!(quants.len(), elements([rows, cols]), "quants");
                assert_eq!(scales.len(), quants.len() / Q8_BLOCK, "scales");
            }
        }
        assert_eq!(out.len(), elements([t, rows]), "out");
        assert!(bias.is_none_or(|b| b.len() == rows), "bias");
        self.take(x, |x| dense::matmul(self, out, w, x, bias, rows, cols));
    }

    /// Rotates in place the pairs `(i, i + D/2)` of every head of `x: [T, heads, head_dim]` by row t of
    /// `cos, sin: [T, head_dim/2]`: `(x1·c − x2·s, x2·c + x1·s)`.
    ///
    /// # Panics
    ///
    /// When `head_dim` is odd or 0, or a length is not what the shapes say.
    pub fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) {
        let (width, half) = (elements([heads, head_dim]), head_dim / 2);
        assert!(half > 0 && head_dim.is_multiple_of(2) && width > 0, "head_dim");
        assert!(x.len().is_multiple_of(width), "x");
        let t = x.len() / width;
        assert_eq!((cos.len(), sin.len()), (t * half, t * half), "cos, sin");
        let x = Shares::new(x);
        self.split(t, width, 1, 64, |rows| {
            for t in rows {
                let angles = t * half..(t + 1) * half;
                // SAFETY: row t is this task's alone. The table exists only where its tier runs.
                unsafe {
                    let x = x.part(t * width..(t + 1) * width);
                    (self.kernels.rope)(x, &cos[angles.clone()], &sin[angles]);
                }
            }
        });
    }

    /// The k largest of each row of `logits: [T, experts]` in descending order, ties to the lower index,
    /// and the softmax over those k; `indices, weights: [T, k]`. A NaN ranks below every number; when one
    /// is among the k, the row's weights are NaN.
    ///
    /// # Panics
    ///
    /// When k is 0 or above `experts`, or a length is not what the shapes say.
    pub fn topk_softmax(
        &self,
        indices: &mut [u32],
        weights: &mut [f32],
        logits: &[f32],
        experts: usize,
        k: usize,
    ) {
        assert!(k > 0 && k <= experts, "k is {k}, experts are {experts}");
        assert!(logits.len().is_multiple_of(experts), "logits");
        let t = logits.len() / experts;
        assert_eq!((indices.len(), weights.len()), (t * k, t * k), "indices, weights");
        let (indices, weights) = (Shares::new(indices), Shares::new(weights));
        self.split(t, experts, 1, 64, |rows| {
            for t in rows {
                let logits = &logits[t * experts..(t + 1) * experts];
                let row = t * k..(t + 1) * k;
                // SAFETY: row t is this task's alone. The table exists only where its tier runs.
                unsafe {
                    let indices = indices.part(row.clone());
                    (self.kernels.topk_softmax)(indices, weights.part(row), logits);
                }
            }
        });
    }

    /// `FP4[nibble] · 2^(scale − 127)` in the order of the features: `scales.len()` blocks of 32.
    ///
    /// # Panics
    ///
    /// When a length is not what the shapes say.
    pub fn mxfp4_decode(&self, out: &mut [f32], blocks: &[u8], scales: &[u8]) {
        assert_eq!(blocks.len(), scales.len() * MXFP4_BLOCK / 2, "blocks");
        assert_eq!(out.len(), scales.len() * MXFP4_BLOCK, "out");
        let out = Shares::new(out);
        self.split(scales.len(), MXFP4_BLOCK, 1, 1024, |range| {
            for i in range {
                let mut decoded = [0.0; MXFP4_BLOCK];
                // SAFETY: block i is this task's alone. The table exists only where its tier runs.
                let out = unsafe {
                    (self.kernels.mxfp4_decode)(
                        &mut decoded,
                        &blocks[i * 16..][..16],
                        &scales[i..=i],
                    );
                    out.part(i * MXFP4_BLOCK..(i + 1) * MXFP4_BLOCK)
                };
                let (even, odd) = decoded.split_at(MXFP4_BLOCK / 2);
                for ((out, even), odd) in out.chunks_exact_mut(2).zip(even).zip(odd) {
                    out.copy_from_slice(&[*even, *odd]);
                }
            }
        });
    }

    /// Gate and up of the chosen experts and the activation between them and
    /// [`moe_down`](Self::moe_down): `h = W[e]·x + bias[e]`, `g = min(h[2i], limit)`,
    /// `u = clamp(h[2i+1], ±limit)`, `out[t·k+j, i] = g·σ(alpha·g)·(u + 1)` with `e = indices[t·k+j]`.
    ///
    /// `shape.rows` is 2I; `bias: [E, 2I]`, `x: [T, cols]`, `indices: [T, k]`, `out: [T·k, I]`.
    ///
    /// # Panics
    ///
    /// When an index is not below `shape.experts`, k is 0, `shape.rows` is odd, `shape.cols` is 0 or (for
    /// MXFP4) no multiple of 32, or a length is not what the shapes say.
    #[allow(clippy::too_many_arguments)]
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
        experts::check(w, bias, shape, indices, k);
        assert!(shape.rows.is_multiple_of(2), "rows of gate and up are {}", shape.rows);
        assert_eq!(x.len(), elements([indices.len() / k, shape.cols]), "x");
        assert_eq!(out.len(), elements([indices.len(), shape.rows / 2]), "out");
        self.take(x, |x| experts::gate_up(self, out, w, bias, shape, x, indices, k, swiglu));
    }

    /// The weighted sum of the chosen experts' outputs:
    /// `out[t,:] = Σ_j weights[t,j] · (W[e_j]·a[t·k+j,:] + bias[e_j])`, summed in the order of `indices`.
    ///
    /// `shape.rows` is H; `bias: [E, H]`, `a: [T·k, cols]`, `indices, weights: [T, k]`, `out: [T, H]`.
    ///
    /// # Panics
    ///
    /// When an index is not below `shape.experts`, k is 0, `shape.cols` is 0 or (for MXFP4) no multiple of
    /// 32, or a length is not what the shapes say.
    #[allow(clippy::too_many_arguments)]
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
        experts::check(w, bias, shape, indices, k);
        assert_eq!(a.len(), elements([indices.len(), shape.cols]), "a");
        assert_eq!(weights.len(), indices.len(), "weights");
        assert_eq!(out.len(), elements([indices.len() / k, shape.rows]), "out");
        self.take(a, |a| experts::down(self, out, w, bias, shape, a, indices, weights, k));
    }

    /// Stores row t of `k, v: [T, K, D]` at `slots[t]` (`page · 64 + row`), converted to `format`.
    /// `pages` is the whole pool as 32-bit words. Of equal slots the last row stays.
    ///
    /// # Panics
    ///
    /// When a slot is outside the pool, or a length is not what the shapes say.
    pub fn kv_write(
        &self,
        pages: &mut [u32],
        k: &[f32],
        v: &[f32],
        slots: &[u64],
        heads: HeadShape,
        format: KvFormat,
    ) {
        pages::kv_write(self, pages, k, v, slots, heads, format);
    }

    /// Attention over the paged cache: for query head h of row t, with kv head `h / (Q/K)`,
    /// `s_j = scale · q·k_j` over the positions j that `rows` makes visible,
    /// `out = Σ_j e^(s_j − m)·v_j / (Σ_j e^(s_j − m) + e^(sinks[h] − m))`.
    ///
    /// `q, out: [T, Q, D]`, `sinks: [Q]`. A score that is NaN or +∞ makes its head's output NaN.
    ///
    /// # Panics
    ///
    /// When a sequence index, a visible position or the page it maps to (also
    /// [`NO_PAGE`](super::NO_PAGE)) is out of range, the window is 0, or a length is not what the shapes
    /// say.
    #[allow(clippy::too_many_arguments)]
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
        attention::attention(self, out, q, pages, sinks, rows, heads, format, scale);
    }
}
