//! What the CUDA halves of the ops share: views of tensors on a device, and results made there.

use crate::kernels::cuda::CudaError;
use crate::kernels::cuda::cudarc::driver::{CudaView, CudaViewMut, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, Layout, Result, Storage, Tensor,
    bail,
};
use std::cell::Cell;

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Error {
        Error::Cuda(Box::new(error))
    }
}

impl From<CudaError> for crate::Error {
    fn from(error: CudaError) -> crate::Error {
        let message = format!("the device failed: {error}");
        crate::Error::new(crate::ErrorKind::Device, message).with_source(error)
    }
}

/// The elements of a contiguous tensor on a device.
pub(super) fn view<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

/// The elements of a contiguous tensor on a device, to be written.
pub(super) fn view_mut<'a, T: CudaDType>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
) -> Result<CudaViewMut<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice_mut::<T>()?.slice_mut(start..end)),
        None => bail!("expected a contiguous tensor, found {layout:?}"),
    }
}

/// The storage of a tensor that stands beside those which candle hands over.
pub(super) fn on_device(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("expected a tensor on a CUDA device, found one elsewhere"),
    }
}

/// `n` values on `device`, every one of which `fill` writes.
pub(super) fn output<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    n: usize,
    fill: impl FnOnce(&mut CudaViewMut<'_, T>) -> std::result::Result<(), CudaError>,
) -> Result<CudaStorage> {
    // SAFETY: the kernel that fills them comes before any that reads them, on the device's one stream.
    let mut out = unsafe { device.alloc::<T>(n)? };
    fill(&mut out.as_view_mut())?;
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// `n` words on `device`, which a kernel fills before another reads them.
pub(super) fn words_to_fill(device: &Device, n: usize) -> Result<Tensor> {
    // SAFETY: as for `output`, and any bits are a word.
    unsafe { Tensor::empty(n, DType::U32, device) }
}

/// Gives `f` a tensor on a device to be written, inside an op that changes another one.
pub(super) fn change<F>(tensor: &Tensor, f: F) -> Result<()>
where
    F: FnOnce(&mut CudaStorage, &Layout) -> Result<()>,
{
    tensor.inplace_op1(&Change(Cell::new(Some(f))))
}

struct Change<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut CudaStorage, &Layout) -> Result<()>> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("expected a tensor on a CUDA device, found one in host memory")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.0.take().map_or(Ok(()), |f| f(storage, layout))
    }
}

/// The f32 whose bits these are.
pub(super) fn floats<'a>(bits: &CudaView<'a, u32>) -> CudaView<'a, f32> {
    // SAFETY: every u32 is the bits of an f32, and both are four bytes wide and aligned alike.
    unsafe { bits.transmute(bits.len()) }.expect("the same number of bytes")
}

/// The u64 whose halves these are, the lower first.
pub(super) fn longs<'a>(halves: &CudaView<'a, u32>) -> CudaView<'a, u64> {
    // SAFETY: every pair of u32 is the bits of a u64; its alignment is the caller's, and a kernel that
    // reads it otherwise fails.
    unsafe { halves.transmute(halves.len() / 2) }.expect("no more bytes")
}

/// The u64 whose halves these are, to be written; see [`longs`].
pub(super) fn longs_mut<'a>(halves: &'a mut CudaViewMut<'_, u32>) -> CudaViewMut<'a, u64> {
    let n = halves.len() / 2;
    // SAFETY: as in `longs`, and every u64 is two u32.
    unsafe { halves.transmute_mut(n) }.expect("no more bytes")
}

/// The f32 whose bits these are, to be written.
pub(super) fn floats_mut<'a>(bits: &'a mut CudaViewMut<'_, u32>) -> CudaViewMut<'a, f32> {
    let n = bits.len();
    // SAFETY: as in `floats`, and every f32 is the bits of a u32.
    unsafe { bits.transmute_mut(n) }.expect("the same number of bytes")
}
