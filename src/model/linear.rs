//! [`Linear`]: a dense projection, its weight left as stored or held in 8 bits.

use crate::kernels::cpu::Cpu;
use crate::kernels::{Dense, Q8_BLOCK};
use crate::weights::{Checkpoint, StoredTensor};
use crate::{Result, ops};
use candle_core::Tensor;
use half::bf16;

/// `x · Wᵀ + b` with `W: [rows, cols]`.
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
    rows: usize,
    cols: usize,
}

enum Weight {
    Stored(StoredTensor),
    Q8 { quants: Vec<i8>, scales: Vec<bf16> },
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
        Ok(Linear { weight: Weight::Stored(weight), bias: None, rows, cols })
    }

    /// Holds the weight in 8 bits from here on, unless its rows are not whole blocks.
    pub(super) fn quantize(&mut self, cpu: &Cpu) {
        if let Weight::Stored(stored) = &self.weight
            && self.cols.is_multiple_of(Q8_BLOCK)
        {
            let stored = stored.bf16();
            let mut quants = vec![0; stored.len()];
            let mut scales = vec![bf16::ZERO; stored.len() / Q8_BLOCK];
            cpu.q8_encode(&mut quants, &mut scales, stored);
            self.weight = Weight::Q8 { quants, scales };
        }
    }

    /// `x: [T, cols]` to `[T, rows]`.
    pub(super) fn forward(&self, x: &Tensor, cpu: &Cpu) -> Result<Tensor> {
        let weight = match &self.weight {
            Weight::Stored(weight) => Dense::Bf16(weight.bf16()),
            Weight::Q8 { quants, scales } => Dense::Q8 { quants, scales },
        };
        Ok(ops::matmul(cpu, x, weight, self.bias.as_deref(), self.rows, self.cols)?)
    }
}
