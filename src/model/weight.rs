//! Weights where the engine reads them: in the mapped files and in host memory.

use crate::Result;
use crate::kernels::cpu::Cpu;
use crate::kernels::{Dense, ExpertShape, Experts, Q8_BLOCK};
use crate::ops::{ExpertMatrices, ExpertProjection, Matrix, Slice};
use crate::weights::{Checkpoint, ExpertTensors, StoredTensor};
use half::bf16;

/// A norm, a bias or sinks.
pub(super) enum Vector {
    Host(Vec<f32>),
}

impl Vector {
    pub(super) fn slice(&self) -> Slice<'_, f32> {
        match self {
            Vector::Host(values) => Slice::Host(values),
        }
    }
}

/// BF16 numbers as stored: the embedding, a dense matrix, the experts' biases.
pub(super) enum Bf16Weight {
    Stored(StoredTensor),
}

impl Bf16Weight {
    pub(super) fn slice(&self) -> Slice<'_, bf16> {
        match self {
            Bf16Weight::Stored(weight) => Slice::Host(weight.bf16()),
        }
    }
}

/// A dense matrix `[rows, cols]`: as stored, or held in 8 bits.
pub(super) enum DenseWeight {
    Bf16(Bf16Weight),
    Q8 { quants: Vec<i8>, scales: Vec<bf16> },
}

impl DenseWeight {
    /// From stored to 8 bits, unless rows of `cols` are not whole blocks.
    pub(super) fn quantize(&mut self, cpu: &Cpu, cols: usize) {
        if let DenseWeight::Bf16(Bf16Weight::Stored(stored)) = self
            && cols.is_multiple_of(Q8_BLOCK)
        {
            let stored = stored.bf16();
            let mut quants = vec![0; stored.len()];
            let mut scales = vec![bf16::ZERO; stored.len() / Q8_BLOCK];
            cpu.q8_encode(&mut quants, &mut scales, stored);
            *self = DenseWeight::Q8 { quants, scales };
        }
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        match self {
            DenseWeight::Bf16(weight) => weight.slice().into(),
            DenseWeight::Q8 { quants, scales } => Matrix::Host(Dense::Q8 { quants, scales }),
        }
    }
}

/// One projection of a layer's experts, as stored.
pub(super) struct ExpertWeights {
    weight: ExpertTensors,
    bias: Bf16Weight, // [E, rows]
    shape: ExpertShape,
}

impl ExpertWeights {
    /// `projection` of `layer`: E matrices `[rows, cols]`.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        layer: usize,
        projection: &str,
        shape: ExpertShape,
    ) -> Result<ExpertWeights> {
        let bias = format!("model.layers.{layer}.mlp.experts.{projection}_bias");
        Ok(ExpertWeights {
            weight: checkpoint.experts(layer, projection, shape.rows, shape.cols)?,
            bias: Bf16Weight::Stored(checkpoint.bf16(&bias, &[shape.experts, shape.rows])?),
            shape,
        })
    }

    pub(super) fn projection(&self) -> ExpertProjection<'_> {
        let weight = match &self.weight {
            ExpertTensors::Mxfp4 { blocks, scales } => {
                Experts::Mxfp4 { blocks: blocks.bytes(), scales: scales.bytes() }
            }
            ExpertTensors::Bf16(weight) => Experts::Bf16(weight.bf16()),
        };
        ExpertProjection {
            weight: ExpertMatrices::Host(weight),
            bias: self.bias.slice(),
            shape: self.shape,
        }
    }
}
