//! Weights where the engine reads them: in the mapped files and in host memory, or on a device.

use crate::Result;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{Upload, cudarc::driver::CudaSlice};
use crate::kernels::{Dense, ExpertShape, Experts, Q8_BLOCK};
use crate::ops::{ExpertMatrices, ExpertProjection, Matrix, Slice};
use crate::weights::{Checkpoint, ExpertTensors, StoredTensor};
use half::bf16;

/// A norm, a bias or sinks.
pub(super) enum Vector {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(CudaSlice<f32>),
}

impl Vector {
    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        if let Vector::Host(values) = self {
            *self = Vector::Cuda(to.copy(values)?);
        }
        Ok(())
    }

    pub(super) fn slice(&self) -> Slice<'_, f32> {
        match self {
            Vector::Host(values) => Slice::Host(values),
            #[cfg(feature = "cuda")]
            Vector::Cuda(values) => Slice::Cuda(values),
        }
    }
}

/// BF16 numbers as stored: the embedding, a dense matrix, the experts' biases.
pub(super) enum Bf16Weight {
    Stored(StoredTensor),
    #[cfg(feature = "cuda")]
    Cuda(CudaSlice<bf16>),
}

impl Bf16Weight {
    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        if let Bf16Weight::Stored(weight) = self {
            *self = Bf16Weight::Cuda(to.copy(weight.bf16())?);
        }
        Ok(())
    }

    pub(super) fn slice(&self) -> Slice<'_, bf16> {
        match self {
            Bf16Weight::Stored(weight) => Slice::Host(weight.bf16()),
            #[cfg(feature = "cuda")]
            Bf16Weight::Cuda(weight) => Slice::Cuda(weight),
        }
    }
}

/// A dense matrix `[rows, cols]`: as stored, or held in 8 bits.
pub(super) enum DenseWeight {
    Bf16(Bf16Weight),
    Q8 {
        quants: Vec<i8>,
        scales: Vec<bf16>,
    },
    #[cfg(feature = "cuda")]
    CudaQ8 {
        quants: CudaSlice<i8>,
        scales: CudaSlice<bf16>,
    },
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

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        match self {
            DenseWeight::Bf16(weight) => weight.upload(to)?,
            DenseWeight::Q8 { quants, scales } => {
                let (quants, scales) = (to.copy(quants)?, to.copy(scales)?);
                *self = DenseWeight::CudaQ8 { quants, scales };
            }
            DenseWeight::CudaQ8 { .. } => {}
        }
        Ok(())
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        match self {
            DenseWeight::Bf16(weight) => weight.slice().into(),
            DenseWeight::Q8 { quants, scales } => Matrix::Host(Dense::Q8 { quants, scales }),
            #[cfg(feature = "cuda")]
            DenseWeight::CudaQ8 { quants, scales } => Matrix::CudaQ8(quants, scales),
        }
    }
}

/// The matrices of one projection of a layer's experts: as stored, or packed on a device.
enum ExpertWeight {
    Stored(ExpertTensors),
    #[cfg(feature = "cuda")]
    CudaPacked(CudaSlice<u8>),
    #[cfg(feature = "cuda")]
    CudaMxfp4(CudaSlice<u8>, CudaSlice<u8>),
    #[cfg(feature = "cuda")]
    CudaBf16(CudaSlice<bf16>),
}

/// One projection of a layer's experts.
pub(super) struct ExpertWeights {
    weight: ExpertWeight,
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
            weight: ExpertWeight::Stored(
                checkpoint.experts(layer, projection, shape.rows, shape.cols)?,
            ),
            bias: Bf16Weight::Stored(checkpoint.bf16(&bias, &[shape.experts, shape.rows])?),
            shape,
        })
    }

    #[cfg(feature = "cuda")]
    pub(super) fn upload(&mut self, to: &mut Upload<'_>) -> Result<()> {
        if let ExpertWeight::Stored(weight) = &self.weight {
            self.weight = match weight {
                ExpertTensors::Mxfp4 { blocks, scales } => {
                    let (blocks, scales) = (blocks.bytes(), scales.bytes());
                    match to.packed(blocks, scales, self.shape)? {
                        Some(packed) => ExpertWeight::CudaPacked(packed),
                        None => ExpertWeight::CudaMxfp4(to.copy(blocks)?, to.copy(scales)?),
                    }
                }
                ExpertTensors::Bf16(weight) => ExpertWeight::CudaBf16(to.copy(weight.bf16())?),
            };
        }
        self.bias.upload(to)
    }

    pub(super) fn projection(&self) -> ExpertProjection<'_> {
        let weight = match &self.weight {
            ExpertWeight::Stored(ExpertTensors::Mxfp4 { blocks, scales }) => {
                let (blocks, scales) = (blocks.bytes(), scales.bytes());
                ExpertMatrices::Host(Experts::Mxfp4 { blocks, scales })
            }
            ExpertWeight::Stored(ExpertTensors::Bf16(weight)) => {
                ExpertMatrices::Host(Experts::Bf16(weight.bf16()))
            }
            #[cfg(feature = "cuda")]
            ExpertWeight::CudaPacked(packed) => ExpertMatrices::CudaPacked(packed),
            #[cfg(feature = "cuda")]
            ExpertWeight::CudaMxfp4(blocks, scales) => ExpertMatrices::CudaMxfp4(blocks, scales),
            #[cfg(feature = "cuda")]
            ExpertWeight::CudaBf16(weight) => ExpertMatrices::CudaBf16(weight),
        };
        ExpertProjection { weight, bias: self.bias.slice(), shape: self.shape }
    }
}
