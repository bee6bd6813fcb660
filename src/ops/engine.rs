//! Where a model runs, and the weights that its ops read there.

use crate::kernels::cpu::Cpu;
use crate::kernels::{Dense, Experts};
use candle_core::Result;
use half::bf16;

/// The kernels a model runs on. Its tensors live where these compute.
pub(crate) enum Engine {
    /// The cores of this machine; weights are slices of host memory.
    Cpu(Cpu),
}

impl Engine {
    /// The kernels for tensors in host memory.
    pub(super) fn cpu(&self) -> Result<&Cpu> {
        match self {
            Engine::Cpu(cpu) => Ok(cpu),
        }
    }
}

/// Numbers that an op reads beside its tensors, where the model keeps them.
pub(crate) enum Slice<'a, T> {
    /// In host memory.
    Host(&'a [T]),
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl<'a, T> Slice<'a, T> {
    pub(super) fn host(self) -> Result<&'a [T]> {
        match self {
            Slice::Host(slice) => Ok(slice),
        }
    }
}

/// A dense matrix `[rows, cols]`, where the model keeps it.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    /// In host memory.
    Host(Dense<'a>),
}

impl<'a> From<Slice<'a, bf16>> for Matrix<'a> {
    fn from(weight: Slice<'a, bf16>) -> Matrix<'a> {
        match weight {
            Slice::Host(weight) => Matrix::Host(Dense::Bf16(weight)),
        }
    }
}

impl<'a> Matrix<'a> {
    pub(super) fn host(self) -> Result<Dense<'a>> {
        match self {
            Matrix::Host(weight) => Ok(weight),
        }
    }
}

/// The expert matrices of one projection of one layer, where the model keeps them.
#[derive(Clone, Copy)]
pub(crate) enum ExpertMatrices<'a> {
    /// In host memory.
    Host(Experts<'a>),
}

impl<'a> ExpertMatrices<'a> {
    pub(super) fn host(self) -> Result<Experts<'a>> {
        match self {
            ExpertMatrices::Host(weight) => Ok(weight),
        }
    }
}
