//! Routed experts: moe.cu for few tokens and for bf16 experts, moe_grouped.cu for many.

use super::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, PushKernelArg};
use super::{Cuda, CudaError, FEW_ROWS, int};
use crate::kernels::{ExpertShape, MXFP4_BLOCK, SwigluParams, elements};
use half::bf16;

/// Most tokens that moe_grouped.cu is given at once, which bounds its scratch memory: 380 MB for
/// 4 experts per token and a width of 2880.
const MOST: usize = 4096;

/// Rows of a matrix per block: `ROWS` in moe.cu.
const ROWS: usize = 24;

/// Most threads of a block: `32 · MAX_WARPS` in moe.cu.
const MOST_THREADS: usize = 512;

/// Threads per block of the bf16 kernels, one output each.
const BF16_THREADS: usize = 128;

/// Most blocks in the second dimension of a grid.
const MOST_BLOCKS: usize = 65535;

/// The expert matrices of one projection of one layer on the device, see
/// [`Experts`](crate::kernels::Experts).
#[derive(Debug)]
pub enum CudaExperts<'a> {
    /// `[E, rows, cols]` in MXFP4.
    Mxfp4 {
        /// `E · rows · cols / 2` packed bytes, from an address that is a multiple of 16.
        blocks: CudaView<'a, u8>,
        /// `E · rows · cols / 32` E8M0 exponents.
        scales: CudaView<'a, u8>,
    },
    /// `[E, cols, rows]` in bf16.
    Bf16(CudaView<'a, bf16>),
}

/// Threads that share an expert's columns: one block of 32 columns each, as far as a block of threads goes.
fn team(cols: usize) -> usize {
    (cols / MXFP4_BLOCK).next_multiple_of(32).min(MOST_THREADS)
}

impl Cuda {
    /// Gate and up of the chosen experts and the activation between them and
    /// [`moe_down`](Self::moe_down): `h = W[e]·x + bias[e]`, `g = min(h[2i], limit)`,
    /// `u = clamp(h[2i+1], ±limit)`, `out[t·k+j, i] = g·σ(alpha·g)·(u + 1)` with `e = indices[t·k+j]`.
    ///
    /// `shape.rows` is 2I; `bias: [E, 2I]`, `x: [T, cols]`, `indices: [T, k]`, `out: [T·k, I]`.
    /// An index that is not below E makes its outputs NaN. Row-invariant among calls of up to 8 tokens
    /// and among calls of more; with MXFP4, the latter take x apart into two bf16, which leaves 2^-17 of
    /// it out.
    ///
    /// # Panics
    ///
    /// When k or E is 0, `shape.rows` is odd, `shape.cols` is 0 or (for MXFP4) no multiple of 32, a length
    /// is not what the shapes say, or (for MXFP4) x or the blocks do not begin at a multiple of 16 bytes.
    #[allow(clippy::too_many_arguments)]
    pub fn moe_gate_up(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: &CudaExperts<'_>,
        bias: &CudaView<'_, bf16>,
        shape: ExpertShape,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        k: usize,
        swiglu: SwigluParams,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = shape;
        self.check_experts(w, bias, shape, x, indices, k);
        assert!(rows.is_multiple_of(2), "rows of gate and up are {rows}");
        let (pairs, t) = (indices.len(), indices.len() / k);
        assert_eq!(x.len(), elements([t, cols]), "x");
        assert_eq!(out.len(), elements([pairs, rows / 2]), "out");
        let (e, r, c, j) = (int(experts), int(rows), int(cols), int(k));
        match w {
            CudaExperts::Mxfp4 { blocks, scales } if t <= FEW_ROWS => {
                let kernel = self.kernel("moe", "moe_gate_up_mxfp4")?;
                let mut call = kernel.call();
                call.arg(out).arg(blocks).arg(scales).arg(bias).arg(x).arg(indices);
                call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&swiglu.alpha).arg(&swiglu.limit);
                let grid = [rows.div_ceil(ROWS), pairs, 1];
                // SAFETY: rows behind the last are read as the last and not written, and an expert is read
                // when it is below E; the lengths hold the rest, and wide loads are aligned.
                unsafe { kernel.launch(call, grid, team(cols)) }
            }
            CudaExperts::Mxfp4 { blocks, scales } => {
                for first in (0..t).step_by(MOST) {
                    let end = t.min(first + MOST);
                    self.gate_up_grouped(
                        &mut out.slice_mut(first * k * rows / 2..end * k * rows / 2),
                        [blocks, scales],
                        bias,
                        shape,
                        &x.slice(first * cols..end * cols),
                        &indices.slice(first * k..end * k),
                        k,
                        swiglu,
                    )?;
                }
                Ok(())
            }
            CudaExperts::Bf16(weight) => {
                let kernel = self.kernel("moe", "moe_gate_up_bf16")?;
                let n = pairs as u64;
                let mut call = kernel.call();
                call.arg(out).arg(weight).arg(bias).arg(x).arg(indices).arg(&n);
                call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&swiglu.alpha).arg(&swiglu.limit);
                let grid = [(rows / 2).div_ceil(BF16_THREADS), pairs.min(MOST_BLOCKS), 1];
                // SAFETY: outputs end at I, pairs at T·k, and an expert is read when it is below E; the
                // lengths hold the rest.
                unsafe { kernel.launch(call, grid, BF16_THREADS) }
            }
        }
    }

    /// The weighted sum of the chosen experts' outputs:
    /// `out[t,:] = Σ_j weights[t,j] · (W[e_j]·a[t·k+j,:] + bias[e_j])`, summed in the order of `indices`.
    ///
    /// `shape.rows` is H; `bias: [E, H]`, `a: [T·k, cols]`, `indices, weights: [T, k]`, `out: [T, H]`.
    /// Indices and invariance as in [`moe_gate_up`](Self::moe_gate_up).
    ///
    /// # Panics
    ///
    /// As [`moe_gate_up`](Self::moe_gate_up), but for the number of rows.
    #[allow(clippy::too_many_arguments)]
    pub fn moe_down(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: &CudaExperts<'_>,
        bias: &CudaView<'_, bf16>,
        shape: ExpertShape,
        a: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
        k: usize,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = shape;
        self.check_experts(w, bias, shape, a, indices, k);
        let (pairs, t) = (indices.len(), indices.len() / k);
        assert_eq!(a.len(), elements([pairs, cols]), "a");
        assert_eq!(weights.len(), pairs, "weights");
        assert_eq!(out.len(), elements([t, rows]), "out");
        let (e, r, c, j) = (int(experts), int(rows), int(cols), int(k));
        match w {
            CudaExperts::Mxfp4 { blocks, scales } if t <= FEW_ROWS => {
                let team = team(cols);
                let (threads, of_team) = (team * k.min(MOST_THREADS / team), int(team));
                let kernel = self.kernel("moe", "moe_down_mxfp4")?;
                let mut call = kernel.call();
                call.arg(out).arg(blocks).arg(scales).arg(bias).arg(a).arg(indices).arg(weights);
                call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&of_team);
                // SAFETY: as in moe_gate_up.
                unsafe { kernel.launch(call, [rows.div_ceil(ROWS), t, 1], threads) }
            }
            CudaExperts::Mxfp4 { blocks, scales } => {
                for first in (0..t).step_by(MOST) {
                    let end = t.min(first + MOST);
                    self.down_grouped(
                        &mut out.slice_mut(first * rows..end * rows),
                        [blocks, scales],
                        bias,
                        shape,
                        &a.slice(first * k * cols..end * k * cols),
                        &indices.slice(first * k..end * k),
                        &weights.slice(first * k..end * k),
                        k,
                    )?;
                }
                Ok(())
            }
            CudaExperts::Bf16(weight) => {
                let kernel = self.kernel("moe", "moe_down_bf16")?;
                let n = t as u64;
                let mut call = kernel.call();
                call.arg(out).arg(weight).arg(bias).arg(a).arg(indices).arg(weights).arg(&n);
                call.arg(&e).arg(&r).arg(&c).arg(&j);
                let grid = [rows.div_ceil(BF16_THREADS), t.min(MOST_BLOCKS), 1];
                // SAFETY: as in moe_gate_up.
                unsafe { kernel.launch(call, grid, BF16_THREADS) }
            }
        }
    }

    /// What both halves ask of their arguments.
    fn check_experts(
        &self,
        w: &CudaExperts<'_>,
        bias: &CudaView<'_, bf16>,
        shape: ExpertShape,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        k: usize,
    ) {
        let ExpertShape { experts, rows, cols } = shape;
        assert!(k > 0 && indices.len().is_multiple_of(k), "indices");
        assert!(experts > 0 && cols > 0, "{shape:?} is empty");
        assert_eq!(bias.len(), elements([experts, rows]), "bias");
        let n = elements([experts, rows, cols]);
        match w {
            CudaExperts::Mxfp4 { blocks, scales } => {
                assert!(cols.is_multiple_of(MXFP4_BLOCK), "cols is {cols}, no multiple of 32");
                assert_eq!(
                    (blocks.len(), scales.len()),
                    (n / 2, n / MXFP4_BLOCK),
                    "blocks, scales"
                );
                let stream = self.stream();
                let addresses = [blocks.device_ptr(stream).0, x.device_ptr(stream).0];
                assert!(addresses.iter().all(|a| a.is_multiple_of(16)), "blocks or x not aligned");
            }
            CudaExperts::Bf16(weight) => assert_eq!(weight.len(), n, "weight"),
        }
    }
}
