//! [`Linear`]: a dense projection.

use super::weight::{Bf16Weight, DenseWeight, Vector};
use crate::Result;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Upload;
use crate::ops::{self, Engine, Projection};
use crate::weights::Checkpoint;
use candle_core::Tensor;

/// `x · Wᵀ + b` with `W: [rows, cols]`.
pub(super) struct Linear {
    weight: DenseWeight,
    bias: Option<Vector>,
    rows: usize,
    cols: usize,
}

impl Linear {
    /// `{name}.weight` and `{name}.bias` of `checkpoint`.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear> {
        let bias = Vector::Host(checkpoint.f32(&format!("{name}.bias"), &[rows])?);
        Ok(Linear { bias: Some(bias), ..Linear::without_bias(checkpoint, name, rows, cols)? })
    }

    /// `{name}.weight` of `checkpoint`.
    pub(super) fn without_bias(
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear> {
        let weight = checkpoint.bf16(&format!("{name}.weight"), &[rows, cols])?;
        Ok(Linear { weight: DenseWeight::Bf16(Bf16Weight::Stored(weight)), bias: None, rows, cols })
    }

    /// Holds the weight in 8 bits from here on, unless its rows are not whole blocks.
    pub(super) fn quantize(&mut self, cpu: &Cpu) {
        self.weight.quantize(cpu, self.cols);
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        self.weight.upload(to)?;
        self.bias.as_mut().map_or(Ok(()), |bias| bias.upload(to))
    }

    /// `x: [T, cols]` to `[T, rows]`.
    pub(super) fn forward(&self, x: &Tensor, engine: &Engine) -> Result<Tensor> {
        Ok(ops::matmul(engine, x, self.projection())?)
    }

    pub(super) fn projection(&self) -> Projection<'_> {
        let bias = self.bias.as_ref().map(Vector::slice);
        Projection { weight: self.weight.matrix(), bias, rows: self.rows }
    }
}
