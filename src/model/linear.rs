//! [`Linear`]: a dense projection, its weight left as stored.

use crate::kernels::cpu::Cpu;
use crate::weights::{Checkpoint, StoredTensor};
use crate::{Result, ops};
use candle_core::Tensor;

/// `x · Wᵀ + b` with `W: [rows, cols]` in BF16.
pub(super) struct Linear {
    weight: StoredTensor,
    bias: Option<Vec<f32>>,
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
        let bias = checkpoint.f32(&format!("{name}.bias"), &[rows])?;
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
        Ok(Linear { weight, bias: None, rows, cols })
    }

    /// `x: [T, cols]` to `[T, rows]`.
    pub(super) fn forward(&self, x: &Tensor, cpu: &Cpu) -> Result<Tensor> {
        let (weight, bias) = (self.weight.bf16(), self.bias.as_deref());
        Ok(ops::matmul(cpu, x, weight, bias, self.rows, self.cols)?)
    }
}
