//! Routed experts: which kernels take them, and moe.cu, for experts as they are stored.

use super::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, PushKernelArg};
use super::{Cuda, CudaError, Packing, int};
use crate::kernels::{ExpertShape, MXFP4_BLOCK, SwigluParams, elements};
use half::bf16;

/// Most tokens that are multiplied at once, which bounds scratch memory: 400 MB for 4 experts per token
/// and a width of 2880.
const MOST: usize = 4096;

/// Most tokens whose pairs are multiplied each by itself, moe_direct.cu: more choose the same experts
/// too often, and are worth being sorted.
const DIRECT: usize = 2;

/// Most tokens whose experts are taken to have few pairs each: the most that a step of decode has, whose
/// rows have the same bits in any company.
const FEW: usize = 256;

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
    /// `[E, rows, cols]` in MXFP4, as [`Cuda::pack_experts`] orders it, from an address that is a multiple
    /// of 16.
    Packed(CudaView<'a, u8>),
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

/// One projection of a layer's experts on the device.
#[derive(Debug)]
pub struct CudaProjection<'a> {
    /// The matrices.
    pub weight: CudaExperts<'a>,
    /// `[E, rows]`.
    pub bias: CudaView<'a, bf16>,
    /// E, rows and cols.
    pub shape: ExpertShape,
}

/// What a layer's experts are asked to do, see [`Cuda::moe`].
#[derive(Debug)]
pub struct CudaMoe<'a> {
    /// `[E, 2I, H]`.
    pub gate_up: CudaProjection<'a>,
    /// `[E, H, I]`.
    pub down: CudaProjection<'a>,
    /// `[T, H]`, from an address that is a multiple of 16.
    pub x: CudaView<'a, f32>,
    /// `[T, k]`.
    pub indices: CudaView<'a, u32>,
    /// `[T, k]`.
    pub weights: CudaView<'a, f32>,
    /// k.
    pub k: usize,
    /// The activation.
    pub swiglu: SwigluParams,
}

/// Threads that share an expert's columns: one block of 32 columns each, as far as a block of threads goes.
fn team(cols: usize) -> usize {
    (cols / MXFP4_BLOCK).next_multiple_of(32).min(MOST_THREADS)
}

impl Cuda {
    /// The routed experts of a layer, [`moe_gate_up`](Self::moe_gate_up) and [`moe_down`](Self::moe_down)
    /// in one: `out: [T, H]`.
    ///
    /// An index that is not below E makes its token's row NaN. Row-invariant among calls of up to 256
    /// tokens. Packed experts take activations as this `Cuda`'s
    /// [`Activations`](crate::kernels::Activations) say, other experts as they are.
    ///
    /// # Panics
    ///
    /// As [`moe_gate_up`](Self::moe_gate_up) and [`moe_down`](Self::moe_down); when the projections
    /// are not of the same experts, or one does not take what the other gives.
    pub fn moe(&self, out: &mut CudaViewMut<'_, f32>, moe: &CudaMoe<'_>) -> Result<(), CudaError> {
        let CudaMoe { gate_up, down, x, indices, weights, k, swiglu } = moe;
        let (up, hidden) = (gate_up.shape, down.shape.rows);
        let t = self.check_routing(gate_up, indices, *k);
        self.check_routing(down, indices, *k);
        assert_eq!((up.rows, up.cols), (2 * down.shape.cols, hidden), "gate and up, down");
        assert_eq!(up.experts, down.shape.experts, "experts of both");
        assert_eq!(x.len(), elements([t, up.cols]), "x");
        assert!(x.device_ptr(self.stream()).0.is_multiple_of(16), "x is not aligned");
        assert_eq!(weights.len(), indices.len(), "weights");
        assert_eq!(out.len(), elements([t, hidden]), "out");
        for first in (0..t).step_by(MOST) {
            let end = t.min(first + MOST);
            let pairs = first * k..end * k;
            let (indices, weights) = (indices.slice(pairs.clone()), weights.slice(pairs));
            let x = x.slice(first * up.cols..end * up.cols);
            let mut out = out.slice_mut(first * hidden..end * hidden);
            if let (CudaExperts::Packed(w), CudaExperts::Packed(v)) =
                (&gate_up.weight, &down.weight)
                && end - first > DIRECT
            {
                if end - first > FEW && self.has_moe_many() {
                    self.moe_many(&mut out, [w, v], moe, &x, &indices, &weights)?;
                } else {
                    self.moe_few(&mut out, [w, v], moe, &x, &indices, &weights)?;
                }
            } else {
                let mut act = self.scratch::<f32>(indices.len() * down.shape.cols)?;
                self.moe_gate_up(&mut act.as_view_mut(), gate_up, &x, &indices, *k, *swiglu)?;
                self.moe_down(&mut out, down, &act.as_view(), &indices, &weights, *k)?;
            }
        }
        Ok(())
    }

    /// Gate and up of the chosen experts and the activation between them and
    /// [`moe_down`](Self::moe_down): `h = W[e]·x + bias[e]`, `g = min(h[2i], limit)`,
    /// `u = clamp(h[2i+1], ±limit)`, `out[t·k+j, i] = g·σ(alpha·g)·(u + 1)` with `e = indices[t·k+j]`.
    ///
    /// `w.shape.rows` is 2I; `x: [T, cols]`, `indices: [T, k]`, `out: [T·k, I]`. An index that is not below
    /// E makes its outputs NaN. Row-invariant. Every pair reads its expert for itself:
    /// [`moe`](Self::moe) is for many tokens.
    ///
    /// # Panics
    ///
    /// When k or E is 0, the rows are odd, `cols` is 0 or (of MXFP4) no multiple of 32, a length is not what
    /// the shapes say, or (of MXFP4) x or the blocks do not begin at a multiple of 16 bytes.
    pub fn moe_gate_up(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: &CudaProjection<'_>,
        x: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        k: usize,
        swiglu: SwigluParams,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = w.shape;
        let t = self.check_routing(w, indices, k);
        assert!(rows.is_multiple_of(2), "rows of gate and up are {rows}");
        self.check_input(w, x, t);
        let (pairs, bias) = (indices.len(), &w.bias);
        assert_eq!(out.len(), elements([pairs, rows / 2]), "out");
        let (e, r, c, j) = (int(experts), int(rows), int(cols), int(k));
        match &w.weight {
            CudaExperts::Packed(packed) => {
                self.gate_up_direct(out, packed, w, x, indices, k, swiglu)
            }
            CudaExperts::Mxfp4 { blocks, scales } => {
                let kernel = self.kernel("moe", "moe_gate_up_mxfp4")?;
                let mut call = kernel.call();
                call.arg(out).arg(blocks).arg(scales).arg(bias).arg(x).arg(indices);
                call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&swiglu.alpha).arg(&swiglu.limit);
                let grid = [pairs, rows.div_ceil(ROWS), 1];
                // SAFETY: rows behind the last are read as the last and not written, and an expert is read
                // when it is below E; the lengths hold the rest, and wide loads are aligned.
                unsafe { kernel.launch(call, grid, team(cols)) }
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
    /// `w.shape.rows` is H; `a: [T·k, cols]`, `indices, weights: [T, k]`, `out: [T, H]`. Indices and
    /// invariance as in [`moe_gate_up`](Self::moe_gate_up).
    ///
    /// # Panics
    ///
    /// As [`moe_gate_up`](Self::moe_gate_up), but for the number of rows.
    pub fn moe_down(
        &self,
        out: &mut CudaViewMut<'_, f32>,
        w: &CudaProjection<'_>,
        a: &CudaView<'_, f32>,
        indices: &CudaView<'_, u32>,
        weights: &CudaView<'_, f32>,
        k: usize,
    ) -> Result<(), CudaError> {
        let ExpertShape { experts, rows, cols } = w.shape;
        let t = self.check_routing(w, indices, k);
        self.check_input(w, a, indices.len());
        let bias = &w.bias;
        assert_eq!(weights.len(), indices.len(), "weights");
        assert_eq!(out.len(), elements([t, rows]), "out");
        let (e, r, c, j) = (int(experts), int(rows), int(cols), int(k));
        match &w.weight {
            CudaExperts::Packed(packed) => self.down_direct(out, packed, w, a, indices, weights, k),
            CudaExperts::Mxfp4 { blocks, scales } => {
                let team = team(cols);
                let (threads, of_team) = (team * k.min(MOST_THREADS / team), int(team));
                let kernel = self.kernel("moe", "moe_down_mxfp4")?;
                let mut call = kernel.call();
                call.arg(out).arg(blocks).arg(scales).arg(bias).arg(a).arg(indices).arg(weights);
                call.arg(&e).arg(&r).arg(&c).arg(&j).arg(&of_team);
                // SAFETY: as in moe_gate_up.
                unsafe { kernel.launch(call, [t, rows.div_ceil(ROWS), 1], threads) }
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

    /// Tokens of a routing of `w`'s experts, which fit their shape.
    fn check_routing(
        &self,
        w: &CudaProjection<'_>,
        indices: &CudaView<'_, u32>,
        k: usize,
    ) -> usize {
        let (shape, stream) = (w.shape, self.stream());
        let ExpertShape { experts, rows, cols } = shape;
        assert!(k > 0 && indices.len().is_multiple_of(k), "indices");
        assert!(experts > 0 && cols > 0, "{shape:?} is empty");
        assert_eq!(w.bias.len(), elements([experts, rows]), "bias");
        let n = elements([experts, rows, cols]);
        let blocks = match &w.weight {
            CudaExperts::Packed(packed) => {
                let bytes = Packing::of(shape).map(Packing::bytes);
                assert_eq!(Some(packed.len()), bytes, "packed");
                packed.device_ptr(stream).0
            }
            CudaExperts::Mxfp4 { blocks, scales } => {
                assert!(cols.is_multiple_of(MXFP4_BLOCK), "cols is {cols}, no multiple of 32");
                let lengths = (blocks.len(), scales.len());
                assert_eq!(lengths, (n / 2, n / MXFP4_BLOCK), "blocks, scales");
                blocks.device_ptr(stream).0
            }
            CudaExperts::Bf16(weight) => {
                assert_eq!(weight.len(), n, "weight");
                0
            }
        };
        assert!(blocks.is_multiple_of(16), "blocks or x not aligned");
        indices.len() / k
    }

    /// What a projection reads has `t` rows.
    fn check_input(&self, w: &CudaProjection<'_>, x: &CudaView<'_, f32>, t: usize) {
        assert_eq!(x.len(), elements([t, w.shape.cols]), "x");
        let aligned = x.device_ptr(self.stream()).0.is_multiple_of(16);
        assert!(aligned || matches!(w.weight, CudaExperts::Bf16(_)), "blocks or x not aligned");
    }
}
