//! Where a model runs, and the weights that its ops read there.

#[cfg(feature = "cuda")]
use crate::kernels::Activations;
use crate::kernels::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{self, Cuda, cudarc::driver::CudaSlice, cudarc::driver::CudaView};
use crate::kernels::{Dense, Experts};
use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, bail};
use half::bf16;

/// The kernels a model runs on. Its tensors live where these compute.
pub(crate) enum Engine {
    /// The cores of this machine; weights are slices of host memory.
    Cpu(Cpu),
    /// An NVIDIA GPU; weights are in its memory. Results are made on this stream of it.
    #[cfg(feature = "cuda")]
    Cuda(Cuda, CudaDevice),
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Engine::Cpu(cpu) => {
                f.write_str(&format!("{:?} x {}", cpu.isa(), cpu.threads()).to_lowercase())
            }
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda, _) => {
                let context = cuda.stream().context();
                let name = context.name().unwrap_or_else(|_| "a GPU".into());
                let (major, minor) = context.compute_capability().unwrap_or_default();
                write!(f, "cuda:{} {name} {major}.{minor}", context.ordinal())
            }
        }
    }
}

impl Engine {
    /// The kernels on the stream of `device`.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(
        device: &CudaDevice,
        activations: Activations,
    ) -> std::result::Result<Engine, cuda::CudaError> {
        let cuda = Cuda::new(device.cuda_stream(), device.cublas_handle())?;
        Ok(Engine::Cuda(cuda.with_activations(activations), device.clone()))
    }

    /// The kernels for tensors in host memory.
    pub(crate) fn cpu(&self) -> Result<&Cpu> {
        match self {
            Engine::Cpu(cpu) => Ok(cpu),
            #[cfg(feature = "cuda")]
            Engine::Cuda(..) => bail!("the model is on a CUDA device, a tensor in host memory"),
        }
    }

    /// Where results of those kernels are made.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda_device(&self) -> Result<&CudaDevice> {
        match self {
            Engine::Cpu(_) => bail!("the model is in host memory, a tensor on a CUDA device"),
            Engine::Cuda(_, device) => Ok(device),
        }
    }

    /// The kernels for tensors on a CUDA device.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&self) -> Result<&Cuda> {
        match self {
            Engine::Cpu(_) => bail!("the model is in host memory, a tensor on a CUDA device"),
            Engine::Cuda(cuda, _) => Ok(cuda),
        }
    }
}

/// Numbers that an op reads beside its tensors, where the model keeps them.
pub(crate) enum Slice<'a, T> {
    /// In host memory.
    Host(&'a [T]),
    /// On a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(&'a CudaSlice<T>),
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
            #[cfg(feature = "cuda")]
            Slice::Cuda(_) => bail!("weights on a CUDA device, a tensor in host memory"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn cuda(self) -> Result<CudaView<'a, T>> {
        match self {
            Slice::Host(_) => bail!("weights in host memory, a tensor on a CUDA device"),
            Slice::Cuda(slice) => Ok(slice.as_view()),
        }
    }
}

/// A dense matrix `[rows, cols]`, where the model keeps it.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    /// In host memory.
    Host(Dense<'a>),
    /// BF16 on a CUDA device.
    #[cfg(feature = "cuda")]
    CudaBf16(&'a CudaSlice<bf16>),
    /// In 8 bits on a CUDA device: quants and scales.
    #[cfg(feature = "cuda")]
    CudaQ8(&'a CudaSlice<i8>, &'a CudaSlice<bf16>),
}

impl<'a> From<Slice<'a, bf16>> for Matrix<'a> {
    fn from(weight: Slice<'a, bf16>) -> Matrix<'a> {
        match weight {
            Slice::Host(weight) => Matrix::Host(Dense::Bf16(weight)),
            #[cfg(feature = "cuda")]
            Slice::Cuda(weight) => Matrix::CudaBf16(weight),
        }
    }
}

impl<'a> Matrix<'a> {
    pub(super) fn host(self) -> Result<Dense<'a>> {
        match self {
            Matrix::Host(weight) => Ok(weight),
            #[cfg(feature = "cuda")]
            _ => bail!("weights on a CUDA device, a tensor in host memory"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn cuda(self) -> Result<cuda::CudaDense<'a>> {
        match self {
            Matrix::Host(_) => bail!("weights in host memory, a tensor on a CUDA device"),
            Matrix::CudaBf16(weight) => Ok(cuda::CudaDense::Bf16(weight.as_view())),
            Matrix::CudaQ8(quants, scales) => {
                Ok(cuda::CudaDense::Q8 { quants: quants.as_view(), scales: scales.as_view() })
            }
        }
    }
}

/// The expert matrices of one projection of one layer, where the model keeps them.
#[derive(Clone, Copy)]
pub(crate) enum ExpertMatrices<'a> {
    /// In host memory.
    Host(Experts<'a>),
    /// MXFP4 on a CUDA device, packed.
    #[cfg(feature = "cuda")]
    CudaPacked(&'a CudaSlice<u8>),
    /// MXFP4 on a CUDA device as stored: blocks and scales.
    #[cfg(feature = "cuda")]
    CudaMxfp4(&'a CudaSlice<u8>, &'a CudaSlice<u8>),
    /// BF16 on a CUDA device.
    #[cfg(feature = "cuda")]
    CudaBf16(&'a CudaSlice<bf16>),
}

impl<'a> ExpertMatrices<'a> {
    pub(super) fn host(self) -> Result<Experts<'a>> {
        match self {
            ExpertMatrices::Host(weight) => Ok(weight),
            #[cfg(feature = "cuda")]
            _ => bail!("weights on a CUDA device, a tensor in host memory"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn cuda(self) -> Result<cuda::CudaExperts<'a>> {
        match self {
            ExpertMatrices::Host(_) => bail!("weights in host memory, a tensor on a CUDA device"),
            ExpertMatrices::CudaPacked(packed) => Ok(cuda::CudaExperts::Packed(packed.as_view())),
            ExpertMatrices::CudaMxfp4(blocks, scales) => {
                Ok(cuda::CudaExperts::Mxfp4 { blocks: blocks.as_view(), scales: scales.as_view() })
            }
            ExpertMatrices::CudaBf16(weight) => Ok(cuda::CudaExperts::Bf16(weight.as_view())),
        }
    }
}
