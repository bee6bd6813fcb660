//! The pieces of the graph that candle's own differentiable ops are slow at, each with its gradient:
//! norm, rotation, matrices per expert, clamped SwiGLU; attention has a file of its own. Everything is
//! f32 and plain loops.
//!
//! The formulas are those of `src/kernels/reference`; the gradients follow from them by hand and are
//! held to differences of the forward pass in tests/train_tiny.rs.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail,
};
use std::sync::Arc;

/// The numbers of a contiguous f32 tensor.
pub(crate) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(all)) => Ok(&all[start..end]),
        _ => bail!("expected a contiguous f32 tensor, found {:?}", layout.shape()),
    }
}

pub(crate) fn vec(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// `y = w · x / √(mean(x²) + eps)` over rows `x [N, D]`, `w [D]` (Zhang and Sennrich 2019, arXiv
/// 1910.07467).
pub struct RmsNorm {
    pub eps: f32,
}

impl RmsNorm {
    fn inverse(&self, row: &[f32]) -> f32 {
        let mean = dot(row, row) / row.len() as f32;
        1.0 / (mean + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (numbers(x, x_layout)?, numbers(w, w_layout)?);
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let inverse = self.inverse(row);
            y.extend(row.iter().zip(w).map(|(x, w)| x * inverse * w));
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (vec(x)?, vec(w)?, vec(gradient)?);
        let width = ws.len();
        let (mut dx, mut dw) = (Vec::with_capacity(xs.len()), vec![0f32; width]);
        for (x, g) in xs.chunks_exact(width).zip(gs.chunks_exact(width)) {
            let inverse = self.inverse(x);
            let dot: f32 = x.iter().zip(g).zip(&ws).map(|((x, g), w)| x * g * w).sum();
            let shrink = dot * inverse * inverse / width as f32;
            for (((x, g), w), dw) in x.iter().zip(g).zip(&ws).zip(&mut dw) {
                dx.push(inverse * (g * w - x * shrink));
                *dw += g * x * inverse;
            }
        }
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(dw, w.shape(), device)?),
        ))
    }
}

/// Cosine and sine of every row's angles, `[N, D/2]`; negated sines turn the other way.
#[derive(Clone)]
pub struct Rotation {
    pub cos: Arc<Vec<f32>>,
    pub sin: Arc<Vec<f32>>,
    pub half: usize, // D/2
    pub sign: f32,
}

/// Rotates pairs `(x_i, x_{i + D/2})` of each head of `x [N, H·D]` (Su et al. 2021, arXiv 2104.09864,
/// in the half-split form of gpt-oss).
impl CustomOp1 for Rotation {
    fn name(&self) -> &'static str {
        "rotation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(x, layout)?;
        let half = self.half;
        let width = layout.shape().dims2()?.1;
        let mut y = vec![0f32; x.len()];
        for (n, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let (cos, sin) = (&self.cos[n * half..][..half], &self.sin[n * half..][..half]);
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
                for i in 0..half {
                    let sin = self.sign * sin[i];
                    y1[i] = x1[i] * cos[i] - x2[i] * sin;
                    y2[i] = x2[i] * cos[i] + x1[i] * sin;
                }
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotation { sign: -self.sign, ..self.clone() };
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// Row i of `x [M, W]` times the matrix of its expert, and its bias: `matrices [E, R, W]`, `biases
/// [E, R]` to `[M, R]`; `counts[e]` rows for expert e, in order.
pub struct PerExpert {
    pub counts: Vec<usize>,
}

impl PerExpert {
    /// Each expert that has rows, and which.
    fn spans(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let starts = self.counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end - count)
        });
        let spans = starts.zip(&self.counts).enumerate();
        spans.map(|(expert, (start, count))| (expert, start, *count)).filter(|span| span.2 > 0)
    }
}

impl CustomOp3 for PerExpert {
    fn name(&self) -> &'static str {
        "per-expert"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        matrices: &CpuStorage,
        matrices_layout: &Layout,
        biases: &CpuStorage,
        biases_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, rows, width) = matrices_layout.shape().dims3()?;
        let x = numbers(x, x_layout)?;
        let (matrices, biases) =
            (numbers(matrices, matrices_layout)?, numbers(biases, biases_layout)?);
        let mut out = Vec::with_capacity(x.len() / width * rows);
        for (expert, start, count) in self.spans() {
            let x = Tensor::from_slice(
                &x[start * width..][..count * width],
                (count, width),
                &Device::Cpu,
            )?;
            let matrix = &matrices[expert * rows * width..][..rows * width];
            let matrix = Tensor::from_slice(matrix, (rows, width), &Device::Cpu)?;
            let bias = &biases[expert * rows..][..rows];
            for y in vec(&x.matmul(&matrix.t()?)?)?.chunks_exact(rows) {
                out.extend(y.iter().zip(bias).map(|(y, b)| y + b));
            }
        }
        Ok((CpuStorage::F32(out), (x.len() / width, rows).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        matrices: &Tensor,
        biases: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (x, matrices, gradient) = (x.detach(), matrices.detach(), gradient.contiguous()?);
        let (experts, rows, width) = matrices.dims3()?;
        let mut dx = Vec::with_capacity(x.elem_count());
        let mut d_matrices = vec![0f32; experts * rows * width];
        let mut d_biases = vec![0f32; experts * rows];
        for (expert, start, count) in self.spans() {
            let dy = gradient.narrow(0, start, count)?;
            dx.extend(vec(&dy.matmul(&matrices.get(expert)?)?)?);
            let d = vec(&dy.t()?.matmul(&x.narrow(0, start, count)?)?)?;
            d_matrices[expert * rows * width..][..d.len()].copy_from_slice(&d);
            let d_bias = &mut d_biases[expert * rows..][..rows];
            for dy in vec(&dy)?.chunks_exact(rows) {
                d_bias.iter_mut().zip(dy).for_each(|(d, dy)| *d += dy);
            }
        }
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(d_matrices, matrices.shape(), device)?),
            Some(Tensor::from_vec(d_biases, biases.shape(), device)?),
        ))
    }
}

/// `g·σ(alpha·g)·(u + 1)` of interleaved `h [N, 2I]`: `g = min(h[2i], limit)`,
/// `u = clamp(h[2i+1], ±limit)`.
pub struct SwiGlu {
    pub alpha: f32,
    pub limit: f32,
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let pair = |[gate, up]: &[f32; 2]| {
            let (g, u) = (gate.min(self.limit), up.clamp(-self.limit, self.limit));
            g * sigmoid(self.alpha * g) * (u + 1.0)
        };
        let activated = numbers(h, layout)?.as_chunks().0.iter().map(pair).collect();
        Ok((CpuStorage::F32(activated), (rows, width / 2).into()))
    }

    fn bwd(&self, h: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (hs, gs) = (vec(h)?, vec(gradient)?);
        let mut d = Vec::with_capacity(hs.len());
        for ([gate, up], dy) in hs.as_chunks().0.iter().zip(&gs) {
            let (g, u) = (gate.min(self.limit), up.clamp(-self.limit, self.limit));
            let s = sigmoid(self.alpha * g);
            let inside = |x: f32, low: f32| if (low..=self.limit).contains(&x) { 1.0 } else { 0.0 };
            let d_gate = s * (1.0 + self.alpha * g * (1.0 - s)) * (u + 1.0);
            d.push(dy * d_gate * inside(*gate, f32::NEG_INFINITY));
            d.push(dy * g * s * inside(*up, -self.limit));
        }
        Ok(Some(Tensor::from_vec(d, h.shape(), h.device())?))
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Lanes that sums are spread over, so that they compile to vector code.
const LANES: usize = 16;

pub(crate) fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    chunks.iter().for_each(|x| (0..LANES).for_each(|i| lanes[i] += x[i]));
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    xs.iter().zip(ys).for_each(|(x, y)| (0..LANES).for_each(|i| lanes[i] += x[i] * y[i]));
    lanes.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// `e^x` to a few units in the last place, in a form that compiles to vector code: the library
/// function is called once per number and takes a third of the training time.
pub(crate) fn exp(x: f32) -> f32 {
    // 2^n · e^r with |r| ≤ ln 2 / 2; a Taylor polynomial of degree 6 leaves 2e-8 there.
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0; // rounds to whole
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let polynomial = terms.into_iter().fold(0.0, |sum, term| sum * r + term);
    polynomial * f32::from_bits(((n as i32 + 127) << 23) as u32)
}
